"""`deadline`: RFC 3339 text with an offset."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from schemas.errors import ErrorCode
from tests.unit.examples import a_body, a_request
from worker.errors import RequestRefused
from worker.intake.reading import read_request


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2030-01-31T12:00:00Z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31t12:00:00z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31T12:00:00+00:00", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31T12:00:00-05:30", datetime(2030, 1, 31, 17, 30, tzinfo=UTC)),
        ("2030-01-31T12:00:00.25Z", datetime(2030, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)),
        ("2028-02-29T23:59:59+14:00", datetime(2028, 2, 29, 9, 59, 59, tzinfo=UTC)),
    ],
)
def test_rfc_3339_text_with_an_offset_is_that_moment(text: str, time: datetime) -> None:
    deadline = a_request(deadline=text).deadline
    assert deadline == time
    assert deadline is not None
    assert deadline.utcoffset() is not None


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("2030-01-31T12:00:00", id="no offset"),
        pytest.param("2030-01-31", id="a date"),
        pytest.param("12:00:00Z", id="a time"),
        pytest.param("2030-02-30T00:00:00Z", id="no such day"),
        pytest.param("2030-01-31T24:00:01Z", id="no such hour"),
        pytest.param("2030-01-31T12:00:00+25:00", id="no such offset"),
        pytest.param(" 2030-01-31T12:00:00Z", id="white space"),
        pytest.param("tomorrow", id="words"),
        pytest.param("", id="empty"),
        pytest.param(1_900_000_000, id="unix seconds"),
        pytest.param(1_900_000_000.5, id="unix seconds with a fraction"),
        pytest.param("1900000000", id="unix seconds as text"),
        pytest.param("1900000000000", id="unix milliseconds as text"),
        pytest.param("-1.5", id="a negative number as text"),
        pytest.param(True, id="a bool"),
        pytest.param(["2030-01-31T12:00:00Z"], id="a list"),
        pytest.param({}, id="an object"),
    ],
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(RequestRefused) as refused:
        read_request(a_body(deadline=value), None, largest_bytes=1_000_000)
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert refused.value.message.startswith("deadline")


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
def test_the_ends_of_the_calendar_can_be_compared_with_a_time(text: str) -> None:
    deadline = a_request(deadline=text).deadline
    assert deadline is not None
    assert (deadline < datetime(2030, 1, 1, tzinfo=UTC)) is text.startswith("0001")
    assert isinstance(deadline - datetime(2030, 1, 1, tzinfo=UTC), timedelta)
