"""What the defaults must reach on whole data sets; heavier than the default suite."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vibematch.cli import main
from vibematch_training.run import TrainingConfig
from vibematch_training.sample_photos import write_sample_photos
from vibematch_training.train import train

pytestmark = pytest.mark.slow

SEEDS = range(5)


def _means(results: list[dict[str, Any]], key: str) -> Mapping[str, float]:
    figures = ("recall_at_1", "recall_at_5", "intra_class_distance", "inter_class_distance")
    return {name: float(np.mean([result[key][name] for result in results])) for name in figures}


def test_the_default_sample_over_five_seeds(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_sample_photos(photos, progress=False)
    results = [
        train(TrainingConfig(str(photos), seed=seed), tmp_path / f"run{seed}", progress=False)
        for seed in SEEDS
    ]
    trained, raw = _means(results, "trained_head"), _means(results, "raw_backbone")
    assert results[0]["validation_photos"] == 98
    assert trained["recall_at_1"] >= 0.75
    assert trained["recall_at_5"] >= 0.92
    assert trained["intra_class_distance"] < 0.3
    assert trained["inter_class_distance"] > 0.7
    assert raw["recall_at_1"] <= trained["recall_at_1"] - 0.2


@pytest.mark.parametrize("photo_seed", [1, 2])
def test_other_people_than_the_defaults_were_chosen_on(photo_seed: int, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_sample_photos(photos, seed=photo_seed, progress=False)
    results = train(TrainingConfig(str(photos)), tmp_path / "run", progress=False)
    assert results["trained_head"]["recall_at_1"] >= 0.75
    assert results["trained_head"]["recall_at_5"] >= 0.85


def test_half_of_the_handwritten_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real images that nothing here was drawn or tuned for, through the same command line."""
    digits = load_digits()
    held_out = np.random.default_rng(0).permutation(len(digits.images)) % 2
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "user_id", "image_idx", "filepath", "digit", "split"])
        for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            name = f"user_{number:04d}_0.png"
            drawn = Image.fromarray((255 - pixels * 255 / 16).astype("uint8"))
            drawn.resize((224, 224), Image.Resampling.BICUBIC).save(tmp_path / name)
            split = "validation" if held_out[number] else "train"
            writer.writerow([name, f"user_{number:04d}", 0, name, digit, split])
    out = str(tmp_path / "run")
    command = ["train", str(tmp_path), "--label", "digit", "--size", "224x224", "--out", out]
    assert main([*command, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["validation_photos"] == 898
    assert results["trained_head"]["recall_at_1"] >= 0.93
