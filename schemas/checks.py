"""What `teamturn doctor` says of a set-up, check by check."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """It works, and something should be done."""
    FAILURE = "failure"
    """It does not work, or loses what is promised."""
    SKIPPED = "skipped"
    """It could not be looked at, because another check failed."""


class Check(BaseModel):
    """One check."""

    model_config = ConfigDict(frozen=True)

    name: str
    verdict: Verdict
    says: str
    """What was found, as a sentence."""
    advice: str | None = None
    """What to do, where something is to be done."""
