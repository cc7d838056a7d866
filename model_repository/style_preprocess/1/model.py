"""Photo bytes → pixels, with the client's own preprocessing: the first step of the ensemble."""

from __future__ import annotations

import ctypes
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import triton_python_backend_utils as pb_utils

from vibematch.errors import ManifestError, PhotoError, PhotoErrorCode
from vibematch.manifest import Manifest
from vibematch.photo_bytes import open_photo
from vibematch.preprocess import REVISION, fit

OURS = "internal"
"""The reason of a failure that is no fault of the photo."""
REASONS = (*get_args(PhotoErrorCode), OURS)
SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
SEND_AFTER_S = 0.05
MEGAPIXELS = [0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]


class TritonPythonModel:
    """``photo`` BYTES [n, 1] → ``pixels`` UINT8 [n, 3, H, W] and ``fingerprint`` BYTES [n, 1]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the manifest in this version's folder: canvas, caps, and the model's fingerprint."""
        # Under overload, photos decoded faster than the model takes them are decoded in vain.
        os.nice(10)
        try:
            manifest = Manifest.load(Path(args["model_repository"], args["model_version"]))
        except ManifestError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        if manifest.preprocessing_revision != REVISION:
            raise pb_utils.TritonModelException(
                "the model was exported with preprocessing revision "
                f"{manifest.preprocessing_revision} but the installed vibematch has revision "
                f"{REVISION}: export the model again"
            )
        self._preprocessing = manifest.preprocessing
        self._fingerprint = manifest.fingerprint.encode()
        self._metrics = _Metrics()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own: a bad photo fails only the request that brought it."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        photos = pb_utils.get_input_tensor_by_name(request, "photo").as_numpy().ravel()
        settings = self._preprocessing
        pixels: list[np.ndarray] = []
        for index, photo in enumerate(photos):
            which = f"photo {index}: " if len(photos) > 1 else ""
            start = time.perf_counter()
            try:
                opened = open_photo(photo, settings.max_bytes, settings.max_pixels)
                megapixels = opened.image.width * opened.image.height / 1e6
                pixels.append(fit(opened, settings))
            except PhotoError as error:
                self._metrics.failed(error.code, time.perf_counter() - start)
                return _failure(f"{which}{error}", pb_utils.TritonError.INVALID_ARG)
            except Exception as error:  # ours, not the sender's; the neighbours still get theirs
                self._metrics.failed(OURS, time.perf_counter() - start)
                reason = f"{which}preprocessing failed ({error!r})"
                pb_utils.Logger.log_error(f"style_preprocess: {reason}")
                return _failure(reason, pb_utils.TritonError.INTERNAL)
            self._metrics.decoded(megapixels, time.perf_counter() - start)
        fingerprints = np.full((len(photos), 1), self._fingerprint, np.object_)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("pixels", np.stack(pixels)),
                pb_utils.Tensor("fingerprint", fingerprints),
            ]
        )


class _Metrics:
    """What becomes of photos, for Prometheus; never worth a request if it fails.

    All processes and versions count into the same series. Each step takes a message to the server
    and back, half a millisecond where cores are busy: so a thread does it, once the photo is gone.
    """

    def __init__(self) -> None:
        family = pb_utils.MetricFamily
        failures = _kept(
            family(
                name="vibematch_photo_failures_total",
                description="Photos that did not become pixels, by reason",
                kind=family.COUNTER,
            )
        )
        # All of them from the start: rate() does not see a series begin with its first failure.
        self._failures = {
            reason: _kept(failures.Metric(labels={"reason": reason})) for reason in REASONS
        }
        seconds = _kept(
            family(
                name="vibematch_photo_decode_seconds",
                description="Time from a photo's bytes to its pixels or its refusal",
                kind=family.HISTOGRAM,
            )
        )
        self._seconds = _kept(seconds.Metric(labels={}, buckets=SECONDS))
        megapixels = _kept(
            family(
                name="vibematch_photo_megapixels",
                description="Size of the photos that became pixels, before scaling",
                kind=family.HISTOGRAM,
            )
        )
        self._megapixels = _kept(megapixels.Metric(labels={}, buckets=MEGAPIXELS))

        self._events: queue.SimpleQueue[tuple[Callable[[float], None], float]]
        self._events = queue.SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()

    def failed(self, reason: str, seconds: float) -> None:
        self._events.put((self._seconds.observe, seconds))
        self._events.put((self._failures[reason].increment, 1))

    def decoded(self, megapixels: float, seconds: float) -> None:
        self._events.put((self._seconds.observe, seconds))
        self._events.put((self._megapixels.observe, megapixels))

    def _send(self) -> None:
        while True:
            event: tuple[Callable[[float], None], float] | None = self._events.get()
            time.sleep(SEND_AFTER_S)
            while event is not None:
                count, value = event
                with suppress(Exception):
                    count(value)
                event = None if self._events.empty() else self._events.get()


def _kept(metric: Any) -> Any:
    """Keep a metric from ever being deleted.

    A model's process of Triton 2.51 that deletes one at its end crashes. Deleted earlier, a series
    is gone for the other processes and versions too, which go on writing to it in freed memory.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(metric))
    return metric


def _failure(reason: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, code))
