"""The tests' model server, as pydantic-ai's models for OpenAI's two APIs see it, and what it makes them raise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelServerError,
    ModelTimeoutError,
    ModelUnavailableError,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.support.model_server import (
    Answer,
    Calls,
    Closes,
    Fails,
    HalfABody,
    HalfAStream,
    ModelServer,
    Nonsense,
    NotJson,
    Says,
    Waits,
)
from tests.support.model_wire import Api
from tests.support.waiting import eventually

both_apis = pytest.mark.parametrize("api", ["chat", "responses"])


@asynccontextmanager
async def _agent(server: ModelServer, api: Api = "chat", *, path: str = "") -> AsyncIterator[Agent[None, str]]:
    """An agent whose model is the server's, and which does not ask again where that fails."""
    async with OpenAIProvider(base_url=server.url + path, api_key="test-key") as provider:
        model = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
        yield Agent(model("gpt-5", provider=provider), model_settings={"max_retries": 0})


@both_apis
async def test_it_echoes_and_keeps_what_it_was_asked(api: Api) -> None:
    before = asyncio.get_running_loop().time()
    async with ModelServer() as server, _agent(server, api) as agent:
        assert (await agent.run("hello")).output == "[hello]"
    (asked,) = server.asked
    assert (asked.api, asked.model, asked.api_key, asked.stream) == (api, "gpt-5", "test-key", False)
    assert before < asked.at < asyncio.get_running_loop().time()
    assert asked.body["model"] == "gpt-5"


@both_apis
async def test_it_gives_its_answers_in_turn_and_the_last_one_for_ever(api: Api) -> None:
    async with ModelServer.of(Says("a"), Says("b")) as server, _agent(server, api) as agent:
        assert [(await agent.run("?")).output for _ in range(4)] == ["a", "b", "b", "b"]
    assert server.connections == 1, "it keeps connections alive"


@both_apis
async def test_an_answer_s_tokens_are_the_run_s_usage(api: Api) -> None:
    async with ModelServer.of(Says("Paris", input_tokens=70, output_tokens=3)) as server, _agent(server, api) as agent:
        usage = (await agent.run("?")).usage
    assert (usage.requests, usage.input_tokens, usage.output_tokens) == (1, 70, 3)


@both_apis
async def test_history_and_instructions_read_alike(api: Api) -> None:
    async with ModelServer() as server, _agent(server, api) as agent:
        first = await agent.run("first")
        await agent.run("second", message_history=first.all_messages(), instructions=["Be brief.", "Be kind."])
    assert server.asked[0].instructions == ""
    assert server.asked[1].instructions == "Be brief.\n\nBe kind."
    assert server.asked[1].messages == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "[first]"},
        {"role": "user", "content": "second"},
    ]


@both_apis
async def test_tools_are_called_and_their_returns_are_seen(api: Api) -> None:
    calls = Calls(("add", {"a": 1, "b": 2}), ("add", '{"a": 3, "b": 4}', "given"), input_tokens=5, output_tokens=1)
    async with ModelServer.of(calls, Says("3 and 7")) as server, _agent(server, api) as agent:

        @agent.tool_plain
        def add(a: int, b: int) -> int:
            return a + b

        result = await agent.run("1 + 2 and 3 + 4?")

    assert result.output == "3 and 7"
    assert (result.usage.input_tokens, result.usage.output_tokens) == (15, 3)
    parts = [part for message in result.all_messages() for part in message.parts if isinstance(part, ToolCallPart)]
    generated, given = [part.tool_call_id for part in parts]
    assert given == "given"
    assert generated
    assert server.asked[0].tools == ["add"]
    assert [(message["role"], message["content"].replace(" ", "")) for message in server.asked[1].messages[1:]] == [
        ("call", 'add({"a":1,"b":2})'),
        ("call", 'add({"a":3,"b":4})'),
        ("tool", "3"),
        ("tool", "7"),
    ]


@both_apis
async def test_calls_that_are_repeated_have_ids_of_their_own(api: Api) -> None:
    async with (
        ModelServer.of(Calls(("ask", {})), Calls(("ask", {})), Says("x")) as server,
        _agent(server, api) as agent,
    ):

        @agent.tool_plain
        def ask() -> str:
            return "told"

        messages = (await agent.run("?")).all_messages()
    parts = [part for message in messages for part in message.parts if isinstance(part, ToolCallPart)]
    assert len({part.tool_call_id for part in parts}) == 2


@both_apis
async def test_text_that_is_no_valid_unicode_gets_through(api: Api) -> None:
    text = "a\ud800b\x00c"
    async with ModelServer.of(Says(text)) as server, _agent(server, api) as agent:
        assert (await agent.run("?")).output == text


@both_apis
@pytest.mark.parametrize(
    ("status", "category"),
    [
        (400, ModelRequestRejectedError),
        (401, ModelAuthenticationError),
        (402, ModelQuotaExceededError),
        (404, ModelNotFoundError),
        (429, ModelRateLimitError),
        (500, ModelServerError),
        (502, ModelServerError),
        (503, ModelUnavailableError),
    ],
)
async def test_a_provider_s_error_is_an_http_error_of_a_category(
    api: Api, status: int, category: type[ModelAPIError]
) -> None:
    async with ModelServer.of(Fails(status)) as server, _agent(server, api) as agent:
        with pytest.raises(category) as raised:
            await agent.run("?")
    error = raised.value
    assert isinstance(error, ModelHTTPError)
    assert (error.status_code, error.retry_after) == (status, None)
    assert error.body == {"message": "told to fail", "type": "told"}, "the SDK takes it out of `error`"
    assert len(server.asked) == 1


@both_apis
async def test_a_provider_says_when_to_try_again(api: Api) -> None:
    answer = Fails(429, "slow down", {"Retry-After": "7"})
    async with ModelServer.of(answer) as server, _agent(server, api) as agent:
        with pytest.raises(ModelRateLimitError) as raised:
            await agent.run("?")
    assert isinstance(raised.value, ModelHTTPError)
    assert (raised.value.status_code, raised.value.retry_after, raised.value.body) == (429, 7.0, "slow down")


@both_apis
@pytest.mark.parametrize("answer", [Closes(), HalfABody(), HalfAStream()])
async def test_a_lost_connection_is_a_connection_error_while_reading(api: Api, answer: Answer) -> None:
    async with ModelServer.of(answer) as server, _agent(server, api) as agent:
        with pytest.raises(ModelConnectionError) as raised:
            await agent.run("?")
    assert type(raised.value) is ModelConnectionError
    assert raised.value.phase == "read"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "from_chat", "from_responses"),
    [
        (Nonsense(), UnexpectedModelBehavior, TypeError),
        (Nonsense({"error": {"message": "overloaded"}}), UnexpectedModelBehavior, ModelAPIError),
        (NotJson(), UnexpectedModelBehavior, ModelAPIError),
        (NotJson(""), UnexpectedModelBehavior, ModelAPIError),
        (NotJson("<html>", "application/json"), ModelAPIError, ModelAPIError),
    ],
    ids=["JSON that is no answer", "an error with status 200", "HTML", "nothing", "HTML that claims to be JSON"],
)
async def test_what_is_no_answer_raises_differently_in_each_api(
    answer: Answer, from_chat: type[Exception], from_responses: type[Exception]
) -> None:
    apis: tuple[tuple[Api, type[Exception]], ...] = (("chat", from_chat), ("responses", from_responses))
    for api, expected in apis:
        async with ModelServer.of(answer) as server, _agent(server, api) as agent:
            with pytest.raises(expected) as raised:
                await agent.run("?")
        assert type(raised.value) is expected
        assert len(server.asked) == 1


async def test_a_stream_says_its_text_in_halves_and_its_usage() -> None:
    async with ModelServer.of(Says("Paris, of course", 70, 3)) as server, _agent(server) as agent:
        async with agent.run_stream("?") as result:
            assert [text async for text in result.stream_text(delta=True, debounce_by=None)] == ["Paris, o", "f course"]
        assert (result.usage.input_tokens, result.usage.output_tokens) == (70, 3)
    assert server.asked[0].stream


async def test_a_stream_calls_tools() -> None:
    calls = Calls(("ask", {"who": "a"}), ("ask", {"who": "b"}))
    async with ModelServer.of(calls, Says("told")) as server, _agent(server) as agent:
        heard: set[str] = set()

        @agent.tool_plain
        def ask(who: str) -> None:
            heard.add(who)

        async with agent.run_stream("?") as result:
            assert await result.get_output() == "told"
    assert heard == {"a", "b"}


async def test_a_stream_that_is_cut_is_a_connection_error_after_the_first_half() -> None:
    async with ModelServer.of(HalfAStream("Paris")) as server, _agent(server) as agent:
        with pytest.raises(ModelConnectionError) as raised:
            async with agent.run_stream("?") as result:
                texts = result.stream_text(delta=True, debounce_by=None)
                assert await anext(texts) == "Pa"
                await anext(texts)
    assert raised.value.phase == "read"
    assert not raised.value.in_stream, "that is for errors that the provider reports"


@pytest.mark.parametrize("answer", [Nonsense(), NotJson()])
async def test_a_stream_of_no_events_is_unexpected_behavior(answer: Answer) -> None:
    async with ModelServer.of(answer) as server, _agent(server) as agent:
        with pytest.raises(UnexpectedModelBehavior):
            async with agent.run_stream("?"):
                pass


async def test_responses_are_not_streamed() -> None:
    async with ModelServer() as server, _agent(server, "responses") as agent:
        with pytest.raises(ModelRequestRejectedError, match="does not stream responses"):
            async with agent.run_stream("?"):
                pass


@both_apis
async def test_an_answer_waits_for_an_event_while_others_are_given(api: Api) -> None:
    go = asyncio.Event()
    async with (
        ModelServer(lambda asked: Waits(go, Says("late")) if asked.prompt == "slow" else Says("now")) as server,
        _agent(server, api) as agent,
        asyncio.TaskGroup() as group,
    ):
        slow = group.create_task(agent.run("slow"))
        await eventually(lambda: server.under_way == 1)
        assert (await agent.run("fast")).output == "now"
        assert not slow.done()
        go.set()
        assert (await slow).output == "late"
    assert server.connections == 2


async def test_an_answer_waits_for_seconds_and_then_fails() -> None:
    async with ModelServer.of(Waits(0.01, Waits(0.01, Fails(500)))) as server, _agent(server) as agent:
        with pytest.raises(ModelServerError):
            await agent.run("?")


async def test_a_client_s_own_timeout_is_a_timeout_error() -> None:
    async with ModelServer.of(Waits(3600, Says("never"))) as server, _agent(server) as agent:
        with pytest.raises(ModelTimeoutError) as raised:
            await agent.run("?", model_settings={"timeout": 0.5})
        assert raised.value.phase == "read"
        await eventually(lambda: server.under_way == 0)


async def test_an_answer_does_not_outlast_its_client() -> None:
    async with ModelServer.of(Waits(3600, Says("never"))) as server, _agent(server) as agent:
        running = asyncio.create_task(agent.run("?"))
        await eventually(lambda: server.under_way == 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await eventually(lambda: server.under_way == 0)


async def test_closing_ends_what_is_under_way_and_leaves_no_task() -> None:
    tasks = asyncio.all_tasks()
    async with ModelServer.of(Waits(asyncio.Event(), Says("never"))) as server, _agent(server) as agent:
        running = asyncio.create_task(agent.run("?"))
        await eventually(lambda: server.under_way == 1)
        await server.close()
        with pytest.raises(ModelConnectionError):
            await running
        with pytest.raises(ModelConnectionError) as raised:
            await agent.run("?")
        assert raised.value.phase == "connect"
    assert asyncio.all_tasks() == tasks


async def test_a_mistake_in_the_test_s_answer_is_raised_at_the_end() -> None:
    scripted: dict[str, Answer] = {}
    with pytest.raises(KeyError, match="a question"):
        async with ModelServer(lambda asked: scripted[asked.prompt]) as server, _agent(server) as agent:
            with pytest.raises(ModelConnectionError):
                await agent.run("a question")


async def test_other_endpoints_are_not_found() -> None:
    async with ModelServer() as server, _agent(server, path="/wrong") as agent:
        with pytest.raises(ModelNotFoundError, match="no such endpoint"):
            await agent.run("?")
    assert server.asked == []
