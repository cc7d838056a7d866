from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from tests.deploy.conftest import ROOT, run_tool

Instructions = list[tuple[str, str]]


@pytest.fixture(scope="module")
def stages() -> dict[str, Instructions]:
    """Stage → its instructions with their arguments, continuation lines joined."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    stages: dict[str, Instructions] = {}
    for line in filter(str.strip, text.splitlines()):
        instruction, arguments = line.split(maxsplit=1)
        if instruction == "FROM":
            stages[arguments.split(" AS ")[1]] = current = []
        if stages:
            current.append((instruction, arguments))
    return stages


def _all(stage: Instructions, name: str) -> list[str]:
    return [arguments for instruction, arguments in stage if instruction == name]


def test_hadolint_finds_nothing() -> None:
    run_tool("hadolint", "--failure-threshold", "style", ROOT / "Dockerfile")


def test_bases_are_pinned(stages: dict[str, Instructions]) -> None:
    bases = [_all(stage, "FROM")[0].split(" AS ")[0] for stage in stages.values()]
    assert set(bases) == {
        "python:3.11.14-slim-bookworm",
        "nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3",
        "nvcr.io/nvidia/tensorrt:${TRITON_RELEASE}-py3",
    }
    assert re.search(r"(?m)^ARG TRITON_RELEASE=\d\d\.\d\d$", (ROOT / "Dockerfile").read_text())


@pytest.mark.parametrize("target", ["cpu", "gpu", "plan"])
def test_images_take_over_an_installed_environment_and_no_tools(
    stages: dict[str, Instructions], target: str
) -> None:
    (install,) = _all(stages[f"{target}-build"], "RUN")
    assert f" sh deploy/install.sh /opt/vibematch {target}" in install
    assert _all(stages[target], "COPY") == [f"--from={target}-build /opt/vibematch /opt/vibematch"]
    assert all(step.startswith("install -d ") for step in _all(stages[target], "RUN"))


@pytest.mark.parametrize("target", ["cpu", "gpu", "plan"])
def test_images_run_unprivileged_and_say_what_they_are(
    stages: dict[str, Instructions], target: str
) -> None:
    stage = stages[target]
    assert _all(stage, "USER") == ["10001:10001"]  # a number: Kubernetes can tell it is not root
    names = [name for name, _ in stage]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in {"RUN", "COPY"})
    assert "org.opencontainers.image.title=" in _all(stage, "LABEL")[0]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_servers_are_watched_and_told_to_stop_as_they_expect(
    stages: dict[str, Instructions], target: str
) -> None:
    stage = stages[target]
    assert "/v2/models/style_encoder/ready" in _all(stage, "HEALTHCHECK")[0]
    assert _all(stage, "STOPSIGNAL") == ["SIGTERM"]
    assert _all(stage, "ENTRYPOINT") == ['["vibematch-server"]']
    assert _all(stage, "EXPOSE") == ["8000 8001 8002"]


def test_without_a_target_the_cpu_server_is_built(stages: dict[str, Instructions]) -> None:
    assert list(stages)[-1] == "cpu"


def test_nothing_is_fetched_and_nothing_is_secret(stages: dict[str, Instructions]) -> None:
    assert not any(_all(stage, "ADD") for stage in stages.values())
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"(?i)token|secret|passw|api_key|https?://(?!127\.0\.0\.1)", text)


def test_build_context_is_a_list_of_what_may_enter() -> None:
    rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in "#"
    ]
    assert rules[0] == "*"
    entering = [rule[1:] for rule in rules if rule.startswith("!")]
    assert all((ROOT / path).exists() and not path.startswith(("/", "..")) for path in entering)
    assert {path.split("/")[0] for path in entering} == {
        "constraints.txt",
        "pyproject.toml",
        "client",
        "training",
        "export",
        "deploy",
    }


def test_packages_are_pinned() -> None:
    script = (ROOT / "deploy/install.sh").read_text()
    installs = [
        shlex.split(line, comments=True)
        for line in script.splitlines()
        if line.strip().startswith("install_packages ")
    ]
    assert len(installs) == 4
    for arguments in installs:
        assert arguments[1:3] == ["-c", "constraints.txt"] or arguments[2:] == ["./client", "."]


@pytest.mark.parametrize("script", ["install.sh", "serve.sh"])
def test_scripts_are_posix_shell(script: str) -> None:
    subprocess.run(["sh", "-n", ROOT / "deploy" / script], check=True)
