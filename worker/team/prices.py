"""What a model's answer used and cost, by pydantic-ai's list of prices."""

from __future__ import annotations

from typing import Final

import genai_prices  # noqa: F401 - pydantic-ai would import it with the first answer, and keep the event loop for it
from pydantic import TypeAdapter, ValidationError
from pydantic_ai.messages import ModelResponse

from worker.executors.model_calls import ModelCall, tell_model_call

_RESPONSE: Final = TypeAdapter(ModelResponse)


def tell_response(response: object) -> None:
    """Tell of a model's answer, as it is or as it is recorded, to whoever counts what turns use."""
    if not isinstance(response, ModelResponse):
        try:
            # What was said is no matter here, and can be much.
            response = _RESPONSE.validate_python({**response, "parts": []} if isinstance(response, dict) else response)
        except ValidationError:
            return  # of a model of somebody's own: it is counted in the turn's usage
    used = response.usage
    tell_model_call(ModelCall(response.model_name, used.input_tokens, used.output_tokens, _dollars(response)))


def _dollars(response: ModelResponse) -> float | None:
    try:
        return float(response.cost().total_price)
    except Exception:  # noqa: BLE001 - no such model or provider, no name, no usage; a provider's details can be anything
        return None
