"""What becomes of a turn when its models, tools or limits fail: the reply, what is stored, and the session after it.

One worker whose teams use OpenAI's two APIs, played by a server here: each session's answers are a script of its own.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import pytest_asyncio

from tests.acceptance.stage import Stage, json_of, staged
from tests.support.model_server import (
    Answer,
    Asked,
    Calls,
    Closes,
    Fails,
    HalfABody,
    ModelServer,
    Nonsense,
    NotJson,
    Says,
    Waits,
)
from tests.support.model_wire import completion, response
from tests.support.waiting import eventually
from worker.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]
Line = Answer | Callable[[Asked], Answer]
Script = Mapping[str, list[Line]]
"""What each model answers, one a request, and the last one for ever."""
NOBODY: Script = MappingProxyType({})
FINE = Says("fine")

TURN_TIMEOUT_SECONDS = 6
CREDENTIAL = "sk-the-teams-own-credential-4711"
TOOL_TEXT = "the-tools-own-secret-4712"
ACCOUNT = "org-whose-account-it-is-4713"
"""In the text of the provider's errors; neither it nor the credential may be seen anywhere, in any test."""

APIS = pytest.mark.parametrize("team", ["plain", "plain_responses"])
TARGETS = {"clerk": "agent_id", "line": "workflow_id"}
"""What is no team."""


class Models:
    """All models of all tests."""

    def __init__(self) -> None:
        self.server = ModelServer(self._answer)
        self.scripts: dict[tuple[str, str], list[Line]] = {}
        """By session and model."""

    def asked(self, session: str, model: str) -> list[Asked]:
        return [one for one in self.server.asked if (_session(one), one.model) == (session, model)]

    def _answer(self, asked: Asked) -> Answer:
        script = self.scripts[_session(asked), asked.model]
        line = script.pop(0) if len(script) > 1 else script[0]
        return line(asked) if callable(line) else line


def _session(asked: Asked) -> str:
    """Return whose request it is: every prompt names its session."""
    found = re.search(r"session-\w{12}", json.dumps(asked.messages))
    assert found, asked.messages
    return found.group()


@dataclass(frozen=True)
class Talk:
    """A session of a test's own, and what its models answer."""

    stage: Stage
    models: Models
    session: str = field(default_factory=lambda: f"session-{uuid.uuid4().hex[:12]}")

    async def ask(
        self, target: str, *main: Line, text: str = "a question", others: Script = NOBODY, **more: Any
    ) -> Json:
        """Have a turn taken by these answers, and return its reply when the worker's log has its end, too."""
        for model, script in {"main": list(main), **others}.items():
            self.models.scripts[self.session, model] = list(script)
        request = {"run_id": str(uuid.uuid4()), "session_id": self.session, "input": f"{self.session}: {text}", **more}
        await self.stage.broker.publish(request | {TARGETS.get(target, "team_id"): target})
        reply = await self.stage.broker.reply(request["run_id"])
        worker = self.stage.worker
        await eventually(lambda: any(one["run_id"] == reply["run_id"] for one in worker.events("turn_finished")))
        return reply

    def asked(self, model: str = "main") -> list[Asked]:
        return self.models.asked(self.session, model)

    async def stored(self, reply: Json) -> Json:
        """Return the stored run of a reply, which both its row and the session's list of runs tell."""
        run = next(one for one in await self.stage.runs(self.session) if one["run_id"] == reply["run_id"])
        row = await self.stage.database.fetchrow(
            "select status, run_data from ai.agno_runs where run_id = $1", reply["run_id"]
        )
        assert row is not None
        assert (row["status"], json_of(row["run_data"])) == (run["status"], run)
        return run

    async def members(self) -> dict[str, tuple[str, str | None]]:
        """Return how each member's stored run ended: its status, and the code if it failed."""
        rows = await self.stage.database.fetch(
            "select agent_id, status, run_data #>> '{error,code}' as code from ai.agno_runs"
            " where session_id = $1 and parent_run_id is not null",
            self.session,
        )
        return {row["agent_id"]: (row["status"], row["code"]) for row in rows}

    async def failed_with(self, reply: Json) -> tuple[str, bool]:
        """Return the code, and whether it is retryable, of a reply that tells a failure as its stored run does."""
        run = await self.stored(reply)
        assert (reply["status"], reply["content"], run["status"]) == ("ERROR", None, "ERROR")
        assert run["error"] == reply["error"]
        return reply["error"]["code"], reply["error"]["retryable"]

    async def leaks(self, reply: Json) -> list[str]:
        """Return the secrets that are in the reply, in what is stored of the session or in the worker's log."""
        seen = "\n".join([json.dumps([reply, await self.stage.runs(self.session)]), *self.stage.worker.lines])
        return [secret for secret in (CREDENTIAL, ACCOUNT) if secret in seen]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models() -> AsyncIterator[Models]:
    models = Models()
    async with models.server:
        yield models


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    sandbox: Sandbox, template: str, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    """One worker for all; when it has stopped, no request that was answered is left in a queue, waiting or held."""
    environment = {
        "TEAMTURN_TURN_TIMEOUT": str(TURN_TIMEOUT_SECONDS),
        "TEST_MODEL_URL": models.server.url,
        "TEST_MODEL_CREDENTIAL": CREDENTIAL,
        "TEST_TOOL_TEXT": TOOL_TEXT,
    }
    folder, teams = tmp_path_factory.mktemp("gates"), "acceptance_models:everything"
    async with staged(sandbox, template, folder, teams=teams, environment=environment) as stage:
        yield stage
        stage.worker.terminate()
        assert await stage.worker.exited() == 0
        assert await _depths(stage) == [0, 0]


@pytest.fixture
def talk(stage: Stage, models: Models) -> Talk:
    return Talk(stage, models)


async def _depths(stage: Stage) -> list[int]:
    return [await stage.broker.depth(f"requests.{number}") for number in range(stage.settings.partitions)]


def statuses_in(reply: Json) -> dict[str, str]:
    return {one["member_id"]: one["status"] for one in reply["member_responses"]}


def refused(status: int) -> Fails:
    """An error of the provider, whose text quotes what nobody should see."""
    text = f"Incorrect API key provided: {CREDENTIAL} of {ACCOUNT}"
    return Fails(status, {"error": {"message": text, "type": "told", "param": None, "code": "told"}})


def delegates(asked: Asked) -> Calls:
    return Calls(("delegate_task", {"member_id": "bad", "task": asked.prompt}))


def routes_to(member: str) -> Calls:
    return Calls(("route_to_member", {"member_id": member}))


def says_and_calls(text: str, call: tuple[str, Mapping[str, Any] | str]) -> Callable[[Asked], Answer]:
    """A text and a tool call in one answer."""

    def answer(asked: Asked) -> Answer:
        if asked.api == "responses":
            said, called = response(asked, Says(text)), response(asked, Calls(call))
            return Nonsense({**called, "output": [*said["output"], *called["output"]]})
        body = completion(asked, Calls(call))
        body["choices"][0]["message"]["content"] = text
        return Nonsense(body)

    return answer


# --- what passes ---

PASSING: dict[str, Answer] = {"500": refused(500), "503": refused(503), "closed": Closes(), "half": HalfABody()}


@pytest.mark.parametrize("what", PASSING)
@pytest.mark.parametrize(("team", "times"), [("patient", 1), ("patient_responses", 2)])
async def test_a_failure_that_passes_is_not_seen_in_the_answer(talk: Talk, what: str, team: str, times: int) -> None:
    reply = await talk.ask(team, *[PASSING[what]] * times, Says("Paris"))
    assert (reply["status"], reply["content"], reply["error"]) == ("COMPLETED", "Paris", None)
    assert len(talk.asked()) == times + 1
    assert [run["status"] for run in await talk.stage.runs(talk.session)] == ["COMPLETED"]
    assert (await talk.stored(reply))["content"] == "Paris"


@pytest.mark.parametrize("what", PASSING)
@APIS
async def test_a_failure_that_does_not_pass_ends_the_turn_after_its_retries(talk: Talk, what: str, team: str) -> None:
    reply = await talk.ask(team, PASSING[what])
    assert await talk.failed_with(reply) == ("model_error", True)
    assert len(talk.asked()) == 2
    assert await talk.leaks(reply) == []


@APIS
async def test_a_provider_that_asks_to_wait_is_waited_for(talk: Talk, team: str) -> None:
    reply = await talk.ask(team, Fails(429, headers={"Retry-After": "1"}), Says("Paris"))
    assert (reply["status"], reply["content"]) == ("COMPLETED", "Paris")
    first, second = talk.asked()
    assert second.at - first.at >= 1
    assert [run["status"] for run in await talk.stage.runs(talk.session)] == ["COMPLETED"]


@APIS
async def test_a_provider_that_asks_to_wait_for_an_hour_is_not(talk: Talk, team: str) -> None:
    reply = await talk.ask(team, Fails(429, headers={"Retry-After": "3600"}), Says("too late"))
    assert await talk.failed_with(reply) == ("model_error", True)
    assert len(talk.asked()) == 1


# --- what does not pass ---


@pytest.mark.parametrize("status", [400, 401, 404])
@APIS
async def test_a_refusal_ends_the_turn_at_once_and_its_text_is_nowhere(talk: Talk, status: int, team: str) -> None:
    reply = await talk.ask(team, refused(status), Says("never asked for"))
    assert await talk.failed_with(reply) == ("model_error", False)
    assert [one.api_key for one in talk.asked()] == [CREDENTIAL]
    assert await talk.leaks(reply) == []


NONSENSE: dict[str, Answer] = {
    "other JSON": Nonsense(),
    "no answer": Nonsense({"choices": []}),
    "null for an answer": Nonsense({"choices": [None], "output": None}),
    "another shape": Nonsense({"choices": [{"message": "Paris"}]}),
    "an error with status 200": Nonsense({"error": {"message": ACCOUNT}}),
    "a page": NotJson(f"<html><body>It works, {ACCOUNT}!</body></html>"),
    "a page called JSON": NotJson(f"<html><body>It works, {ACCOUNT}!</body></html>", "application/json"),
    "nothing": NotJson("", "application/json"),
    "null": NotJson("null", "application/json"),
    "a list": NotJson("[]", "application/json"),
}


@pytest.mark.parametrize("what", NONSENSE)
@APIS
async def test_an_answer_that_is_none_is_the_models_failure(talk: Talk, what: str, team: str) -> None:
    reply = await talk.ask(team, NONSENSE[what])
    code, _ = await talk.failed_with(reply)
    assert code == "model_error"
    assert len(talk.asked()) <= 2
    assert await talk.leaks(reply) == []


# --- models that stand in, members and steps ---


@pytest.mark.parametrize("what", [*PASSING, "401", "other JSON", "a page"])
async def test_another_model_answers_where_the_first_fails(talk: Talk, what: str) -> None:
    failure = (PASSING | NONSENSE).get(what, refused(401))
    reply = await talk.ask("spared", failure, others={"spare": [Says("Paris")]})
    assert (reply["status"], reply["content"]) == ("COMPLETED", "Paris")
    assert (len(talk.asked()), len(talk.asked("spare"))) == (1, 1)


@pytest.mark.parametrize(("status", "retryable", "requests"), [(401, False, 1), (503, True, 2)])
async def test_models_that_all_fail_are_a_model_error(talk: Talk, status: int, retryable: bool, requests: int) -> None:  # noqa: FBT001 - a column
    reply = await talk.ask("spared", refused(status), others={"spare": [refused(status)]})
    assert await talk.failed_with(reply) == ("model_error", retryable)
    assert (len(talk.asked()), len(talk.asked("spare"))) == (requests, requests)
    assert await talk.leaks(reply) == []


PARTS_THAT_FAIL: dict[str, tuple[list[Line], Script, dict[str, str]]] = {
    "lead": ([delegates], {"bad": [refused(401)]}, {"bad": "ERROR"}),
    "panel": ([], {"good": [Waits(600, FINE)], "bad": [refused(401)]}, {"good": "CANCELLED", "bad": "ERROR"}),
    "line": ([refused(401)], {"good": [FINE]}, {"good": "COMPLETED", "main": "ERROR"}),
}


@pytest.mark.parametrize("target", PARTS_THAT_FAIL)
async def test_a_turn_ends_with_the_member_or_step_that_fails_and_the_others_stop(talk: Talk, target: str) -> None:
    main, others, statuses = PARTS_THAT_FAIL[target]
    reply = await talk.ask(target, *main, Says("never asked for"), others=others)
    assert await talk.failed_with(reply) == ("model_error", False)
    assert statuses_in(reply) == statuses
    codes = {"ERROR": "model_error"}
    assert await talk.members() == {member: (status, codes.get(status)) for member, status in statuses.items()}
    await eventually(lambda: talk.models.server.under_way == 0)


async def test_the_leader_of_a_tolerant_panel_is_told_of_the_member_that_failed_and_answers(talk: Talk) -> None:
    others: Script = {"good": [Says("it rains")], "bad": [refused(401)]}
    reply = await talk.ask("tolerant_panel", Says("it rains, says one"), others=others)
    assert (reply["status"], reply["content"]) == ("COMPLETED", "it rains, says one")
    assert await talk.members() == {"good": ("COMPLETED", None), "bad": ("ERROR", "model_error")}
    assert statuses_in(reply) == {"good": "COMPLETED", "bad": "ERROR"}
    (asked,) = talk.asked()
    assert ("it rains" in asked.prompt, "has failed" in asked.prompt) == (True, True)
    assert (CREDENTIAL in asked.prompt, await talk.leaks(reply)) == (False, [])


async def test_a_route_that_leads_to_nobody_is_invalid_output(talk: Talk) -> None:
    reply = await talk.ask("desk", routes_to("nobody"))
    assert await talk.failed_with(reply) == ("invalid_output", False)
    _, again = talk.asked()
    assert "there is no member" in again.messages[-1]["content"]


# --- time, tools, output, usage ---


@pytest.mark.parametrize(("team", "seconds"), [("hasty", 2), ("plain", TURN_TIMEOUT_SECONDS)])
async def test_a_turn_that_takes_too_long_ends_and_its_model_gets_to_know(talk: Talk, team: str, seconds: int) -> None:
    reply = await talk.ask(team, Waits(600, Says("too late")))
    assert await talk.failed_with(reply) == ("turn_timeout", True)
    assert seconds <= reply["metrics"]["duration"] < seconds + 3
    await eventually(lambda: talk.models.server.under_way == 0)


async def test_what_a_tool_raises_is_not_in_the_reply(talk: Talk) -> None:
    reply = await talk.ask("patient", Calls(("break_off", {})), Says("never asked for"))
    assert await talk.failed_with(reply) == ("tool_failed", False)
    assert TOOL_TEXT not in json.dumps([reply, await talk.stage.runs(talk.session)])
    assert len(talk.asked()) == 1


async def test_code_that_exits_ends_its_turn_and_not_the_worker(talk: Talk) -> None:
    reply = await talk.ask("quits", Says("never asked for"))
    assert await talk.failed_with(reply) == ("executor_failed", False)
    another = Talk(talk.stage, talk.models)
    assert (await another.ask("plain", Says("here")))["content"] == "here"


async def test_a_model_is_told_that_a_tool_took_too_long_and_can_answer(talk: Talk) -> None:
    reply = await talk.ask("brisk_tools", Calls(("take_for_ever", {})), Says("without it, then"))
    assert (reply["status"], reply["content"]) == ("COMPLETED", "without it, then")
    (told,) = [message for message in talk.asked()[1].messages if message["role"] == "tool"]
    assert "timed out" in told["content"].lower()


WRONG_CITY, CITY = Calls(("final_result", {"title": "Paris"})), Calls(("final_result", {"name": "Paris"}))


@pytest.mark.parametrize("team", ["structured", "structured_responses"])
@pytest.mark.parametrize("wrong", [WRONG_CITY, Calls(("final_result", "{nope")), Says("Paris")], ids=repr)
async def test_output_that_does_not_validate_gets_another_try(talk: Talk, team: str, wrong: Answer) -> None:
    reply = await talk.ask(team, wrong, CITY)
    assert (reply["status"], reply["content"]) == ("COMPLETED", {"name": "Paris"})
    assert (await talk.stored(reply))["content"] == {"name": "Paris"}
    assert len(talk.asked()) == 2


@pytest.mark.parametrize("team", ["few_requests", "few_tokens"])
async def test_a_turn_ends_at_its_limits_and_what_it_used_is_counted(talk: Talk, team: str) -> None:
    reply = await talk.ask(team, Calls(("look_up", {})))
    assert await talk.failed_with(reply) == ("usage_limit_exceeded", False)
    used = {"input_tokens": 20, "output_tokens": 4, "total_tokens": 24, "model_requests": 2}
    assert {name: reply["metrics"][name] for name in used} == used


# --- text that neither Postgres nor JSON on the wire takes ---

NUL = "a\x00b"
ODD, KEPT = "a\x00b \ud83d c \udc00 \ud83d d é😀", "a\ufffdb \ufffd c \ufffd \ufffd d é😀"
ODD_CALLS: dict[str, tuple[str, Mapping[str, Any] | str]] = {
    "plain arguments": ("look_up", {}),
    "odd arguments, escaped": ("look_up", {"what": ODD}),
    "odd arguments as they are": ("look_up", json.dumps({"what": ODD}, ensure_ascii=False)),
    "NUL in a result": ("look_up", {"what": NUL}),
    "NUL in a result with structure": ("look_up_all", {"what": NUL}),
    "NUL in the state": ("remember", {"what": NUL}),
}


@pytest.mark.parametrize("team", ["patient", "patient_responses"])
async def test_text_that_can_not_be_stored_is_replaced_and_the_rest_kept(talk: Talk, team: str) -> None:
    reply = await talk.ask(team, Says(ODD))
    assert (reply["status"], reply["content"]) == ("COMPLETED", KEPT)
    assert (await talk.stored(reply))["content"] == KEPT
    assert (await talk.ask(team, Says("and on")))["content"] == "and on"
    assert {"role": "assistant", "content": KEPT} in talk.asked()[-1].messages


@pytest.mark.parametrize("team", ["patient", "patient_responses"])
@pytest.mark.parametrize("what", ODD_CALLS)
async def test_such_text_can_be_sent_back_to_the_model_with_its_tool_calls(talk: Talk, team: str, what: str) -> None:
    reply = await talk.ask(team, says_and_calls(ODD, ODD_CALLS[what]), Says("done"))
    assert (reply["status"], reply["content"], reply["error"]) == ("COMPLETED", "done", None)
    assert {"role": "assistant", "content": KEPT} in talk.asked()[-1].messages
    assert KEPT in {message["content"] for message in (await talk.stored(reply))["messages"]}
    assert (await talk.ask(team, Says("and on")))["content"] == "and on"


async def test_such_text_can_be_a_members_task(talk: Talk) -> None:
    delegation = Calls(("delegate_task", {"member_id": "good", "task": f"{talk.session} {NUL}"}))
    reply = await talk.ask("lead", delegation, Says("done"), others={"good": [Says(ODD)]})
    assert (reply["status"], reply["content"], reply["error"]) == ("COMPLETED", "done", None)
    assert reply["member_responses"] == [{"member_id": "good", "content": KEPT, "status": "COMPLETED"}]
    assert await talk.members() == {"good": ("COMPLETED", None)}
    assert {"role": "tool", "content": KEPT} in talk.asked()[-1].messages


# --- the session after a failure ---


@dataclass(frozen=True)
class Failure:
    """A turn that fails, among others of its target that don't."""

    target: str
    code: str
    main: list[Line]
    others: Script = field(default_factory=dict)
    tokens: int = 0
    answered: Line = FINE
    """What `main` answers in the turns that don't fail, in which the others say something."""


MORE = [Calls(("remember", {"what": "lost"}))]
FAILURES: dict[str, Failure] = {
    "refused": Failure("plain", "model_error", [refused(401)]),
    "overloaded": Failure("plain_responses", "model_error", [refused(503)]),
    "nonsense": Failure("plain", "model_error", [Nonsense()]),
    "refused after a tool": Failure("few_requests", "model_error", [*MORE, refused(401)], tokens=12),
    "late": Failure("hasty", "turn_timeout", [*MORE, Waits(600, Says("too late"))], tokens=12),
    "tool": Failure("patient", "tool_failed", [*MORE, Calls(("break_off", {}))], tokens=24),
    "output": Failure("structured", "invalid_output", [WRONG_CITY], tokens=24, answered=CITY),
    "usage": Failure("few_requests", "usage_limit_exceeded", [*MORE], tokens=24),
    "all models": Failure("spared", "model_error", [refused(401)], {"spare": [refused(401)]}),
    "agent": Failure("clerk", "model_error", [refused(401)]),
    "step": Failure("line", "model_error", [refused(401)], {"good": [Says("lost")]}, tokens=12),
    "member": Failure("lead", "model_error", [delegates], {"bad": [refused(401)]}, tokens=12),
    "panel": Failure("panel", "model_error", [], {"good": [refused(401)], "bad": [refused(401)]}),
    "route": Failure("desk", "model_error", [routes_to("bad")], {"bad": [refused(404)]}, 12, routes_to("good")),
}


@pytest.mark.parametrize("what", FAILURES)
async def test_a_failed_turn_is_stored_and_counted_and_leaves_no_other_trace_in_its_session(
    talk: Talk, what: str
) -> None:
    failure = FAILURES[what]
    fine: Script = {"good": [Says("well")], "bad": [Says("well")]}
    kept, lost = {"session_state": {"kept": 1}}, {"session_state": {"lost": 1}}
    before = await talk.ask(failure.target, failure.answered, text="the first", others=fine, **kept)
    failed = await talk.ask(failure.target, *failure.main, text="the lost", others=failure.others, **lost)
    asked_before = len(talk.asked())
    after = await talk.ask(failure.target, failure.answered, text="the last", others=fine)

    assert [reply["status"] for reply in (before, failed, after)] == ["COMPLETED", "ERROR", "COMPLETED"]
    assert [reply["turn"] for reply in (before, failed, after)] == [1, 2, 3]
    assert (await talk.failed_with(failed))[0] == failure.code
    assert failed["metrics"]["total_tokens"] == failure.tokens
    data = json_of(
        await talk.stage.database.fetchval("select session_data from ai.sessions where session_id = $1", talk.session)
    )
    assert data["session_state"] == {"kept": 1}
    for name in ("input_tokens", "output_tokens", "total_tokens", "model_requests", "tool_calls"):
        assert data["session_metrics"][name] == sum(reply["metrics"][name] for reply in (before, failed, after))
    shown = json.dumps([one.messages for one in talk.asked()[asked_before:]])
    assert ("the first" in shown, "lost" in shown, "the last" in shown) == (True, False, True)
    assert await _depths(talk.stage) == [0, 0]
