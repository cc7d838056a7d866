"""Sends the canary photo through this version's steps and compares the vector with the proven one.

::

    curl -sS localhost:8000/v2/models/style_canary/infer \
      -d '{"inputs":[{"name":"run","shape":[1],"datatype":"BOOL","data":[true]}]}'
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

OVERLOADED = ("maximum queue size", "timeout expired")
"""How Triton refuses a request for want of time; it says nothing about the model."""


class TritonPythonModel:
    """``run`` BOOL [1], whose value does not matter → ``cosine`` FP32 [1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the photo and its vector from this version's folder."""
        folder = Path(args["model_repository"], args["model_version"])
        self._version = int(args["model_version"])
        self._photo = (folder / "canary.png").read_bytes()
        self._expected = np.load(folder / "canary.npy").astype(np.float64)
        self._gauge = _gauge(args["model_version"])
        self._gauge.set(math.nan)  # not 0, which would raise an alarm before the first check

    def execute(self, requests: list[Any]) -> list[Any]:
        """Check once for each request."""
        return [self._answer() for _ in requests]

    def finalize(self) -> None:
        """A version that is gone has no cosine."""
        self._gauge.set(math.nan)

    def _answer(self) -> Any:
        try:
            cosine = self._cosine()
        except _OverloadedError as error:  # keep the last cosine
            return _failure(str(error), pb_utils.TritonError.UNAVAILABLE)
        except Exception as error:
            self._gauge.set(0.0)
            return _failure(str(error), pb_utils.TritonError.INTERNAL)
        self._gauge.set(cosine)
        answer = pb_utils.Tensor("cosine", np.array([cosine], np.float32))
        return pb_utils.InferenceResponse([answer])

    def _cosine(self) -> float:
        photo = pb_utils.Tensor("photo", np.array([[self._photo]], np.object_))
        pixels = self._step("style_preprocess", photo, "pixels")
        vector = self._step("style_embed", pixels, "embedding").as_numpy().astype(np.float64)
        if vector.shape != (1, *self._expected.shape):
            raise RuntimeError(f"style_embed answers the shape {vector.shape} for the canary photo")
        norms = np.linalg.norm(vector) * np.linalg.norm(self._expected)
        cosine = float(vector[0] @ self._expected / norms)
        if not math.isfinite(cosine):
            raise RuntimeError("the vector of the canary photo is zero or not finite")
        return cosine

    def _step(self, model: str, tensor: Any, output: str) -> Any:
        response = pb_utils.InferenceRequest(
            model_name=model,
            model_version=self._version,
            inputs=[tensor],
            requested_output_names=[output],
            # out of the GPU's memory, where there is one
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            reason = response.error().message()
            overloaded = any(words in reason for words in OVERLOADED)
            kind = _OverloadedError if overloaded else RuntimeError
            raise kind(f"{model} fails on the canary photo: {reason}")
        return pb_utils.get_output_tensor_by_name(response, output)


class _OverloadedError(Exception):
    """A step had no time for the canary photo."""


def _gauge(version: str) -> Any:
    family = pb_utils.MetricFamily(
        name="vibematch_canary_cosine",
        description="Cosine of the canary photo's vector with the proven one",
        kind=pb_utils.MetricFamily.GAUGE,
    )
    gauge = family.Metric(labels={"version": version})
    # Never deleted, or this process crashes at its end (Triton 2.51); and where a version is loaded
    # again, its new process is there before the old one ends, and uses the same series.
    for kept in (family, gauge):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    return gauge


def _failure(reason: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, code))
