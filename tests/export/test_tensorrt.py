"""tensorrt-rtx really compiles here, without a GPU, for the A10G's compute capability 8.6."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import get_args

import onnx
import pytest
import tensorrt_rtx
import torch
from benchmarks.models import random_2b
from onnx import TensorProto, helper

from vibematch.errors import InputError
from vibematch.preprocess import Preprocessing
from vibematch_export import tensorrt
from vibematch_export.fused import FusedEncoder
from vibematch_export.onnx_graph import write_onnx
from vibematch_export.tensorrt import (
    EngineError,
    Library,
    Plan,
    Target,
    build_engine,
    load_engine,
    require_target,
)
from vibematch_training.backbone import PROMPT, Backbone, load_backbone
from vibematch_training.features import FeatureRecipe
from vibematch_training.head import ProjectionHead

REBUILD = "vibematch export runs/style --runtime tensorrt"
VERSION = tensorrt_rtx.__version__


def _write_graph(backbone: Backbone, canvas: Preprocessing, folder: Path) -> Path:
    head = ProjectionHead(backbone.feature_dim, 32, 64)
    encoder = FusedEncoder(FeatureRecipe(backbone, canvas, PROMPT), head).eval()
    write_onnx(encoder, canvas, folder / "model.onnx", "bf16")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in bf16, the first layer and the head in fp32."""
    folder = tmp_path_factory.mktemp("bf16")
    return _write_graph(load_backbone("tiny"), Preprocessing(64, 96), folder)


@pytest.fixture(scope="module")
def plan(graph: Path) -> Plan:
    return _build(graph)


def _build(graph: Path) -> Plan:
    return build_engine(graph, graph.parent, library="tensorrt-rtx", progress=False)


def _save(path: Path, *nodes: onnx.NodeProto) -> Path:
    """A graph that casts its ``pixels`` to float32 ``x``, then does ``nodes``."""
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 3, 8, 8])
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3, 8, 8])
    cast = helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT)
    body = helper.make_graph([cast, *nodes], "graph", [pixels], [output])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(body, opset_imports=opsets, ir_version=10), path)
    return path


def test_the_plan_is_named_after_what_runs_it(graph: Path, plan: Plan) -> None:
    assert plan.path == graph.parent / f"model.tensorrt-rtx-{VERSION}.sm86.plan"
    assert plan.target == Target.of_plan(plan.path) == Target.here("tensorrt-rtx")
    assert {path.name for path in graph.parent.iterdir()} == {"model.onnx", plan.path.name}


def test_the_engine_computes_in_the_graphs_number_formats(graph: Path, plan: Plan) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(graph)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in model.value_info}
    names = {TensorProto.FLOAT: "fp32", TensorProto.BFLOAT16: "bf16"}
    products = [node for node in model.node if node.op_type in ("MatMul", "Gemm")]
    assert plan.matrix_products == Counter(names[types[node.output[0]]] for node in products)
    assert plan.matrix_products["bf16"] > plan.matrix_products["fp32"] > 0
    # the weights are in there, and in two bytes each
    assert graph.stat().st_size < plan.path.stat().st_size < 1.4 * graph.stat().st_size


@pytest.mark.parametrize(("element", "precision"), [("FLOAT", "fp32"), ("FLOAT16", "fp16")])
def test_a_graph_of_another_precision_stays_in_it(
    tmp_path: Path, element: str, precision: str
) -> None:
    graph = _save(
        tmp_path / "model.onnx",
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DataType.Value(element)),
        helper.make_node("MatMul", ["y", "y"], ["z"]),
        helper.make_node("Cast", ["z"], ["embedding"], to=TensorProto.FLOAT),
    )
    assert _build(graph).matrix_products == {precision: 1}


def test_only_the_embedding_is_kept(
    graph: Path, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    assert {output.name for output in onnx.load(graph).graph.output} == {"embedding", "features"}
    with caplog.at_level(logging.INFO, "vibematch_export.tensorrt"):
        _build(graph)
    assert "Detected 1 inputs and 1 output network tensors." in caplog.text


def test_progress_is_shown_to_its_end(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_engine(graph, tmp_path, library="tensorrt-rtx")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    done = re.search(r"100%.* (\d+)/(\d+) ", last)
    assert done is not None and done[1] == done[2]


def test_a_node_tensorrt_does_not_know_is_named(tmp_path: Path) -> None:
    wobble = helper.make_node(
        "Wobble", ["x"], ["embedding"], name="head.wobble", domain="elsewhere"
    )
    graph = _save(tmp_path / "model.onnx", wobble)
    with pytest.raises(EngineError, match=r"model\.onnx: node head\.wobble \(Wobble\): "):
        _build(graph)
    assert list(tmp_path.iterdir()) == [graph]


def test_a_clash_of_types_names_its_node_and_nothing_about_the_missing_gpu(tmp_path: Path) -> None:
    half = helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16)
    add = helper.make_node("Add", ["x", "h"], ["embedding"], name="decoder.layer_03.add")
    graph = _save(tmp_path / "model.onnx", half, add)
    with pytest.raises(
        EngineError, match=r"decoder\.layer_03\.add \(Add\): .*types Float and Half"
    ) as raised:
        _build(graph)
    assert "CUDA" not in str(raised.value)


def test_pixels_that_are_not_cast_first_are_refused_by_name(tmp_path: Path) -> None:
    swap = helper.make_node("Transpose", ["pixels"], ["t"], name="vision.cut", perm=[0, 1, 3, 2])
    cast = helper.make_node("Cast", ["t"], ["embedding"], to=TensorProto.FLOAT)
    with pytest.raises(EngineError, match=r"vision\.cut \(Transpose\): .*UInt8"):
        _build(_save(tmp_path / "model.onnx", swap, cast))


def test_many_refused_nodes_are_counted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Odd", ["x"], [f"o{i}"], domain="elsewhere") for i in range(5)]
    last = helper.make_node("Relu", ["x"], ["embedding"])
    with pytest.raises(EngineError, match=r"node number 1 \(Odd\).*; and 2 more$"):
        _build(_save(tmp_path / "model.onnx", *nodes, last))


def test_each_build_says_what_the_builder_refused_in_it(tmp_path: Path) -> None:
    """As long as a failed build is not collected, TensorRT goes on using its log."""
    graph = _save(tmp_path / "model.onnx", helper.make_node("Relu", ["x"], ["embedding"]))
    model = onnx.load(graph)
    kept = []
    for batch in (2, 3):  # fixed ones, which the profile of 1 to 32 does not fit
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        onnx.save(model, graph)
        with pytest.raises(EngineError, match="cannot build an engine") as raised:
            _build(graph)
        kept.append(raised.value)
    assert "Input dimensions are [2,3,8,8]" in str(kept[0])
    assert "Input dimensions are [3,3,8,8]" in str(kept[1])
    assert "[2,3,8,8]" not in str(kept[1])


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"junk")
    with pytest.raises(EngineError, match="Failed to parse the ONNX model"):
        _build(graph)


def test_a_missing_graph_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make it with `vibematch export`"):
        build_engine(tmp_path / "model.onnx", tmp_path, library="tensorrt-rtx")


def test_ctrl_c_stops_the_build(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressing(tensorrt.tqdm):  # type: ignore[misc,name-defined]
        """Is told of the first phase by the builder, where a KeyboardInterrupt would be lost."""

        pressed = False

        def set_postfix_str(self, *arguments: object, **options: object) -> None:
            if not self.pressed:
                self.pressed = True
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(tensorrt, "tqdm", Pressing)
    # a job that a shell put into the background starts with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(graph, tmp_path, library="tensorrt-rtx", progress=False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())


def test_a_failed_build_does_not_block_the_next(tmp_path: Path) -> None:
    """With a log for each, the old builder could be collected in it, and both wait for ever."""
    graph = _save(tmp_path / "model.onnx", helper.make_node("Odd", ["x"], ["embedding"]))
    code = (
        "import gc, logging, sys; from pathlib import Path\n"
        "from vibematch_export.tensorrt import EngineError, build_engine\n"
        "class Collect(logging.Handler):\n"
        "    def emit(self, record): gc.collect()\n"
        "log = logging.getLogger('vibematch_export.tensorrt')\n"
        "log.addHandler(Collect()); log.setLevel(logging.DEBUG); gc.disable()\n"
        "graph = Path(sys.argv[1])\n"
        "for _ in range(3):\n"
        "    try:\n"
        "        build_engine(graph, graph.parent, library='tensorrt-rtx', progress=False)\n"
        "    except EngineError as error:\n"
        "        error.itself = error\n"  # so that only the collector frees it
    )
    subprocess.run([sys.executable, "-c", code, str(graph)], check=True, timeout=60)


@pytest.mark.parametrize(
    "target",
    [
        Target("tensorrt", "11.4.1.10", "nvidia-a10g"),
        Target("tensorrt", "10.13.3.9.post1", "nvidia-a100-sxm4-40gb-mig-1g-5gb"),
        Target("tensorrt-rtx", "1.7.1.116", "sm86"),
    ],
)
def test_a_target_is_read_back_from_its_file_name(target: Target) -> None:
    assert Target.of_plan(Path("export", "bf16", target.filename)) == target


@pytest.mark.parametrize("name", ["model.plan", "model.onnx", "model.tensorrt-.nvidia-a10g.plan"])
def test_a_plan_that_does_not_say_what_it_is_for_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} does not say what it was built for"):
        require_target(Path(name), Target("tensorrt", "11.4.1.10", "nvidia-a10g"), rebuild=REBUILD)


@pytest.mark.parametrize(
    "changed",
    [
        {"library": "tensorrt-rtx"},
        {"version": "11.4.0.8"},
        {"version": "11.4.1.1"},
        {"gpu": "nvidia-a10"},
    ],
)
def test_a_plan_for_something_else_is_refused_with_the_command_that_rebuilds_it(
    changed: dict[str, str],
) -> None:
    here = Target("tensorrt", "11.4.1.10", "nvidia-a10g")
    require_target(Path(here.filename), here, rebuild=REBUILD)
    other = dataclasses.replace(here, **changed)  # type: ignore[arg-type]
    with pytest.raises(InputError) as raised:
        require_target(Path(other.filename), here, rebuild=REBUILD)
    for said in (str(other), str(here), f"`{REBUILD}`"):
        assert said in str(raised.value)


def test_loading_refuses_a_plan_of_another_version_by_name(tmp_path: Path, plan: Plan) -> None:
    other = tmp_path / dataclasses.replace(plan.target, version="1.6.0.1").filename
    other.write_bytes(plan.path.read_bytes())
    with pytest.raises(InputError, match=rf"runs with tensorrt-rtx 1\.6\.0\.1 .*`{REBUILD}`"):
        load_engine(other, rebuild=REBUILD)


def test_loading_passes_on_what_the_library_refuses(tmp_path: Path, plan: Plan) -> None:
    damaged = tmp_path / plan.path.name
    damaged.write_bytes(plan.path.read_bytes()[:10_000])
    with pytest.raises(InputError, match=r"header\.size == blobSize"):
        load_engine(damaged, rebuild=REBUILD)


def test_a_plan_that_is_not_there_cannot_be_loaded(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_engine(tmp_path / plan.path.name, rebuild=REBUILD)


@pytest.mark.parametrize("library", get_args(Library))
def test_a_missing_library_says_what_to_install(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library.replace("-", "_"), None)  # as if not installed
    with pytest.raises(InputError, match=f"^{library} is not installed: .*pip install {library}"):
        Target.here(library)


def test_measured_kernels_are_kept_for_the_next_build(tmp_path: Path) -> None:
    """The same calls as ``tensorrt`` has, on a library that measures nothing and keeps nothing."""
    config = tensorrt_rtx.Builder(tensorrt_rtx.Logger()).create_builder_config()
    path = tmp_path / "model.timing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tensorrt._load_timings(config, path)
        path.write_bytes(config.get_timing_cache().serialize())
        tensorrt._load_timings(config, path)
    assert path.stat().st_size > 0


def test_no_torch_is_needed_to_build() -> None:
    """NVIDIA's TensorRT container has none."""
    code = "import sys, vibematch_export.tensorrt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_2b_architecture_builds_in_14_gb(tmp_path: Path) -> None:
    """Random weights in bf16 at 448x448: 13 GB of memory and 8 GB of disk, some minutes."""
    graph = _write_graph(random_2b(torch.float32), Preprocessing(448, 448), tmp_path)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from vibematch_export.tensorrt import build_engine\n"
        "graph = Path(sys.argv[1])\n"
        "plan = build_engine(graph, graph.parent, library='tensorrt-rtx', progress=False)\n"
        "peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(peak_kib * 1024, plan.path, plan.matrix_products.get('bf16', 0))"
    )
    build = [sys.executable, "-c", code, str(graph)]
    peak, path, products = subprocess.check_output(build, text=True).split()
    print(f"peak {int(peak) / 1e9:.1f} GB, plan {Path(path).stat().st_size / 1e9:.2f} GB")
    assert int(peak) < 14e9
    assert int(products) > 24 * 4 + 28 * 7
    assert 3.5e9 < Path(path).stat().st_size < 4e9
