"""The models of a turn: each answer is a step, recorded before Agno goes on, and what it used is counted.

Agno shares a Model between all that run with it, for its connections. A turn has a copy of its own, of a class derived
from the model's: what Agno changes of it for a run is not seen by another one, and the connections are shared all the
same. The key of a step is made of what is asked, so that a later attempt finds it whatever runs side by side; two
requests that ask the same are interchangeable.
"""

from __future__ import annotations

from collections.abc import Hashable
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Final, cast

import structlog
from agno.models.base import Model
from pydantic import JsonValue

from worker.agno.answers import Unrecordable, answer_of, name_calls, recorded_answer
from worker.agno.asked import digest_of
from worker.agno.prices import tell_usage
from worker.agno.tools import TurnTools
from worker.executors.journal import Asked
from worker.executors.turn import Turn

_DIGEST_CHARACTERS: Final = 16
_CONNECTIONS: Final = ("client", "async_client", "model_client", "mistral_client")
"""Where Agno's models keep what they open at their first request."""
_RECORDING: Final = "_teamturn_recording"
"""The attribute of a turn's copy of a model that says what it passes requests on to."""

_log = structlog.get_logger()


@dataclass
class TurnModels:
    """The models of one turn, and how they failed."""

    turn: Turn
    failures: list[Exception] = field(default_factory=list)
    """What models have raised so far, in order, and was not made good by a later answer: Agno keeps its text only."""
    _failed_runs: dict[int, Any] = field(default_factory=dict)
    """The run that asked, by the id of the failure."""
    tools: TurnTools = field(init=False)
    _copies: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tools = TurnTools(self.turn)

    def of(self, model: Any) -> Any:
        """Return the turn's copy of a model; what is no Model of Agno's, as it is."""
        if not isinstance(model, Model) or hasattr(model, _RECORDING):
            return model
        if id(model) not in self._copies:
            self._copies[id(model)] = self._copied(model)
        return self._copies[id(model)]

    def _copied(self, model: Any) -> Any:
        own = copy(model)
        try:
            own.__class__ = _recorded_class(cast("Hashable", type(model)))
        except TypeError:  # of a class that can't be derived from so, with slots say
            _log.warning("agno_model_not_recorded", model=model.id, consequence="a later attempt asks it again")
            return model
        setattr(own, _RECORDING, _Recording(model, type(model), self))
        return own

    async def answer(self, model: Any, asked: dict[str, Any]) -> Any:
        """Have a copy of a model answer, or return what it answered in an earlier attempt."""
        answer = await self._recorded(model, asked) if self.turn.steps.journal.kept else await self._ask(model, asked)
        self._make_good(asked.get("run_response"))
        used, usage = answer.response_usage, self.turn.usage
        usage.model_requests += 1
        usage.input_tokens += getattr(used, "input_tokens", 0) or 0
        usage.output_tokens += getattr(used, "output_tokens", 0) or 0
        return answer

    async def _recorded(self, model: Any, asked: dict[str, Any]) -> Any:
        digest, steps = digest_of(model, asked), self.turn.steps
        name = f"{_asker(model, asked)}[{digest.hex()[:_DIGEST_CHARACTERS]}]/model.request"
        step = Asked("", digest, repeatable=True, failure_kept=False, tokens=_tokens_recorded)
        made: list[Any] = []
        with steps.numbered(name, step) as numbered:

            async def make() -> JsonValue:
                made[:] = [await self._ask(model, asked)]
                name_calls(made[0], f"{self.turn.run_id} {numbered.key}")
                return recorded_answer(made[0])

            try:
                recorded = await steps.make(numbered, make)
            except Unrecordable as error:
                _log.warning("agno_answer_not_recorded", reason=str(error), consequence="a later attempt asks again")
                return made[0]
        return made[0] if made else answer_of(recorded, asked.get("response_format"))

    async def _ask(self, model: Any, asked: dict[str, Any]) -> Any:
        recording: _Recording = getattr(model, _RECORDING)
        try:
            answer = await recording.kind.ainvoke(model, **asked)
        except Exception as error:
            self.failures.append(error)
            self._failed_runs[id(error)] = asked.get("run_response")
            raise
        else:
            tell_usage(model, answer.response_usage)
            return answer
        finally:
            recording.share_connections(model)

    def _make_good(self, run: Any) -> None:
        """Forget what a run has failed with before, now that it has an answer: by another try, or a fallback model."""
        if run is not None:
            self.failures[:] = [one for one in self.failures if self._failed_runs.get(id(one)) is not run]


def _asker(model: Any, asked: dict[str, Any]) -> str:
    """Return who asks, for people: an agent's or a team's id, or what the model is for."""
    run = asked.get("run_response")
    found = getattr(run, "agent_id", None) or getattr(run, "team_id", None)
    return str(found or getattr(model.model_type, "value", model.model_type))


def _tokens_recorded(recorded: Any) -> tuple[int, int]:
    used = recorded.get("response_usage") or {}
    return used.get("input_tokens") or 0, used.get("output_tokens") or 0


@dataclass(frozen=True)
class _Recording:
    """What a turn's copy of a model is a copy of, and where its answers go."""

    original: Any
    kind: Any
    """The original's class."""
    models: TurnModels

    def __deepcopy__(self, memo: dict[int, Any]) -> _Recording:
        return self  # Agno copies a model for reasoning, say: its answers are the same turn's

    def share_connections(self, own: Any) -> None:
        """Let other turns have the connections that the first request has opened."""
        for name in _CONNECTIONS:
            if getattr(self.original, name, ...) is None and (opened := getattr(own, name, None)) is not None:
                setattr(self.original, name, opened)


async def _recorded_ainvoke(self: Any, *unnamed: Any, **asked: Any) -> Any:
    recording: _Recording = getattr(self, _RECORDING)
    if unnamed:  # not as Agno asks
        return await recording.kind.ainvoke(self, *unnamed, **asked)
    return await recording.models.answer(self, asked)


@cache
def _recorded_class(kind: Hashable) -> type:
    """Return the class of a turn's copy of a model: the model's own, but for what is passed on.

    It adds nothing to an instance, or one of the model's own class could not be made one of this.
    """
    own: Any = kind

    async def arun_function_call(self: Any, function_call: Any) -> Any:
        recording: _Recording = getattr(self, _RECORDING)
        # Agno has models make the calls that they ask for.
        return await recording.models.tools.call(partial(own.arun_function_call, self), function_call)

    changed = {
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "ainvoke": _recorded_ainvoke,
        "arun_function_call": arun_function_call,
    }
    made: type = type(own)(own.__name__, (own,), changed)
    return made
