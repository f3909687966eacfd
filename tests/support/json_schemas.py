"""Whether a JSON Schema takes every document that another one takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_SAYS_NOTHING = frozenset({"title", "description", "default", "examples", "discriminator", "$schema", "$id", "$defs"})
_WITHOUT = {"minLength": 0, "minItems": 0}
"""What is as if the keyword were not there."""


def narrowings(old: Schema, new: Schema) -> list[str]:
    """Return a line for each place where `new` refuses something that `old` takes; none: it takes all that `old` does.

    It is sure only of what it says nothing about: a keyword that it does not know must be the same in both.
    """
    return list(_Comparison(old, new).schemas(old, new, "$"))


class _Comparison:
    def __init__(self, old_root: Schema, new_root: Schema) -> None:
        self._roots = (old_root, new_root)

    def schemas(self, old: Any, new: Any, where: str) -> Iterator[str]:
        old, new = (self._resolved(one, root) for one, root in zip((old, new), self._roots, strict=True))
        if new in (True, {}):
            return
        if not (isinstance(old, dict) and isinstance(new, dict)):
            if old is not False and old != new:
                yield f"{where}: {new} instead of {old}"
            return
        for keyword in sorted((old.keys() | new.keys()) - _SAYS_NOTHING):
            yield from self._keyword(keyword, old, new, where)

    def _keyword(self, keyword: str, old: Schema, new: Schema, where: str) -> Iterator[str]:
        before, after = old.get(keyword), new.get(keyword)
        at = f"{where}.{keyword}"
        if keyword == "properties":
            yield from self._properties(old, new, where)
        elif keyword in ("additionalProperties", "items"):
            # Without it anything goes.
            yield from self.schemas(True if before is None else before, True if after is None else after, at)
        elif keyword in ("anyOf", "oneOf"):
            yield from self._alternatives(old, before, after, at)
        elif keyword == "required":
            yield from (f"{at}: {name}" for name in sorted({*(after or ())} - {*(before or ())}))
        elif after is not None and before != after and not _takes_all(keyword, before, after):
            yield f"{at}: {after} instead of {before}"

    def _properties(self, old: Schema, new: Schema, where: str) -> Iterator[str]:
        others = new.get("additionalProperties", {})
        for name, schema in old.get("properties", {}).items():
            if name in new.get("properties", {}):
                yield from self.schemas(schema, new["properties"][name], f"{where}.{name}")
            elif others is False:
                yield f"{where}: {name} is missing"
            else:
                yield from self.schemas(schema, others, f"{where}.{name}")

    def _alternatives(self, old: Schema, before: list[Any] | None, after: list[Any] | None, at: str) -> Iterator[str]:
        """Each alternative must be taken by one of the new ones; what had none is an alternative itself."""
        if after is None:
            return
        alone = [{name: value for name, value in old.items() if name not in ("anyOf", "oneOf")}]
        for number, alternative in enumerate(before or alone):
            if all(any(self.schemas(alternative, one, at)) for one in after):
                yield f"{at}: nothing takes what number {number} did"

    def _resolved(self, schema: Any, root: Schema) -> Any:
        while isinstance(schema, dict) and "$ref" in schema:
            schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return schema


def _takes_all(keyword: str, before: Any, after: Any) -> bool:
    """Whether a keyword's value lets through what another one did; None: there was none, and all went through."""
    if before is None:
        return bool(after == _WITHOUT.get(keyword))
    match keyword:
        case "type" | "enum":
            return {*_listed(before)} <= {*_listed(after)}
        case "minLength" | "minItems" | "minimum":
            return bool(after <= before)
        case "maxLength" | "maxItems" | "maximum":
            return bool(after >= before)
        case _:
            return False


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
