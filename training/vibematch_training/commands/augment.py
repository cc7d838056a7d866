"""``vibematch augment``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vibematch.errors import InputError
from vibematch_training.commands.endpoint_options import (
    add_endpoint_options,
    confirmation,
    endpoint_from,
    print_usage,
)

if TYPE_CHECKING:
    from vibematch_training.annotation.augmentation import AugmentationResult
    from vibematch_training.commands import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "augment",
        help="add varied copies of the training photos",
        description="Add gen_*.jpg files to a photo folder, and rows with their origin to its "
        "metadata.csv: other crops, light and sharpness, made on this machine; or, with --model, "
        "other backgrounds, light and poses from an image model, to which photos are SENT. "
        "Validation photos and photos of Low quality are left alone. A repeated run makes only "
        "what is missing.",
    )
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="folder, with or without metadata.csv"
    )
    parser.add_argument(
        "--per-photo", type=int, required=True, metavar="N", help="copies of each photo"
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the changes; default: 0")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    group = add_endpoint_options(parser, model_required=False, timeout_s=300.0)
    group.add_argument("--price-per-image", type=float, metavar="USD", help="of the model")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from vibematch_training.annotation.augmentation import augment
    from vibematch_training.annotation.prices import Price

    if not args.model and (args.base_url or args.api_key_env):
        raise InputError("--base-url and --api-key-env need --model; without it nothing is sent")
    price = Price(per_image=args.price_per_image)
    result = augment(
        args.photos,
        args.per_photo,
        seed=args.seed,
        endpoint=endpoint_from(args) if args.model else None,
        price=price,
        retry_quarantined=args.retry_quarantined,
        confirm=confirmation(yes=args.yes),
    )
    for reason in result.unreadable:
        print(f"left out: {reason}", file=sys.stderr)
    print_usage(result.usage, price, result.repeated)
    if args.json:
        print(json.dumps(_as_json(result, price.cost_usd(result.usage))))
    else:
        _print_result(result)
    if result.error:
        raise result.error
    if result.interrupted:
        raise KeyboardInterrupt
    return 1 if result.unanswered else 0


def _as_json(result: AugmentationResult, cost_usd: float | None) -> dict[str, Any]:
    return {
        "sources": result.sources,
        "wanted": result.wanted,
        "made": result.made,
        "present": result.present,
        "quarantined": result.quarantined,
        "unanswered": result.unanswered,
        "unreadable": result.unreadable,
        "usage": dataclasses.asdict(result.usage) | {"cost_usd": cost_usd},
        "repeated": result.repeated,
        "metadata": str(result.metadata),
        "quarantine": str(result.quarantine) if result.quarantine else None,
    }


def _print_result(result: AugmentationResult) -> None:
    print(
        f"{result.made:,} made; {result.present:,} of {result.wanted:,} augmented photos of "
        f"{result.sources:,} real ones are in {result.metadata}"
    )
    if result.quarantine:
        print(
            f"{result.quarantined:,} in quarantine, with reasons, in {result.quarantine}; ask "
            "again with --retry-quarantined"
        )
    if result.unanswered:
        print(
            f"{result.unanswered:,} got no answer; run the same command again to go on",
            file=sys.stderr,
        )
