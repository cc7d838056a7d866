"""The work of a photo on paper, the A10G on paper, and the comparison of engines."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vibematch.preprocess import Preprocessing
from vibematch_training.features import pooled_features

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = Preprocessing(64, 96)
CANVAS = Preprocessing(448, 448)


@pytest.fixture
def macs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import macs

    return macs


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import models

    return models


@pytest.fixture
def a10g(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import a10g

    return a10g


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import model

    return model


class Counter:
    """Multiply-adds that PyTorch counts in what it runs, attention as plain products."""

    def __enter__(self) -> Counter:
        self._counter = FlopCounterMode(display=False)
        self._backend = sdpa_kernel(SDPBackend.MATH)  # others are not counted on a CPU
        self._counter.__enter__()
        self._backend.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._backend.__exit__(*error)
        self._counter.__exit__(*error)

    @property
    def macs(self) -> float:
        return self._counter.get_total_flops() / 2


def masked_macs(work: Any) -> int:
    """What PyTorch computes of the decoder's attention although the mask drops it."""
    decoder = work.attention[1]
    return decoder.macs // decoder.pairs * (decoder.rows**2 - decoder.pairs)


# --- multiply-adds on paper


def test_the_fused_module_does_the_work_that_was_counted(
    macs: ModuleType, models: ModuleType
) -> None:
    encoder, photos = models.fused("tiny", SMALL), torch.from_numpy(models.noise(SMALL, 2))
    with Counter() as counter, torch.inference_mode():
        encoder(photos)
    work = macs.photo_work("tiny", SMALL)
    assert counter.macs == 2 * (work.macs + masked_macs(work))


def test_hugging_face_embeds_each_photo_twice_and_has_no_head(
    macs: ModuleType, models: ModuleType
) -> None:
    with Counter() as counter:
        pooled_features(models.noise(SMALL, 1), models.recipe("tiny", SMALL))
    work = macs.photo_work("tiny", SMALL)
    patches, *head = (part.macs for part in work.edges)
    assert counter.macs == work.macs + masked_macs(work) + patches - sum(head)


def test_the_2b_blocks_do_the_work_that_was_counted(macs: ModuleType) -> None:
    work = macs.photo_work("2b", CANVAS)
    vision, decoder = work.attention
    with torch.device("meta"):
        model = Qwen3VLModel(macs.config_2b()).eval()
    assert sum(weights.numel() for weights in model.parameters()) == 2_127_532_032
    ends = torch.tensor([0, vision.rows], dtype=torch.int32)
    with Counter() as counter, torch.device("meta"):
        states, turns = torch.zeros(vision.rows, 1024), torch.zeros(vision.rows, 64)
        for block in model.visual.blocks:
            states = block(states, cu_seqlens=ends, position_embeddings=(turns, turns))
        for merger in (model.visual.merger, *model.visual.deepstack_merger_list):
            merger(states)
        states, turns = torch.zeros(1, decoder.rows, 2048), torch.zeros(1, decoder.rows, 128)
        for layer in model.language_model.layers:
            states = layer(states, position_embeddings=(turns, turns), attention_mask=None)
    edges = sum(part.macs for part in work.edges)
    assert counter.macs == work.macs + masked_macs(work) - edges
    conv = model.visual.patch_embed.proj
    assert work.edges[0].macs == vision.rows * conv.weight.numel() // 2  # one of two equal frames


def test_weights_and_states_are_those_of_the_layers(macs: ModuleType) -> None:
    with torch.device("meta"):
        model = Qwen3VLModel(macs.config_2b())
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    work = macs.photo_work("2b", CANVAS)
    counted = sum(part.weights for part in work.layers)
    assert counted == sum(layer.weight.numel() for layer in layers)
    edges = work.weight_bytes("int8") - counted
    assert work.weight_bytes("bf16") == 2 * counted + edges
    assert work.state_bytes("fp32") == 2 * work.state_bytes("bf16")
    one = macs.Linear("", times=3, rows=5, inputs=7, outputs=11)
    assert (one.weights, one.macs, one.values) == (231, 1155, 270)
    seen = macs.Attention("", times=2, heads=4, kv_heads=2, head_dim=8, rows=3, pairs=6)
    assert (seen.macs, seen.values) == (2 * 2 * 4 * 8 * 6, 2 * 3 * 8 * (4 + 2 + 2 + 4))


def test_a_larger_canvas_costs_more_and_its_turned_one_the_same(macs: ModuleType) -> None:
    square, upright, flat = (
        macs.photo_work("2b", Preprocessing(*size)) for size in ((448, 448), (512, 384), (384, 512))
    )
    assert upright.macs == flat.macs < square.macs
    # attention grows with the square: doubled sides are more than four times the work
    assert macs.photo_work("2b", Preprocessing(896, 896)).macs > 4 * square.macs


def test_the_least_time_is_each_product_at_the_rate_of_its_format(macs: ModuleType) -> None:
    linear = macs.Linear("", 1, 1, 100, 1)
    attention = macs.Attention("", 1, 1, 1, 1, 1, 15)
    work = macs.Work((linear,), (linear, linear), (attention,))
    rates = {"int8": 1000.0, "bf16": 100.0, "fp32": 10.0}
    assert work.least_s(rates, "int8", "bf16") == pytest.approx(100 / 10 + 200 / 1000 + 30 / 100)
    assert work.least_s(rates, "bf16", "bf16") == pytest.approx(330 / 100)
    assert work.least_s(rates, "fp32", "fp32") == pytest.approx(330 / 10)


def test_what_measures_matrix_rates_multiplies_matrices(
    macs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("_ROWS", 48), ("_INNER", 64), ("_COLUMNS", 96)):
        monkeypatch.setattr(macs, name, size)
    integer = {name: run() for name, run in macs._int8().items()}
    assert {"PyTorch", "ONNX Runtime"} <= set(integer)
    rng = np.random.default_rng(0)
    states = rng.integers(0, 256, (48, 64), dtype=np.uint8).astype(np.int64)
    weight = rng.integers(-127, 128, (64, 96), dtype=np.int8).astype(np.int64)
    np.testing.assert_array_equal(integer["PyTorch"].numpy(), (states - 128) @ weight)
    np.testing.assert_array_equal(integer["ONNX Runtime"][0], states @ weight)
    floats = macs._fp32_sessions()
    assert "ONNX Runtime" in floats
    for run in floats.values():
        np.testing.assert_allclose(run()[0], floats["ONNX Runtime"]()[0], rtol=1e-3, atol=1e-3)


# --- the A10G on paper


def test_the_a10g_never_beats_its_data_sheet(a10g: ModuleType, macs: ModuleType) -> None:
    work = macs.photo_work("2b", CANVAS)
    for precision in a10g.PRECISIONS:
        ceiling = a10g.FLOPS[precision] / (2 * work.macs)
        rates = [a10g.photos_per_s(precision, batch) for batch in a10g.BATCHES]
        assert all(0 < rate < a10g.COMPUTE_SHARE * ceiling for rate in rates)
        assert rates == sorted(rates)
    assert a10g.photos_per_s("bf16", 8) == a10g.photos_per_s("fp16", 8)
    assert a10g.photos_per_s("bf16", 8) < a10g.photos_per_s("int8", 8)


def test_products_take_whole_rounds_of_whole_tiles(a10g: ModuleType, macs: ModuleType) -> None:
    def seconds(rows: int, outputs: int) -> float:
        layer = macs.Linear("", 1, rows, 1000, outputs)
        taken: float = a10g._products_s(macs.Work((), (layer,), ()), "bf16", 1)
        return taken

    full = seconds(8 * a10g.TILE, 10 * a10g.TILE)  # 80 tiles: one round of 80 multiprocessors
    assert full == pytest.approx(2 * 8 * 10 * a10g.TILE**2 * 1000 / a10g.FLOPS["bf16"])
    assert seconds(1, 1) == pytest.approx(full)
    assert seconds(8 * a10g.TILE + 1, 10 * a10g.TILE) == pytest.approx(2 * full)


def test_a_pass_is_bound_by_what_takes_longer(a10g: ModuleType) -> None:
    compute = a10g.Pass(4, 2.0, 1.0, 100, 10.0, 1.0)
    memory = a10g.Pass(4, 1.0, 4.0, 100, 10.0, 1.0)
    assert (compute.seconds, compute.bound, compute.photos_per_s) == (2.0, "compute", 2.0)
    assert (memory.seconds, memory.bound, memory.photos_per_s) == (4.0, "memory", 1.0)


def test_a_precision_without_tensor_cores_is_refused(a10g: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"one of bf16, fp16, int8, got 'fp32'"):
        a10g.photos_per_s("fp32", 1)


def test_paper_is_marked_as_paper_and_measured_rows_stand_beside_it(a10g: ModuleType) -> None:
    paper = a10g.result(None)
    assert paper.computed and len(paper.tables) == 1
    assert "nothing here is measured" in paper.notes[0]
    assert len(paper.tables[0].rows) == len(a10g.PRECISIONS) * len(a10g.BATCHES)
    assert paper.figures["photos_per_s"]["bf16"]["8"] == a10g.photos_per_s("bf16", 8)
    figures = {"photos_per_s": 300.0, "share_of_matrix_rate": 0.5, "peak_memory_gb": 6.0}
    measured = {
        "device": "NVIDIA H200",
        "number_format": "bfloat16",
        "weights": "random, 2B architecture",
        "size": "448x448",
        "matrix_rate_tflops": 700.0,
        "routes": {"Hugging Face, batch 1": figures, "fused, compiled, batch 1": figures},
    }
    table = a10g.result(measured).tables[1]
    assert [(row.ours, row.group) for row in table.rows] == [(False, "batch 1"), (True, "batch 1")]
    assert "NVIDIA H200" in table.note
    assert not any("nothing here is measured" in note for note in a10g.result(measured).notes)


def test_the_a10g_script_writes_its_result(
    a10g: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["a10g.py", "--out", str(tmp_path), "--json"]
    monkeypatch.setattr(sys, "argv", command)
    a10g.main()
    assert json.loads((tmp_path / "a10g.json").read_text())["computed"]
    monkeypatch.setattr(sys, "argv", [*command, "--backbone", "tiny"])
    with pytest.raises(SystemExit):
        a10g.main()


# --- engines in turns


def part(**engines: Any) -> dict[str, Any]:
    return {name.replace("_", " "): figures for name, figures in engines.items()}


def figures(*seconds: float, memory_mib: float = 1.0, distance: float = 0.0) -> dict[str, Any]:
    return {"seconds": list(seconds), "memory_mib": memory_mib, "distance": distance}


def test_ratios_are_taken_within_the_engines_that_ran_together(model: ModuleType) -> None:
    found: dict[str, Any] = {}
    model._add(part(theirs=figures(4, 6), ours_int8=figures(2, 2, memory_mib=5)), found)
    second = part(other=figures(9), ours_int8=figures(3, distance=0.5))
    model._add(second, found)
    assert found["theirs"]["over_ours"] == [2, 3]
    assert found["other"]["over_ours"] == [3]
    ours = found["ours int8"]
    assert (ours["seconds"], ours["over_ours"]) == ([2, 2, 3], [1, 1, 1])
    assert (ours["memory_mib"], ours["distance"]) == (5, 0.5)
    assert second["ours int8"]["seconds"] == [3]  # what is kept in the file stays as it was


def test_a_failure_leaves_the_others_their_figures(model: ModuleType) -> None:
    failed = {"failed": "no memory"}
    found: dict[str, Any] = {}
    model._add(part(theirs=figures(4), ours_int8=failed), found)
    assert found["theirs"]["over_ours"] == [] and found["ours int8"] == failed
    model._add(part(ours_int8=figures(2)), found)
    assert found["ours int8"]["seconds"] == [2]
    model._add(part(ours_int8=failed), found)
    assert found["ours int8"]["seconds"] == [2]


def test_features_that_are_not_finite_are_no_agreement(model: ModuleType, tmp_path: Path) -> None:
    place = model.Place(tmp_path, "tiny", Preprocessing(64, 64))
    held = model._Held("ours fp32", place, np.zeros((2, 3, 64, 64), np.uint8))
    held._reference = np.array([[3.0, 4.0], [1.0, 0.0]])
    held._run = lambda pixels: np.array([[4.0, 3.0], [2.0, 0.0]], np.float32)[: len(pixels)]
    held.compute(2)
    assert held.figures()["distance"] == pytest.approx(1 - 24 / 25)  # the worse of both
    held._run = lambda pixels: np.array([[np.nan, 3.0]], np.float32)
    with pytest.raises(ValueError, match="not finite"):
        held.compute(1)


def test_measured_parts_are_found_again_but_failures_are_not(
    model: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "parts.json"

    def never() -> dict[str, Any]:
        raise AssertionError("measured again")

    first = model.Parts(path, {"cores": 2})
    first.get("a", lambda: {"x": figures(1)})
    assert first.get("b", lambda: {"x": {"failed": "no memory"}})["x"]["failed"] == "no memory"
    again = model.Parts(path, {"cores": 2})
    assert again.get("a", never) == {"x": figures(1)} and again.kept == 1
    assert again.get("b", lambda: {"x": figures(2)}) == {"x": figures(2)}
    elsewhere = model.Parts(path, {"cores": 4})
    assert elsewhere.get("a", lambda: {"x": figures(3)}) == {"x": figures(3)}
    elsewhere.forget()
    assert not path.exists()


def test_a_larger_batch_has_fewer_turns_and_at_least_one(model: ModuleType) -> None:
    assert [model.turns(5, batch) for batch in (1, 2, 4, 8)] == [5, 2, 1, 1]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "model.py", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_engines_are_compared_and_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    small = ["--work", tmp_path, "--out", tmp_path / "out", "--canvas", "64x64"]
    small += ["--turns", "2", "--batch", "1", "2", "--json"]
    chosen = ["--engines", "ours int8", "ours fp32", "transformers fp32"]
    first = json.loads(run(*small, *chosen).stdout)
    (table,) = first["tables"]
    assert len(table["rows"]) == 6 and not first["notes"]
    by_case = first["figures"]["measured"]
    for engines in by_case.values():
        assert engines["ours fp32"]["distance"] < 1e-8
        assert engines["transformers fp32"]["distance"] < 1e-8
        assert 0 < engines["ours int8"]["distance"] < 0.01
        assert engines["transformers fp32"]["over_ours"] == pytest.approx(
            [
                theirs / ours
                for theirs, ours in zip(
                    engines["transformers fp32"]["seconds"],
                    engines["ours fp32"]["seconds"],
                    strict=True,
                )
            ]
        )
        assert all(one["memory_mib"] > 10 for one in engines.values())
    assert {plot["kind"] for plot in first["plots"]} == {"line", "roofline"}
    limits = first["figures"]["limits_per_s"]
    assert set(limits) == {"int8", "bf16", "fp32", "read"} and min(limits.values()) > 0
    again = json.loads(run(*small, *chosen).stdout)
    assert again["figures"]["measured"] == by_case
    assert any("earlier runs" in note for note in again["notes"])


@pytest.mark.slow
def test_an_engine_that_cannot_load_is_a_row_without_figures(tmp_path: Path) -> None:
    small = ["--work", tmp_path, "--out", tmp_path / "out", "--canvas", "64x64", "--turns", "1"]
    chosen = ["--batch", "1", "--engines", "ours int8", "transformers bf16", "--json"]
    run(*small, "--batch", "1", "--engines", "ours int8")
    (tmp_path / "tiny-64x64-int8" / "model.onnx").write_bytes(b"no graph")
    (tmp_path / "model-parts-tiny.json").unlink()
    found = json.loads(run(*small, *chosen).stdout)
    rows = {row["label"]: row["cells"] for row in found["tables"][0]["rows"]}
    assert rows["ours int8"] == [None] * 5
    assert rows["transformers bf16"][0] is not None
    assert math.isfinite(
        found["figures"]["measured"]["64x64, batch 1"]["transformers bf16"]["distance"]
    )
    (note,) = (note for note in found["notes"] if "ours int8" in note)
    assert "64x64, batch 1" in note and "cannot load" in note


@pytest.mark.slow
def test_a_process_that_is_killed_is_a_failure_and_no_hang(
    model: ModuleType, models: ModuleType, tmp_path: Path
) -> None:
    place = model.Place(tmp_path, "tiny", Preprocessing(64, 64))
    assert model.Files(place, keep=True).make(["transformers fp32"]) == {}
    contender = model.Contender("transformers fp32", place, 2)
    contender.ask("load")
    contender.ask("compute", 2)
    assert not contender.failed and contender.ask("figures")["distance"] < 1e-8
    contender._process.kill()
    assert contender.ask("compute", 1) is None
    assert "its process ended" in contender.failed
    assert contender.ask("figures") is None
