"""Ask an embedding server by KServe's own client, which knows nothing of vibematch.

Runs in the environment of requirements.txt::

    ask.py HTTP_HOST:PORT GRPC_HOST:PORT PHOTO...

For each protocol and photo it prints a line of JSON: the vector, or the error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)

MODEL = "style_encoder"


async def main(http_url: str, grpc_url: str, *paths: str) -> None:
    """Ask for every photo over both protocols."""
    logging.disable()  # the gRPC client logs a traceback of what it raises
    async with (
        InferenceRESTClient(RESTConfig(protocol="v2")) as rest,
        InferenceGRPCClient(grpc_url) as rpc,
    ):
        for path in paths:
            request = _request(Path(path).read_bytes())
            try:
                answer = await rest.infer(f"http://{http_url}", request, model_name=MODEL)
                _print("http", vector=_vector(answer))
            except httpx.HTTPStatusError as error:
                # its own message leaves the reason out, as Triton does not label it as JSON
                _print("http", error=f"{error.response.status_code}: {error.response.text}")
            try:
                _print("grpc", vector=_vector(await rpc.infer(request)))
            except grpc.RpcError as error:
                _print("grpc", error=f"{error.code().name}: {error.details()}")


def _request(photo: bytes) -> InferRequest:
    tensor = InferInput("photo", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo]], dtype=np.object_))
    return InferRequest(MODEL, [tensor])


def _vector(answer: Any) -> list[list[float]]:
    (embedding,) = [output for output in answer.outputs if output.name == "embedding"]
    vector: list[list[float]] = embedding.as_numpy().tolist()
    return vector


def _print(protocol: str, **outcome: object) -> None:
    print(json.dumps({"protocol": protocol, **outcome}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
