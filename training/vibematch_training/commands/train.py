"""``vibematch train``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vibematch_training.commands import Commands
    from vibematch_training.run import TrainingConfig


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train",
        help="train a style head on labelled photos",
        description="Train a projection head on the pooled features of a frozen Qwen3-VL, and "
        "compare it with the backbone alone on people it has not seen. An interrupted run "
        "goes on with --resume, to the same result.",
    )
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="folder with photos and metadata.csv"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder to make")
    parser.add_argument(
        "--resume", action="store_true", help="go on with RUN if it was begun, with its settings"
    )
    features = add_feature_options(parser)
    features.add_argument(
        "--extractor",
        metavar="FOLDER",
        help="take features from an exported graph instead of Hugging Face's forward",
    )
    features.add_argument(
        "--pooling", metavar="mean|last|image", help="token states → one vector; default: mean"
    )
    head = parser.add_argument_group("head and training")
    head.add_argument("--head", metavar="paper|plan", help="kind of head; default: paper")
    head.add_argument("--embedding-dim", type=int, metavar="N", help="default: 256")
    head.add_argument(
        "--loss",
        metavar="triplet|supcon|multi_similarity|infonce",
        help="default: triplet",
    )
    head.add_argument(
        "--mining", metavar="semihard|hard", help="of the triplet loss; default: semihard"
    )
    head.add_argument("--epochs", type=int, metavar="N", help="default: 40")
    head.add_argument(
        "--keep",
        metavar="last|best",
        help="which epoch's head; best is chosen on people held out of training; default: last",
    )
    head.add_argument(
        "--patience",
        type=int,
        metavar="EPOCHS",
        dest="patience_epochs",
        help="stop early after so many epochs without improvement on people held out of training",
    )
    head.add_argument(
        "--undersample",
        action="store_true",
        default=None,
        help="drop photos until all classes are as large as the smallest",
    )
    head.add_argument("--seed", type=int, metavar="N", help="default: 0")
    parser.add_argument(
        "--tensorboard", action="store_true", help="also write curves to RUN/tensorboard"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=_run)


def add_feature_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that decide which photos are classes and how they become features."""
    group = parser.add_argument_group("photos and features")
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML settings; options given here win over it"
    )
    group.add_argument(
        "--label",
        metavar="COLUMN",
        help="what makes a positive pair: a CSV column or user_id; default: fashion_style",
    )
    group.add_argument(
        "--backbone",
        metavar="tiny|FOLDER|HUB_ID",
        help="frozen Qwen3-VL, e.g. Qwen/Qwen3-VL-2B-Instruct; default: tiny (untrained)",
    )
    group.add_argument("--size", metavar="HxW", help="canvas in pixels; default: 256x192, portrait")
    return group


def read_config(args: argparse.Namespace, file: Path | None) -> TrainingConfig:
    """The settings of a YAML file, if any, under the options that were given.

    Raises:
        InputError: a setting makes no sense.
    """
    import dataclasses

    from vibematch_training.run import TrainingConfig, parse_size

    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    settings: dict[str, Any] = {
        name: value for name, value in vars(args).items() if name in known and value is not None
    }
    settings["photos"] = str(args.photos.absolute())  # export reads them from anywhere
    for name in ("backbone", "extractor"):
        if name in settings and Path(settings[name]).is_dir():
            settings[name] = str(Path(settings[name]).absolute())
    if args.size:
        settings["height"], settings["width"] = parse_size(args.size)
    return TrainingConfig.from_yaml(file, **settings) if file else TrainingConfig(**settings)


def _run(args: argparse.Namespace) -> None:
    from vibematch_training.evaluation.report import REPORT_FILENAME, print_results
    from vibematch_training.run import CONFIG_FILENAME, is_finished
    from vibematch_training.train import train

    begun = args.out / CONFIG_FILENAME
    resuming = args.resume and begun.is_file()
    config = read_config(args, begun if resuming and not args.config else args.config)
    finished = args.resume and is_finished(args.out)
    try:
        results = train(config, args.out, resume=args.resume, tensorboard=args.tensorboard)
    except KeyboardInterrupt:
        if begun.is_file():
            print(f"vibematch: {args.out} goes on with --resume", file=sys.stderr)
        raise
    if finished:
        print(f"vibematch: {args.out} is finished already, nothing was trained", file=sys.stderr)
    if args.json:
        print(json.dumps(results))
    else:
        print_results(results)
        print(f"\nreport: {args.out / REPORT_FILENAME}\nnext: vibematch export {args.out}")
