"""``vibematch compare``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vibematch_training.commands.train import add_feature_options, read_config

if TYPE_CHECKING:
    from vibematch_training.commands import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compare",
        help="compare heads, losses, minings and poolings on your photos",
        description="Train every head, loss, mining and pooling with several seeds and print one "
        "table beside the backbone alone: which choice is better on these photos, and is it "
        "more than chance? Interrupted, the same command goes on.",
    )
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="folder with photos and metadata.csv"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("comparison"),
        metavar="DIR",
        help="folder of comparison.json and comparison.md; default: %(default)s",
    )
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="runs of each row; default: %(default)s"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="of each run; default: 40")
    add_feature_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from vibematch_training.compare import compare, print_comparison

    config = read_config(args, args.config)
    try:
        comparison = compare(config, args.out, seeds=args.seeds)
    except KeyboardInterrupt:
        print("vibematch: the same command goes on from here", file=sys.stderr)
        raise
    if args.json:
        print(json.dumps(comparison, ensure_ascii=False))
    else:
        print_comparison(comparison)
        print(f"\nwritten: {args.out / 'comparison.md'} and comparison.json")
