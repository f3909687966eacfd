"""compose.yaml: no engine starts it here, so it is held to the specification, and to what a worker is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.support.manifests import DEPLOY, check_command, interpolated, schema, settings_of
from worker.settings import Settings

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("teamturn:")}


def test_compose_is_what_the_specification_allows() -> None:
    Draft202012Validator(schema("compose-spec.json.gz")).validate(COMPOSE)


def test_compose_has_the_servers_that_teamturn_is_made_for() -> None:
    assert SERVICES["rabbitmq"]["image"].startswith("rabbitmq:4")
    assert SERVICES["postgres"]["image"] == "postgres:17"
    assert OURS.keys() == {"migrate", "topology", "worker"}


@pytest.mark.parametrize("name", OURS)
def test_compose_sets_what_teamturn_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = settings_of(OURS[name]["environment"], monkeypatch)
    assert read.amqp_url.get_secret_value() == "amqp://teamturn:teamturn@rabbitmq:5672/"
    assert read.postgres_url.get_secret_value() == "postgresql://teamturn:teamturn@postgres:5432/teamturn"
    check_command(OURS[name].get("command", ["worker"]))


def test_compose_gives_a_worker_longer_than_it_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = SERVICES["worker"]
    read = settings_of(worker["environment"], monkeypatch)
    assert float(worker["stop_grace_period"].removesuffix("s")) >= read.drain_timeout + 10


@pytest.mark.parametrize("name", OURS)
def test_compose_lets_teamturn_write_nothing_and_gain_nothing(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108 - the container's own
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(volume.endswith(":ro") for volume in service.get("volumes", []))


def test_compose_starts_a_worker_when_schema_and_topology_are_there() -> None:
    waits = {name: needed["condition"] for name, needed in SERVICES["worker"]["depends_on"].items()}
    assert waits == {
        "migrate": "service_completed_successfully",
        "topology": "service_completed_successfully",
        "postgres": "service_healthy",
        "rabbitmq": "service_healthy",
    }
    for name, service in SERVICES.items():
        one_shot = service.get("restart") == "no"
        assert service["healthcheck"].get("disable", False) is one_shot, name
        assert one_shot or service["restart"] == "unless-stopped", name
        for other, needed in service.get("depends_on", {}).items():
            finishes = SERVICES[other]["restart"] == "no"
            assert (needed["condition"] == "service_completed_successfully") is finishes, name


def test_compose_is_reached_from_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_has_no_password_that_cannot_be_set() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASS|KEY|_URL$", name):
                assert re.search(r"\$\{\w+:-", value), name
                assert "hidden" in interpolated(value, PASSWORD="hidden", OPENAI_API_KEY="hidden"), name


def test_compose_mounts_what_is_there() -> None:
    mounted = [
        interpolated(volume).split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])
    ]
    files = [path for path in mounted if path.startswith("./")]
    assert "./examples" in files
    assert all((DEPLOY / path).exists() for path in files)
    assert set(mounted) - set(files) == set(COMPOSE["volumes"])


def test_prometheus_and_grafana_find_what_compose_starts() -> None:
    scraped = yaml.safe_load((DEPLOY / "grafana" / "prometheus.yaml").read_text())
    jobs = {job["job_name"]: job for job in scraped["scrape_configs"]}
    (workers,) = jobs["teamturn"]["dns_sd_configs"]
    assert workers["names"] == ["worker"]
    assert SERVICES["worker"]["expose"] == [str(workers["port"])]
    assert workers["port"] == Settings.model_fields["http_port"].default
    for job in ("rabbitmq", "rabbitmq-queues"):
        assert jobs[job]["static_configs"] == [{"targets": ["rabbitmq:15692"]}]
    inside = {volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]}
    assert set(scraped["rule_files"]) <= inside
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "teamturn.yaml").read_text())["providers"]
    dashboards = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"] if "dashboard.json" in volume]
    assert [str(Path(path).parent) for path in dashboards] == [provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert dashboards == [home]
