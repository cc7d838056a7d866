from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from vibematch.errors import InputError
from vibematch.preprocess import Preprocessing
from vibematch_training import features
from vibematch_training.backbone import PROMPT, load_backbone
from vibematch_training.feature_cache import RECIPE_FILENAME, FeatureCache
from vibematch_training.features import (
    FeatureRecipe,
    Pooling,
    extract_features,
    pooled_features,
)


@pytest.fixture(scope="module")
def recipe() -> FeatureRecipe:
    return FeatureRecipe(load_backbone("tiny"), Preprocessing(64, 96), PROMPT)


@pytest.fixture(autouse=True)
def batches_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_CPU_BATCH_PIXELS", 8 * 64 * 96)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"user_{number:02}_0.png" for number in range(30)]
    for path in paths:
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 100)).save(path)
    return paths


def _pixels(count: int, recipe: FeatureRecipe) -> np.ndarray:
    canvas = recipe.preprocessing
    shape = (count, 3, canvas.height, canvas.width)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_features_are_pooled_last_hidden_states(recipe: FeatureRecipe, pooling: Pooling) -> None:
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
    tokens = backbone.tokenizer.convert_ids_to_tokens(ids[0])
    chosen = {
        "mean": range(len(tokens)),
        "last": [len(tokens) - 1],
        "image": [n for n, token in enumerate(tokens) if token == "<|image_pad|>"],
    }[pooling]
    expected = torch.stack([states[0, n] for n in chosen]).mean(dim=0)
    pooled = pooled_features(pixels, dataclasses.replace(recipe, pooling=pooling))[0]
    torch.testing.assert_close(pooled, expected)


def test_an_unknown_pooling_is_refused(recipe: FeatureRecipe) -> None:
    with pytest.raises(InputError, match="one of mean, last, image, got 'median'"):
        dataclasses.replace(recipe, pooling="median")  # type: ignore[arg-type]


def test_a_batch_equals_its_singles(recipe: FeatureRecipe) -> None:
    pixels = _pixels(5, recipe)
    together = pooled_features(pixels, recipe)
    alone = torch.cat([pooled_features(pixels[i : i + 1], recipe) for i in range(5)])
    torch.testing.assert_close(together, alone)


def test_the_prompt_is_seen(recipe: FeatureRecipe) -> None:
    other = dataclasses.replace(recipe, prompt="Describe the room.")
    pixels = _pixels(1, recipe)
    assert not torch.allclose(pooled_features(pixels, recipe), pooled_features(pixels, other))


def test_threads_side_by_side_get_what_each_gets_alone(recipe: FeatureRecipe) -> None:
    batches = [_pixels(4, recipe) ^ np.uint8(number) for number in range(12)]
    alone = [pooled_features(batch, recipe) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: pooled_features(batch, recipe), batches))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)


def test_the_cpu_computes_in_float32_unless_told_otherwise() -> None:
    if torch.cuda.is_available():
        backbone = load_backbone("tiny")
        assert (backbone.model.device.type, backbone.model.dtype) == ("cuda", torch.bfloat16)
    backbone = load_backbone("tiny", device="cpu")
    assert (backbone.model.device.type, backbone.model.dtype) == ("cpu", torch.float32)


def test_bfloat16_gives_nearly_the_same_features_as_float32(recipe: FeatureRecipe) -> None:
    half = dataclasses.replace(recipe, backbone=load_backbone("tiny", torch.bfloat16, "cpu"))
    pixels = _pixels(2, recipe)
    low, full = pooled_features(pixels, half), pooled_features(pixels, recipe)
    assert low.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(low, full).min() > 0.999
    assert not torch.equal(low, full)


def test_whatever_changes_features_changes_the_key(
    recipe: FeatureRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, canvas = recipe.backbone, recipe.preprocessing
    others = [
        dataclasses.replace(recipe, prompt="Describe the room."),
        dataclasses.replace(recipe, pooling="last"),
        dataclasses.replace(recipe, pooling="image"),
        dataclasses.replace(recipe, preprocessing=Preprocessing(96, 96)),
        dataclasses.replace(recipe, preprocessing=Preprocessing(64, 64)),
        dataclasses.replace(recipe, preprocessing=dataclasses.replace(canvas, fit="contain")),
        dataclasses.replace(recipe, backbone=dataclasses.replace(backbone, sha256="0" * 64)),
        dataclasses.replace(recipe, backbone=load_backbone("tiny", torch.bfloat16, "cpu")),
        dataclasses.replace(recipe, backbone=load_backbone("tiny", torch.float32, "meta")),
    ]
    keys = [recipe.key, *(other.key for other in others)]
    for module, name, value in (
        (features, "REVISION", features.REVISION + 1),
        (features.transformers, "__version__", "6.0.0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            keys.append(recipe.key)
    assert len(set(keys)) == len(keys) == 12
    tighter = dataclasses.replace(recipe, preprocessing=dataclasses.replace(canvas, max_bytes=9))
    assert tighter.key == recipe.key


def test_the_cache_says_in_words_what_it_holds(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path
) -> None:
    extract_features(photos[:1], recipe, tmp_path, progress=False)
    stated = json.loads((tmp_path / recipe.key[:32] / RECIPE_FILENAME).read_text("utf-8"))
    assert stated["prompt"] == PROMPT
    assert stated["arithmetic"] == "float32 on cpu"
    assert (stated["canvas_height"], stated["canvas_width"]) == (64, 96)


def test_features_come_in_the_photos_order(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path
) -> None:
    extracted = extract_features(photos, recipe, tmp_path, progress=False)
    assert extracted.usable == list(range(30)) and extracted.rejected == []
    assert extracted.vectors.dtype == torch.float32
    for number in (0, 7, 8, 29):
        pixels = features.load_pixels(photos[number], recipe.preprocessing)[None]
        torch.testing.assert_close(extracted.vectors[number], pooled_features(pixels, recipe)[0])


def test_known_photos_are_not_computed_again(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_features(photos, recipe, tmp_path, progress=False)
    monkeypatch.setattr(features, "pooled_features", None)  # calling it would fail
    again = extract_features(photos[::-1], recipe, tmp_path, progress=False)
    assert torch.equal(again.vectors.flip(0), first.vectors)


def _counted(monkeypatch: pytest.MonkeyPatch, *, stop_at: int | None = None) -> list[int]:
    """Note the size of each batch; interrupt the given one."""
    seen: list[int] = []

    def counted(pixels: np.ndarray, recipe: FeatureRecipe) -> torch.Tensor:
        seen.append(len(pixels))
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return pooled_features(pixels, recipe)

    monkeypatch.setattr(features, "pooled_features", counted)
    return seen


def test_an_interrupted_extraction_goes_on_with_the_same_batches(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    photos[3].write_bytes(b"not a photo")
    whole = extract_features(photos, recipe, tmp_path / "a", progress=False)
    with monkeypatch.context() as patch:
        _counted(patch, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            extract_features(photos, recipe, tmp_path / "b", progress=False)
    with FeatureCache(tmp_path / "b", recipe.fields, recipe.backbone.feature_dim) as store:
        kept = len(store)
    assert kept in (7, 15, 15 + 8)
    seen = _counted(monkeypatch)
    resumed = extract_features(photos, recipe, tmp_path / "b", progress=False)
    assert sum(seen) == 29 - kept
    assert torch.equal(resumed.vectors, whole.vectors)


def test_a_killed_extraction_computes_only_what_is_missing(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle of the third batch, where nothing can be tidied up."""
    script = f"""
import os, signal
from pathlib import Path
import torch
torch.set_num_threads(1)
from vibematch.preprocess import Preprocessing
from vibematch_training import features
from vibematch_training.backbone import PROMPT, load_backbone
real, calls = features.pooled_features, []
def deadly(pixels, recipe):
    calls.append(len(pixels))
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(pixels, recipe)
features.pooled_features = deadly
features._CPU_BATCH_PIXELS = 8 * 64 * 96
recipe = features.FeatureRecipe(load_backbone("tiny"), Preprocessing(64, 96), PROMPT)
photos = sorted(Path({str(tmp_path)!r}).glob("*.png"))
features.extract_features(photos, recipe, Path({str(tmp_path)!r}), progress=False)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    photos = sorted(photos)
    with FeatureCache(tmp_path, recipe.fields, recipe.backbone.feature_dim) as store:
        kept = len(store)
    assert kept in (8, 16)  # the second may have been computed, but not yet written
    seen = _counted(monkeypatch)
    extracted = extract_features(photos, recipe, tmp_path, progress=False)
    assert sum(seen) == 30 - kept
    monkeypatch.undo()
    pixels = np.stack([features.load_pixels(path, recipe.preprocessing) for path in photos])
    torch.testing.assert_close(extracted.vectors, pooled_features(pixels, recipe))


def test_unreadable_photos_are_named_one_by_one_and_the_others_are_used(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path
) -> None:
    photos[3].write_bytes(b"not a photo")
    photos[7].write_bytes(b"not a photo")  # equal bytes, but another person's file
    photos[5].write_bytes(photos[5].read_bytes()[:-100])
    photos[9].unlink()
    photos[11].unlink()
    photos[11].mkdir()
    extracted = extract_features(photos, recipe, tmp_path, progress=False)
    assert extracted.usable == [n for n in range(30) if n not in (3, 5, 7, 9, 11)]
    assert len(extracted.vectors) == 25
    by_file = dict(reason.split(": ", 1) for reason in extracted.rejected)
    assert by_file[str(photos[3])] == by_file[str(photos[7])] == "not a JPEG, PNG or WEBP photo"
    assert by_file[str(photos[5])].startswith("the photo is truncated or damaged")
    assert by_file[str(photos[9])] == "No such file or directory"
    assert by_file[str(photos[11])] == "Is a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_photo_that_may_not_be_read_is_named(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path
) -> None:
    photos[0].chmod(0)
    extracted = extract_features(photos[:2], recipe, tmp_path, progress=False)
    assert extracted.rejected == [f"{photos[0]}: Permission denied"]


def test_a_photo_replaced_meanwhile_is_not_kept_under_the_old_ones_name(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = photos[0].read_bytes()
    digest_of = features.read_digest

    def replaced_after(path: Path) -> bytes | str:
        digest = digest_of(path)
        path.write_bytes(photos[1].read_bytes())
        return digest

    monkeypatch.setattr(features, "read_digest", replaced_after)
    extracted = extract_features(photos[:1], recipe, tmp_path, progress=False)
    assert extracted.rejected == [f"{photos[0]}: the file changed while it was being read"]
    monkeypatch.undo()
    photos[0].write_bytes(original)
    restored = extract_features(photos[:2], recipe, tmp_path, progress=False).vectors
    assert not torch.equal(restored[0], restored[1])


def test_features_that_are_not_finite_are_not_kept(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(pixels: np.ndarray, recipe: FeatureRecipe) -> torch.Tensor:
        vectors = pooled_features(pixels, recipe).clone()
        vectors[1] = torch.inf
        return vectors

    monkeypatch.setattr(features, "pooled_features", overflowing)
    extracted = extract_features(photos[:3], recipe, tmp_path, progress=False)
    assert extracted.usable == [0, 2]
    assert extracted.rejected == [f"{photos[1]}: the backbone gives features that are not finite"]


def test_equal_photos_are_computed_once(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _counted(monkeypatch)
    extracted = extract_features([photos[0], photos[0]], recipe, tmp_path, progress=False)
    assert seen == [1]
    assert torch.equal(extracted.vectors[0], extracted.vectors[1])


def test_no_usable_photo_gives_no_vectors(recipe: FeatureRecipe, tmp_path: Path) -> None:
    extracted = extract_features([tmp_path / "gone.jpg"], recipe, tmp_path, progress=False)
    assert extracted.vectors.shape == (0, recipe.backbone.feature_dim)
    assert len(extracted.rejected) == 1


def test_progress_shows_rate_and_time_left(
    recipe: FeatureRecipe, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    extract_features(photos, recipe, tmp_path)
    shown = capsys.readouterr().err
    assert "features: 100%" in shown and "30/30" in shown and "photo/s" in shown
    assert torch.get_num_threads() == before
    extract_features(photos, recipe, tmp_path)
    assert "features" not in capsys.readouterr().err  # nothing to compute, nothing to show
