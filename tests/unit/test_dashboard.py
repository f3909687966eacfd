"""Dashboard and alerts: no Grafana shows them here, so each query is read, and held to the table of metrics."""

from __future__ import annotations

import json
import re
from itertools import combinations, product
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from schemas.errors import ErrorCode
from schemas.replies import RunStatus
from tests.support.manifests import check_command
from tests.support.metrics import GRAFANA, Metric, check, reads, table
from tests.support.promtool import promtool
from worker.intake.topology import Topology

METRICS = table()
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
FORBIDDEN_LABELS = {"session_id", "run_id", "user_id", "session", "run", "user"}
VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "1h",
    "${prefix}": "teamturn",
    "$worker": ".*",
    "$target": ".*",
}


def query_of(expression: str) -> str:
    """What Grafana asks with everything chosen."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


PANEL_QUERIES = [
    (f"{panel['title']} {target['refId']}", query_of(target["expr"])) for panel in PANELS for target in panel["targets"]
]
ALERT_QUERIES = [(rule["alert"], rule["expr"]) for rule in RULES]


# The table


def test_the_table_has_names_as_prometheus_wants_them() -> None:
    ours = [metric for metric in METRICS.values() if metric.name.startswith("teamturn_")]
    assert len(ours) > 20
    for metric in ours:
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric.name
        assert metric.type != "histogram" or metric.name.endswith(("_seconds", "_rows")), metric.name
        assert not metric.labels & FORBIDDEN_LABELS, metric.name
        assert len(metric.meaning) > len("meaning"), metric.name
        assert metric.type != "histogram" or re.search(r"[\d.]+ to \d+$", metric.meaning), f"{metric.name}: its buckets"


def test_every_metric_of_a_worker_is_shown() -> None:
    shown = {read.series for _, query in PANEL_QUERIES for read in reads(query)}
    assert [name for name, metric in METRICS.items() if not metric.series & shown] == []


# The dashboard


@pytest.mark.parametrize("query", [query for _, query in PANEL_QUERIES], ids=[title for title, _ in PANEL_QUERIES])
def test_a_panel_asks_for_what_the_table_has(query: str) -> None:
    check(query, METRICS)


def test_a_query_for_what_the_table_does_not_have_is_found() -> None:
    for wrong, why in {
        "sum(teamturn_turn_total)": "not in the table",
        "sum(teamturn_turns_in_flight{session_id='x'})": "no label",
        "sum by (colour) (teamturn_turns_in_flight)": "no label",
        "sum(teamturn_turns_total)": "is a counter",
        "rate(teamturn_turns_in_flight[1m])": "is a gauge",
        "rate(teamturn_turn_seconds[1m])": "not in the table",
    }.items():
        with pytest.raises(AssertionError, match=why):
            check(wrong, METRICS)


def test_the_panels_are_told_apart_and_none_lies_on_another() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_every_panel_says_what_it_is_for_and_asks_the_chosen_prometheus() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert all(source == chosen for source in (panel["datasource"], *(t["datasource"] for t in panel["targets"])))


def test_the_variables_are_those_that_the_queries_use() -> None:
    given = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(PANELS)))
    assert given.keys() == used
    for variable in given.values():
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            assert label in METRICS[metric].labels | {"instance"}


@pytest.mark.parametrize(
    "shown",
    [
        *(
            "Turns by team",
            "Time of a turn",
            "waits for besides",
            "Errors and refusals by code",
            "Backlog by partition",
        ),
        *("In flight", "Tokens", "Cost", "replayed", "lag", "Lanes", "Refused commits", "Oldest"),
    ],
)
def test_the_dashboard_shows(shown: str) -> None:
    assert any(shown in panel["title"] for panel in PANELS)


# Alerts


@pytest.mark.parametrize("query", [query for _, query in ALERT_QUERIES], ids=[name for name, _ in ALERT_QUERIES])
def test_an_alert_asks_for_what_the_table_has(query: str) -> None:
    check(query, METRICS)


def test_values_that_are_asked_for_are_values_that_there_are() -> None:
    known = {
        "status": {status.value for status in RunStatus},
        "code": {"none", *(code.value for code in ErrorCode)},
        "part": {"lanes", "room", "broker", "publishing", "taking"},
        "queue": {queue.name for queue in Topology("teamturn", 16).queues()},
    }
    for _, query in PANEL_QUERIES + ALERT_QUERIES:
        for read in reads(query):
            for label, value in read.values:
                assert value in known[label], query


def test_the_alerts_watch_the_queues_that_there_are() -> None:
    topology = Topology("teamturn", 16)
    watched = {
        queue.name
        for rule in RULES
        for pattern in re.findall(r'queue=~?"([^"]+)"', rule["expr"])
        for queue in topology.queues()
        if re.fullmatch(pattern.replace("\\\\", "\\"), queue.name)
    }
    assert watched == {queue.name for queue in topology.queues()} - {topology.control}


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}, rule["alert"]
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "runbook"}
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert labels <= set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"])))), rule["alert"]


def test_a_runbook_names_commands_and_pages_that_there_are() -> None:
    named = [words for rule in RULES for words in re.findall(r"`teamturn ([a-z ]+)`", rule["annotations"]["runbook"])]
    assert named
    for words in named:
        check_command(words.split())


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
def test_when_an_alert_fires_is_tested(alert: str) -> None:
    tests = yaml.safe_load((GRAFANA / "alerts_test.yaml").read_text())["tests"]
    by_query = [
        sample["labels"]
        for test in tests
        for asked in test.get("promql_expr_test", [])
        for sample in asked["exp_samples"]
    ]
    by_name = [asked["alertname"] for test in tests for asked in test.get("alert_rule_test", []) if asked["exp_alerts"]]
    assert alert in by_name or any(f'alertname="{alert}"' in labels for labels in by_query)


# promtool


@pytest.mark.parametrize("words", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")])
def test_promtool_is_content_with_the_alerts(words: tuple[str, ...]) -> None:
    promtool(*words, cwd=GRAFANA)


def test_promtool_is_content_with_what_is_scraped(tmp_path: Path) -> None:
    scraped = (GRAFANA / "prometheus.yaml").read_text().replace("/etc/prometheus/", f"{GRAFANA}/")
    (tmp_path / "prometheus.yaml").write_text(scraped)
    promtool("check", "config", "prometheus.yaml", cwd=tmp_path)


VALUES = {
    "target": ["team.capital"],
    "status": ["COMPLETED", "ERROR"],
    "code": ["none", "model_error"],
    "model": ["gpt-5"],
    "direction": ["input", "output"],
    "reason": ["stale"],
    "what": ["commit"],
    "part": ["lanes", "publishing"],
    "lane": ["1"],
    "statement": ["commit"],
    "version": ["0.1.0"],
    "worker": ["host:7"],
    "vhost": ["/"],
    "queue": [queue.name for queue in Topology("teamturn", 16).queues()],
}


def told_of(metric: Metric) -> list[dict[str, str]]:
    """Series as a scrape of everything that there is to tell would give them, in promtool's notation."""
    numbers = "1x40" if metric.type == "gauge" else "0+4x40"
    names = sorted(metric.labels)
    told = []
    for values in product(*(VALUES[name] for name in names)):
        labels = {**dict(zip(names, values, strict=True)), "instance": "one", "job": "any"}
        for series in sorted(metric.series):
            for le in ("0.1", "10", "+Inf") if series.endswith("_bucket") else (None,):
                full = labels if le is None else {**labels, "le": le}
                written = ", ".join(f'{name}="{value}"' for name, value in full.items())
                told.append({"series": f"{series}{{{written}}}", "values": numbers})
    return told


def test_every_panel_shows_something_where_every_metric_is_told(tmp_path: Path) -> None:
    shown = [{"expr": f"count({query}) > bool 0", "eval_time": "5m"} for _, query in PANEL_QUERIES]
    whole = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [series for metric in METRICS.values() for series in told_of(metric)],
                "promql_expr_test": [{**one, "exp_samples": [{"labels": "{}", "value": 1}]} for one in shown],
            }
        ],
    }
    (tmp_path / "shown.yaml").write_text(json.dumps(whole))
    promtool("test", "rules", "shown.yaml", cwd=tmp_path)


def test_what_a_worker_s_first_turn_costs_is_part_of_the_cost_in_the_time_shown(tmp_path: Path) -> None:
    """Prometheus sees no increase in the first value of a series."""
    (query,) = [query for title, query in PANEL_QUERIES if title.startswith("Cost in the time shown")]
    cost = 'teamturn_cost_dollars_total{target="team.capital", model="m", job="any", instance='
    told = {
        "input_series": [
            {"series": f'{cost}"new"}}', "values": "_x260 5+0x30"},
            {"series": f'{cost}"old"}}', "values": "1+0x300"},
        ],
        "interval": "15s",
        "promql_expr_test": [
            {"expr": query, "eval_time": "70m", "exp_samples": [{"labels": '{target="team.capital"}', "value": 5}]}
        ],
    }
    (tmp_path / "cost.yaml").write_text(json.dumps({"evaluation_interval": "15s", "tests": [told]}))
    promtool("test", "rules", "cost.yaml", cwd=tmp_path)
