from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vibematch.preprocess import Preprocessing
from vibematch_training import features
from vibematch_training.backbone import PROMPT, load_backbone
from vibematch_training.features import FeatureRecipe, extract_features, pooled_features


@pytest.fixture(scope="module")
def recipe() -> FeatureRecipe:
    return FeatureRecipe(load_backbone("tiny"), Preprocessing(64, 96), PROMPT)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"user_{number}_0.png" for number in range(20)]
    for path in paths:
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 100)).save(path)
    return paths


def _pixels(count: int, recipe: FeatureRecipe) -> np.ndarray:
    canvas = recipe.preprocessing
    shape = (count, 3, canvas.height, canvas.width)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def test_features_are_the_mean_of_the_last_hidden_states(recipe: FeatureRecipe) -> None:
    """Against the whole Hugging Face model, fed by hand-made patches of one photo."""
    backbone, pixels = recipe.backbone, _pixels(1, recipe)
    image = torch.from_numpy(pixels[0]).float() / 255
    image = (image - 0.5) / 0.5
    patches = [
        image[:, None, top + y : top + y + 16, left + x : left + x + 16]
        .expand(3, 2, 16, 16)
        .reshape(-1)
        for top in range(0, 64, 32)
        for left in range(0, 96, 32)
        for y in (0, 16)
        for x in (0, 16)
    ]
    ids = backbone.token_ids(PROMPT, 64, 96)[None]
    with torch.inference_mode():
        states = backbone.model(
            input_ids=ids,
            mm_token_type_ids=(ids == backbone.model.config.image_token_id).int(),
            pixel_values=torch.stack(patches),
            image_grid_thw=torch.tensor([[1, 4, 6]]),
        ).last_hidden_state
    torch.testing.assert_close(pooled_features(pixels, recipe)[0], states[0].mean(dim=0))


def test_a_batch_equals_its_singles(recipe: FeatureRecipe) -> None:
    pixels = _pixels(5, recipe)
    together = pooled_features(pixels, recipe)
    alone = torch.cat([pooled_features(pixels[i : i + 1], recipe) for i in range(5)])
    torch.testing.assert_close(together, alone)


def test_the_prompt_is_seen(recipe: FeatureRecipe) -> None:
    other = dataclasses.replace(recipe, prompt="Describe the room.")
    pixels = _pixels(1, recipe)
    assert not torch.allclose(pooled_features(pixels, recipe), pooled_features(pixels, other))


def test_whatever_changes_features_changes_the_key(recipe: FeatureRecipe) -> None:
    canvas = recipe.preprocessing
    keys = {
        recipe.key,
        dataclasses.replace(recipe, prompt="Describe the room.").key,
        dataclasses.replace(recipe, preprocessing=Preprocessing(96, 64)).key,
        dataclasses.replace(recipe, preprocessing=dataclasses.replace(canvas, fit="contain")).key,
        dataclasses.replace(
            recipe, backbone=dataclasses.replace(recipe.backbone, sha256="0" * 64)
        ).key,
    }
    assert len(keys) == 5
    tighter = dataclasses.replace(recipe, preprocessing=dataclasses.replace(canvas, max_bytes=9))
    assert tighter.key == recipe.key


def test_known_photos_are_not_computed_again(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_features(photos, recipe, tmp_path, progress=False)
    monkeypatch.setattr(features, "pooled_features", None)  # calling it would fail
    again = extract_features(photos[::-1], recipe, tmp_path, progress=False)
    assert torch.equal(again.vectors.flip(0), first.vectors)


def test_an_interrupted_extraction_goes_on_where_it_stopped(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def interrupted(pixels: np.ndarray, recipe: FeatureRecipe) -> torch.Tensor:
        seen.append(len(pixels))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return pooled_features(pixels, recipe)

    monkeypatch.setattr(features, "pooled_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_features(photos, recipe, tmp_path, progress=False)
    extract_features(photos, recipe, tmp_path, progress=False)
    assert seen == [16, 4, 4]


def test_an_unreadable_photo_is_named_and_the_others_are_used(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path
) -> None:
    photos[3].write_bytes(b"not a photo")
    extracted = extract_features(photos, recipe, tmp_path, progress=False)
    assert extracted.usable == [i for i in range(20) if i != 3]
    assert len(extracted.vectors) == 19
    assert extracted.rejected == [f"{photos[3]}: not a JPEG, PNG or WEBP photo"]


def test_equal_photos_are_computed_once(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path
) -> None:
    extracted = extract_features([photos[0], photos[0]], recipe, tmp_path, progress=False)
    assert torch.equal(extracted.vectors[0], extracted.vectors[1])
