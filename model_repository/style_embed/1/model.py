"""Pixels → unit vectors with ONNX Runtime: the second step of the ensemble, on the CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# From 1.29 on it reports models and runs to Microsoft unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


class TritonPythonModel:
    """``pixels`` UINT8 [batch, 3, H, W] → ``embedding`` FP32 [batch, dim]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load ``model.onnx`` from this version's folder, and warm it up."""
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        # ONNX Runtime counts the machine's cores, not those this process may use.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["intra_op_threads"]["string_value"]) or len(
            os.sched_getaffinity(0)
        )
        options.inter_op_num_threads = 1
        # Between two batches its threads would spin on cores that decode the next photo.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        folder = Path(args["model_repository"], args["model_version"])
        weights = folder / "model.onnx"
        _use_kernels(options, folder / "kernels.so")
        try:
            self._session = onnxruntime.InferenceSession(
                weights, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise pb_utils.TritonModelException(
                f"{weights.name} cannot be loaded ({error})"
            ) from error
        preferred = config["dynamic_batching"].get("preferred_batch_size")
        self._batch_size = max(preferred or [config["max_batch_size"]])
        self._warm_up(config)

    def _warm_up(self, config: dict[str, Any]) -> None:
        """Run every batch size there can be, so that no first photo waits for memory.

        Here and not as Triton's ``model_warmup``: 2.51 may crash, with all models, if that fails.
        """
        (pixels,) = config["input"]
        shape = [int(side) for side in pixels["dims"]]
        for batch_size in range(1, self._batch_size + 1):
            try:
                self._run(np.zeros((batch_size, *shape), np.uint8))
            except Exception as error:
                raise pb_utils.TritonModelException(
                    f"a batch of {batch_size} cannot be run ({error})"
                ) from error

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """Embeddings of any number of photos; memory is taken for one batch of them."""
        batches = np.split(pixels, range(self._batch_size, len(pixels), self._batch_size))
        return np.concatenate(
            [self._session.run(["embedding"], {"pixels": batch})[0] for batch in batches]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests of a dynamic batch together and hand each its share."""
        photos = [
            pb_utils.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests
        ]
        embeddings = self._run(np.concatenate(photos))
        ends = np.cumsum([len(some) for some in photos])
        return [_answer(share) for share in np.split(embeddings, ends[:-1])]


def _use_kernels(options: onnxruntime.SessionOptions, library: Path) -> None:
    """Compute the graph's operators with our own kernels; without them it is the same, slower."""
    if not library.exists():
        return
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:  # built for another kind of machine
        pb_utils.Logger.log_warn(f"style_embed: {library.name} is not used: {error}")


def _answer(embeddings: np.ndarray) -> Any:
    if not np.isfinite(embeddings).all():  # an index must never store such a vector
        reason = "the model made a vector that is not finite"
        pb_utils.Logger.log_error(f"style_embed: {reason}")
        error = pb_utils.TritonError(reason, pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(error=error)
    return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", embeddings)])
