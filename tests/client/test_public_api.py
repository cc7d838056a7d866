from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

import vibematch

HEAVY = {"torch", "onnxruntime", "transformers", "grpc", "tritonclient", "hnswlib", "numpy", "PIL"}


def test_public_names_are_these() -> None:
    assert sorted(vibematch.__all__) == [
        "AsyncEncoder",
        "Encoder",
        "Manifest",
        "Match",
        "MatchingEngine",
        "Preprocessing",
        "Profile",
        "StoredPhoto",
        "VibematchError",
        "__version__",
        "preprocess",
    ]


@pytest.mark.parametrize("name", vibematch.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(vibematch, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Matcher'"):
        vibematch.Matcher  # noqa: B018


def test_import_loads_nothing_heavy() -> None:
    assert not HEAVY & _modules_after("import vibematch")


def test_engine_and_encoder_load_neither_grpc_nor_hnswlib() -> None:
    loaded = _modules_after("from vibematch import Encoder, MatchingEngine; Encoder('a:1')")
    assert not {"torch", "onnxruntime", "grpc", "tritonclient", "hnswlib"} & loaded


def test_help_loads_nothing_heavy() -> None:
    code = "import vibematch.cli, contextlib\nwith contextlib.suppress(SystemExit):\n"
    assert not HEAVY & _modules_after(f"{code}    vibematch.cli.main(['--help'])")


def test_help_answers_at_once() -> None:
    best_s = min(_seconds([sys.executable, "-m", "vibematch", "--help"]) for _ in range(3))
    assert best_s < 0.5


def _seconds(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - start


def _modules_after(code: str) -> set[str]:
    report = "import sys, json; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], check=True, capture_output=True, text=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
