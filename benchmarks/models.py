"""The models that are measured, and their exported graphs, which are made once and kept.

``tiny`` is the untrained backbone of tests and demo; ``2b`` is Qwen3-VL-2B's exact architecture
with random weights: there was no hub access where these benchmarks were written. Random weights
are the same work as real ones and have no meaning, so cosines say how far an engine strays, and
nothing says how good a match is. Heads are random too.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vibematch.manifest import FILENAME, Manifest
from vibematch.preprocess import Preprocessing
from vibematch_export import kernels
from vibematch_export.canary import write_canary
from vibematch_export.fused import FusedEncoder
from vibematch_export.onnx_graph import write_onnx
from vibematch_export.repository import write_repository
from vibematch_export.triton import TritonServer
from vibematch_training.backbone import PROMPT, Backbone, load_backbone
from vibematch_training.features import FeatureRecipe
from vibematch_training.head import ProjectionHead

BackboneName: TypeAlias = Literal["tiny", "2b"]
EMBEDDING_DIM: Final = 256
RANDOM_2B: Final = "2b-random"
CANVAS: Final = {"tiny": Preprocessing(224, 224), "2b": Preprocessing(448, 448)}
"""What a model sees unless the question is resolution."""
WEIGHTS: Final = {"tiny": "random, tiny backbone", "2b": "random, 2B architecture"}


def backbone(name: BackboneName, dtype: torch.dtype = torch.float32) -> Backbone:
    """One of the two, on the CPU."""
    return random_2b(dtype) if name == "2b" else load_backbone("tiny", dtype, "cpu")


def random_2b(dtype: torch.dtype) -> Backbone:
    """The 2B backbone in ``dtype`` on the CPU, with the tiny backbone's tokenizer; seed 0."""
    tiny = load_backbone("tiny", dtype, "cpu")
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = config_2b(**{name: getattr(tiny.model.config, name) for name in tokens})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # not .to(dtype), which would round the rotary frequencies too
        torch.set_default_dtype(dtype)
        model = Qwen3VLModel(config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    return dataclasses.replace(tiny, name=RANDOM_2B, model=model)


def config_2b(**tokens: int) -> Qwen3VLConfig:
    """Qwen3-VL-2B's sizes, from its ``config.json``, with token numbers of another tokenizer."""
    text: dict[str, Any] = {"vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144}
    text |= {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
    text["head_dim"] = 128
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6}
    text["rope_parameters"] |= {"mrope_section": [24, 20, 20], "mrope_interleaved": True}
    vision: dict[str, Any] = {"hidden_size": 1024, "depth": 24, "num_heads": 16}
    vision |= {"intermediate_size": 4096, "out_hidden_size": 2048, "num_position_embeddings": 2304}
    vision["deepstack_visual_indexes"] = [5, 11, 17]
    return Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)


def recipe(
    name: BackboneName, canvas: Preprocessing, dtype: torch.dtype = torch.float32
) -> FeatureRecipe:
    """Pixels → features by Hugging Face's own forward."""
    return FeatureRecipe(backbone(name, dtype), canvas, PROMPT)


def fused(name: BackboneName, canvas: Preprocessing) -> FusedEncoder:
    """The module that is exported, in float32."""
    made = recipe(name, canvas)
    torch.manual_seed(0)
    head = ProjectionHead(made.backbone.feature_dim, EMBEDDING_DIM).eval()
    return FusedEncoder(made, head).eval()


def exported(
    work: Path, name: BackboneName, canvas: Preprocessing, precision: Literal["fp32", "int8"]
) -> Path:
    """A model folder ready to be served, made in a process of its own if it is not there.

    ``int8`` has every layer but the first in 8 bits, uncalibrated: calibrating random weights means
    nothing.

    Args:
        work: folder that keeps models.
        name: the backbone's.
        canvas: height and width of the photo the model sees.
        precision: of the graph.
    """
    folder = work / f"{name}-{canvas.height}x{canvas.width}-{precision}"
    if not (folder / FILENAME).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn) as pool:  # gives its memory back
            pool.submit(_export, folder, name, canvas, precision).result()
    return folder


def _export(
    folder: Path, name: BackboneName, canvas: Preprocessing, precision: Literal["fp32", "int8"]
) -> None:
    began = time.perf_counter()
    write_onnx(fused(name, canvas), canvas, folder / "model.onnx", precision)
    figures = {
        "export_s": time.perf_counter() - began,
        "export_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    run = session(folder)
    write_canary(folder, lambda pixels: run.run(["embedding"], {"pixels": pixels})[0], canvas)
    Manifest(
        embedding_dim=EMBEDDING_DIM,
        preprocessing=canvas,
        prompt=PROMPT,
        pooling="mean",
        backbone=name,
        backbone_sha256="0" * 64,
        head="paper",
        head_sha256="0" * 64,
        precision=precision,
        graph_bytes=sum(path.stat().st_size for path in folder.glob("model.onnx*")),
        parity=figures,
    ).save(folder)


@contextmanager
def served(model: Path) -> Iterator[TritonServer]:
    """A tritonserver with this exported model."""
    with (
        tempfile.TemporaryDirectory(dir=model.parent) as workshop,
        TritonServer(write_repository(Path(workshop, "repository"), model)) as server,
    ):
        yield server


def session(model: Path, *, own_kernels: bool = True) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a model folder, with the threads and settings of ``style_embed``.

    Args:
        model: the folder.
        own_kernels: run our operators by our kernels; else by their bodies of standard operators.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if own_kernels and not kernels.register(options):
        raise SystemExit("our kernels cannot be had here; see the warning above")
    return onnxruntime.InferenceSession(
        model / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


def noise(canvas: Preprocessing, count: int = 4) -> npt.NDArray[np.uint8]:
    """Photos of noise, uint8 ``[count, 3, H, W]``: they cost what photos cost."""
    shape = (count, 3, canvas.height, canvas.width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
