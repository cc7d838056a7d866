"""A trained run → exported models that have proved to be the same function.

::

    RUN/export/int8/
    ├── model.onnx (+ model.onnx.data over 256 MiB)
    ├── manifest.json               with the parity figures
    ├── canary.png, canary.npy      a photo and its vector, by which a server checks itself
    ├── config.json                 the backbone's own, for tools that want one
    └── preprocessor_config.json

An exported model appears complete and proven, or not at all.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from vibematch.errors import InputError, ManifestError
from vibematch.manifest import Manifest
from vibematch.preprocess import Preprocessing
from vibematch_export.calibration import Calibration, Choice, calibrate, choose
from vibematch_export.canary import CANARY_EMBEDDING, CANARY_PHOTO, write_canary
from vibematch_export.fused import FusedEncoder
from vibematch_export.onnx_graph import Precision, write_onnx
from vibematch_export.parity import (
    ParityError,
    Reference,
    measure_parity,
    onnx_runner,
    proof_photos,
    readable,
    reference,
    require_parity,
    say,
)
from vibematch_training.dataset import load_dataset
from vibematch_training.features import pooled_features
from vibematch_training.files import FolderLock
from vibematch_training.graph_extractor import GRAPH_FILENAME
from vibematch_training.run import TrainedRun

REVISION: Final = 3
"""Of exports; raised when a new version of this package makes other files of the same run."""
CPU_PRECISIONS: Final[Sequence[Precision]] = ("fp32", "int8")

_REVISION_KEY: Final = "vibematch-export"
_SIDE: Final = ("config.json", "preprocessor_config.json", CANARY_PHOTO, CANARY_EMBEDDING)
_REPLACED: Final = ".replaced"
_CALIBRATION_PHOTOS: Final = 16
_WORST_LAYERS: Final = 5
_TIMED_RUNS: Final = 5


@dataclass(frozen=True)
class Export:
    """What came of exporting a run in one precision.

    Attributes:
        model: folder of the exported model; without a problem it is complete.
        manifest: what the model is, with its parity figures.
        seconds_per_photo: median time of one photo on this CPU; ``None`` for graphs for a GPU, and
            for models that were up to date.
        speed_up: the time of Hugging Face's forward in float32 over that.
        problem: why it was not published; empty if it was.
        reused: whether an earlier export was up to date.
    """

    model: Path
    manifest: Manifest
    seconds_per_photo: float | None = None
    speed_up: float | None = None
    problem: str = ""
    reused: bool = False


def export(
    run_directory: Path,
    precision: Precision = "fp32",
    *,
    size: tuple[int, int] | None = None,
    photos: Path | None = None,
) -> Path:
    """Export a run in one precision; see :func:`export_all`.

    Returns:
        The folder of the exported model.

    Raises:
        ParityError: the graph is not the trained model; nothing was written.
    """
    (made,) = export_all(run_directory, [precision], size=size, photos=photos)
    if made.problem:
        raise ParityError(made.problem)
    return made.model


def export_all(
    run_directory: Path,
    precisions: Sequence[Precision],
    *,
    size: tuple[int, int] | None = None,
    photos: Path | None = None,
) -> list[Export]:
    """Export a run to ``RUN/export/<precision>``, replacing earlier exports that are out of date.

    First all graphs are written from the backbone in memory; then it leaves, and the graphs are
    proven and timed one by one. Only calibration needs both at once.

    Args:
        run_directory: a finished run.
        precisions: number formats; see :func:`vibematch_export.onnx_graph.write_onnx`.
        size: canvas height and width in pixels; the run's own if not given. Exports of another
            canvas go to ``RUN/export/<precision>-<height>x<width>``.
        photos: folder of photos to prove parity on; if given, all is exported and proven again. The
            run's validation photos if not given.

    Returns:
        One result for each precision; those with a problem were not published.

    Raises:
        InputError: the run, its backbone or the photos cannot be used, or another export of this
            run is under way.
    """
    run = TrainedRun.load(run_directory)
    manifest, suffix = run.manifest, ""
    if size is not None and size != (manifest.preprocessing.height, manifest.preprocessing.width):
        suffix = f"-{size[0]}x{size[1]}"
        canvas = dataclasses.replace(manifest.preprocessing, height=size[0], width=size[1])
        manifest = dataclasses.replace(manifest, preprocessing=canvas)
    folder = run_directory / "export"
    folder.mkdir(exist_ok=True)
    with FolderLock(folder):
        _clean_up(folder)
        targets = {precision: folder / f"{precision}{suffix}" for precision in precisions}
        made = {
            precision: current
            for precision, target in targets.items()
            if photos is None and (current := _up_to_date(target, manifest, precision))
        }
        missing = [precision for precision in precisions if precision not in made]
        if missing:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
                made |= _export(run, manifest, missing, targets, Path(name), photos)
    return [made[precision] for precision in precisions]


def _clean_up(folder: Path) -> None:
    """Undo what an export that was killed has left half done."""
    for leftover in folder.glob(".partial-*"):
        for replaced in leftover.glob(f"*{_REPLACED}"):
            target = folder / replaced.name.removesuffix(_REPLACED)
            if not target.exists():  # killed between the two renames of _publish
                replaced.rename(target)
        shutil.rmtree(leftover)


def _publish(draft: Path, target: Path) -> None:
    """Put a proven draft in the place of an earlier export."""
    if target.exists():
        for timings in target.glob("*.timing"):  # TensorRT's next build is faster with them
            shutil.copy(timings, draft)
        target.rename(draft.with_name(f"{target.name}{_REPLACED}"))
    draft.rename(target)


def _up_to_date(model: Path, manifest: Manifest, precision: Precision) -> Export | None:
    """The export that is there already, if it is what would be made."""
    try:
        found = Manifest.load(model)
    except ManifestError:
        return None
    wanted = dataclasses.replace(
        manifest, precision=precision, calibration_sha256=found.calibration_sha256
    )
    whole = found.graph_bytes == _size(model) and all((model / name).is_file() for name in _SIDE)
    current = found.library_versions.get(_REVISION_KEY) == str(REVISION)
    if found.fingerprint != wanted.fingerprint or not whole or not current:
        return None
    return Export(model, found, reused=True)


def _export(
    run: TrainedRun,
    manifest: Manifest,
    precisions: Sequence[Precision],
    targets: Mapping[Precision, Path],
    workshop: Path,
    photos: Path | None,
) -> dict[Precision, Export]:
    drafts, expected, reference_s = _write_drafts(run, manifest, precisions, workshop, photos)
    gc.collect()  # the backbone, before the graphs come into memory
    made: dict[Precision, Export] = {}
    for precision, (draft, drafted) in drafts.items():
        result = _prove(draft, drafted, expected, reference_s)
        if not result.problem:
            _publish(draft, targets[precision])
            result = dataclasses.replace(result, model=targets[precision])
        made[precision] = result
    return made


def _write_drafts(
    run: TrainedRun,
    manifest: Manifest,
    precisions: Sequence[Precision],
    workshop: Path,
    photos: Path | None,
) -> tuple[dict[Precision, tuple[Path, Manifest]], Reference, float]:
    """Write all graphs, and compute what they are compared with and how long that takes."""
    candidates = proof_photos(run, photos)
    start = time.perf_counter()
    backbone = run.load_backbone(torch.float32, "cpu")
    recipe = dataclasses.replace(run.recipe(backbone), preprocessing=manifest.preprocessing)
    expected = reference(candidates, recipe, run.head, label=run.config.label)
    reference_s = _median_s(lambda: pooled_features(expected.pixels[:1], recipe))
    encoder = FusedEncoder(recipe, run.head).eval()
    kept = workshop.parent / f"calibration-{manifest.fingerprint[:12]}"
    drafts: dict[Precision, tuple[Path, Manifest]] = {}
    for precision in precisions:
        drafted = dataclasses.replace(manifest, precision=precision)
        encoder.head = run.head
        if precision != "fp32":
            choice = _choose(
                run, encoder, recipe.preprocessing, precision, kept, workshop, expected
            )
            encoder.head = choice.head(run.head)
            drafted = dataclasses.replace(
                drafted, wide_layers=sorted(choice.wide), calibration_sha256=choice.sha256
            )
        draft = workshop / precision
        draft.mkdir()
        summary = write_onnx(
            encoder,
            recipe.preprocessing,
            draft / GRAPH_FILENAME,
            precision,
            wide=drafted.wide_layers,
            metadata={"vibematch.manifest": drafted.to_json()},
        )
        histogram = ", ".join(f"{count} {name}" for name, count in summary.operators.items())
        say(
            f"{precision}: opset {summary.opset}, {sum(summary.operators.values())} nodes "
            f"({histogram}), {summary.bytes / 1e6:.0f} MB of weights"
        )
        _copy_configuration(backbone.folder, draft)
        versions = {
            **manifest.library_versions,
            "onnx_opset": str(summary.opset),
            "onnxruntime": version("onnxruntime"),
            _REVISION_KEY: str(REVISION),
        }
        drafts[precision] = draft, dataclasses.replace(drafted, library_versions=versions)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    say(
        f"graphs written after {time.perf_counter() - start:.0f} s, the reference and calibration "
        f"included; peak memory {peak_gb:.1f} GB"
    )
    return drafts, expected, reference_s


def _copy_configuration(checkpoint: Path, draft: Path) -> None:
    shutil.copy(checkpoint / "preprocessor_config.json", draft)
    content = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    content.pop("quantization_config", None)  # of an FP8 checkpoint; the graph is not in FP8
    (draft / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _choose(
    run: TrainedRun,
    encoder: FusedEncoder,
    preprocessing: Preprocessing,
    precision: Precision,
    kept: Path,
    workshop: Path,
    expected: Reference,
) -> Choice:
    """What stays wide, measured on photos of the training set; what was measured once is kept."""
    calibration = _kept_calibration(kept)
    if calibration and precision in calibration.choices:
        return calibration.choices[precision]
    pixels = _calibration_pixels(run, preprocessing, excluded=set(expected.photos))
    calibration = calibration or calibrate(encoder, pixels, revision=REVISION)
    choice = choose(encoder, preprocessing, pixels, calibration.layers, precision, scratch=workshop)
    kept.mkdir(exist_ok=True)
    dataclasses.replace(calibration, choices={**calibration.choices, precision: choice}).save(kept)
    _say_chosen(precision, choice, calibration)
    return choice


def _kept_calibration(kept: Path) -> Calibration | None:
    if not kept.is_dir():
        return None
    try:
        found = Calibration.load(kept)
    except InputError as error:
        say(f"calibrating again: {error}")
        return None
    return found if found.revision == REVISION else None


def _calibration_pixels(
    run: TrainedRun, preprocessing: Preprocessing, *, excluded: set[Path]
) -> npt.NDArray[np.uint8]:
    """Some photos of the training set, spread over it, on which nothing will be proven."""
    folder = Path(run.config.photos)
    if not folder.is_dir():
        raise InputError(
            f"the run's photos are no longer at {folder}: int8, bf16 and fp16 are calibrated on "
            "them; bring them back, or export fp32"
        )
    dataset = load_dataset(folder, run.config.label, run.config.seed)
    photos = [p for p in dataset.train if not p.generated and p.path not in excluded]
    spread = photos[:: max(1, len(photos) // (_CALIBRATION_PHOTOS + 4))]  # a few to spare
    _, pixels = readable(spread, preprocessing, _CALIBRATION_PHOTOS)
    if len(pixels) < 2:
        raise InputError(
            f"{folder} has too few photos that can be read to calibrate on, beside those of the "
            "proof: add photos, or export fp32"
        )
    return np.stack(pixels)


def _say_chosen(precision: Precision, choice: Choice, calibration: Calibration) -> None:
    tried = ", ".join(f"{trial.wide} → {trial.error:.1e}" for trial in choice.trials)
    worst = ", ".join(
        f"{layer.name} {layer.int8_effect:.1e}" for layer in calibration.ranked()[:_WORST_LAYERS]
    )
    say(
        f"{precision}: {len(choice.wide)} of {len(calibration.layers)} layers stay in float32; "
        f"tried (layers → error of the features): {tried}; most sensitive in int8 (1 - cosine of "
        f"the features): {worst}"
    )


def _prove(draft: Path, manifest: Manifest, expected: Reference, reference_s: float) -> Export:
    """Compare a draft with the reference, time it, and complete it with its manifest."""
    try:
        run = onnx_runner(draft / GRAPH_FILENAME, manifest.precision)
        parity = measure_parity(run, expected)
        manifest = dataclasses.replace(
            manifest,
            parity=parity.figures,
            graph_bytes=_size(draft),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        require_parity(parity, manifest.precision)
        write_canary(draft, run, manifest.preprocessing)
    except ParityError as error:
        return Export(draft, manifest, problem=str(error))
    manifest.save(draft)
    if manifest.precision not in CPU_PRECISIONS:
        return Export(draft, manifest)
    photo_s = _median_s(lambda: run(expected.pixels[:1]))
    return Export(draft, manifest, photo_s, reference_s / photo_s)


def _median_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _size(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob(f"{GRAPH_FILENAME}*"))


def print_exports(exports: Sequence[Export]) -> None:
    """Print one line for each precision: size, speed, and how near it is to the trained model."""
    table = Table(
        title="Exported models",
        caption="Beside Hugging Face's forward + trained head in float32: time of one photo on "
        "this CPU, cosines, neighbours in common, change of Recall@1.",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("precision", no_wrap=True)
    for heading in ("size", "s/photo", "speed-up", "least cos", "mean cos", "top 10", "R@1"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for made in exports:
        parity = made.manifest.parity
        verdict = "[red]✗ refused[/red]" if made.problem else "[green]✓ published[/green]"
        table.add_row(
            made.manifest.precision,
            f"{made.manifest.graph_bytes / 1e6:.0f} MB",
            _number(made.seconds_per_photo, ".3f"),
            _number(made.speed_up, ".2f"),
            _number(parity.get("min_cosine"), ".6f"),
            _number(parity.get("mean_cosine"), ".6f"),
            _number(parity.get("top_10_agreement"), ".1%"),
            _number(parity.get("recall_at_1_change"), "+.3f"),
            "[green]✓ up to date[/green]" if made.reused else verdict,
        )
    console = Console(highlight=False)
    console.print(table)
    for made in exports:
        wide = len(made.manifest.wide_layers)
        kept = f", {wide} layers in float32" if wide else ""
        place = made.problem or f"{made.model}{kept}"
        console.print(f"{made.manifest.precision}: {place}", soft_wrap=True, markup=False)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
