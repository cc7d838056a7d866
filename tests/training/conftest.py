"""A local server that speaks the OpenAI protocol, and misbehaves when told to."""

from __future__ import annotations

import base64
import colorsys
import email
import email.policy
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from vibematch_training.schema import CATEGORIES

ERRORS = {
    "redirect": (307, "moved"),
    "400": (400, "invalid_request_error"),
    "401": (401, "invalid_api_key"),
    "402": (402, "payment_required"),
    "403": (403, "forbidden"),
    "404": (404, "model_not_found"),
    "429": (429, "rate_limit_exceeded"),
    "quota": (429, "insufficient_quota"),
    "wait an hour": (429, "rate_limit_exceeded"),
    "500": (500, "server_error"),
    "504": (504, "gateway_timeout"),
}
LABELS_BROKEN_BY = {
    "wrong enum": {"fashion_style": "Goth"},
    "wrong type": {"caption": 7},
    "empty text": {"caption": "  "},
    "surrogate": {"caption": "\ud800"},
    "extra key": {"age": "29"},
}


def labels_of(photo: str) -> dict[str, str]:
    """What the server says of a photo: always the same."""
    number = int(photo, 16)
    return {
        **{name: values[number % len(values)] for name, values in CATEGORIES.items()},
        "physical_features": f"hair no. {number % 97}",
        "caption": f'A "photo", number {number % 997},\n of a person.',
    }


def edited(source: bytes, prompt: str) -> bytes:
    """What the server makes of a photo: always the same."""
    hue = int(hashlib.sha256(prompt.encode()).hexdigest()[:4], 16) / 0xFFFF
    colour = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.5, 1))
    image = Image.open(io.BytesIO(source)).convert("L")
    content = io.BytesIO()
    ImageOps.colorize(image, "black", colour).save(content, "PNG")
    return content.getvalue()


class OpenAIServer:
    """Chat completions and image edits on the loopback interface.

    Attributes:
        behave: request number of this photo (from 1), photo → the name of a behaviour, or "ok".
        on_event: called with "received" or "answered" and how many there have been.
        received: the photo of every request, in order (for edits: photo and prompt, hashed).
        answered: the photo of every usable answer that was written out.
        requests: path, headers and fields of every request.
    """

    def __init__(self) -> None:
        self.behave: Callable[[int, str], str] = lambda number, photo: "ok"
        self.on_event: Callable[[str, int], None] = lambda event, count: None
        self.received: list[str] = []
        self.answered: list[str] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.in_flight = self.most_in_flight = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def asked(self) -> Counter[str]:
        """How many requests were received for each photo."""
        return Counter(self.received)

    def forget(self) -> None:
        self.received, self.answered, self.requests = [], [], []

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: OpenAIServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        owner = self.owner
        body = self.rfile.read(int(self.headers["content-length"]))
        chat = self.path.endswith("/chat/completions")
        fields = json.loads(body) if chat else self._form(body)
        with owner.lock:
            photo = _photo(fields, chat)
            owner.received.append(photo)
            headers = {name.lower(): value for name, value in self.headers.items()}
            owner.requests.append((self.path, headers, fields))
            number, total = owner.received.count(photo), len(owner.received)
            owner.in_flight += 1
            owner.most_in_flight = max(owner.most_in_flight, owner.in_flight)
        try:
            owner.on_event("received", total)
            self._answer(owner.behave(number, photo), photo, fields, chat)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with owner.lock:
                owner.in_flight -= 1

    def _answer(self, behaviour: str, photo: str, fields: dict[str, Any], chat: bool) -> None:
        if behaviour == "slow":
            self.owner.closing.wait(5)
        elif behaviour == "drop":
            self.close_connection = True
        elif behaviour == "half":
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices"')
            self.close_connection = True
        elif behaviour in ERRORS:
            status, code = ERRORS[behaviour]
            retry_after = {"429": "0.02", "wait an hour": "3600"}.get(behaviour)
            self._send(status, {"error": {"message": f"no: {code}", "code": code}}, retry_after)
        elif behaviour == "html":
            self._send_bytes(200, b"<html>please log in</html>", "text/html")
        elif behaviour == "broken body":
            self._send_bytes(200, b'{"choices": [', "application/json")
        elif behaviour == "null":
            self._send(200, {"choices": None} if chat else {"created": 1, "data": None})
        else:
            answer = _completion(behaviour, photo) if chat else _image(behaviour, fields)
            time.sleep(0.01)
            self._send(200, answer)
            with self.owner.lock:
                self.owner.answered.append(photo)
                total = len(self.owner.answered)
            self.owner.on_event("answered", total)

    def _form(self, body: bytes) -> dict[str, Any]:
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        fields: dict[str, Any] = {}
        for part in message.iter_parts():
            name = part.get_param("name", header="content-disposition")
            content = part.get_payload(decode=True)
            fields[name] = content if part.get_filename() else content.decode()
            if part.get_filename():
                fields["upload_name"] = part.get_filename()
        return fields

    def _send(self, status: int, answer: dict[str, Any], retry_after: str | None = None) -> None:
        self._send_bytes(status, json.dumps(answer).encode(), "application/json", retry_after)

    def _send_bytes(
        self, status: int, body: bytes, content_type: str, retry_after: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        if status == 307:
            self.send_header("location", f"/elsewhere{self.path}")
        if retry_after:
            self.send_header("retry-after", retry_after)
        self.end_headers()
        self.wfile.write(body)


def _photo(fields: dict[str, Any], chat: bool) -> str:
    if chat:
        url = fields["messages"][-1]["content"][0]["image_url"]["url"]
        return hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest()[:12]
    return hashlib.sha256(fields["image"] + fields["prompt"].encode()).hexdigest()[:12]


def _completion(behaviour: str, photo: str) -> dict[str, Any]:
    labels: dict[str, Any] = labels_of(photo) | LABELS_BROKEN_BY.get(behaviour, {})
    if behaviour == "missing key":
        del labels["shot_type"]
    text: str | None = json.dumps(labels)
    if behaviour == "not json":
        text = "Sure! Here is the JSON you asked for"
    if behaviour == "key twice":
        text = text[:-1] + ', "caption": "another"}'
    message = {"role": "assistant", "content": text, "refusal": None}
    if behaviour == "refusal":
        message |= {"content": None, "refusal": "I can't help with that."}
    finish_reason = {"cut off": "length", "filtered": "content_filter"}.get(behaviour, "stop")
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "test-model",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 700, "completion_tokens": 90, "total_tokens": 790},
    }


def _image(behaviour: str, fields: dict[str, Any]) -> dict[str, Any]:
    content = edited(fields["image"], fields["prompt"])
    if behaviour == "url":
        return {"created": 1, "data": [{"url": "http://127.0.0.1:1/image.png"}]}
    if behaviour == "truncated image":
        content = content[: len(content) // 2]
    encoded = base64.b64encode(content).decode()
    if behaviour == "not base64":
        encoded = "%" + encoded
    usage = {"input_tokens": 300, "output_tokens": 1000, "total_tokens": 1300}
    return {"created": 1, "data": [{"b64_json": encoded}], "usage": usage}


@pytest.fixture
def openai_server() -> Iterator[OpenAIServer]:
    server = OpenAIServer()
    yield server
    server.close()


@pytest.fixture
def few_photos(tmp_path: Path) -> Path:
    """Twelve small photos of six users, without a CSV."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        colour = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(number / 12, 0.6, 0.8))
        image = Image.linear_gradient("L").resize((48, 64)).rotate(7 * number)
        ImageOps.colorize(image, "black", colour).save(
            folder / f"user_{number // 2:03d}_{number % 2}.jpg"
        )
    return folder


@pytest.fixture
def run_until(openai_server: OpenAIServer) -> Callable[..., tuple[int, str]]:
    """Runs ``vibematch`` in a process of its own; a signal hits it at an event of the server."""

    def run(
        *arguments: object, at: tuple[str, int] | None = None, send: int = signal.SIGKILL
    ) -> tuple[int, str]:
        process: list[subprocess.Popen[str]] = []
        started = threading.Event()

        def on_event(event: str, count: int) -> None:
            if at is not None and (event, count) == at:
                started.wait()
                process[0].send_signal(send)
                if send == signal.SIGKILL:
                    process[0].wait()

        openai_server.on_event = on_event
        process.append(
            subprocess.Popen(
                [sys.executable, "-m", "vibematch", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"},
            )
        )
        started.set()
        output, errors = process[0].communicate(timeout=60)
        openai_server.on_event = lambda event, count: None
        return process[0].returncode, output + errors

    return run
