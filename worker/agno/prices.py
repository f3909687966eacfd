"""What the answers of Agno's models used and cost, by pydantic-ai's list of prices."""

from __future__ import annotations

from typing import Any

from pydantic_ai.messages import ModelResponse
from pydantic_ai.usage import RequestUsage

from worker.team.prices import tell_response


def tell_usage(model: Any, used: Any) -> None:
    """Tell what an answer of a model used, to whoever counts what turns use; a provider may say nothing of it."""
    usage = RequestUsage(
        input_tokens=getattr(used, "input_tokens", 0) or 0,
        output_tokens=getattr(used, "output_tokens", 0) or 0,
        cache_read_tokens=getattr(used, "cache_read_tokens", 0) or 0,
        cache_write_tokens=getattr(used, "cache_write_tokens", 0) or 0,
    )
    named, provider = getattr(model, "id", None), getattr(model, "provider", None)
    tell_response(
        ModelResponse(
            parts=[],
            usage=usage,
            model_name=named if isinstance(named, str) else None,
            provider_name=provider.lower() if isinstance(provider, str) else None,
        )
    )
