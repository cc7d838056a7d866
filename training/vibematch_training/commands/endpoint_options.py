"""What ``vibematch label`` and ``vibematch augment`` share: options, and the question of price."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from vibematch.errors import InputError

if TYPE_CHECKING:
    from vibematch_training.annotation.endpoint import Endpoint, Usage
    from vibematch_training.annotation.prices import Estimate, Price


def add_endpoint_options(
    parser: argparse.ArgumentParser, *, model_required: bool, timeout_s: float
) -> argparse._ArgumentGroup:
    """Declare whom to ask, how hard, and with what consent; returns the group, to add to."""
    group = parser.add_argument_group("endpoint")
    group.add_argument(
        "--model", required=model_required, metavar="NAME", help="the model's name there"
    )
    group.add_argument(
        "--base-url",
        metavar="URL",
        help="root of an OpenAI-compatible API, e.g. http://localhost:8000/v1; default: "
        "$OPENAI_BASE_URL, or OpenAI",
    )
    group.add_argument(
        "--api-key-env",
        metavar="VARIABLE",
        help="environment variable with the key; default: OPENAI_API_KEY, none with --base-url",
    )
    group.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests at once; default: 8"
    )
    group.add_argument(
        "--requests-per-minute", type=float, metavar="N", help="pace; default: no limit"
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=timeout_s,
        metavar="SECONDS",
        help="of one request; default: %(default)s",
    )
    group.add_argument(
        "--retries",
        type=int,
        default=5,
        metavar="N",
        help="repetitions after 429, 5xx, timeouts and lost connections; default: 5",
    )
    group.add_argument(
        "--attempts",
        type=int,
        default=2,
        metavar="N",
        help="times to ask while the answers cannot be used; default: 2",
    )
    group.add_argument(
        "--retry-quarantined", action="store_true", help="ask again for what is in quarantine"
    )
    group.add_argument("--yes", action="store_true", help="do not ask before spending money")
    return group


def endpoint_from(args: argparse.Namespace) -> Endpoint:
    """The endpoint that the options describe."""
    from vibematch_training.annotation.endpoint import OPENAI_URL, Endpoint, api_key

    base_url = args.base_url or os.environ.get("OPENAI_BASE_URL")
    return Endpoint(
        model=args.model,
        base_url=base_url or OPENAI_URL,
        api_key=api_key(base_url, args.api_key_env),
        concurrency=args.concurrency,
        requests_per_minute=args.requests_per_minute,
        tokens_per_minute=getattr(args, "tokens_per_minute", None),
        timeout_s=args.timeout,
        retries=args.retries,
        attempts=args.attempts,
    )


def confirmation(*, yes: bool) -> Callable[[Estimate], None]:
    """Show an estimate on standard error; go on with ``--yes`` or a person's consent only."""

    def confirm(estimate: Estimate) -> None:
        print(estimate, file=sys.stderr)
        if yes:
            return
        if not sys.stdin.isatty():
            raise InputError("nothing was sent: nobody is here to be asked; add --yes to agree")
        print("go on? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise InputError("nothing was sent")

    return confirm


def print_usage(usage: Usage, price: Price, repeated: int) -> None:
    """Show what the endpoint counted, on standard error."""
    if not usage.requests:
        return
    cost_usd = price.cost_usd(usage)
    cost = "" if cost_usd is None else f", about ${cost_usd:,.4f}"
    print(
        f"the endpoint counted {usage.input_tokens:,} input and {usage.output_tokens:,} output "
        f"tokens in {usage.requests:,} answer(s){cost}",
        file=sys.stderr,
    )
    if repeated:
        print(
            f"{repeated} request(s) were repeated after a timeout or a lost connection and may "
            "have been paid for twice",
            file=sys.stderr,
        )
