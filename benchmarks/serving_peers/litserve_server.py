"""LitServe over an encoder, with its dynamic batching.

Annotations are values here, since LitServe hands that of ``request`` on to FastAPI: so there is no
``from __future__ import annotations``.
"""

import argparse
from typing import Annotated

import litserve
import numpy as np
import numpy.typing as npt
from fastapi import Body, HTTPException
from serving_peers.encoders import arguments, made

from vibematch.errors import PhotoError
from vibematch.preprocess import preprocess

MAX_BATCH_SIZE = 8
BATCH_TIMEOUT_S = 0.01

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


class EncoderAPI(litserve.LitAPI):  # type: ignore[misc]  # an optional package
    """Decode, compute a batch, answer with lists."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
        self._args = args

    def setup(self, device: str) -> None:
        """Load the model, in LitServe's worker process."""
        self._canvas, self._encode = made(self._args)

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="application/octet-stream")]
    ) -> Pixels:
        """Photo → pixels."""
        try:
            return preprocess(request, self._canvas)
        except PhotoError as error:
            raise HTTPException(400, str(error)) from error

    def predict(self, pixels: Pixels) -> Vectors:
        """Pixels, stacked by LitServe → vectors."""
        return self._encode(pixels)

    def encode_response(self, vector: npt.NDArray[np.float32]) -> list[float]:
        """One vector as JSON has it."""
        numbers: list[float] = vector.tolist()
        return numbers


def main() -> None:
    """Serve until told to stop."""
    args = arguments().parse_args()
    server = litserve.LitServer(EncoderAPI(args), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=args.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
