"""Photos → pooled features of the frozen backbone, computed once and kept.

The forward pass is Hugging Face's own: it is also the reference every exported graph is held to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from vibematch.errors import PhotoError
from vibematch.preprocess import REVISION, Preprocessing, preprocess
from vibematch_training.backbone import Backbone

Pooling = Literal["mean"]

_BATCH: Final = 16
_SAVE_EVERY_BATCHES: Final = 32


@dataclass(frozen=True)
class FeatureRecipe:
    """Everything besides the photo that decides its features.

    Attributes:
        backbone: the frozen model.
        preprocessing: photo → pixels.
        prompt: the instruction beside the photo.
        pooling: how token states become one vector.
    """

    backbone: Backbone
    preprocessing: Preprocessing
    prompt: str
    pooling: Pooling = "mean"

    @property
    def key(self) -> str:
        """SHA-256 (hex) of the recipe: features of different keys must never meet."""
        canvas = self.preprocessing
        parts = [
            self.backbone.sha256,
            str(self.backbone.model.dtype),
            [canvas.height, canvas.width, canvas.fit, REVISION],
            self.prompt,
            self.pooling,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@torch.inference_mode()
def pooled_features(pixels: npt.NDArray[np.uint8], recipe: FeatureRecipe) -> torch.Tensor:
    """Run Hugging Face's own forward and mean-pool its last hidden state over the sequence.

    Args:
        pixels: uint8 RGB, shape ``[batch, 3, height, width]``.
        recipe: backbone, prompt and pooling.

    Returns:
        float32, shape ``[batch, feature_dim]``.
    """
    backbone = recipe.backbone
    batch, _, height, width = pixels.shape
    images = backbone.image_processor(
        list(pixels), do_resize=False, input_data_format="channels_first", return_tensors="pt"
    )
    ids = backbone.token_ids(recipe.prompt, height, width).expand(batch, -1)
    states = backbone.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == backbone.model.config.image_token_id).int(),
        pixel_values=images["pixel_values"],
        image_grid_thw=images["image_grid_thw"],
        use_cache=False,
    ).last_hidden_state
    pooled: torch.Tensor = states.float().mean(dim=1)
    return pooled


def load_pixels(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Read a photo file into pixels, uint8 ``[3, height, width]``.

    Raises:
        PhotoError: naming the file and the reason.
    """
    try:
        return preprocess(path.read_bytes(), preprocessing)
    except OSError as error:
        raise PhotoError(f"{path}: {error.strerror}") from error
    except PhotoError as error:
        raise PhotoError(f"{path}: {error}") from error


@dataclass(frozen=True)
class ExtractedFeatures:
    """What :func:`extract_features` made of a list of photos.

    Attributes:
        vectors: float32, shape ``[usable photos, feature_dim]``.
        usable: positions of those photos in the given list, ascending.
        rejected: the reasons why the others could not be used, one sentence each.
    """

    vectors: torch.Tensor
    usable: list[int]
    rejected: list[str]


def extract_features(
    paths: Sequence[Path], recipe: FeatureRecipe, cache: Path, *, progress: bool = True
) -> ExtractedFeatures:
    """Features of all photos, reading those already known from the cache.

    What was computed is saved on the way and on interruption, so that a rerun goes on from there.

    Args:
        paths: photo files.
        recipe: what decides the features; each recipe has a cache file of its own.
        cache: an existing folder.
        progress: draw a progress bar on standard error.
    """
    store = cache / f"{recipe.key[:32]}.safetensors"
    known = load_file(store) if store.exists() else {}
    digests = [_digest(path) for path in paths]
    todo = {
        digest: path for digest, path in zip(digests, paths, strict=True) if digest not in known
    }
    rejected: dict[str, str] = {}
    pending = list(todo.items())
    bar = tqdm(total=len(todo), desc="features", unit="photo", disable=not (progress and todo))
    try:
        for number, start in enumerate(range(0, len(pending), _BATCH), start=1):
            batch = pending[start : start + _BATCH]
            known.update(_features_of(batch, recipe, rejected))
            bar.update(len(batch))
            if number % _SAVE_EVERY_BATCHES == 0:
                _save(known, store)
    finally:
        bar.close()
        if pending:
            _save(known, store)
    usable = [position for position, digest in enumerate(digests) if digest not in rejected]
    vectors = [known[digests[position]] for position in usable]
    return ExtractedFeatures(
        torch.stack(vectors) if vectors else torch.empty(0, recipe.backbone.feature_dim),
        usable,
        list(rejected.values()),
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _features_of(
    batch: Sequence[tuple[str, Path]], recipe: FeatureRecipe, rejected: dict[str, str]
) -> dict[str, torch.Tensor]:
    pixels: dict[str, npt.NDArray[np.uint8]] = {}
    for digest, path in batch:
        try:
            pixels[digest] = load_pixels(path, recipe.preprocessing)
        except PhotoError as error:
            rejected[digest] = str(error)
    if not pixels:
        return {}
    features = pooled_features(np.stack(list(pixels.values())), recipe)
    # Rows of a batch share its memory; clones can be saved and freed one by one.
    return {digest: row.clone() for digest, row in zip(pixels, features, strict=True)}


def _save(known: dict[str, torch.Tensor], store: Path) -> None:
    partial = store.with_suffix(f".{os.getpid()}.partial")
    save_file(known, partial)
    partial.replace(store)
