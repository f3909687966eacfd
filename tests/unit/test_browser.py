"""The browser of the tests: where it can't be had, they say why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import browser
from worker.sandbox.errors import SandboxError, WayClosedError


@pytest.mark.parametrize("error", [WayClosedError("apt-get is not on this machine"), SandboxError("it failed")])
def test_without_a_browser_the_test_is_skipped_and_says_why(
    monkeypatch: pytest.MonkeyPatch, error: SandboxError
) -> None:
    def install(package: str, _report: Callable[[str], None]) -> None:
        assert package == "chromium"
        raise error

    monkeypatch.setattr(browser, "_chromium", lambda: None)
    monkeypatch.setattr(browser, "install_debian_package", install)
    with pytest.raises(pytest.skip.Exception, match=f"chromium is not on this machine, and {error}"):
        browser.have_chromium()


def test_a_browser_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "_chromium", lambda: "/opt/chromium")
    monkeypatch.setattr(browser, "_libatomic", lambda: True)
    assert browser.have_chromium() == "/opt/chromium"
