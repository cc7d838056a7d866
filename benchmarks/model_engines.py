"""The ways to run the model that ``model.py`` compares, and the files they need.

All have the same weights and map pixels, uint8 ``[batch, 3, H, W]``, to pooled features, float32
``[batch, feature_dim]``, with all cores.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from harness import CORES
from macs import Format
from models import BackboneName, exported, fused, noise, recipe, session

from vibematch.preprocess import Preprocessing
from vibematch_training.features import pooled_features

Run: TypeAlias = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
Precision: TypeAlias = Literal["fp32", "int8"]
Answer = TypeVar("Answer")

REFERENCES: Final = 4
"""Photos whose features are compared with those of Hugging Face's forward in float32."""


@dataclass(frozen=True)
class Place:
    """What is measured, and where its files are."""

    work: Path
    backbone: BackboneName
    canvas: Preprocessing

    @property
    def size(self) -> str:
        """Height and width, for people."""
        return f"{self.canvas.height}x{self.canvas.width}"

    @property
    def reference(self) -> Path:
        """Features by Hugging Face's forward in float32, ``[REFERENCES, feature_dim]``."""
        return self.work / f"{self.backbone}-{self.size}-features.npy"

    @property
    def openvino(self) -> Path:
        """Folder of OpenVINO's ``bf16.xml`` and ``int8.xml``."""
        return self.work / f"{self.backbone}-{self.size}-openvino"


@dataclass(frozen=True)
class Engine:
    """A way to run the model.

    Attributes:
        load: place → what computes features.
        layers: number format of the linear layers' products.
        attention: that of attention's products.
        made: what has to be made first: a precision of our graphs, ``openvino``, or nothing.
    """

    load: Callable[[Place], Run]
    layers: Format
    attention: Format
    made: str = ""


def _transformers(dtype: torch.dtype, compiled: bool, place: Place) -> Run:
    torch.set_num_threads(CORES)
    made = recipe(place.backbone, place.canvas, dtype)
    if compiled:
        torch._logging.set_logs(dynamo=logging.ERROR)  # it warns of what it cannot compile
        made.backbone.model.compile(dynamic=False)  # it is faster with shapes that it knows
    return lambda pixels: pooled_features(pixels, made).numpy()


def _openvino(precision: str, place: Place) -> Run:
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": CORES,
        "INFERENCE_PRECISION_HINT": "bf16",
    }
    if precision == "int8":  # its fastest: int8 products, all else in bfloat16
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 1024
    requests: dict[int, Any] = {}

    def run(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if len(pixels) not in requests:
            requests.clear()  # gives the other's memory back first
            model = core.read_model(place.openvino / f"{precision}.xml")
            model.reshape(list(pixels.shape))  # it is faster with shapes that it knows
            compiled = core.compile_model(model, "CPU", settings)
            requests[len(pixels)] = compiled.create_infer_request()
        return np.array(requests[len(pixels)].infer({0: pixels})[1])

    return run


def _ours(precision: Precision, own_kernels: bool, place: Place) -> Run:
    folder = exported(place.work, place.backbone, place.canvas, precision)
    running = session(folder, own_kernels=own_kernels)
    return lambda pixels: running.run(["features"], {"pixels": pixels})[0]


ENGINES: Final = {
    "transformers bf16": Engine(partial(_transformers, torch.bfloat16, False), "bf16", "bf16"),
    "transformers fp32": Engine(partial(_transformers, torch.float32, False), "fp32", "fp32"),
    "torch.compile bf16": Engine(partial(_transformers, torch.bfloat16, True), "bf16", "bf16"),
    "OpenVINO bf16": Engine(partial(_openvino, "bf16"), "bf16", "bf16", made="openvino"),
    "OpenVINO int8": Engine(partial(_openvino, "int8"), "int8", "bf16", made="openvino"),
    "ours int8, plain": Engine(partial(_ours, "int8", False), "int8", "fp32", made="int8"),
    "ours int8": Engine(partial(_ours, "int8", True), "int8", "bf16", made="int8"),
    "ours fp32": Engine(partial(_ours, "fp32", True), "fp32", "fp32", made="fp32"),
}


# --- their files


class Files:
    """Graphs and references, made when they are needed.

    Args:
        place: what is measured.
        keep: whether large ones stay: float32 and OpenVINO's, 13 GB at 2B. Others always do.
    """

    def __init__(self, place: Place, *, keep: bool) -> None:
        self._place = place
        self._keep = keep or place.backbone == "tiny"
        self._large: dict[str, Path] = {}

    def make(self, names: Sequence[str]) -> dict[str, str]:
        """Make what engines need, if it is not there.

        Returns:
            Engine → why it cannot run.
        """
        steps: dict[str, Callable[[], None]] = {"openvino": self._openvino}
        for precision in get_args(Precision):
            steps[precision] = partial(self._graph, precision)
        failed: dict[str, str] = {}
        everything = self._attempt(self._reference)
        for made in sorted({ENGINES[name].made for name in names}):
            reason = everything or (self._attempt(steps[made]) if made else "")
            if reason:
                failed |= {name: reason for name in names if ENGINES[name].made == made}
        return failed

    def remove_all_but(self, names: Sequence[str]) -> None:
        """Remove what is large and none of these engines needs."""
        needed = {ENGINES[name].made for name in names}
        for made in set() if self._keep else set(self._large) - needed:
            shutil.rmtree(self._large.pop(made), ignore_errors=True)

    @staticmethod
    def _attempt(step: Callable[[], None]) -> str:
        """Why it failed; empty if it did not."""
        try:
            step()
        except Exception as error:
            return f"its files could not be made: {said(error)}"
        return ""

    def _reference(self) -> None:
        if not self._place.reference.exists():
            in_child(make_reference, self._place)

    def _openvino(self) -> None:
        self._large["openvino"] = self._place.openvino
        if not (self._place.openvino / "int8.xml").exists():
            in_child(make_openvino, self._place)

    def _graph(self, precision: Precision) -> None:
        place = self._place
        folder = exported(place.work, place.backbone, place.canvas, precision)
        if precision == "fp32":
            self._large[precision] = folder


def make_reference(place: Place) -> None:
    """Features of some photos by Hugging Face's forward in float32."""
    torch.set_num_threads(CORES)
    made = recipe(place.backbone, place.canvas)
    photos = noise(place.canvas, REFERENCES)
    np.save(
        place.reference,
        np.concatenate([pooled_features(photo[None], made).numpy() for photo in photos]),
    )


def make_openvino(place: Place) -> None:
    """OpenVINO's own conversion of the fused module: 16-bit weights, and 8-bit ones by NNCF."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)  # it prints tables on standard output
    photo = torch.from_numpy(noise(place.canvas, 1))
    shape = [-1, *photo.shape[1:]]
    model = openvino.convert_model(
        fused(place.backbone, place.canvas), example_input=photo, input=[shape]
    )
    place.openvino.mkdir(exist_ok=True)
    openvino.save_model(model, place.openvino / "bf16.xml", compress_to_fp16=True)
    compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(compressed, place.openvino / "int8.xml", compress_to_fp16=False)


def said(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def in_child(step: Callable[..., Answer], *arguments: Any) -> Answer:
    """Run a step in a process of its own, which gives all its memory back.

    Raises:
        MemoryError: the process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(step, *arguments).result()
        except BrokenProcessPool as error:
            raise MemoryError("its process ended, as when memory runs out") from error
