"""``vibematch sample-photos``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vibematch_training.commands import Commands


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sample-photos",
        help="draw deterministic profile photos to try everything with",
        description="Draw profile photos in five styles, with a metadata.csv. The same seed gives "
        "the same bytes. A run that was interrupted goes on where it stopped.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder to fill")
    parser.add_argument(
        "--train-photos", type=int, default=1508, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--validation-photos",
        type=int,
        default=98,
        metavar="N",
        help="of people not in training; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from vibematch_training.sample_photos import write_sample_photos

    metadata = write_sample_photos(
        args.directory,
        train_photos=args.train_photos,
        validation_photos=args.validation_photos,
        seed=args.seed,
    )
    print(f"{args.train_photos + args.validation_photos} photos and {metadata}")
