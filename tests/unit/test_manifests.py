"""The Kubernetes manifests: no cluster takes them here, so they are held to their schemas, and to what a worker is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from jsonschema import ValidationError  # type: ignore[import-untyped]

from tests.support.manifests import DEPLOY, check_command, settings_of, validate
from tests.support.workers import ROOT
from worker.intake.topology import Topology
from worker.operations.health import Health
from worker.settings import Settings

K8S = DEPLOY / "k8s"
EXAMPLE_SECRETS = K8S / "secrets.example.yaml"
KUSTOMIZE = {"Kustomization", "Component"}


def documents(*paths: Path) -> list[dict[str, Any]]:
    return [document for path in paths for document in yaml.safe_load_all(path.read_text()) if document]


def manifest_files() -> list[Path]:
    return sorted([*K8S.rglob("*.yaml"), DEPLOY / "grafana" / "podmonitor.yaml"])


MANIFESTS = [one for one in documents(*manifest_files()) if one["kind"] not in KUSTOMIZE]


def the(kind: str) -> dict[str, Any]:
    (found,) = [one for one in MANIFESTS if one["kind"] == kind]
    return found


def configured() -> dict[str, str]:
    (generated,) = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())["configMapGenerator"]
    return dict(line.split("=", 1) for line in generated["literals"])


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("Deployment", "Job"):
        yield kind, the(kind)["spec"]["template"]["spec"]


CONTAINERS = [
    (container["name"], spec, container)
    for _, spec in pod_specs()
    for container in [*spec.get("initContainers", []), *spec["containers"]]
]


@pytest.mark.parametrize("document", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_is_what_its_kind_allows(document: dict[str, Any]) -> None:
    validate(document)


def test_the_schemas_refuse_a_field_that_the_kind_does_not_have() -> None:
    wrong = json.loads(json.dumps(the("Deployment")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(ValidationError, match="readynessProbe"):
        validate(wrong)


def kustomized(directory: Path) -> list[dict[str, Any]]:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not on this machine: it has kustomize in it, and needs no cluster for it")
    done = subprocess.run(
        [program, "kustomize", directory], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def test_the_base_alone_is_a_fleet_of_two() -> None:
    made = kustomized(K8S / "base")
    for document in made:
        validate(document)
    assert {one["kind"] for one in made} == {"ConfigMap", "Deployment", "Job", "PodDisruptionBudget", "ServiceAccount"}
    assert next(one for one in made if one["kind"] == "Deployment")["spec"]["replicas"] == 2


def test_the_example_has_an_image_and_teams_and_leaves_the_number_of_workers_to_keda() -> None:
    made = kustomized(K8S / "example")
    for document in made:
        validate(document)
        assert document["metadata"]["namespace"] == "teamturn"
    (deployment,) = [one for one in made if one["kind"] == "Deployment"]
    assert "replicas" not in deployment["spec"]
    pods = [one["spec"]["template"]["spec"] for one in made if one["kind"] in {"Deployment", "Job"}]
    containers = [container for pod in pods for container in pod.get("initContainers", []) + pod["containers"]]
    images = {container["image"] for container in containers}
    assert images == {"registry.example.com/my-teams:2026.11.1"}
    (settings,) = [
        one
        for one in made
        if one["metadata"]["name"].startswith("teamturn-") and "TEAMTURN_TEAMS" in one.get("data", {})
    ]
    assert settings["data"] == {**configured(), "TEAMTURN_TEAMS": "my_teams:teams"}
    workers = deployment["spec"]["template"]["metadata"]["labels"].items()
    for one in made:
        match one["kind"]:
            case "PodDisruptionBudget" | "PodMonitor":
                assert one["spec"]["selector"]["matchLabels"].items() <= workers
            case "NetworkPolicy":
                assert one["spec"]["podSelector"]["matchLabels"].items() <= workers
            case "ScaledObject":
                assert one["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
            case _:
                pass
    (dashboard,) = [one for one in made if one["metadata"]["name"] == "teamturn-dashboard"]
    assert dashboard["data"]["dashboard.json"] == (DEPLOY / "grafana" / "dashboard.json").read_text()


def test_every_manifest_is_part_of_something() -> None:
    used: set[Path] = {EXAMPLE_SECRETS}
    for path in [*K8S.rglob("kustomization.yaml"), DEPLOY / "grafana" / "kustomization.yaml"]:
        made = yaml.safe_load(path.read_text())
        used |= {
            path,
            *((path.parent / name).resolve() for name in made.get("resources", []) + made.get("components", [])),
        }
    assert {path for path in manifest_files() if path not in used} == set()


def test_the_configured_settings_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    read = settings_of(configured(), monkeypatch)
    assert read.partitions == Settings.model_fields["partitions"].default
    assert read.prefetch == Settings.model_fields["prefetch"].default


def test_a_pod_has_longer_than_its_worker_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    read = settings_of(configured(), monkeypatch)
    grace = the("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= read.drain_timeout + 10


def test_there_are_never_more_workers_than_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = the("ScaledObject")["spec"]
    assert scaled["maxReplicaCount"] == settings_of(configured(), monkeypatch).partitions
    assert 2 <= scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]


def test_keda_counts_the_request_queues_and_no_others() -> None:
    (trigger,) = the("ScaledObject")["spec"]["triggers"]
    topology = Topology("teamturn", 16)
    counted = [queue.name for queue in topology.queues() if re.search(trigger["metadata"]["queueName"], queue.name)]
    assert sorted(counted) == sorted(topology.partition(number) for number in range(16))
    assert trigger["metadata"]["useRegex"] == "true"
    assert trigger["metadata"]["protocol"] == "http"  # over AMQP it knows no expressions
    assert trigger["metadata"]["operation"] == "sum"
    assert int(trigger["metadata"]["pageSize"]) >= Settings.model_fields["partitions"].metadata[-1].le


@pytest.mark.parametrize(("name", "spec", "container"), CONTAINERS, ids=[name for name, _, _ in CONTAINERS])
def test_a_container_is_as_restricted_as_kubernetes_knows(
    name: str, spec: dict[str, Any], container: dict[str, Any]
) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert user
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    # A Service of the name "teamturn-http" would otherwise set TEAMTURN_HTTP_PORT.
    assert spec["enableServiceLinks"] is False
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - the container's own
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert container["resources"]["limits"].keys() == {"memory"}
    assert container["image"] == "teamturn"
    check_command(container["args"])
    assert name in {"worker", "migrate", "topology"}


def test_the_probes_ask_for_pages_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = the("Deployment")["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == settings_of(configured(), monkeypatch).http_port
    asked = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in asked.values()} == {port["name"]}
    assert {name: probe["path"] for name, probe in asked.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert {probe["path"] for probe in asked.values()} <= Health().pages.keys()


def test_workers_are_spread_and_go_one_at_a_time() -> None:
    spread = the("Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert {one["topologyKey"] for one in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert the("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


# Secrets


def referenced_secrets() -> set[str]:
    found = {reference["name"] for one in MANIFESTS for reference in _references(one)}
    return found - {one["metadata"]["name"] for one in MANIFESTS if one["kind"] == "ConfigMap"}


def _references(node: Any) -> Iterator[dict[str, Any]]:
    match node:
        case dict():
            for key, value in node.items():
                match key:
                    case "secretRef" | "secretKeyRef":
                        yield value
                    case "secretTargetRef":
                        yield from value
                    case _:
                        yield from _references(value)
        case list():
            for item in node:
                yield from _references(item)
        case _:
            pass


def test_each_secret_that_is_referred_to_is_shown_and_no_other() -> None:
    shown = {one["metadata"]["name"]: one["stringData"] for one in documents(EXAMPLE_SECRETS)}
    assert referenced_secrets() == shown.keys()
    for one in MANIFESTS:
        for reference in _references(one):
            assert "key" not in reference or reference["key"] in shown[reference["name"]]


def test_the_secrets_that_are_shown_have_words_to_fill_in_and_are_in_no_kustomization() -> None:
    for one in documents(EXAMPLE_SECRETS):
        for value in one["stringData"].values():
            words = re.sub(r"^(amqps|postgresql|https)://|:\d+|[:/@]", " ", value).split()
            assert all(re.fullmatch(r"[A-Z]+", word) for word in words), value
    assert [one["kind"] for one in MANIFESTS].count("Secret") == len(documents(EXAMPLE_SECRETS))
    for path in K8S.rglob("kustomization.yaml"):
        made = yaml.safe_load(path.read_text())
        assert "secretGenerator" not in made
        assert not any("secret" in name for name in made.get("resources", []))


@pytest.mark.parametrize("name", ["teamturn", "teamturn-setup"])
def test_the_addresses_that_are_shown_are_addresses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = [one["stringData"] for one in documents(EXAMPLE_SECRETS) if one["metadata"]["name"] == name]
    assert shown.keys() == {"TEAMTURN_AMQP_URL", "TEAMTURN_POSTGRES_URL"}
    settings_of({**configured(), **shown}, monkeypatch)
