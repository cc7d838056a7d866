"""Spans really reach a collector (OpenTelemetry over HTTP, as JSON)."""

from __future__ import annotations

import http.server
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vibematch_export.triton import TritonServer

CALLER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_SPAN = "00f067aa0ba902b7"
STEPS = {"style_preprocess", "style_embed"}


class _Collector(http.server.ThreadingHTTPServer):
    """Keeps the spans that are posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[dict[str, Any]] = []
        self.services: set[str] = set()

    def of_model(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"] == name]


class _Receiver(http.server.BaseHTTPRequestHandler):
    server: _Collector

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/traces":
            for resource in body["resourceSpans"]:
                attributes = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
                self.server.services.add(attributes["service.name"]["stringValue"])
                for scope in resource["scopeSpans"]:
                    self.server.spans += scope["spans"]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[_Collector]:
    with _Collector() as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def traced(collector: _Collector, repository: Path) -> Iterator[TritonServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds; 5 s by default
        url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        with TritonServer(repository, otlp_url=url) as server:
            yield server


def _encode(server: TritonServer, photo: bytes, **headers: str) -> None:
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/style_encoder/infer",
        photo,
        {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": "0",
            **headers,
        },
    )
    urllib.request.urlopen(request, timeout=10).close()


def _encoder_spans(collector: _Collector, count: int) -> list[dict[str, Any]]:
    """The ensemble's own spans, once there are ``count``; its steps' have arrived before."""
    deadline = time.monotonic() + 10
    while len(spans := collector.of_model("style_encoder")) < count:
        assert time.monotonic() < deadline, f"{len(spans)} of {count} traces arrived"
        time.sleep(0.02)
    return spans


def test_a_photo_leaves_a_span_for_each_step(
    traced: TritonServer, collector: _Collector, photos: list[bytes]
) -> None:
    before = len(collector.of_model("style_encoder"))
    _encode(traced, photos[0])
    encoder = _encoder_spans(collector, before + 1)[-1]
    below = {s["name"] for s in collector.spans if s.get("parentSpanId") == encoder["spanId"]}
    assert below == STEPS
    events = {event["name"] for event in encoder["events"]}
    assert {"REQUEST_START", "REQUEST_END"} <= events
    assert collector.services == {"vibematch"}


@pytest.mark.slow
def test_a_trace_that_the_caller_began_goes_on(
    traced: TritonServer, collector: _Collector, photos: list[bytes]
) -> None:
    before = len(collector.of_model("style_encoder"))
    _encode(traced, photos[0], traceparent=f"00-{CALLER_TRACE}-{CALLER_SPAN}-01")
    _encoder_spans(collector, before + 1)
    of_caller = [span for span in collector.spans if span["traceId"] == CALLER_TRACE]
    assert {span["name"] for span in of_caller} >= {"style_encoder", *STEPS}
    # Triton's own span for the request is all that hangs on the caller's.
    (request,) = [span for span in of_caller if span.get("parentSpanId") == CALLER_SPAN]
    assert request["name"] == "InferRequest"


@pytest.mark.slow
def test_no_photo_is_lost_without_a_collector(repository: Path, photos: list[bytes]) -> None:
    with TritonServer(repository, otlp_url="http://127.0.0.1:9/v1/traces") as server:
        for photo in photos:
            _encode(server, photo)
