"""``vibematch dataset``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vibematch_training.commands import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "dataset",
        help="check and count labelled photos before training",
        description="Read every photo and row of a folder: what would be trained on, what is left "
        "out and why, duplicates, photos that cannot be read, and every problem of metadata.csv. "
        "Exits with status 1 if training would refuse the folder.",
    )
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="folder with photos and metadata.csv"
    )
    parser.add_argument(
        "--label",
        default="fashion_style",
        metavar="COLUMN",
        help="what makes a positive pair, or user_id; default: %(default)s",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the held-out choice where there is no split column; default: %(default)s",
    )
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw the counts, as .png or .svg"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from vibematch_training.summary import check_picture, draw_summary, print_summary, summarise

    if args.picture:
        check_picture(args.picture)
    summary = summarise(args.photos, args.label, args.seed)
    if args.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        print_summary(summary)
    if args.picture and summary["listed"]["photos"]:
        draw_summary(summary, args.picture)
        if not args.json:
            print(f"picture: {args.picture}")
    return 1 if summary["problems"] else 0
