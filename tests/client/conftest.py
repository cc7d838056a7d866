"""A model, an encoder and vectors that need no server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from vibematch.encoder import PhotoLike, Vector, read_photo
from vibematch.engine import MatchingEngine
from vibematch.errors import ModelChangedError, PhotoError, VibematchError
from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing

settings.register_profile("unhurried", deadline=None)  # shared machines stall now and then
settings.load_profile("unhurried")

DIM = 8


class StubEncoder:
    """Makes a vector of the photo's bytes; photos that start with ``bad`` are refused."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.encoded: list[bytes] = []

    def encode_each(
        self, photos: Iterable[PhotoLike], *, fingerprint: str | None = None
    ) -> Iterator[Vector | VibematchError]:
        for photo in photos:
            if fingerprint not in (None, self.manifest.fingerprint):
                yield ModelChangedError("another model")
                continue
            content = read_photo(photo, self.manifest.preprocessing.max_bytes)
            self.encoded.append(content)
            yield PhotoError("not a photo") if content.startswith(b"bad") else self.vector(content)

    def vector(self, content: bytes) -> Vector:
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        return unit(np.random.default_rng(seed).normal(size=self.manifest.embedding_dim))


def unit(vector: npt.ArrayLike) -> Vector:
    values = np.asarray(vector, np.float64)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        embedding_dim=DIM,
        preprocessing=Preprocessing(height=64, width=96, max_bytes=100_000),
        prompt="Describe this person's appearance.",
        pooling="mean",
        backbone="tiny",
        backbone_sha256="0" * 64,
        head="paper",
        head_sha256="1" * 64,
        precision="fp32",
        labels={"fashion_style": ["Street_Hip", "Minimal"]},
        parity={"min_cosine": 0.9999},
        library_versions={"torch": "2.13.0"},
        created_at="2025-01-01T00:00:00Z",
    )


@pytest.fixture
def other_manifest(manifest: Manifest) -> Manifest:
    return replace(manifest, head_sha256="2" * 64)


@pytest.fixture
def encoder(manifest: Manifest) -> StubEncoder:
    return StubEncoder(manifest)


@pytest.fixture
def engine(tmp_path: Path, encoder: StubEncoder) -> Iterator[MatchingEngine]:
    with MatchingEngine.open(tmp_path / "index", encoder=encoder) as opened:
        yield opened
