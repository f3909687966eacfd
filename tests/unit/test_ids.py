"""Ids: 1 to 255 bytes of UTF-8 without control characters."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from pydantic import TypeAdapter, ValidationError

from schemas.ids import Id, SessionType, Target
from tests.unit.strategies import any_text

_ID: TypeAdapter[str] = TypeAdapter(Id)


def _accepted(value: object) -> bool:
    try:
        return bool(_ID.validate_python(value) == value)
    except ValidationError:
        return False


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("a", id="one byte"),
        pytest.param("x" * 255, id="255 bytes of ASCII"),
        pytest.param("é" * 127 + "x", id="255 bytes of two-byte characters"),
        pytest.param("日" * 85, id="255 bytes of three-byte characters"),
        pytest.param("😀" * 63, id="252 bytes of four-byte characters"),
        pytest.param(" team.1/2:3#*\\\"' ", id="spaces and punctuation"),
        pytest.param("\u200d\u00a0\ufeff", id="joiner, no-break space, byte order mark: not control characters"),
    ],
)
def test_an_id_may_have_up_to_255_bytes(value: str) -> None:
    assert _accepted(value)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 256, id="256 bytes of ASCII"),
        pytest.param("é" * 128, id="128 characters, 256 bytes"),
        pytest.param("日" * 86, id="86 characters, 258 bytes"),
        pytest.param("😀" * 64, id="64 characters, 256 bytes"),
        pytest.param("a\x00b", id="NUL"),
        pytest.param("a\n", id="line feed at the end"),
        pytest.param("\x1f", id="the last of C0"),
        pytest.param("\x7f", id="DEL"),
        pytest.param("\x85", id="C1"),
        pytest.param("a\ud800", id="lone high surrogate"),
        pytest.param("\udfffb", id="lone low surrogate"),
    ],
)
def test_what_is_too_long_in_bytes_or_has_control_characters_is_no_id(value: str) -> None:
    assert not _accepted(value)


@pytest.mark.parametrize("value", [None, 5, 1.5, True, b"a", ["a"], {"id": "a"}])
def test_an_id_is_text_and_nothing_is_made_text(value: object) -> None:
    assert not _accepted(value)


@given(any_text)
@example("é" * 127)
def test_any_text_is_an_id_exactly_if_it_is_1_to_255_bytes_without_control_characters(text: str) -> None:
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        assert not _accepted(text)
        return
    controls = any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text)
    assert _accepted(text) is (1 <= size_bytes <= 255 and not controls)


@pytest.mark.parametrize(("kind", "key"), [("team", "team.a b"), ("agent", "agent.a b"), ("workflow", "workflow.a b")])
def test_a_target_reads_as_the_routing_key_of_its_replies(kind: str, key: str) -> None:
    assert str(Target(type=SessionType(kind), id="a b")) == key


def test_targets_of_the_same_id_and_another_kind_are_different_keys() -> None:
    targets = {Target(type=kind, id="one") for kind in SessionType} | {Target(type=SessionType.TEAM, id="one")}
    assert len(targets) == 3
