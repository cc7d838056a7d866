from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from tests.deploy.conftest import DEPLOY, run_tool

from vibematch_export.triton import DRAIN_TIMEOUT_S

SERVERS = ("server", "server-gpu", "server-tensorrt")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def test_it_follows_the_compose_specification() -> None:
    run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_every_container_is_locked_up(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_nothing_is_reachable_from_other_machines(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3 * 3 + 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_of_others_are_pinned(compose: dict[str, Any]) -> None:
    images = {
        service["image"] for service in compose["services"].values() if "build" not in service
    }
    assert len(images) == 2
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images)


def test_built_images_are_targets_of_the_dockerfile(compose: dict[str, Any]) -> None:
    stages = set(re.findall(r"(?m)^FROM .* AS (\S+)$", (DEPLOY.parent / "Dockerfile").read_text()))
    builds = [service["build"] for service in compose["services"].values() if "build" in service]
    assert len(builds) == 4
    assert all((DEPLOY / build["context"]).resolve() == DEPLOY.parent for build in builds)
    assert {build["target"] for build in builds} == {"cpu", "gpu", "plan"} <= stages


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_has_time_to_drain_and_room_for_photos(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_TIMEOUT_S
    assert service["shm_size"] == "1gb"
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])  # noqa: S108
    repository = service["volumes"][0]
    assert repository["target"] == "/srv/vibematch/model_repository"
    assert repository["read_only"] is True


def test_only_one_server_starts_at_a_time_under_the_name_that_prometheus_asks(
    compose: dict[str, Any],
) -> None:
    profiles = [compose["services"][name]["profiles"] for name in SERVERS]
    assert profiles == [["cpu"], ["gpu"], ["tensorrt"]]
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    for name in SERVERS:
        aliases = compose["services"][name]["networks"]["default"]["aliases"]
        assert aliases == [target.split(":")[0]]


def test_mounted_files_exist(compose: dict[str, Any]) -> None:
    mounts = [
        mount.split(":")[0]
        for service in compose["services"].values()
        for mount in service.get("volumes", [])
        if isinstance(mount, str)
    ]
    files = [mount for mount in mounts if mount.startswith("./")]
    assert len(files) == 4
    assert all((DEPLOY / file).exists() for file in files)
    assert {mount for mount in mounts if not mount.startswith("./")} <= set(compose["volumes"])


def test_no_password_is_given(compose: dict[str, Any]) -> None:
    password = compose["services"]["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert password.startswith("${GRAFANA_PASSWORD:?")


def test_grafana_finds_its_dashboard_and_its_data(compose: dict[str, Any]) -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/datasource.yml").read_text())["datasources"]
    dashboard = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    (provider,) = yaml.safe_load((DEPLOY / "grafana/dashboards.yml").read_text())["providers"]
    mounts = compose["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboard.json:{provider['options']['path']}/vibematch.json:ro" in mounts
