"""The whole path once per session: photos → run → graph → repository → running Triton."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before any test imports onnxruntime


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests neither read nor fill the developer's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def sample_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training and 60 validation photos of drawn people."""
    from vibematch_training.sample_photos import write_sample_photos

    folder = tmp_path_factory.mktemp("sample") / "photos"
    write_sample_photos(folder, train_photos=200, validation_photos=60, progress=False)
    return folder


@pytest.fixture(scope="session")
def trained_run(sample_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the sample photos, tiny backbone, default canvas."""
    from vibematch_training.run import TrainingConfig
    from vibematch_training.train import train

    out = tmp_path_factory.mktemp("runs") / "style"
    train(TrainingConfig(str(sample_photos), epochs=20), out, progress=False)
    return out


@pytest.fixture(scope="session")
def exported_model(trained_run: Path) -> Path:
    """The run's exported and proven graph."""
    from vibematch_export.export import export

    return export(trained_run)


@pytest.fixture(scope="session")
def style_server(
    exported_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[object]:
    """The real tritonserver with the trained model (a TritonServer)."""
    from vibematch_export.repository import write_repository
    from vibematch_export.triton import TritonServer

    repository = tmp_path_factory.mktemp("style") / "repository"
    write_repository(repository, exported_model)
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="session")
def digit_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 of scikit-learn's handwritten digits as PNG files, the digit as label."""
    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    rows = []
    for number, (pixels, digit) in enumerate(zip(digits.images[:600], digits.target, strict=False)):
        name = f"user_{number:04d}_0.png"
        drawn = Image.fromarray((255 - pixels * 255 / 16).astype("uint8"))
        drawn.resize((96, 96), Image.Resampling.BICUBIC).save(folder / name)
        rows.append([name, f"user_{number:04d}", 0, name, int(digit)])
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "user_id", "image_idx", "filepath", "digit"])
        writer.writerows(rows)
    return folder
