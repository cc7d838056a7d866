"""``vibematch evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vibematch.photos import Photo
    from vibematch_training.commands import Commands
    from vibematch_training.features import FeatureRecipe
    from vibematch_training.run import TrainedRun


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a trained head and write its report",
        description="Measure a finished run on photos of people it was not trained on, beside the "
        "backbone alone, and write evaluation_results.json, report.html and model_card.md.",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="measure on all labelled photos of this folder; default: the run's own validation "
        "photos",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write; default: RUN, or with --photos RUN/evaluation-NAME",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from vibematch_training.evaluation.report import REPORT_FILENAME, print_results
    from vibematch_training.run import TrainedRun

    run = TrainedRun.load(args.run_folder)
    out = args.out or args.run_folder
    if args.photos and not args.out:
        out = args.run_folder / f"evaluation-{args.photos.resolve().name}"
    results = evaluate_run(run, out, args.photos)
    if results["caution"]:
        print(f"vibematch: warning: {results['caution']}", file=sys.stderr)
    if args.json:
        print(json.dumps(results, ensure_ascii=False))
    else:
        print_results(results)
        print(f"\nreport: {out / REPORT_FILENAME}")


def evaluate_run(
    run: TrainedRun, out: Path, directory: Path | None = None, *, progress: bool = True
) -> dict[str, Any]:
    """Evaluate a finished run and write the three files.

    Args:
        run: the run.
        out: folder to write to, made if there is none.
        directory: a folder of photos to measure on; ``None`` takes the run's validation photos.
        progress: draw progress bars on standard error.

    Returns:
        What ``evaluation_results.json`` holds.

    Raises:
        InputError: photos, labels or backbone cannot be used.
    """
    from vibematch.errors import InputError
    from vibematch_training.dataset import class_of
    from vibematch_training.evaluation.report import write_evaluation
    from vibematch_training.run import METRICS_FILENAME
    from vibematch_training.summary import counts
    from vibematch_training.train import FeatureTable, unchanged_parts

    label = run.config.label
    data_figures = run.results()["data"]
    if directory is None:
        try:
            dataset, parts = unchanged_parts(run)
        except InputError as error:
            raise InputError(
                f"{error}; restore it, or measure on other photos with --photos DIR"
            ) from error
        photos, classes, caution = parts.validation, dataset.classes, ""
    else:
        photos = _labelled_photos(directory, label)
        classes = sorted({str(class_of(photo, label)) for photo in photos})
        data_figures = data_figures | {"validation": counts(photos, label)}
        caution = _caution(run, photos)
    table = FeatureTable.extract(photos, _recipe(run), progress=progress)
    usable = table.usable(photos)
    if len(usable) < 2:
        raise InputError(f"only {len(usable)} of {len(photos)} photos can be read")
    data = table.evaluation_set(usable, label, classes, run.head)
    lines = (run.directory / METRICS_FILENAME).read_text(encoding="utf-8").splitlines()
    out.mkdir(parents=True, exist_ok=True)
    return write_evaluation(
        out,
        data,
        run.config,
        [json.loads(line) for line in lines],
        data_figures,
        run.manifest,
        caution=caution,
    )


def _recipe(run: TrainedRun) -> FeatureRecipe:
    """How the run made its features: by the backbone, or by an exported graph in its place."""
    from vibematch_training.graph_extractor import GraphExtractor

    recipe = run.recipe(run.load_backbone())
    if not run.config.extractor:
        return recipe
    return dataclasses.replace(recipe, graph=GraphExtractor(Path(run.config.extractor)))


def _labelled_photos(directory: Path, label: str) -> list[Photo]:
    """All real photos of a folder that have the label."""
    from vibematch.errors import InputError
    from vibematch.photos import METADATA_FILENAME, problems_error
    from vibematch_training.dataset import check_folder, class_of

    photos, problems = check_folder(directory, label)
    labelled = [
        photo for photo in photos if class_of(photo, label) is not None and not photo.generated
    ]
    if photos and not labelled:
        raise InputError(f"no photo in {directory} has the label {label!r} that the run is of")
    if problems:
        raise problems_error(directory / METADATA_FILENAME, problems)
    return labelled


def _caution(run: TrainedRun, photos: Sequence[Photo]) -> str:
    """Why the figures may flatter: people who may have been trained on."""
    from vibematch.errors import InputError
    from vibematch_training.train import unchanged_parts

    try:
        _, parts = unchanged_parts(run)
    except InputError as error:
        return f"Whether these people were trained on cannot be checked: {error}."
    users = {photo.user_id for photo in photos}
    trained_on = users & {photo.user_id for photo in [*parts.train, *parts.selection]}
    if not trained_on:
        return ""
    return (
        f"{len(trained_on)} of the {len(users)} users have ids that were trained on, e.g. "
        f"{min(trained_on)}: if they are the same people, these figures flatter."
    )
