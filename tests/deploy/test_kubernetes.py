from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from tests.deploy.conftest import DEPLOY, ROOT

from vibematch_export.triton import DRAIN_TIMEOUT_S

KUBERNETES = DEPLOY / "kubernetes"
VARIANTS = ("cpu", "gpu")
Manifest = dict[str, Any]


def _load(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text()))


def _build(variant: str) -> list[Manifest]:
    """What `kubectl apply -k` would send, as far as our kustomizations go."""
    folder = KUBERNETES / variant
    (kustomization,) = _load(folder / "kustomization.yaml")
    manifests: list[Manifest] = []
    for resource in kustomization["resources"]:
        path = folder / resource
        manifests += _build(path.name) if path.is_dir() else _load(path)
    for patch in kustomization.get("patches", []):
        (change,) = _load(folder / patch["path"])
        name = (change["kind"], change["metadata"]["name"])
        (patched,) = (m for m in manifests if (m["kind"], m["metadata"]["name"]) == name)
        _merge(patched, change)
    for manifest in manifests:
        if manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = kustomization["namespace"]
    return manifests


def _merge(into: Manifest, change: Manifest) -> None:
    """A strategic merge: lists of named things are merged by name, mounts by path."""
    for key, value in change.items():
        if isinstance(value, dict) and key in into:
            _merge(into[key], value)
        elif isinstance(value, list) and key in into:
            by = "mountPath" if key == "volumeMounts" else "name"
            known = {item[by]: item for item in into[key]}
            for item in value:
                if item[by] not in known:
                    into[key].append(item)
                elif key == "volumes":  # of one kind: emptyDir, a claim, ...
                    known[item[by]].clear()
                    known[item[by]].update(item)
                else:
                    _merge(known[item[by]], item)
        else:
            into[key] = value


@pytest.fixture(scope="module", params=VARIANTS)
def manifests(request: pytest.FixtureRequest) -> dict[str, Manifest]:
    return {f"{m['kind']}/{m['metadata']['name']}": m for m in _build(request.param)}


@pytest.fixture(scope="module")
def pod(manifests: dict[str, Manifest]) -> Manifest:
    return dict(manifests["Deployment/vibematch-server"]["spec"]["template"]["spec"])


@pytest.fixture(scope="module")
def server(pod: Manifest) -> Manifest:
    (container,) = pod["containers"]
    return dict(container)


def test_every_manifest_follows_kubernetes_own_schema(manifests: dict[str, Manifest]) -> None:
    newest = kubernetes_validate.latest_version()
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, newest, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    (deployment,) = _load(KUBERNETES / "cpu/deployment.yaml")
    deployment["spec"]["template"]["spec"]["runAsNonRoot"] = True  # belongs a level deeper
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)


def test_pods_meet_the_restricted_standard_that_their_namespace_enforces(
    manifests: dict[str, Manifest], pod: Manifest
) -> None:
    """The standard: https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    labels = manifests["Namespace/vibematch"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] == 10001
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for volume in pod["volumes"]:
        assert volume.keys() <= {"name", "emptyDir", "persistentVolumeClaim"}


def test_only_scratch_folders_can_be_written(server: Manifest) -> None:
    writable = {m["mountPath"] for m in server["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/tmp", "/dev/shm"}  # noqa: S108


def test_every_mount_has_its_volume(pod: Manifest) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_a_busy_server_is_not_killed_and_a_draining_one_gets_no_more_requests(
    server: Manifest,
) -> None:
    ready = "/v2/models/style_encoder/ready"
    assert server["startupProbe"]["httpGet"]["path"] == ready
    assert server["readinessProbe"]["httpGet"]["path"] == ready
    assert server["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_a_pod_has_time_to_be_forgotten_and_to_drain(pod: Manifest, server: Manifest) -> None:
    forget = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > forget + DRAIN_TIMEOUT_S


def test_an_update_never_lowers_the_number_of_ready_pods(manifests: dict[str, Manifest]) -> None:
    spec = manifests["Deployment/vibematch-server"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert (
        spec["replicas"]
        > manifests["PodDisruptionBudget/vibematch-server"]["spec"]["maxUnavailable"]
    )


def test_everything_selects_the_pods_by_their_labels(manifests: dict[str, Manifest]) -> None:
    labels = {"app.kubernetes.io/name": "vibematch-server"}
    deployment = manifests["Deployment/vibematch-server"]["spec"]
    assert deployment["template"]["metadata"]["labels"] == labels
    assert deployment["selector"]["matchLabels"] == labels
    for service in ("vibematch", "vibematch-grpc"):
        assert manifests[f"Service/{service}"]["spec"]["selector"] == labels
    budget = manifests["PodDisruptionBudget/vibematch-server"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    policy = manifests["NetworkPolicy/vibematch-server"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels


def test_ports_that_are_named_are_the_containers(
    manifests: dict[str, Manifest], server: Manifest
) -> None:
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    for service in ("vibematch", "vibematch-grpc"):
        for port in manifests[f"Service/{service}"]["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_grpc_clients_see_every_pod(manifests: dict[str, Manifest]) -> None:
    assert manifests["Service/vibematch-grpc"]["spec"]["clusterIP"] == "None"


def test_apps_reach_the_model_and_prometheus_the_metrics_and_nothing_goes_out(
    manifests: dict[str, Manifest],
) -> None:
    policy = manifests["NetworkPolicy/vibematch-server"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["egress"] == []
    app, monitoring = policy["ingress"]
    assert {port["port"] for port in app["ports"]} == {"grpc", "http"}
    assert {port["port"] for port in monitoring["ports"]} == {"metrics"}
    assert all("from" in rule for rule in policy["ingress"])


def test_the_autoscaler_reads_the_metric_that_the_adapter_makes(
    manifests: dict[str, Manifest],
) -> None:
    (metric,) = manifests["HorizontalPodAutoscaler/vibematch-server"]["spec"]["metrics"]
    (adapter,) = _load(KUBERNETES / "cpu/prometheus-adapter.yaml")
    (rule,) = adapter["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]


def test_the_gpu_variant_takes_one_gpu_and_makes_its_plan_first() -> None:
    (deployment,) = (m for m in _build("gpu") if m["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (plan,), (server,) = pod["initContainers"], pod["containers"]
    assert plan["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    environment = {variable["name"]: variable["value"] for variable in server["env"]}
    assert environment["VIBEMATCH_PROFILE"] == "tensorrt"
    # Where the plan image's own command puts the repository.
    command = '"/srv/vibematch/model_repository", "/var/cache/vibematch", "/srv/vibematch/served"'
    assert command in (ROOT / "Dockerfile").read_text()
    assert environment["VIBEMATCH_REPOSITORY"] == "/srv/vibematch/served"
    # Links only lead somewhere if both containers mount the same folders at the same places.
    paths = {m["mountPath"]: m["name"] for m in server["volumeMounts"]}
    for mount in plan["volumeMounts"]:
        assert paths[mount["mountPath"]] == mount["name"]


def test_every_manifest_is_listed() -> None:
    for variant in VARIANTS:
        folder = KUBERNETES / variant
        (kustomization,) = _load(folder / "kustomization.yaml")
        patches = [patch["path"] for patch in kustomization.get("patches", [])]
        listed = {*kustomization["resources"], *patches, "kustomization.yaml"}
        there = {path.name for path in folder.glob("*.yaml")} - {"prometheus-adapter.yaml"}
        assert there <= listed
