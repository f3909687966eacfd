"""A headless Chromium: this machine's, or Debian's where it can be installed; skipped, and said why, where not."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

from worker.sandbox.errors import SandboxError, WayClosedError
from worker.sandbox.packages import install_debian_package

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def have_chromium() -> str:
    """Return the path of a Chromium; install Debian's if there is none, which takes half a minute.

    Skips the test where that can't be done, and says why.
    """
    # One at a time: the tests run in several processes, and dpkg has one lock.
    with (Path(tempfile.gettempdir()) / f"teamturn-chromium-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for package, is_there in (("chromium", _chromium), ("libatomic1", _libatomic)):
            if not is_there():
                try:
                    install_debian_package(package, lambda line: print(line, flush=True))
                except (WayClosedError, SandboxError) as error:
                    pytest.skip(f"the page can't be looked at: {package} is not on this machine, and {error}")
    found = _chromium()
    assert found is not None, "Debian's package chromium has no program of that name"
    return found


def _chromium() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def _libatomic() -> bool:
    """Whether the library is there that playwright's own Node takes from the system, and that a bare Debian lacks."""
    try:
        ctypes.CDLL("libatomic.so.1")
    except OSError:
        return sys.platform != "linux"
    return True


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser, until the end of the block. Each of its contexts is a browser of its own to a site."""
    path = have_chromium()
    async with async_playwright() as playwright:
        # As root it has no sandbox, and /dev/shm is small in many containers.
        browser = await playwright.chromium.launch(executable_path=path, args=["--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            await browser.close()
