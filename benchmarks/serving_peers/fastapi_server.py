"""FastAPI over an encoder: what a competent engineer writes in an afternoon.

One process. Photos are decoded side by side in FastAPI's threads; the model computes one at a time.
"""

from __future__ import annotations

import threading
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI, HTTPException
from serving_peers.encoders import arguments, made

from vibematch.errors import PhotoError
from vibematch.preprocess import preprocess


def main() -> None:
    """Serve until told to stop."""
    args = arguments().parse_args()
    canvas, encode = made(args)
    app = FastAPI()
    turn = threading.Lock()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/predict")
    def predict(
        photo: Annotated[bytes, Body(media_type="application/octet-stream")],
    ) -> list[float]:
        try:
            pixels = preprocess(photo, canvas)
        except PhotoError as error:
            raise HTTPException(400, str(error)) from error
        with turn:
            vector: list[float] = encode(pixels[None])[0].tolist()
        return vector

    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
