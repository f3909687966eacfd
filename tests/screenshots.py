"""The screenshots of deploy/examples/web_chat, made again: the real page, gateway and worker; the models are scripted.

python -m tests.screenshots            the two of deploy/examples/README.md, into deploy/examples/web_chat
python -m tests.screenshots FOLDER     all: each view, wide and narrow, light and dark
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final, Literal

from playwright.async_api import Browser, Page, expect
from pydantic import SecretStr

from tests.acceptance.stage import Gates, database_of_its_own, staged
from tests.support.browser import chromium
from tests.support.web_chat import WebChat
from tests.support.workers import ROOT
from worker.sandbox import Sandbox
from worker.sessions.database import connect
from worker.sessions.migrations import migrate

Scheme = Literal["light", "dark"]

SCHEMES: Final[tuple[Scheme, ...]] = ("light", "dark")
WIDE: Final = (1280, 880)
NARROW: Final = (390, 780)
HOME: Final = ROOT / "deploy" / "examples" / "web_chat"
BEFORE: Final = ("How do I greet people in Italian?", "A packing list for a weekend", "Which museums are open late?")


async def main(folder: Path | None) -> None:
    """Make them."""
    async with _chat() as (chat, gates), chromium() as browser:
        if folder is None:
            await _Shots(chat, gates, browser, HOME, "screenshot", WIDE, "light").done()
            await _Shots(chat, gates, browser, HOME, "screenshot", NARROW, "dark").working()
            return
        for size, scheme in product((WIDE, NARROW), SCHEMES):
            await _Shots(chat, gates, browser, folder, "page", size, scheme).all()


@asynccontextmanager
async def _chat() -> AsyncIterator[tuple[WebChat, Gates]]:
    with Sandbox(report=print) as sandbox, tempfile.TemporaryDirectory() as gates:
        async with database_of_its_own(sandbox, None) as template:
            connection = await connect(SecretStr(template), "ai", application="template")
            await migrate(connection, "ai")
            await connection.close()
            async with (
                staged(sandbox, template.rpartition("/")[2], Path(gates), teams="web_chat_teams:teams") as stage,
                WebChat(stage.settings, "travel", "plain", "clerk", "nobody") as chat,
            ):
                yield chat, stage.gates


@dataclass(frozen=True)
class _Shots:
    """Views of the page in one size and colour scheme."""

    chat: WebChat
    gates: Gates
    browser: Browser
    folder: Path
    name: str
    size: tuple[int, int]
    scheme: Scheme

    async def all(self) -> None:
        """Take every view."""
        async with self._page(before=()) as page:
            await self._shoot(page, "empty")
            await _ask(page, "Is anybody there?", team="nobody")
            await expect(page.locator(".answer")).to_contain_text("not at work")
            await self._shoot(page, "refused")
        async with self._page() as page:
            await page.get_by_role("button", name="Conversations").click() if self.size == NARROW else None
            await self._shoot(page, "list")
        await self.working()
        await self.done()
        async with self._page() as page:
            await _ask(page, "Two seats, please", team="clerk")
            await expect(page.locator(".approval")).to_be_visible()
            await self._shoot(page, "waiting")
        async with self._page() as page:
            await _ask(page, "Something hostile", team="plain")
            await _finished(page)
            await self._shoot(page, "hostile")

    async def working(self) -> None:
        """Take the view of members at work."""
        async with self._page() as page:
            gate = f"{self.size[0]}{self.scheme}"
            question = "Can I take a train from Vienna to Venice on Saturday, and will it rain?"
            # The models wait where the question says; who looks need not see it.
            await _ask(page, f"{question} [{gate}]")
            await expect(page.locator(".step.tool[data-state=done]")).to_have_count(2)
            await expect(page.locator(".member").last).to_contain_text("afternoon.")
            await page.locator(".question p").evaluate("(shown, text) => shown.textContent = text", question)
            await page.locator("#title").evaluate("(shown, text) => shown.textContent = text", question)
            await self._shoot(page, "working")
            self.gates.open(gate)
            await _finished(page)

    async def done(self) -> None:
        """Take the view of an answer with a member's part opened."""
        async with self._page() as page:
            await _ask(page, "Can I take a train from Vienna to Venice on Saturday, and will it rain?")
            await _finished(page)
            await page.locator(".member summary").first.click()
            await page.locator(".member .tool summary").first.click()
            await page.locator("#thread").evaluate("thread => thread.scrollTop = 0")
            await self._shoot(page, "done")

    @asynccontextmanager
    async def _page(self, before: tuple[str, ...] = BEFORE) -> AsyncIterator[Page]:
        width, height = self.size
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=self.scheme, reduced_motion="reduce"
        )
        page = await context.new_page()
        await page.goto(self.chat.url)
        for question in before:
            await _ask(page, question, team="plain")
            await _finished(page)
            await page.goto(self.chat.url)
        yield page
        await context.close()

    async def _shoot(self, page: Page, view: str) -> None:
        await page.mouse.move(0, 0)
        path = self.folder / f"{self.name}-{view}-{self.size[0]}-{self.scheme}.png"
        await page.screenshot(path=path, animations="disabled", caret="hide")
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


async def _ask(page: Page, text: str, *, team: str = "travel") -> None:
    choice = page.get_by_label("Team")
    await expect(choice).to_be_visible()
    await choice.select_option(team)
    message = page.get_by_label("Message", exact=True)
    await message.fill(text)
    await message.press("Enter")


async def _finished(page: Page) -> None:
    await expect(page.locator(".turn").last).not_to_have_attribute("data-state", "working")


if __name__ == "__main__":
    asked = [Path(argument) for argument in sys.argv[1:]]
    for one in asked:
        one.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(asked[0] if asked else None))
