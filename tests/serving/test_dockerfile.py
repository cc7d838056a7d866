from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Instructions = list[tuple[str, str]]


@pytest.fixture(scope="module")
def instructions() -> Instructions:
    """Instruction and arguments of each step, continuation lines joined."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, arguments) for name, arguments in steps]


def _all(instructions: Instructions, name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions if instruction == name]


def test_bases_are_pinned_to_a_patch_release(instructions: Instructions) -> None:
    bases = _all(instructions, "FROM")
    assert len(bases) == 2
    assert all(re.match(r"python:3\.11\.\d+-slim-\w+ AS \w+$", base) for base in bases)


def test_packages_are_pinned(instructions: Instructions) -> None:
    installs = [step for step in _all(instructions, "RUN") if "pip install" in step]
    assert installs
    assert all("-c constraints.txt" in step or "--no-deps" in step for step in installs)


def test_server_runs_unprivileged_and_is_watched(instructions: Instructions) -> None:
    names = [name for name, _ in instructions]
    assert _all(instructions, "USER") == ["vibematch"]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in {"RUN", "COPY"})
    assert "/v2/health/ready" in _all(instructions, "HEALTHCHECK")[0]
    assert _all(instructions, "CMD")[0].startswith('["vibematch", "serve"')


def test_nothing_is_fetched_and_nothing_is_secret(instructions: Instructions) -> None:
    assert not _all(instructions, "ADD")
    text = (ROOT / "Dockerfile").read_text()
    assert not re.search(r"(?i)token|secret|passw|api_key|https?://(?!127\.0\.0\.1)", text)


def test_build_context_is_a_list_of_what_may_enter() -> None:
    rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in "#"
    ]
    assert rules[0] == "*"
    entering = [ROOT / rule[1:] for rule in rules if rule.startswith("!")]
    assert all(path.is_relative_to(ROOT) for path in entering)
    assert {"pyproject.toml", "client", "training", "export"} <= {
        path.relative_to(ROOT).parts[0] for path in entering
    }
