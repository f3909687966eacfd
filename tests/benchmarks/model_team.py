"""A Team whose model answers over HTTP: `model_stub`, at the address in BENCH_MODEL_URL."""

from __future__ import annotations

import os

import httpx2
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from teamturn import Team
from tests.benchmarks.model_stub import URL_VARIABLE

# By default httpx2 opens 100 connections at most, and requests beyond them wait.
_client = httpx2.AsyncClient(timeout=120, limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None))
_provider = OpenAIProvider(base_url=os.environ[URL_VARIABLE], api_key="none", http_client=_client)

asked = Team(id="asked", model=OpenAIChatModel("stub", provider=_provider), instructions="Answer briefly.")
