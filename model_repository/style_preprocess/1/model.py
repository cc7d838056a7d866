"""Photo bytes → pixels, with the client's own preprocessing: the first step of the ensemble."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from vibematch.errors import PhotoError
from vibematch.preprocess import REVISION, Preprocessing, preprocess


class TritonPythonModel:
    """``photo`` BYTES [batch, 1] → ``pixels`` UINT8 [batch, 3, H, W]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the canvas and the caps from the model's configuration."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = json.loads(parameters["preprocessing"]["string_value"])
        revision = settings.pop("revision")
        if revision != REVISION:
            raise pb_utils.TritonModelException(
                f"the model was exported with preprocessing revision {revision} but the installed "
                f"vibematch has revision {REVISION}: export the model again"
            )
        self._preprocessing = Preprocessing(**settings)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: a bad photo fails only the request that brought it."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        photos = pb_utils.get_input_tensor_by_name(request, "photo").as_numpy().ravel()
        pixels: list[np.ndarray] = []
        for index, photo in enumerate(photos):
            which = f"photo {index}: " if len(photos) > 1 else ""
            try:
                pixels.append(preprocess(photo, self._preprocessing))
            except PhotoError as error:
                return _failure(f"{which}{error}", pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # ours, not the sender's; the neighbours still get theirs
                reason = f"{which}preprocessing failed ({error!r})"
                return _failure(reason, pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.stack(pixels))])


def _failure(reason: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, code))
