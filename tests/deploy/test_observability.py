from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.conftest import DEPLOY, run_tool

from vibematch.encoder import Encoder
from vibematch.errors import InputError
from vibematch_export.canary import MIN_COSINE
from vibematch_export.publish import ask_canary
from vibematch_export.repository import MAX_QUEUE_SIZE
from vibematch_export.triton import TritonServer

PROMETHEUS = DEPLOY / "prometheus"
ADAPTER = DEPLOY / "kubernetes/cpu/prometheus-adapter.yaml"
ONLY_WITH_A_GPU = {"nv_gpu_memory_used_bytes", "nv_gpu_utilization"}
PROMETHEUS_OWN = {"up", "ALERTS"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana/dashboard.json").read_text()))


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def expressions(dashboard: dict[str, Any], rules: list[dict[str, Any]]) -> list[str]:
    """Everything that is ever asked of Prometheus."""
    (adapted,) = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    query = adapted["metricsQuery"].replace("<<.GroupBy>>", "pod")
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    annotations = [item["expr"] for item in dashboard["annotations"]["list"]]
    return [
        *(rule["expr"] for rule in rules),
        *(target.replace("$__rate_interval", "1m") for target in targets),
        *annotations,
        adapted["seriesQuery"],
        query.replace("<<.LabelMatchers>>", 'namespace="vibematch"'),
    ]


@pytest.fixture(scope="module")
def scraped(server: TritonServer, photos: list[bytes]) -> dict[str, set[str]]:
    """Metric → names of its labels, from a server that has seen good photos and a bad one."""
    ask_canary(server.control, 1)
    with Encoder(server.grpc_url) as encoder:
        encoder.encode(photos[:1])
        with pytest.raises(InputError):
            encoder.encode([b"no photo"])
    return _scrape(server)


def _scrape(server: TritonServer) -> dict[str, set[str]]:
    metrics: dict[str, set[str]] = {}
    for line in _metrics(server).splitlines():
        if line and not line.startswith("#"):
            sample = re.fullmatch(r"(\w+)(?:\{(.*)\})? \S+", line)
            assert sample, line
            name, labels = sample.groups()
            metrics.setdefault(name, set()).update(re.findall(r'(\w+)="', labels or ""))
    return metrics


def _metrics(server: TritonServer) -> str:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.slow  # promtool is no Python package
def test_the_configuration_is_valid() -> None:
    run_tool("promtool", "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.slow  # promtool is no Python package
def test_alerts_fire_when_they_should_and_only_then() -> None:
    run_tool("promtool", "test", "rules", PROMETHEUS / "alerts_test.yml")


def test_every_alert_has_a_test_a_severity_and_a_paragraph_for_the_operator(
    rules: list[dict[str, Any]],
) -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case.get("exp_alerts")
    }
    manual = (DEPLOY.parent / "docs/deployment.md").read_text()
    alerts = [rule for rule in rules if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == fired
    for rule in alerts:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert f"`{rule['alert']}`" in manual


@pytest.mark.slow  # promtool is no Python package
def test_every_expression_parses(expressions: list[str], tmp_path: Path) -> None:
    records = [
        {"record": f"test:{index}", "expr": expression}
        for index, expression in enumerate(expressions)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "test", "rules": records}]}))
    run_tool("promtool", "check", "rules", file)


def test_every_metric_and_label_that_is_asked_for_exists_on_the_real_server(
    expressions: list[str], rules: list[dict[str, Any]], scraped: dict[str, set[str]]
) -> None:
    recorded = {rule["record"] for rule in rules if "record" in rule}
    asked = set()
    for expression in expressions:
        asked |= set(
            re.findall(r"\b(?:nv_|vibematch[_:])[\w:]+", re.sub(r'"[^"]*"', "", expression))
        )
    assert len(asked) > 20
    assert asked - recorded - ONLY_WITH_A_GPU <= scraped.keys()
    for expression in expressions:
        for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)!?=", matchers)) - {"job", "namespace", "pod"}
            if name not in ONLY_WITH_A_GPU | PROMETHEUS_OWN:
                assert labels <= scraped[name], expression


def test_a_failed_request_counts_twice_as_the_rules_assume(
    server: TritonServer, scraped: dict[str, set[str]]
) -> None:
    def failures() -> float:
        lines = [
            line
            for line in _metrics(server).splitlines()
            if line.startswith("nv_inference_request_failure{") and 'model="style_encoder"' in line
        ]
        return sum(float(line.split()[-1]) for line in lines)

    before = failures()
    with Encoder(server.grpc_url) as encoder:
        for _ in range(3):
            with pytest.raises(InputError):
                encoder.encode([b"no photo"])
    for _ in range(50):  # the second count follows the answer
        if failures() == before + 6:
            return
        time.sleep(0.1)
    assert failures() == before + 6


def test_alerts_know_the_servers_own_limits(rules: list[dict[str, Any]]) -> None:
    expressions = {rule["alert"]: rule["expr"] for rule in rules if "alert" in rule}
    assert expressions["VibematchOverloaded"].endswith(f"> {MAX_QUEUE_SIZE * 3 // 4}")
    assert expressions["VibematchCanaryDrift"].startswith(
        f"vibematch_canary_cosine < {MIN_COSINE} "
    )


def test_the_dashboard_shows_every_metric_of_ours(dashboard: dict[str, Any]) -> None:
    shown = json.dumps(dashboard["panels"])
    for name in (
        "vibematch_photo_failures_total",
        "vibematch_photo_decode_seconds",
        "vibematch_photo_megapixels",
        "vibematch_canary_cosine",
    ):
        assert name in shown


def test_panels_have_room_and_an_explanation(dashboard: dict[str, Any]) -> None:
    places = set()
    for panel in dashboard["panels"]:
        assert panel["title"] and panel["description"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places and place["x"] + place["w"] <= 24
        places |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
