"""Real Qwen models have a few activations a thousand times larger than the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.checkpoints import Severity, plant_massive_activations

from vibematch_export.export import export_all
from vibematch_training.run import TrainingConfig
from vibematch_training.tiny import tiny_backbone
from vibematch_training.train import train

pytestmark = pytest.mark.slow


def _run(folder: Path, photos: Path, severity: Severity) -> Path:
    checkpoint = folder / "checkpoint"
    plant_massive_activations(tiny_backbone(), checkpoint, severity)
    config = TrainingConfig(str(photos), backbone=str(checkpoint), epochs=20)
    train(config, folder / "run", progress=False)
    return folder / "run"


def test_exports_follow_a_model_with_massive_activations(
    sample_photos: Path, tmp_path: Path
) -> None:
    run = _run(tmp_path, sample_photos, "some")
    exports = export_all(run, ["fp32", "int8", "fp16", "bf16"])
    assert [made.problem for made in exports] == [""] * 4
    # where float16 would overflow, it is not used
    assert any("mlp" in name for name in exports[2].manifest.wide_layers)


def test_what_cannot_be_followed_is_refused(sample_photos: Path, tmp_path: Path) -> None:
    """Massive inputs of nearly every layer: too much for 8 bits, and for float16's range."""
    run = _run(tmp_path, sample_photos, "everywhere")
    fp32, int8, fp16 = export_all(run, ["fp32", "int8", "fp16"])
    assert not fp32.problem
    assert "strays from the trained model" in int8.problem
    assert not (run / "export" / "int8").exists()
    # what would overflow float16 is left in float32, and that is half of the model
    assert not fp16.problem
    assert len(fp16.manifest.wide_layers) >= 10
