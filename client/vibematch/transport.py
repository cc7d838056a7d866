"""What asking the embedding server has in common, whichever protocol carries the question.

KServe v2 exists over gRPC and over HTTP. Both transports answer with the same values, raise the
same errors for the same causes, and repeat a question under the same policy.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from vibematch.errors import (
    PhotoError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
    VibematchError,
)

MODEL: Final = "style_encoder"
INPUT: Final = "photo"
OUTPUT: Final = "embedding"
FINGERPRINT: Final = "fingerprint"

# Encoding changes nothing on the server, so asking again is safe. It helps, within the deadline,
# where the server is restarting or its queue is full, or a connection broke: only that is repeated.
MAX_ATTEMPTS: Final = 4
FIRST_BACKOFF_S: Final = 0.2
MAX_BACKOFF_S: Final = 2.0
BACKOFF_FACTOR: Final = 2.0
# A server that fails most of what it is asked is not asked more often on top of it: every failure
# costs a token, every success gives a part of one back, and below half of them nothing is repeated.
# gRPC's rule and its bounds (proposal A6, "Throttling Retry Attempts").
MAX_TOKENS: Final = 1000
TOKENS_PER_SUCCESS: Final = 0.1

_WAITS: Final = 3
"""Of a photo's time, so much for each of the server's two queues, and for the work itself.

A server that knows lets a photo go that it could not answer in time; the deadline alone does not
take it out of a queue.
"""
_FROM_ENSEMBLE: Final = re.compile("^in ensemble '[^']*', ")

T = TypeVar("T")


class Answer(NamedTuple):
    """What the server answered to one photo, unchecked.

    Attributes:
        vectors: of any type and shape; ``None`` if there are none.
        fingerprint: of the model that made them; empty if it is not stated.
    """

    vectors: npt.NDArray[Any] | None
    fingerprint: str


class Transport(ABC):
    """One connection to one server; safe to share between threads. Nothing here blocks.

    What a method returns is a future, which may be cancelled; the question's own deadline then ends
    what is under way, at the latest. Its exception, if it has one, is a :class:`VibematchError`.

    Args:
        url: the server's address, as messages show it.
        timeout_s: seconds that a question may take, repetitions included.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s

    @abstractmethod
    def infer(self, model: str, photo: bytes, finish: Callable[[Answer], T]) -> Future[T]:
        """Send one photo; the future has what ``finish`` makes of the answer, on a thread here."""

    @abstractmethod
    def config(self, model: str, finish: Callable[[dict[str, Any]], T]) -> Future[T]:
        """What ``finish`` makes of a model's configuration, under Triton's names for its fields."""

    @abstractmethod
    def metadata(self, model: str = "") -> Future[dict[str, Any]]:
        """A model's metadata, or the server's, under KServe's names for its fields."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection; what is still in flight fails, soon if not at once."""

    @property
    def _wait_us(self) -> int:
        """What a request says that it would wait in each of the server's queues."""
        return int(self._timeout_s / _WAITS * 1e6)

    # --- the same words for the same cause

    def _refused(self, status: str, reason: str, model: str) -> VibematchError:
        """What the server answered instead, as our error; ``status`` is the name gRPC gives it."""
        reason = _FROM_ENSEMBLE.sub("", " ".join(reason.split()) or "no reason given")
        match status:
            case "INVALID_ARGUMENT":
                return PhotoError(reason)
            case "DEADLINE_EXCEEDED":
                return self._timed_out()
            case "NOT_FOUND" if "no available versions" in reason:
                return ServerUnavailableError(
                    f"the server at {self._url} is stopping or not ready: try again later"
                )
            case "NOT_FOUND":
                return ServerError(
                    f"the server at {self._url} has no model {model!r}: "
                    "point it at an exported model repository"
                )
            case "CANCELLED":
                return self._closed()
            case "UNAVAILABLE" if "queue" in reason or "timeout" in reason:
                return ServerUnavailableError(
                    f"the server at {self._url} is overloaded: try again later, or send fewer "
                    "photos at once (max_in_flight)"
                )
            case "UNAVAILABLE":
                return ServerUnavailableError(f"the server at {self._url} is not ready: {reason}")
        return ServerError(f"the server at {self._url} failed ({status}): {reason}")

    def _timed_out(self) -> ServerTimeoutError:
        return ServerTimeoutError(
            f"the server at {self._url} did not answer within {self._timeout_s:g} s"
        )

    def _closed(self) -> ServerError:
        return ServerError(f"the connection to {self._url} was closed while it was in use")

    def _unreachable(self) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"no vibematch server answers at {self._url}; start one with `vibematch serve`"
        )

    def _not_trusted(self, cause: str) -> ServerError:
        return ServerError(
            f"the certificate of the server at {self._url} is not trusted ({cause}): it has to be "
            "valid today, and signed by an authority in root_certificates"
        )

    def _other_host(self) -> ServerError:
        return ServerError(
            f"the certificate of the server at {self._url} is for another host: use one of the "
            "names or addresses that it lists"
        )

    def _other_service(self, protocol: str) -> ServerError:
        return ServerError(
            f"no vibematch server is at {self._url}, but something else that speaks {protocol}: "
            "start one with `vibematch serve`"
        )

    def _other_protocol(self, how: str) -> ServerUnavailableError:
        return ServerUnavailableError(f"something answers at {self._url}, but not {how}")


def settle(answer: Future[T], work: Callable[[], T]) -> None:
    """Put what comes of ``work`` into ``answer``, unless nobody waits for it any more."""
    # Whatever goes wrong has to end up in the future, or whoever waits for it hangs.
    try:
        result = work()
    except Exception as problem:
        if answer.set_running_or_notify_cancel():
            answer.set_exception(problem)
    else:
        if answer.set_running_or_notify_cancel():
            answer.set_result(result)


def text_of(fingerprints: npt.NDArray[np.object_] | None) -> str:
    """The fingerprint in an answer's tensor of texts; empty if there is none."""
    if fingerprints is None or not fingerprints.size:
        return ""
    return bytes(fingerprints.ravel()[0]).decode("ascii", "replace")
