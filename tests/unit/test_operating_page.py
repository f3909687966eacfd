"""deploy/README.md: true to what is beside it."""

from __future__ import annotations

import re
import subprocess

import yaml  # type: ignore[import-untyped]

from tests.support.manifests import DEPLOY, validate
from tests.support.metrics import GRAFANA
from tests.support.workers import ROOT

RULES = [rule for group in yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
PAGE = (DEPLOY / "README.md").read_text()


def test_the_page_on_operating_has_a_line_for_every_alert() -> None:
    lines = re.findall(r"^\| `(Teamturn\w+)` \| (\w+) \| .{20,} \|$", PAGE, re.MULTILINE)
    assert lines == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


def test_the_page_on_operating_makes_a_rule_of_prometheus_s_operator() -> None:
    (shell,) = [block for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "sed" in block]
    made = yaml.safe_load(subprocess.check_output(["sh", "-euc", shell], cwd=ROOT, text=True, timeout=20))
    validate(made)
    assert [rule for group in made["spec"]["groups"] for rule in group["rules"]] == RULES
