"""What every unit test has: no database of examples on disk, no time limit on one example, and captured logs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from structlog.testing import capture_logs
from structlog.typing import EventDict

# A shared CI machine stalls now and then: one slow example says nothing about the code.
settings.register_profile("unit", deadline=None, database=None, print_blob=True)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[EventDict]]:
    """The events that the test's code logged."""
    with capture_logs() as events:
        yield events
