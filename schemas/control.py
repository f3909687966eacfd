"""Control messages: what is said about a run, apart from its request."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from schemas.ids import Id


class CancelRequest(BaseModel):
    """That a run is not wanted any more, running, waiting or still to come. Published to `{prefix}.control`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["cancel"]
    """What is said."""
    run_id: Id
    """Of which run."""
    session_id: Id = ""
    """The run's session; absent: the run_id, as in a request."""
    user_id: Id | None = None
    """The run's user; absent, if it has none. Of any other user's run nothing is changed."""

    @model_validator(mode="before")
    @classmethod
    def _session_of_a_run(cls, fields: object) -> object:
        if isinstance(fields, dict) and fields.get("session_id") is None:
            return {**fields, "session_id": fields.get("run_id")}
        return fields
