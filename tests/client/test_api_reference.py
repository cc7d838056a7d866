from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import vibematch
import vibematch.errors

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_reference", DOCS / "api_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_reference_is_what_the_docstrings_say(generator: ModuleType) -> None:
    assert (DOCS / "api.md").read_text(encoding="utf-8") == generator.render(), "run `make docs`"


def test_every_public_name_is_in_the_reference(generator: ModuleType) -> None:
    listed = {path.rpartition(".")[2] for names in generator.SECTIONS.values() for path in names}
    listed |= {name for name, _ in inspect.getmembers(vibematch.errors, inspect.isclass)}
    assert {*vibematch.__all__} - {"__version__"} <= listed
