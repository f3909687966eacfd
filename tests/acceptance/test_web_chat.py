"""The web chat of deploy/examples/web_chat: its page in a Chromium, its gateway and a worker as processes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.acceptance.stage import Stage, staged
from tests.support.browser import chromium
from tests.support.web_chat import WebChat
from worker.sandbox import Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

expect.set_options(timeout=20_000)


@dataclass
class Site:
    """A running chat, and browsers to look at it."""

    stage: Stage
    chat: WebChat
    browser: Browser


class Window:
    """A page of the chat, as who sits before it sees it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url
        self.answer = page.locator(".answer").last
        self.errors: list[str] = []
        """What the browser complains of: a script that failed, something that the security policy forbids."""
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)

    async def open(self, path: str = "/") -> None:
        await self.page.goto(f"{self._url}{path}")

    async def ask(self, text: str, *, team: str | None = None) -> None:
        """Write a message and press Enter; a first one to this team, or to the one that is asked by default."""
        if team is not None:
            choice = self.page.get_by_label("Team")
            await expect(choice).to_be_visible()
            await choice.select_option(team)
        message = self.page.get_by_label("Message", exact=True)
        await message.fill(text)
        await message.press("Enter")

    async def session_id(self) -> str:
        await self.page.wait_for_url("**/c/*")
        return self.page.url.rpartition("/")[2]

    async def finished(self) -> None:
        """Wait until nothing is being answered any more."""
        await expect(self.page.locator(".turn").last).not_to_have_attribute("data-state", "working")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(sandbox: Sandbox, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("gates")
    async with (
        chromium() as browser,
        staged(sandbox, template, folder, teams="web_chat_teams:teams") as stage,
        WebChat(stage.settings, "plain", "travel", "clerk", "nobody") as chat,
    ):
        yield Site(stage, chat, browser)


@pytest_asyncio.fixture(loop_scope="module")
async def somebody(site: Site) -> AsyncIterator[BrowserContext]:
    """A browser that has not been here before."""
    context = await site.browser.new_context()
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def window(site: Site, somebody: BrowserContext) -> AsyncIterator[Window]:
    window = Window(await somebody.new_page(), site.chat.url)
    await window.open()
    yield window
    assert window.errors == []


async def test_an_answer_is_seen_while_it_is_written(site: Site, window: Window) -> None:
    await window.ask("In two halves, please [halves]")
    await expect(window.answer).to_contain_text("The first half,")
    await expect(window.page.get_by_label("Stop the answer")).to_be_visible()
    assert "second" not in await window.answer.inner_text()
    site.stage.gates.open("halves")
    await expect(window.answer.locator("strong")).to_have_text("second")
    await window.finished()
    await expect(window.answer.locator(".prose")).to_have_text("The first half, and the second half.")
    await expect(window.page.get_by_label("Stop the answer")).to_be_hidden()


async def test_members_and_their_tools_are_seen_at_work_and_when_the_conversation_is_opened_again(
    site: Site, window: Window
) -> None:
    await window.ask("Trains to Venice? [venice]", team="travel")
    member = window.answer.locator(".member", has_text="timetable")
    await expect(member).to_have_attribute("data-state", "working")
    await expect(member.locator(".tool .name")).to_have_text("trains")
    await expect(member.locator(".tool")).to_have_attribute("data-state", "done")
    await expect(member).to_contain_text("There are two good trains.")
    site.stage.gates.open("venice")
    await window.finished()
    await expect(window.answer.locator("table td").first).to_have_text("06:25")
    live = await window.answer.locator(".member > details > summary .name").all_inner_texts()

    await window.page.get_by_role("link", name="New chat").click()
    await expect(window.page.get_by_text("What would you like to know?")).to_be_visible()
    await window.page.get_by_role("navigation").get_by_role("link", name="Trains to Venice? [venice]").click()
    await expect(window.answer.locator("table td").first).to_have_text("06:25")
    assert await window.answer.locator(".member > details > summary .name").all_inner_texts() == live
    assert sorted(live) == ["timetable", "weather"]
    await member.locator("summary").first.click()
    await expect(member).to_contain_text("The 06:25 goes through")
    await member.locator(".tool summary").click()
    await expect(member.locator(".tool")).to_contain_text("Vienna to Venice on Saturday")


async def test_the_stop_button_cancels_the_run(site: Site, window: Window) -> None:
    await window.ask("Never finished [never]")
    await expect(window.answer).to_contain_text("The first half,")
    await window.page.get_by_label("Stop the answer").click()
    await expect(window.answer).to_contain_text("Stopped.")
    await expect(window.answer).to_contain_text("The first half,")
    (run,) = await site.stage.runs(await window.session_id())
    assert run["status"] == "CANCELLED"


async def test_a_conversation_goes_on_with_what_was_said_and_is_listed_once(site: Site, window: Window) -> None:
    await window.ask("First question")
    await window.finished()
    await window.ask("Second question")
    await expect(window.page.locator(".turn")).to_have_count(2)
    await window.finished()
    listed = window.page.locator("#sessions a")
    await expect(listed).to_have_text(["First questionnow"])
    runs = await site.stage.runs(await window.session_id())
    assert [(run["input"]["input_content"], run["status"]) for run in runs] == [
        ("First question", "COMPLETED"),
        ("Second question", "COMPLETED"),
    ]


async def test_other_conversations_go_on_while_one_is_looked_at(site: Site, window: Window) -> None:
    await window.ask("Takes its time [slow]")
    await expect(window.answer).to_contain_text("The first half,")
    await window.page.get_by_role("link", name="New chat").click()
    await window.ask("Quick one")
    await window.finished()
    first = window.page.locator("#sessions a", has_text="Takes its time")
    await expect(first.get_by_title("is being answered")).to_be_visible()
    await first.click()
    await expect(window.answer).to_contain_text("The first half,")
    site.stage.gates.open("slow")
    await window.finished()
    await expect(window.answer.locator(".prose")).to_have_text("The first half, and the second half.")
    await window.page.go_back()
    await expect(window.page.locator(".question")).to_have_text("YouQuick one")


async def test_an_answer_can_be_copied_as_it_was_written(somebody: BrowserContext, window: Window) -> None:
    await somebody.grant_permissions(["clipboard-read", "clipboard-write"])
    await window.ask("To be copied")
    await window.finished()
    await window.page.get_by_role("button", name="Copy").click()
    await expect(window.page.get_by_role("button", name="Copied")).to_be_visible()
    assert await window.page.evaluate("navigator.clipboard.readText()") == "The first half, and the **second** half."


async def test_an_answer_goes_on_when_the_page_is_loaded_again(site: Site, window: Window) -> None:
    await window.ask("Loaded again [reload]")
    await expect(window.answer).to_contain_text("The first half,")
    await window.page.reload()
    await expect(window.answer).to_contain_text("The first half,")
    await expect(window.page.get_by_label("Stop the answer")).to_be_visible()
    site.stage.gates.open("reload")
    await expect(window.answer.locator(".prose")).to_have_text("The first half, and the second half.")
    await window.finished()
    assert len(await site.stage.runs(await window.session_id())) == 1


@pytest.mark.parametrize("reloaded", [False, True], ids=["the page stays", "the page is loaded again"])
async def test_an_answer_goes_on_when_the_gateway_was_restarted(
    site: Site, somebody: BrowserContext, *, reloaded: bool
) -> None:
    window = Window(await somebody.new_page(), site.chat.url)
    await window.open()
    gate = f"restart{reloaded:d}"
    await window.ask(f"Restarted [{gate}]")
    await expect(window.answer).to_contain_text("The first half,")
    await site.chat.restart()
    if reloaded:
        await window.page.reload()
        await expect(window.answer).to_be_visible()
    site.stage.gates.open(gate)
    await expect(window.answer.locator(".prose")).to_have_text("The first half, and the second half.")
    await window.finished()
    assert len(await site.stage.runs(await window.session_id())) == 1


async def test_a_turn_that_another_worker_goes_on_with_has_nothing_twice_and_loses_nothing(window: Window) -> None:
    """What the events of two attempts are shown as: the second one tells its members again, and not what they wrote."""
    first: list[dict[str, Any]] = [
        {"type": "run_started"},
        {"type": "member_started", "member_run_id": "m1", "member_id": "done", "parent_run_id": "r"},
        {"type": "content_delta", "member_run_id": "m1", "text": "recorded"},
        {"type": "member_finished", "member_run_id": "m1", "member_id": "done", "status": "COMPLETED"},
        {"type": "member_started", "member_run_id": "m2", "member_id": "cut", "parent_run_id": "r"},
        {"type": "content_delta", "member_run_id": "m2", "text": "half of "},
    ]
    second: list[dict[str, Any]] = [
        {"type": "run_started", "resumed_behind": "step"},
        *first[1:2],
        *first[3:5],
        {"type": "content_delta", "member_run_id": "m2", "text": "all of it"},
        {"type": "member_finished", "member_run_id": "m2", "member_id": "cut", "status": "COMPLETED"},
        {"type": "content_delta", "text": "The answer"},
    ]
    events = [
        {"attempt": attempt, "number": number, "member_run_id": None, "run_id": "r", **event}
        for attempt, told in ((1, first), (2, second))
        for number, event in enumerate(told, start=1)
    ]
    # Also where the stream was broken off, and some events come again.
    shown = await window.page.evaluate(
        """async (events) => {
            const { Turn } = await import("/static/turn.js");
            const turn = new Turn({ text: "?" });
            for (const event of [...events, ...events.slice(-4)]) turn.apply(event);
            const texts = (selector) => [...turn.node.querySelectorAll(selector)].map((one) => one.textContent);
            for (const step of turn.byId.values()) step.prose.draw();
            turn.prose.draw();
            return [texts(".member .prose"), texts(".answer > .prose")];
        }""",
        events,
    )
    assert shown == [["recorded", "all of it"], ["The answer"]]


async def test_what_a_model_writes_stays_text(window: Window) -> None:
    await window.ask("Something hostile")
    await window.finished()
    shown = window.answer.locator(".prose")
    await expect(shown).to_contain_text("""<script>document.title = "taken"</script>""")
    await expect(shown.locator("pre")).to_contain_text("<b onclick=")
    assert await shown.locator("script, img, b").count() == 0
    assert await shown.locator("a").evaluate_all("links => links.map(link => link.href)") == [
        "https://evil.example/pixel.png"
    ]
    await window.page.reload()
    await expect(shown).to_contain_text("""<script>document.title = "taken"</script>""")
    assert await window.page.title() == "Something hostile · teamturn chat"


MARKDOWN = {
    "one\ntwo\n\nthree": "<p>one\ntwo</p><p>three</p>",
    "# Title #\ntext": "<h3>Title</h3><p>text</p>",
    "**bold**, *leaning*, _too_, ~~gone~~, `co*de*`": "<p><strong>bold</strong>, <em>leaning</em>, <em>too</em>, "
    "<del>gone</del>, <code>co*de*</code></p>",
    "snake_case_name and 2 * 3 * 4": "<p>snake_case_name and 2 * 3 * 4</p>",
    r"\*plain\*": "<p>*plain*</p>",
    "- a\n- b\n  - c\n\n1. one\n2. two": "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"
    '<ol start="1"><li>one</li><li>two</li></ol>',
    "> said\n> so": "<blockquote><p>said\nso</p></blockquote>",
    "```py\n<b>\n\nb\n```\nafter": '<pre data-language="py"><code>&lt;b&gt;\n\nb</code></pre><p>after</p>',
    "```\nstill being written": "<pre><code>still being written</code></pre>",
    "a | b\n--|--\n1 | **2**": '<div class="wide"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
    "<tbody><tr><td>1</td><td><strong>2</strong></td></tr></tbody></table></div>",
    "---": "<hr>",
    "[site](https://a.example/b_c_d)": '<p><a href="https://a.example/b_c_d" target="_blank" '
    'rel="noopener noreferrer">site</a></p>',
    "see https://a.example/x, yes": '<p>see <a href="https://a.example/x" target="_blank" '
    'rel="noopener noreferrer">https://a.example/x</a>, yes</p>',
    "[x](javascript:alert(1)) [y](data:text/html,z) [z](/c/other)": "<p>[x](javascript:alert(1)) "
    "[y](data:text/html,z) [z](/c/other)</p>",
    "<b>&amp;</b>": "<p>&lt;b&gt;&amp;amp;&lt;/b&gt;</p>",
}
"""What models write, and what it is shown as."""


async def test_markdown_is_shown_as_what_it_means(window: Window) -> None:
    shown = await window.page.evaluate(
        """async (texts) => {
            const { render } = await import("/static/markdown.js");
            const shown = document.createElement("div");
            return texts.map((text) => (shown.replaceChildren(render(text)), shown.innerHTML));
        }""",
        list(MARKDOWN),
    )
    assert dict(zip(MARKDOWN, shown, strict=True)) == MARKDOWN


PIECES = [
    "*a ",
    "**a _b_ ",
    "__a",
    "[a](",
    "[a](b",
    "![",
    "> ",
    "`a",
    "``a`",
    "1. ",
    "- ",
    "| a |\n|-|\n",
    "```\n",
    "~~a",
    "_a ",
]
PIECES += ["http://", "https://a.b(", "\\*", "(", ") ", "  - a\n"]


async def test_no_text_takes_the_page_long(window: Window) -> None:
    """Whatever a model writes, in one paragraph or many, the page can be used."""
    lengths = [(100_000, 1), (19_900, 5), (1_000, 100)]
    texts = [(piece * (length // len(piece)) + "\n\n") * times for piece in PIECES for length, times in lengths]
    milliseconds = await window.page.evaluate(
        """async (texts) => {
            const { render } = await import("/static/markdown.js");
            return texts.map((text) => {
                const began = performance.now();
                render(text);
                return performance.now() - began;
            });
        }""",
        texts,
    )
    assert {text[:9]: took for text, took in zip(texts, milliseconds, strict=True) if took > 2_000} == {}


async def test_somebody_else_can_neither_read_nor_stop_nor_go_on_with_a_conversation(
    site: Site, window: Window
) -> None:
    await window.ask("Mine alone [mine]")
    await expect(window.answer).to_contain_text("The first half,")
    session_id = await window.session_id()
    (run_id,) = [one["run_id"] for one in (await of_api(window, f"/api/sessions/{session_id}"))["running"]]
    other = await site.browser.new_context()
    stranger = Window(await other.new_page(), site.chat.url)
    await stranger.open(f"/c/{session_id}")
    await expect(stranger.page.get_by_role("alert")).to_have_text("There is no such conversation of yours.")
    await expect(stranger.page.locator(".turn")).to_have_count(0)
    posts = {"origin": site.chat.url, "content-type": "application/json"}
    for path, body in [
        (f"/api/sessions/{session_id}", None),
        (f"/api/sessions/{session_id}/runs/{run_id}/events", None),
        ("/api/messages", {"session_id": session_id, "text": "And now?", "team": "plain"}),
        ("/api/messages", {"session_id": session_id, "run_id": run_id, "text": "Mine alone [mine]", "team": "plain"}),
    ]:
        request = other.request
        answer = await (
            request.get(f"{site.chat.url}{path}")
            if body is None
            else request.post(f"{site.chat.url}{path}", data=json.dumps(body), headers=posts)
        )
        assert (answer.status, "message" in await answer.json()) == (404, True), path
    await other.request.post(
        f"{site.chat.url}/api/sessions/{session_id}/runs/{run_id}/cancel", data="{}", headers=posts
    )
    site.stage.gates.open("mine")
    await window.finished()
    await other.close()
    await expect(window.answer.locator(".prose")).to_have_text("The first half, and the second half.")


async def test_a_second_window_is_told_that_the_conversation_is_busy(
    site: Site, somebody: BrowserContext, window: Window
) -> None:
    second = Window(await somebody.new_page(), site.chat.url)
    await window.ask("A beginning")
    await window.finished()
    await second.open(f"/c/{await window.session_id()}")
    await expect(second.answer).to_contain_text("second half")
    await window.ask("Not done yet [busy]")
    await expect(window.page.locator(".turn")).to_have_count(2)
    await expect(window.answer).to_contain_text("The first half,")
    await second.ask("Me too")
    await expect(second.page.locator(".turn")).to_have_count(2)
    await expect(second.answer).to_contain_text("This conversation is still being answered")
    site.stage.gates.open("busy")
    await window.finished()
    await second.page.get_by_role("button", name="Ask again").click()
    await expect(second.page.locator(".turn")).to_have_count(3)
    await second.finished()
    await expect(second.answer.locator(".prose")).to_have_text("The first half, and the second half.")


async def test_a_tool_that_waits_for_a_person_is_approved_on_the_page(site: Site, window: Window) -> None:
    await window.ask("Two seats, please", team="clerk")
    approval = window.page.locator(".approval")
    await expect(approval).to_contain_text("book")
    await expect(approval.locator("dd")).to_have_text(["06:25", "2"])
    await approval.get_by_role("button", name="Approve").click()
    await expect(window.answer).to_contain_text("The desk says: 2 seats in the 06:25 are booked.")
    await expect(window.page.locator(".turn").first).to_contain_text("Approved.")
    runs = await site.stage.runs(await window.session_id())
    assert [run["status"] for run in runs] == ["PAUSED", "COMPLETED"]
    await window.page.reload()
    await expect(window.answer).to_contain_text("2 seats in the 06:25 are booked")
    await expect(window.page.locator(".question")).to_have_count(1)
    await expect(window.page.locator(".step.tool .name")).to_have_text(["book"])
    await expect(approval).to_have_count(0)


async def test_a_conversation_that_waits_can_be_opened_again_and_be_denied(window: Window) -> None:
    await window.ask("Two seats, please", team="clerk")
    approval = window.page.locator(".approval")
    await expect(approval).to_be_visible()
    await window.page.reload()
    await approval.get_by_label("Why not").fill("too dear")
    await approval.get_by_role("button", name="Deny").click()
    await expect(window.answer).to_contain_text("The desk says: too dear.")


async def test_a_refusal_is_told_in_a_sentence(window: Window) -> None:
    await window.ask("Is anybody there?", team="nobody")
    await expect(window.answer).to_contain_text("The team that should answer is not at work here.")


async def test_the_keyboard_is_enough(window: Window) -> None:
    await window.ask("By keys alone [keys]")
    await expect(window.answer).to_contain_text("The first half,")
    await window.page.keyboard.press("Escape")
    await expect(window.answer).to_contain_text("Stopped.")
    await window.page.keyboard.press("Alt+n")
    await expect(window.page.get_by_text("What would you like to know?")).to_be_visible()
    await window.page.keyboard.type("Two")
    await window.page.keyboard.press("Shift+Enter")
    await window.page.keyboard.type("lines")
    await window.page.keyboard.press("Enter")
    await window.finished()
    await expect(window.page.locator(".question p")).to_have_text("Two\nlines")


async def test_on_a_telephone_the_list_is_a_drawer_and_nothing_is_wider_than_the_screen(window: Window) -> None:
    await window.page.set_viewport_size({"width": 390, "height": 760})
    await window.ask("Trains to Venice?", team="travel")
    await window.finished()
    await expect(window.page.get_by_role("link", name="New chat")).to_be_hidden()
    await window.page.get_by_role("button", name="Conversations").click()
    await expect(window.page.get_by_role("link", name="New chat")).to_be_focused()
    await window.page.keyboard.press("Escape")
    await expect(window.page.get_by_role("link", name="New chat")).to_be_hidden()
    assert await window.page.evaluate("document.documentElement.scrollWidth") <= 390


async def of_api(window: Window, path: str) -> Any:
    """What the page is given."""
    url = window.page.url
    return await (await window.page.request.get(url[: url.index("/c/")] + path)).json()
