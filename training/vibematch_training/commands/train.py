"""``vibematch train``."""

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
        "train",
        help="train a style head on labelled photos",
        description="Train a projection head on the pooled features of a frozen Qwen3-VL, and "
        "compare it with the untrained backbone on people it has not seen.",
    )
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="folder with photos and metadata.csv"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder to make")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML settings; options given here win over it"
    )
    parser.add_argument(
        "--backbone",
        metavar="tiny|FOLDER|HUB_ID",
        help="frozen Qwen3-VL, e.g. Qwen/Qwen3-VL-2B-Instruct; default: tiny (untrained)",
    )
    parser.add_argument(
        "--label", metavar="COLUMN", help="what makes a positive pair; default: fashion_style"
    )
    parser.add_argument(
        "--size", metavar="HxW", help="canvas in pixels; default: 256x192, portrait"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="default: 20")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from vibematch_training.report import print_results
    from vibematch_training.run import TrainingConfig, parse_size
    from vibematch_training.train import train

    given = {name: getattr(args, name) for name in ("backbone", "label", "epochs", "seed")}
    settings = {name: value for name, value in given.items() if value is not None}
    settings["photos"] = str(args.photos.absolute())  # export reads them from anywhere
    if args.backbone and Path(args.backbone).is_dir():
        settings["backbone"] = str(Path(args.backbone).absolute())
    if args.size:
        settings["height"], settings["width"] = parse_size(args.size)
    if args.config:
        config = TrainingConfig.from_yaml(args.config, **settings)
    else:
        config = TrainingConfig(**settings)
    results = train(config, args.out)
    if args.json:
        print(json.dumps(results))
    else:
        print_results(results)
        print(f"\nrun folder: {args.out}\nnext: vibematch export {args.out}")
