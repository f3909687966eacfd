"""Reading a request out of a message: what a stranger sent becomes a RunRequest, or a code and a reason."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from schemas.errors import ErrorCode
from schemas.ids import Id, SessionType
from schemas.requests import RunRequest
from worker.errors import RequestRefused
from worker.executors.json_values import TooManyValues, clean

_LONGEST_REASON: Final = 500
_ID: Final = TypeAdapter[str](Id)


def read_request(body: bytes, message_id: str | None, *, largest_bytes: int) -> RunRequest:
    """Read a request, with the AMQP message_id as the run_id where the body has none.

    Raises RequestRefused with one of the codes of `schemas.errors.DEAD_LETTERED`. The reason names the field and
    never repeats its value.
    """
    if len(body) > largest_bytes:
        raise RequestRefused(
            ErrorCode.REQUEST_TOO_LARGE, f"the body has {len(body)} bytes; the limit is {largest_bytes}"
        )
    fields = parsed_object(body)
    if fields.get("run_id") is None:
        if not message_id:
            raise RequestRefused(ErrorCode.MISSING_RUN_ID, "neither run_id nor the AMQP message_id is set")
        fields["run_id"] = message_id
    try:
        return RunRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestRefused(ErrorCode.INVALID_REQUEST, reason_of(error)) from None


def known_ids(body: bytes, message_id: str | None, *, largest_bytes: int) -> dict[str, str]:
    """Return what can be told of a message that is no request, for its reply: its valid ids, by the reply's fields."""
    try:
        fields = parsed_object(body) if len(body) <= largest_bytes else {}
    except RequestRefused:
        fields = {}
    run_id = fields.get("run_id") if fields.get("run_id") is not None else message_id
    found: dict[str, Any] = {name: fields.get(name) for name in ("session_id", "user_id")} | {"run_id": run_id}
    if fields and found["session_id"] is None:
        found["session_id"] = run_id  # as in a request; what a body says that can't be read nobody knows
    targets = [kind for kind in SessionType if fields.get(f"{kind.value}_id") is not None]
    if len(targets) == 1:
        found |= {"session_type": targets[0].value, f"{targets[0].value}_id": fields[f"{targets[0].value}_id"]}
    valid = {name: value for name, value in found.items() if _is_id(value)}
    target_valid = any(f"{kind.value}_id" in valid for kind in SessionType)
    return valid if target_valid else {name: value for name, value in valid.items() if name != "session_type"}


def _is_id(value: Any) -> bool:  # noqa: ANN401 - whatever was sent
    try:
        _ID.validate_python(value)
    except ValidationError:
        return False
    return True


def parsed_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is. Raises RequestRefused."""
    try:
        fields = from_json(body.decode("utf-8"), allow_inf_nan=False)
        # What JSON's grammar allows and no database stores: 1e400, 5,000 levels; and what would take too long. The
        # cleaned copy is not used: the team gets what was sent.
        clean(fields)
    except TooManyValues as error:
        raise RequestRefused(ErrorCode.MALFORMED_REQUEST, f"the body has {error}") from None
    except ValueError as error:
        raise RequestRefused(
            ErrorCode.MALFORMED_REQUEST, f"the body is not JSON in UTF-8: {str(error)[:_LONGEST_REASON]}"
        ) from None
    if not isinstance(fields, dict):
        raise RequestRefused(ErrorCode.MALFORMED_REQUEST, "the body is not a JSON object")
    return fields


def reason_of(error: ValidationError) -> str:
    """Return what is wrong with a message: the field, and never its value."""
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
