"""``vibematch parity``: the exports of runs, proven again and shown in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vibematch.errors import InputError, VibematchError
from vibematch.manifest import FILENAME as MANIFEST_FILENAME
from vibematch.manifest import Manifest
from vibematch.preprocess import REVISION, Preprocessing
from vibematch_export.parity import (
    PHOTOS,
    Parity,
    Reference,
    explain,
    measure_parity,
    onnx_runner,
    proof_photos,
    reference,
    shortfalls,
)
from vibematch_training.graph_extractor import GRAPH_FILENAME
from vibematch_training.run import CONFIG_FILENAME, TrainedRun

_HEADINGS: Final = ("photos", "least cos", "mean cos", "max abs", "top-10", "R@1 by")


@dataclass(frozen=True)
class Proof:
    """What came of comparing one exported model.

    Attributes:
        model: its folder.
        precision: of the graph.
        parity: the figures; ``None`` where it gave no vectors to compare.
        problem: why it is not the trained model; empty if it is.
    """

    model: Path
    precision: str
    parity: Parity | None
    problem: str

    def to_json(self) -> dict[str, Any]:
        """The proof as plain values; figures that are not defined are left out."""
        content: dict[str, Any] = {
            "model": str(self.model),
            "precision": self.precision,
            "passed": not self.problem,
            "problem": self.problem,
        }
        if self.parity:
            worst = [{"photo": str(photo), "cosine": cosine} for photo, cosine in self.parity.worst]
            content |= {**self.parity.figures, "worst": worst}
        return content


def prove(
    folders: Sequence[Path], *, run: Path | None = None, photos: Path | None = None
) -> list[Proof]:
    """Compare exported models with the runs they come from.

    Args:
        folders: exported models (``RUN/export/int8``), or runs, which stand for all their exports.
        run: the run of exported models that were moved out of theirs.
        photos: a folder of photos to compare on; each run's own if not given.

    Raises:
        InputError: a folder, run or photos cannot be used, or a model is not of its run.
        ManifestError: a manifest cannot be used.
    """
    models: dict[Path, dict[Path, Manifest]] = {}
    for folder in folders:
        for model, its_run in _exports(folder, run).items():
            models.setdefault(its_run.resolve(), {})[model] = Manifest.load(model)
    return [
        proof for its_run, exports in models.items() for proof in _prove(its_run, exports, photos)
    ]


def _exports(folder: Path, run: Path | None) -> dict[Path, Path]:
    """Exported model → its run, of a folder that is a run or an exported model."""
    if (folder / CONFIG_FILENAME).is_file():
        graphs = sorted(folder.glob(f"export/[!.]*/{GRAPH_FILENAME}"))
        if not graphs:
            raise InputError(f"{folder} has no exports; make one with `vibematch export {folder}`")
        return {graph.parent: folder for graph in graphs}
    if not (folder / GRAPH_FILENAME).is_file() or not (folder / MANIFEST_FILENAME).is_file():
        raise InputError(
            f"{folder} is neither a run nor an exported model ({GRAPH_FILENAME} with "
            f"{MANIFEST_FILENAME}); give RUN or RUN/export/PRECISION"
        )
    own = folder.resolve().parent.parent
    if run is None and not (own / CONFIG_FILENAME).is_file():
        raise InputError(f"{folder} does not lie in its run; name the run with --run RUN")
    return {folder: run or own}


def _prove(
    run_directory: Path, exports: Mapping[Path, Manifest], photos: Path | None
) -> list[Proof]:
    run = TrainedRun.load(run_directory)
    for model, manifest in exports.items():
        _require_of_run(model, manifest, run)
    canvases = {manifest.preprocessing for manifest in exports.values()}
    references = _references(run, canvases, photos)
    return [
        _compare(model, manifest.precision, references[manifest.preprocessing])
        for model, manifest in exports.items()
    ]


def _require_of_run(model: Path, manifest: Manifest, run: TrainedRun) -> None:
    """Only precision and canvas size may be chosen at export."""
    ours, theirs = manifest, run.manifest
    pairs = {
        "backbone": (ours.backbone_sha256[:12], theirs.backbone_sha256[:12]),
        "head": (ours.head_sha256[:12], theirs.head_sha256[:12]),
        "prompt": (ours.prompt, theirs.prompt),
        "pooling": (ours.pooling, theirs.pooling),
        "fit": (ours.preprocessing.fit, theirs.preprocessing.fit),
        "preprocessing revision": (ours.preprocessing_revision, REVISION),
    }
    differing = [f"{name} {a!r}, not {b!r}" for name, (a, b) in pairs.items() if a != b]
    if differing:
        raise InputError(
            f"{model} is not an export of {run.directory} as it is now ({'; '.join(differing)}): "
            "name its run with --run, or export again"
        )


def _references(
    run: TrainedRun, canvases: set[Preprocessing], photos: Path | None
) -> dict[Preprocessing, Reference]:
    """What the run gives on each canvas; the backbone leaves memory before a graph is loaded."""
    candidates = proof_photos(run, photos)
    recipe = run.recipe(run.load_backbone(torch.float32, "cpu"))
    return {
        canvas: reference(
            candidates,
            dataclasses.replace(recipe, preprocessing=canvas),
            run.head,
            label=run.config.label,
        )
        for canvas in canvases
    }


def _compare(model: Path, precision: str, expected: Reference) -> Proof:
    try:
        parity = measure_parity(onnx_runner(model / GRAPH_FILENAME, precision), expected)
    except VibematchError as error:  # the other models are still to be seen
        return Proof(model, precision, None, str(error))
    found = shortfalls(parity, precision)
    return Proof(model, precision, parity, explain(parity, found) if found else "")


def print_proofs(proofs: Sequence[Proof]) -> None:
    """Print a table, and under it what is wrong with the models that fail."""
    table = Table(
        title="Exported models beside Hugging Face's forward + trained head in float32",
        caption="Each photo at batch 1 and 8, the worse counts. "
        f"A full proof takes {PHOTOS} photos; -: nothing to measure.",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("model", overflow="fold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for proof in proofs:
        cells = _cells(proof.parity) if proof.parity else ["-"] * len(_HEADINGS)
        verdict = "[red]✗ fails[/red]" if proof.problem else "[green]✓ holds[/green]"
        table.add_row(escape(_short_name(proof.model)), *cells, verdict)
    console = Console(highlight=False)
    console.print(table)
    for proof in proofs:
        if proof.problem:
            console.print(f"{proof.model}: {proof.problem}", markup=False, soft_wrap=True)


def _short_name(model: Path) -> str:
    run = model.resolve().parent.parent
    return f"{run.name}/{model.name}" if (run / CONFIG_FILENAME).is_file() else str(model)


def _cells(parity: Parity) -> list[str]:
    agreement, change = parity.top_10_agreement, parity.recall_at_1_change
    return [
        str(parity.photos),
        f"{parity.min_cosine:.6f}",
        f"{parity.mean_cosine:.6f}",
        f"{parity.max_abs_difference:.1e}",
        "-" if agreement is None else f"{agreement:.3f}",
        "-" if change is None else f"{change:+.4f}",
    ]
