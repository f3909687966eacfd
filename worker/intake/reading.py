"""Reading a request out of a message: what a stranger sent becomes a RunRequest, or a code and a reason."""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json

from schemas.errors import ErrorCode
from schemas.requests import RunRequest
from worker.errors import RequestRefused
from worker.executors.json_values import clean

_LONGEST_REASON: Final = 500


def read_request(body: bytes, message_id: str | None, *, largest_bytes: int) -> RunRequest:
    """Read a request, with the AMQP message_id as the run_id where the body has none.

    Raises RequestRefused with one of the codes of `schemas.errors.DEAD_LETTERED`. The reason names the field and
    never repeats its value.
    """
    if len(body) > largest_bytes:
        raise RequestRefused(
            ErrorCode.REQUEST_TOO_LARGE, f"the body has {len(body)} bytes; the limit is {largest_bytes}"
        )
    fields = _parsed(body)
    if fields.get("run_id") is None:
        if not message_id:
            raise RequestRefused(ErrorCode.MISSING_RUN_ID, "neither run_id nor the AMQP message_id is set")
        fields["run_id"] = message_id
    try:
        return RunRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestRefused(ErrorCode.INVALID_REQUEST, _reason(error)) from None


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        fields = from_json(body.decode("utf-8"), allow_inf_nan=False)
        # What JSON's grammar allows and no database stores: 1e400, 5,000 levels. The cleaned copy is not used:
        # the team gets what was sent.
        clean(fields)
    except ValueError as error:
        raise RequestRefused(
            ErrorCode.MALFORMED_REQUEST, f"the body is not JSON in UTF-8: {str(error)[:_LONGEST_REASON]}"
        ) from None
    if not isinstance(fields, dict):
        raise RequestRefused(ErrorCode.MALFORMED_REQUEST, "the body is not a JSON object")
    return fields


def _reason(error: ValidationError) -> str:
    # Of a union's complaints, the deepest is about what was meant.
    first = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown field"
    elif first["type"] == "union_tag_invalid":
        # pydantic repeats the value; the context has what was expected.
        message = f"unknown type; expected {first['ctx']['expected_tags']}"
    where = ".".join(str(part) for part in first["loc"] if "[" not in str(part))
    return (f"{where}: {message}" if where else message)[:_LONGEST_REASON]
