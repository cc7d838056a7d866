from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibematch.errors import ManifestError
from vibematch.manifest import SCHEMA_VERSION, Manifest
from vibematch.preprocess import Preprocessing


def test_round_trip(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path)
    read = Manifest.load(tmp_path)
    assert read.to_json() == manifest.to_json()
    assert read.fingerprint == manifest.fingerprint


def test_fingerprint_is_pinned(manifest: Manifest) -> None:
    # Changing how it is computed would make every existing index foreign to its own model.
    assert manifest.fingerprint[:12] == "6633262502c6"


DECISIVE: dict[str, Any] = {
    "backbone_sha256": "f" * 64,
    "head_sha256": "f" * 64,
    "prompt": "another",
    "pooling": "last",
    "precision": "int8",
    "preprocessing_revision": 99,
    "preprocessing": Preprocessing(height=96, width=64),
}
INDIFFERENT: dict[str, Any] = {
    "backbone": "/another/path",
    "parity": {},
    "library_versions": {},
    "created_at": "",
    "labels": {},
}


@pytest.mark.parametrize("field", DECISIVE)
def test_what_changes_a_vector_changes_the_fingerprint(manifest: Manifest, field: str) -> None:
    changed = replace(manifest, **{field: DECISIVE[field]})
    assert changed.fingerprint != manifest.fingerprint


@pytest.mark.parametrize("field", INDIFFERENT)
def test_what_changes_no_vector_leaves_the_fingerprint(manifest: Manifest, field: str) -> None:
    changed = replace(manifest, **{field: INDIFFERENT[field]})
    assert changed.fingerprint == manifest.fingerprint


def test_caps_are_not_fingerprinted(manifest: Manifest) -> None:
    caps = replace(manifest.preprocessing, max_bytes=1, max_pixels=1)
    assert replace(manifest, preprocessing=caps).fingerprint == manifest.fingerprint


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "prompt edited": (lambda content: content.update(prompt="x"), "edited or damaged"),
    "canvas edited": (lambda c: c["preprocessing"].update(height=32), "edited or damaged"),
    "odd canvas": (lambda c: c["preprocessing"].update(height=33), "multiple of 32"),
    "no fingerprint": (lambda content: content.pop("fingerprint"), "incomplete or damaged"),
    "number as fingerprint": (lambda c: c.update(fingerprint=5), "edited or damaged"),
    "no head": (lambda content: content.pop("head"), "incomplete or damaged"),
    "unknown field": (lambda content: content.update(colour="red"), "incomplete or damaged"),
    "text as dimension": (lambda c: c.update(embedding_dim="8"), "embedding_dim"),
    "no dimension": (lambda c: c.update(embedding_dim=0), "embedding_dim"),
    "newer": (lambda c: c.update(schema_version=SCHEMA_VERSION + 1), "upgrade vibematch"),
    "version as text": (lambda c: c.update(schema_version="one"), "not a vibematch manifest"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_noticed(manifest: Manifest, case: str) -> None:
    tamper, message = TAMPERED[case]
    content = json.loads(manifest.to_json())
    tamper(content)
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(json.dumps(content))


@given(st.text() | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps))
def test_other_text_is_no_manifest(text: str) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_json(text)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        Manifest.load(tmp_path)
