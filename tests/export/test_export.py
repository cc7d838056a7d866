from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vibematch.cli import main
from vibematch.errors import InputError
from vibematch.manifest import Manifest
from vibematch.preprocess import preprocess
from vibematch_export import calibration as calibration_module
from vibematch_export import export as export_module
from vibematch_export import parity as parity_module
from vibematch_export.canary import MIN_COSINE
from vibematch_export.export import export, export_all, print_exports
from vibematch_export.fused import FusedEncoder
from vibematch_export.parity import ParityError
from vibematch_training.files import FolderLock
from vibematch_training.run import TrainedRun


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path) -> Path:
    """The trained run without its exports."""
    copy = tmp_path / "run"
    copy.mkdir()
    for path in trained_run.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    return copy


def _pixels(count: int, height: int, width: int) -> np.ndarray:
    shape = (count, 3, height, width)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def test_the_graph_takes_any_batch_and_a_batch_equals_its_singles(exported_model: Path) -> None:
    session = onnxruntime.InferenceSession(exported_model / "model.onnx")
    (entry,), (output, features) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == (
        "pixels",
        "tensor(uint8)",
        ["batch", 3, 256, 192],
    )
    assert (output.name, output.type, output.shape[1]) == ("embedding", "tensor(float)", 256)
    assert (features.name, features.type, features.shape[1]) == ("features", "tensor(float)", 768)
    pixels = _pixels(8, 256, 192)
    together = session.run(None, {"pixels": pixels})[0]
    alone = np.concatenate([session.run(None, {"pixels": pixels[i : i + 1]})[0] for i in range(8)])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_no_embedding_table_and_no_trace_of_this_machine(exported_model: Path) -> None:
    model = onnx.load(exported_model / "model.onnx")
    config = json.loads((exported_model / "config.json").read_text())
    vocabulary = config["text_config"]["vocab_size"]
    assert all(vocabulary not in tensor.dims for tensor in model.graph.initializer)
    assert not any(node.metadata_props for node in model.graph.node)
    assert b"site-packages" not in (exported_model / "model.onnx").read_bytes()


def test_the_exported_folder_is_complete(exported_model: Path, trained_run: Path) -> None:
    manifest = Manifest.load(exported_model)
    assert manifest.fingerprint == Manifest.load(trained_run).fingerprint
    assert manifest.parity["photos"] == 98
    assert manifest.parity["min_cosine"] >= 0.99999
    assert {path.name for path in exported_model.iterdir()} == {
        "model.onnx",
        "manifest.json",
        "canary.png",
        "canary.npy",
        "config.json",
        "preprocessor_config.json",
    }


def test_the_canary_is_a_photo_and_what_the_graph_makes_of_it(exported_model: Path) -> None:
    canvas = Manifest.load(exported_model).preprocessing
    pixels = preprocess((exported_model / "canary.png").read_bytes(), canvas)[None]
    session = onnxruntime.InferenceSession(exported_model / "model.onnx")
    stored = np.load(exported_model / "canary.npy")
    assert (stored.dtype, stored.shape) == (np.float32, (256,))
    np.testing.assert_allclose(stored, session.run(None, {"pixels": pixels})[0][0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("few_photos")
def test_the_canary_of_a_graph_for_gpus_has_its_rounding(
    run_copy: Path, exported_model: Path
) -> None:
    rounded = export(run_copy, "fp16")
    assert (rounded / "canary.png").read_bytes() == (exported_model / "canary.png").read_bytes()
    ours, exact = np.load(rounded / "canary.npy"), np.load(exported_model / "canary.npy")
    assert ours @ exact > MIN_COSINE
    assert np.abs(ours - exact).max() > 1e-5


@pytest.mark.parametrize("lost", ["canary.png", "canary.npy"])
def test_an_export_without_its_canary_is_made_again(
    exported_model: Path, tmp_path: Path, lost: str
) -> None:
    manifest = Manifest.load(exported_model)
    model = shutil.copytree(exported_model, tmp_path / "fp32")
    assert export_module._up_to_date(model, manifest, "fp32")
    (model / lost).unlink()
    assert not export_module._up_to_date(model, manifest, "fp32")


def test_the_manifest_travels_inside_the_graph(exported_model: Path) -> None:
    (entry,) = onnx.load(exported_model / "model.onnx").metadata_props
    assert entry.key == "vibematch.manifest"
    inside = Manifest.from_json(entry.value)
    assert inside.fingerprint == Manifest.load(exported_model).fingerprint


@pytest.fixture
def few_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick proof, for tests of what surrounds it."""
    monkeypatch.setattr("vibematch_export.parity.PHOTOS", 12)
    monkeypatch.setattr(export_module, "_CALIBRATION_PHOTOS", 4)


@pytest.mark.usefixtures("few_photos")
@pytest.mark.slow
def test_only_what_is_damaged_is_made_again(run_copy: Path) -> None:
    (first,) = export_all(run_copy, ["fp32"])
    written = (first.model / "model.onnx").stat().st_mtime_ns
    (again,) = export_all(run_copy, ["fp32"])
    assert again.reused
    assert not first.reused
    assert again.manifest == first.manifest
    assert (first.model / "model.onnx").stat().st_mtime_ns == written
    with (first.model / "model.onnx").open("r+b") as graph:
        graph.truncate(1000)
    (repaired,) = export_all(run_copy, ["fp32"])
    assert not repaired.reused
    assert Manifest.load(first.model).parity["min_cosine"] >= 0.99999


class _Astray(FusedEncoder):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image, deepstack = self.vision(pixels)
        strayed = self.decoder(image, deepstack[:-1]).mean(dim=1)
        return self.head(strayed), strayed


class _NotFinite(FusedEncoder):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding, features = super().forward(pixels)
        return embedding * torch.tensor(float("nan")), features


@pytest.mark.usefixtures("few_photos")
@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (_Astray, "strays from the trained model: least cosine"),
        pytest.param(_NotFinite, "not finite", marks=pytest.mark.slow),
    ],
)
def test_a_graph_that_is_not_the_model_is_not_published(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, broken: type[FusedEncoder], complaint: str
) -> None:
    published = export(run_copy)
    before = (published / "model.onnx").read_bytes()
    monkeypatch.setattr(export_module, "REVISION", export_module.REVISION + 1)
    monkeypatch.setattr(export_module, "FusedEncoder", broken)
    with pytest.raises(ParityError, match=complaint):
        export(run_copy)
    assert (published / "model.onnx").read_bytes() == before
    assert list(published.parent.iterdir()) == [published]


@pytest.mark.slow
@pytest.mark.usefixtures("few_photos")
def test_one_precision_that_fails_does_not_stop_the_others(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        parity_module.THRESHOLDS, "fp16", parity_module.Threshold(1.1, 1.1)
    )  # beyond reach
    exports = export_all(run_copy, ["fp16", "fp32"])
    assert [bool(made.problem) for made in exports] == [True, False]
    assert "not published" in exports[0].problem
    assert not (run_copy / "export" / "fp16").exists()
    assert exports[1].model.is_dir()
    print_exports(exports)
    table = capsys.readouterr().out
    assert "refused" in table and "published" in table


@pytest.mark.usefixtures("few_photos")
def test_two_exports_of_a_run_do_not_mix(run_copy: Path) -> None:
    (run_copy / "export").mkdir()
    with (
        FolderLock(run_copy / "export"),
        pytest.raises(InputError, match="another vibematch is working in"),
    ):
        export(run_copy)


def test_an_export_killed_while_it_replaces_another_is_undone(
    run_copy: Path, exported_model: Path
) -> None:
    """Between the two renames the earlier model lies in the workshop."""
    folder = run_copy / "export"
    shutil.copytree(exported_model, folder / ".partial-killed" / "fp32.replaced")
    (again,) = export_all(run_copy, ["fp32"])
    assert again.reused
    assert list(folder.iterdir()) == [folder / "fp32"]


@pytest.mark.usefixtures("few_photos")
@pytest.mark.slow
def test_a_model_is_calibrated_once(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph is enough to see what is kept; whether int8 is good is not asked here."""
    monkeypatch.setattr(calibration_module, "ACCEPTED", {"int8": 1.0})
    anything = parity_module.Threshold(-1, -1)
    monkeypatch.setitem(parity_module.THRESHOLDS, "int8", anything)
    monkeypatch.setattr(parity_module, "RECALL_CHANGE", 1)
    first = Manifest.load(export(run_copy, "int8"))
    assert first.calibration_sha256
    assert first.fingerprint != TrainedRun.load(run_copy).manifest.fingerprint
    (reused,) = export_all(run_copy, ["int8"])
    assert reused.reused
    shutil.rmtree(reused.model)
    monkeypatch.setattr(export_module, "calibrate", None)  # would fail if it were called
    monkeypatch.setattr(export_module, "choose", None)
    assert Manifest.load(export(run_copy, "int8")).fingerprint == first.fingerprint
    shutil.rmtree(reused.model)
    monkeypatch.setattr(export_module, "REVISION", export_module.REVISION + 1)
    with pytest.raises(TypeError):
        export(run_copy, "int8")


def test_another_proof_is_a_proof(trained_run: Path, exported_model: Path, tmp_path: Path) -> None:
    """Photos to prove on are used even if the export is up to date, which stays if they fail."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError):
        export(trained_run, photos=empty)
    assert (exported_model / "model.onnx").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, 9, 15])
def test_a_killed_export_leaves_nothing_half_done(
    run_copy: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at some moment; then the next export cleans up and is complete."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vibematch.cli", "export", str(run_copy)]
    process = subprocess.Popen(
        [*command, "--repository", str(run_copy / "repository")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = run_copy / "export"
    complete = [path for path in folder.glob("[!.]*") if path.is_dir()]
    for model in complete:
        assert Manifest.load(model).parity["min_cosine"] >= 0.99999
    monkeypatch.setattr("vibematch_export.parity.PHOTOS", 12)
    assert export(run_copy) == folder / "fp32"
    assert not list(folder.glob(".partial-*"))


@pytest.mark.usefixtures("few_photos")
def test_another_canvas_is_another_model(run_copy: Path, trained_run: Path) -> None:
    model = export(run_copy, size=(192, 160))
    assert model.name == "fp32-192x160"
    manifest = Manifest.load(model)
    assert (manifest.preprocessing.height, manifest.preprocessing.width) == (192, 160)
    assert manifest.fingerprint != Manifest.load(trained_run).fingerprint
    session = onnxruntime.InferenceSession(model / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 192, 160]


def test_photos_that_moved_away_are_asked_for(run_copy: Path, tmp_path: Path) -> None:
    config = (run_copy / "config.yaml").read_text()
    moved = config.replace(TrainedRun.load(run_copy).config.photos, str(tmp_path / "gone"))
    (run_copy / "config.yaml").write_text(moved)
    with pytest.raises(InputError, match="--photos"):
        export(run_copy)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["{run}", "--runtime", "tensorrt", "--precision", "fp32"],
            "compiles bf16 and fp16 graphs",
        ),
        (["{model}", "--runtime", "tensorrt"], "compiles bf16 and fp16 graphs"),
        (["{model}", "--runtime", "tensorrt", "--size", "64x64"], "is exported already"),
        (["{run}", "--repository", "/dev/null/x"], "no repository can be written"),
        (["{run}", "--size", "500x400"], "multiple of 32"),
        (["{model}"], "is not a finished run"),
    ],
)
def test_the_command_says_what_is_wrong_before_it_works(
    trained_run: Path,
    exported_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [text.format(run=trained_run, model=exported_model) for text in arguments]
    assert main(["export", *filled]) != 0
    assert complaint in capsys.readouterr().err
