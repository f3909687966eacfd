"""The screenshots of deploy/examples/web_chat, made again: the real page, gateway and worker; the models are scripted.

    python -m tests.screenshots [FOLDER]

They go to the example's own folder unless another one is named. With another one, all of them are made, in both colour
schemes and widths, for looking at.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.async_api import Browser, expect

from tests.acceptance.stage import Gates, database_of_its_own
