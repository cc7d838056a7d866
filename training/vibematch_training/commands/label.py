"""``vibematch label``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vibematch_training.commands.endpoint_options import (
    add_endpoint_options,
    confirmation,
    endpoint_from,
    print_usage,
)

if TYPE_CHECKING:
    from vibematch_training.annotation.labelling import LabellingResult
    from vibematch_training.commands import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "label",
        help="label photos with a vision model (sends photos to it)",
        description="Ask a vision model behind an OpenAI-compatible API for fashion style, shot "
        "type, visual quality, features and caption of photos. Photos are SENT to that API. "
        "Labels that are there already stay. An interrupted run goes on where it stopped when "
        "repeated, and asks for nothing twice.",
    )
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="folder, with or without metadata.csv"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="CSV",
        help="file to write; may be PHOTOS/metadata.csv itself",
    )
    parser.add_argument(
        "--relabel",
        action="store_true",
        help="ask for every photo; answers replace labels that are there",
    )
    parser.add_argument(
        "--agreement-with",
        type=Path,
        metavar="CSV",
        help="compare with a person's labels (columns filename, fashion_style, ...); default: "
        "with those that the photos had before",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    group = add_endpoint_options(parser, model_required=True, timeout_s=120.0)
    group.add_argument(
        "--tokens-per-minute", type=float, metavar="N", help="pace; default: no limit"
    )
    group.add_argument(
        "--reasoning-effort",
        metavar="LEVEL",
        help="passed on to models that reason, e.g. none, low; default: the model's own",
    )
    group.add_argument("--input-price", type=float, metavar="USD", help="per million input tokens")
    group.add_argument(
        "--output-price", type=float, metavar="USD", help="per million output tokens"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from vibematch_training.annotation.agreement import (
        agreement,
        print_agreement,
        read_human_labels,
    )
    from vibematch_training.annotation.labelling import label_photos
    from vibematch_training.annotation.metadata import table_of
    from vibematch_training.annotation.prices import PRICES_READ_ON, known_price, stated_price

    price, price_source = known_price(args.model), f"list price of {PRICES_READ_ON}"
    if args.input_price is not None or args.output_price is not None:
        price = stated_price(args.model, args.input_price, args.output_price)
        price_source = "as stated"
    if args.agreement_with:  # refused before anything is paid for
        _, rows = table_of(args.photos)
        read_human_labels(args.agreement_with, {row["filepath"]: row["filename"] for row in rows})
    result = label_photos(
        args.photos,
        args.out,
        endpoint_from(args),
        price,
        price_source=price_source,
        reasoning_effort=args.reasoning_effort,
        relabel=args.relabel,
        retry_quarantined=args.retry_quarantined,
        confirm=confirmation(yes=args.yes),
    )
    human = result.given
    if args.agreement_with:
        names = {filepath: Path(filepath).name for filepath in result.given}
        human = read_human_labels(args.agreement_with, names)
    report = agreement(human, result.answers)
    print_usage(result.usage, price, result.repeated)
    if args.json:
        print(json.dumps(_as_json(result, price.cost_usd(result.usage), report)))
    else:
        _print_result(result)
        if report:
            print_agreement(report)
    if result.error:
        raise result.error
    if result.interrupted:
        raise KeyboardInterrupt
    return 1 if result.unanswered else 0


def _as_json(
    result: LabellingResult, cost_usd: float | None, report: dict[str, Any]
) -> dict[str, Any]:
    return {
        "photos": result.photos,
        "labelled": result.labelled,
        "quarantined": result.quarantined,
        "unanswered": result.unanswered,
        "usage": dataclasses.asdict(result.usage) | {"cost_usd": cost_usd},
        "repeated": result.repeated,
        "agreement": report,
        "metadata": str(result.metadata),
        "quarantine": str(result.quarantine) if result.quarantine else None,
    }


def _print_result(result: LabellingResult) -> None:
    print(f"{result.labelled:,} of {result.photos:,} photos have every label in {result.metadata}")
    if result.quarantine:
        print(
            f"{result.quarantined:,} in quarantine, with reasons, in {result.quarantine}: correct "
            "them by hand, or ask again with --retry-quarantined"
        )
    if result.unanswered:
        print(
            f"{result.unanswered:,} got no answer; run the same command again to go on",
            file=sys.stderr,
        )
