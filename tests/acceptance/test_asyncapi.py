"""`teamturn asyncapi`, and what AsyncAPI's own parser says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from tests.acceptance.test_other_languages import npm_install, run
from tests.support.workers import run_command

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "TEAMTURN_AMQP_URL": "amqp://ada:secret-word@broker.example/app",
    "PYTHONPATH": ".",
}

PARSE = """
const { Parser } = require('@asyncapi/parser');
new Parser().parse(require('fs').readFileSync(0, 'utf8')).then(({ document, diagnostics }) => {
  const mistakes = diagnostics.filter(one => one.severity < 2).map(one => `${one.path.join('.')}: ${one.message}`);
  const operations = document ? document.operations().all().map(one => one.id()) : [];
  console.log(JSON.stringify({ mistakes, operations }));
});
"""


async def test_it_prints_yaml_or_json_of_a_prefix_and_no_password() -> None:
    code, as_yaml, err = await run_command("asyncapi", "--prefix", "batch", environment=ENVIRONMENT)
    assert (code, err) == (0, "")
    code, as_json, _ = await run_command("asyncapi", "--prefix", "batch", "--json", environment=ENVIRONMENT)
    document = json.loads(as_json)
    assert (code, yaml.safe_load(as_yaml)) == (0, document)
    assert document["channels"]["requests"]["bindings"]["amqp"]["exchange"]["name"] == "batch.requests"
    assert document["servers"]["rabbitmq"]["host"] == "broker.example:5672"
    assert "secret-word" not in as_yaml + as_json
    assert "ada" not in as_json.split()


async def test_a_prefix_that_is_none_is_one_line() -> None:
    code, out, err = await run_command("asyncapi", "--prefix", "a b", environment=ENVIRONMENT)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--prefix" in err


@pytest.mark.slow
async def test_asyncapi_s_own_parser_finds_no_mistake(tmp_path: Path) -> None:
    """It resolves references and has some eighty rules beside the schema."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    await npm_install(tmp_path, "@asyncapi/parser@^3")
    (tmp_path / "parse.js").write_text(PARSE)
    _, printed, _ = await run_command("asyncapi", environment=ENVIRONMENT)
    (tmp_path / "document.yaml").write_text(printed)
    code, out, err = await run("sh", "-c", "node parse.js < document.yaml", cwd=tmp_path)
    assert code == 0, err
    parsed = json.loads(out)
    assert parsed["mistakes"] == []
    assert "receiveRequest" in parsed["operations"]
