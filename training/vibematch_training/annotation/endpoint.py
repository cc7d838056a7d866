"""Asking a paid, OpenAI-compatible endpoint for many things: each once, whatever happens.

:func:`run_jobs` sends jobs with bounded concurrency and pace, repeats what failed for a passing
reason, and writes every step into a :class:`~vibematch_training.annotation.ledger.Ledger` first, so
that a run killed at any moment goes on without asking twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from tqdm import tqdm

from vibematch.errors import InputError, PhotoError, VibematchError
from vibematch_training.annotation.ledger import Event, Ledger

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_KEY_VARIABLE: Final = "OPENAI_API_KEY"
OPENAI_URL: Final = "https://api.openai.com/v1"

_LONGEST_WAIT_S: Final = 300.0
"""An endpoint that asks to wait longer than this ends the run instead."""
_LONGEST_BACKOFF_S: Final = 60.0
_GRACE_S: Final = 60.0
"""How long an interrupted run waits for answers that are on their way (and paid for)."""
_PATIENCE: Final = 8
"""So many items in a row without a usable answer end the run: it is not about the photos."""
_NEVER_SENT: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "OverflowError", "UnicodeEncodeError"}
)
"""Names of errors that precede any sending; the HTTP library is the SDK's, not ours to import."""

_GATEWAY_TIMEOUTS: Final = (408, 504, 524)
"""HTTP statuses after which the model may have answered, to nobody."""


class EndpointError(VibematchError):
    """The endpoint refuses everything, or does not answer; asking on makes no sense."""


class InvalidAnswerError(VibematchError):
    """An answer came, and cannot be used.

    Attributes:
        answer: what came, for a person to look at.
        ask_again: whether another try may well give a better one.
    """

    def __init__(self, reason: str, answer: object, *, ask_again: bool = True) -> None:
        super().__init__(reason)
        self.answer = answer
        self.ask_again = ask_again


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how hard.

    Attributes:
        model: the model's name there.
        base_url: the API's root, such as ``http://localhost:8000/v1``.
        api_key: the secret; never written anywhere.
        concurrency: requests on their way at the same time.
        requests_per_minute: pace of requests; ``None`` for no limit.
        tokens_per_minute: pace of (estimated) tokens; ``None`` for no limit.
        timeout_s: deadline of one request.
        retries: repetitions of a request that failed for a passing reason.
        attempts: how often an item is asked for while its answers cannot be used.
        backoff_s: pause before the first repetition; it doubles, with jitter.

    Raises:
        InputError: on construction, if a value is out of range.
    """

    model: str
    base_url: str = OPENAI_URL
    api_key: str = field(default="none", repr=False)
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 120.0
    retries: int = 5
    attempts: int = 2
    backoff_s: float = 1.0

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("--model is empty")
        if not _is_http_url(self.base_url):
            raise InputError(
                "--base-url must start with http:// or https:// and name a host, with a port of "
                f"1 to 65535 if any: {self.base_url!r}"
            )
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InputError("the API key holds characters other than printable ASCII")
        limits = ("concurrency", "attempts", "timeout_s", "requests_per_minute")
        for name in (*limits, "tokens_per_minute", "backoff_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be positive and finite, got {value}")
        if self.retries < 0:
            raise InputError(f"retries must be at least 0, got {self.retries}")

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own address."""
        return urlsplit(self.base_url).hostname == urlsplit(OPENAI_URL).hostname


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of brackets
        return False


def api_key(base_url: str | None, variable: str | None) -> str:
    """The secret to send: of the named variable, or OpenAI's own variable to OpenAI only.

    A key for OpenAI is not handed to whatever server ``--base-url`` names unless asked for.

    Raises:
        InputError: a needed variable is not set.
    """
    if variable is None and base_url is not None:
        return "none"
    name = variable or DEFAULT_KEY_VARIABLE
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(
            f"the environment variable {name} holds no API key; set it, name another with "
            "--api-key-env, or name a server of your own with --base-url"
        )
    return key


@dataclass
class Usage:
    """What the endpoint says it has counted.

    Attributes:
        requests: answers received, usable or not.
        input_tokens: of prompts and images.
        output_tokens: of answers, reasoning included.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, response: object) -> dict[str, int]:
        """Count one response in; returns its own figures. Chat and images name them differently."""
        usage = getattr(response, "usage", None)
        tokens = {
            kind: next((int(n) for name in names if (n := getattr(usage, name, None))), 0)
            for kind, names in {
                "input_tokens": ("prompt_tokens", "input_tokens"),
                "output_tokens": ("completion_tokens", "output_tokens"),
            }.items()
        }
        self.requests += 1
        self.input_tokens += tokens["input_tokens"]
        self.output_tokens += tokens["output_tokens"]
        return tokens


class Job(Protocol):
    """One thing to ask for. ``prepare`` and ``read`` run in a thread; ``send`` only sends."""

    @property
    def item(self) -> str:
        """Its name in the ledger."""

    @property
    def tokens(self) -> int:
        """Estimated tokens, for the pace."""

    def prepare(self) -> Any:
        """Make what ``send`` needs.

        Raises:
            PhotoError: its photo cannot be read; nothing is sent.
        """

    async def send(self, client: AsyncOpenAI, request: Any, headers: dict[str, str]) -> object:
        """Send one request and wait for the response."""

    def read(self, response: Any) -> dict[str, Any]:
        """Check a response and return what the ledger keeps.

        Raises:
            InvalidAnswerError: it cannot be used.
        """


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        answered: items answered.
        quarantined: items given up.
        unanswered: the other items, not reached or failed for a passing reason; for the next run.
        repeated: requests sent again after a timeout or a lost connection, perhaps paid twice.
        usage: what the endpoint counted.
        interrupted: whether a person or the system stopped it.
        error: why it ended early, if it did.
    """

    answered: int = 0
    quarantined: int = 0
    unanswered: int = 0
    repeated: int = 0
    usage: Usage = field(default_factory=Usage)
    interrupted: bool = False
    error: EndpointError | None = None


class Pacer:
    """Spreads requests evenly over time.

    Args:
        per_minute: how much (requests or tokens) a minute may hold; ``None`` for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._per_minute = per_minute
        self._free_at_s = 0.0

    def reserve(self, now_s: float, cost: float = 1.0) -> float:
        """Take the next place; returns the seconds to wait for it."""
        start_s = max(now_s, self._free_at_s)
        if self._per_minute is not None:
            self._free_at_s = start_s + cost * 60 / self._per_minute
        return start_s - now_s

    def hold(self, until_s: float) -> None:
        """Let nobody start before then."""
        self._free_at_s = max(self._free_at_s, until_s)


def run_jobs(
    endpoint: Endpoint,
    ledger: Ledger,
    jobs: Sequence[Job],
    *,
    on_answer: Callable[[], None] = lambda: None,
    progress: bool = True,
) -> Outcome:
    """Ask for everything in ``jobs``; what comes of each is in the ledger afterwards.

    Ctrl-C and SIGTERM stop the sending; answers on their way are waited for and kept. A second
    Ctrl-C does not wait.

    Args:
        endpoint: where to ask, and how hard.
        ledger: what becomes of each item; must not hold an answer for any of them.
        jobs: what to ask for, in this order.
        on_answer: called after each item.
        progress: draw a progress bar on standard error.
    """
    description = f"Asking {endpoint.model}"
    with tqdm(total=len(jobs), desc=description, unit="photo", disable=not progress) as bar:

        def count() -> None:
            bar.update()
            on_answer()

        run = _Run(endpoint, ledger, count)
        try:
            asyncio.run(run.all(jobs))
        finally:
            ledger.settle()
    events = Counter(entry.event for job in jobs if (entry := ledger.entries.get(job.item)))
    run.outcome.answered = events["answered"]
    run.outcome.quarantined = events["quarantined"]
    run.outcome.unanswered = len(jobs) - events["answered"] - events["quarantined"]
    return run.outcome


class _Run:
    def __init__(self, endpoint: Endpoint, ledger: Ledger, count: Callable[[], None]) -> None:
        self.outcome = Outcome()
        self._endpoint = endpoint
        self._ledger = ledger
        self._count = count
        self._requests = Pacer(endpoint.requests_per_minute)
        self._tokens = Pacer(endpoint.tokens_per_minute)
        self._stop = asyncio.Event()
        self._in_a_row = 0
        self._jitter = random.Random()  # noqa: S311 (spreads retries, protects nothing)

    async def all(self, jobs: Sequence[Job]) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        client = AsyncOpenAI(
            api_key=self._endpoint.api_key,
            base_url=self._endpoint.base_url,
            timeout=self._endpoint.timeout_s,
            max_retries=0,  # the ledger has to know of every request
            # photos go to the address that a person agreed to, and nowhere else
            http_client=DefaultAsyncHttpxClient(follow_redirects=False),
        )
        if not self._endpoint.is_openai:  # the SDK takes them from OpenAI's variables
            client.organization = client.project = None
        queue = iter(jobs)
        async with client, self._signals() as hurry:
            workers = asyncio.gather(
                *(self._work(client, queue) for _ in range(self._endpoint.concurrency))
            )
            hurry.append(workers.cancel)
            stopping: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait({workers, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            # What is still on its way after the grace period is settled by the ledger.
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(_GRACE_S if self._stop.is_set() else None):
                    await workers

    @contextlib.asynccontextmanager
    async def _signals(self) -> AsyncIterator[list[Callable[[], object]]]:
        """The first signal stops the sending, the second calls what is in the list."""
        hurry: list[Callable[[], object]] = []

        def interrupt() -> None:
            if self.outcome.interrupted:
                for call in hurry:
                    call()
                return
            self.outcome.interrupted = True
            self._stop.set()
            tqdm.write("stopping after the answers on their way; again: at once", file=sys.stderr)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        try:
            yield hurry
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _work(self, client: AsyncOpenAI, queue: Iterator[Job]) -> None:
        for job in queue:
            if self._stop.is_set():
                return
            await self._finish(client, job)

    async def _finish(self, client: AsyncOpenAI, job: Job) -> None:
        """Ask until there is an answer or no more sense in asking."""
        try:
            request = await asyncio.to_thread(job.prepare)
        except PhotoError as error:
            self._ledger.append("quarantined", job.item, reason=f"cannot be read: {error}")
            self._count()
            return
        failures = 0
        while await self._turn(job):
            self._ledger.append("sent", job.item)
            try:
                async with asyncio.timeout(self._endpoint.timeout_s):
                    response = await job.send(client, request, self._headers(job))
            except json.JSONDecodeError as error:  # something came, and may have been paid for
                response = error.doc
            except Exception as error:
                failures += 1
                if not await self._failed(job, _Failure.of(error), failures):
                    break
                continue
            if await self._received(job, response):
                break
        else:
            return  # stopped while waiting: the next run asks
        self._count()

    def _headers(self, job: Job) -> dict[str, str]:
        """The same key for a repeated request, another one for a new try."""
        asked = f"{job.item}:{self._ledger.entries[job.item].rounds}"
        return {"Idempotency-Key": hashlib.sha256(asked.encode()).hexdigest()[:32]}

    async def _turn(self, job: Job) -> bool:
        """Wait for a place in the pace; false once nothing more should be sent."""
        now_s = asyncio.get_running_loop().time()
        wait_s = max(self._requests.reserve(now_s), self._tokens.reserve(now_s, job.tokens))
        return await self._pause(wait_s)

    async def _pause(self, wait_s: float) -> bool:
        if wait_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait_s)
        return not self._stop.is_set()

    async def _failed(self, job: Job, failure: _Failure, failures: int) -> bool:
        """Record a request without an answer; whether to repeat it."""
        last = not failure.passing or failures > self._endpoint.retries
        event: Event = "lost" if failure.perhaps_paid else "failed"
        if last and not failure.everywhere and (failure.perhaps_paid or not failure.passing):
            event = "quarantined"
        self._ledger.append(
            event, job.item, reason=failure.reason, perhaps_paid=failure.perhaps_paid
        )
        if failure.everywhere:
            self._end(failure.reason)
        if last or failure.everywhere:
            self._nothing_usable(failure.reason)
            return False
        wait_s = failure.retry_after_s
        if wait_s is None:
            wait_s = min(self._endpoint.backoff_s * 2 ** (failures - 1), _LONGEST_BACKOFF_S)
            wait_s *= self._jitter.uniform(0.5, 1.0)
        elif wait_s > _LONGEST_WAIT_S:
            self._end(f"asks to wait {wait_s:,.0f} s; run the same command again then")
        else:
            self._requests.hold(asyncio.get_running_loop().time() + wait_s)
        self.outcome.repeated += failure.perhaps_paid
        await self._pause(wait_s)
        return True

    async def _received(self, job: Job, response: object) -> bool:
        """Record an answer; whether the item is finished."""
        tokens = self.outcome.usage.add(response)
        try:
            answer = await asyncio.to_thread(job.read, response)
        except InvalidAnswerError as error:
            entry = self._ledger.entries[job.item]
            again = error.ask_again and entry.answers + 1 < self._endpoint.attempts
            self._ledger.append(
                "invalid" if again else "quarantined",
                job.item,
                reason=str(error),
                answer=error.answer,
                usage=tokens,
            )
            if not again:
                self._nothing_usable(str(error))
            return not again
        self._ledger.append("answered", job.item, answer=answer, usage=tokens)
        self._in_a_row = 0
        return True

    def _nothing_usable(self, reason: str) -> None:
        self._in_a_row += 1
        if self._in_a_row >= _PATIENCE:
            self._end(f"{self._in_a_row} in a row got no usable answer; the last: {reason}")

    def _end(self, reason: str) -> None:
        if self.outcome.error is None:
            self.outcome.error = EndpointError(f"{self._endpoint.base_url}: {reason}")
        self._stop.set()


@dataclass(frozen=True)
class _Failure:
    """Why a request got no answer.

    Attributes:
        reason: for people.
        passing: it may go better next time.
        everywhere: no request at all can succeed.
        perhaps_paid: the request left, and nobody knows what became of it.
        retry_after_s: how long the endpoint asks to wait.
    """

    reason: str
    passing: bool = True
    everywhere: bool = False
    perhaps_paid: bool = False
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        """Tell failures apart; what is not known to be passing, or unsent, ends the run."""
        import openai

        match error:
            case openai.APIStatusError():
                return cls._of_status(error)
            case openai.APIConnectionError() if type(error.__cause__).__name__ in _NEVER_SENT:
                return cls(f"no connection ({error.__cause__})")
            case openai.APITimeoutError() | TimeoutError():
                return cls("no answer before the deadline", perhaps_paid=True)
            case openai.APIConnectionError():
                return cls(f"the connection broke ({error.__cause__})", perhaps_paid=True)
            case openai.APIError():
                return cls(f"the response is not of this protocol ({error})", perhaps_paid=True)
        reason = f"the request failed ({type(error).__name__}: {error})"
        perhaps_paid = type(error).__name__ not in _NEVER_SENT
        return cls(reason, passing=False, everywhere=True, perhaps_paid=perhaps_paid)

    @classmethod
    def _of_status(cls, error: Any) -> _Failure:
        status, code = error.status_code, error.code
        reason = f"HTTP {status}: {error.message}"
        if 300 <= status < 400:
            where = error.response.headers.get("location", "an unnamed address")
            hint = f"it redirects to {where}; photos are sent to --base-url only"
            return cls(f"HTTP {status}: {hint}", passing=False, everywhere=True)
        if status == 402:
            return cls(reason, passing=False, everywhere=True)
        if status in (401, 403):
            return cls(f"{reason} (is the API key right?)", passing=False, everywhere=True)
        if status == 404:
            hint = "(is the model's name right, and --base-url?)"
            return cls(f"{reason} {hint}", passing=False, everywhere=True)
        if code == "insufficient_quota":  # OpenAI's 429 that no waiting cures
            return cls(reason, passing=False, everywhere=True)
        if status in (408, 409, 429) or status >= 500:
            return cls(
                reason,
                perhaps_paid=status in _GATEWAY_TIMEOUTS,
                retry_after_s=_retry_after_s(error.response.headers),
            )
        return cls(reason, passing=False)


def _retry_after_s(headers: Any) -> float | None:
    """Seconds of a ``Retry-After`` header, where it is a number (APIs do not send dates)."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None
