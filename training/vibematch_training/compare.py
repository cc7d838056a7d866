"""Heads, losses, minings and poolings side by side over several seeds: defaults as measurements.

::

    COMPARISON/
    ├── comparison.json   every finished run and the table; a rerun goes on from it
    └── comparison.md     the table
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from vibematch.errors import InputError
from vibematch.photos import Photo
from vibematch_training.dataset import build_dataset, read_labelled_photos
from vibematch_training.features import FeatureRecipe, Pooling
from vibematch_training.files import FolderLock, write_atomically
from vibematch_training.fit import fit_head
from vibematch_training.head import HeadKind
from vibematch_training.objective import Loss, Mining
from vibematch_training.run import PAPER, TrainingConfig
from vibematch_training.train import FeatureTable, Parts, feature_recipe, photos_digest

JSON_FILENAME: Final = "comparison.json"
MARKDOWN_FILENAME: Final = "comparison.md"

COLUMNS: Final = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "map_at_r": "MAP@R",
    "intra_class_distance": "intra",
    "inter_class_distance": "inter",
    "separation": "separ.",
}
"""Figure → its heading."""

_LOWER_IS_BETTER: Final = frozenset({"intra_class_distance"})
_FACTORS: Final[Mapping[str, tuple[str, ...]]] = {
    "head": get_args(HeadKind),
    "mining": get_args(Mining),
    "loss": get_args(Loss),
    "pooling": get_args(Pooling),
}
_COMBINATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "the paper's numbers": PAPER,
    "head plan + mining hard": {"head": "plan", "mining": "hard"},  # as in the project plan
    "head plan + loss supcon": {"head": "plan", "loss": "supcon"},
    "head plan + loss multi_similarity": {"head": "plan", "loss": "multi_similarity"},
}
_RAW: Final = "raw backbone"

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what is different about it.
        config: its settings; the seed is the first one's.
        trained: whether a head is trained, or the backbone's features are judged as they are.
    """

    name: str
    config: TrainingConfig
    trained: bool = True

    @property
    def key(self) -> str:
        """Tells its runs from those of other rows."""
        choices = ", ".join(f"{name} {getattr(self.config, name)}" for name in (*_FACTORS, *PAPER))
        return choices if self.trained else f"{_RAW}, {self.config.pooling}"


def rows_around(config: TrainingConfig) -> list[Row]:
    """The table's rows: raw features, ``config``, each choice changed alone, and some together."""
    varied: dict[str, Mapping[str, Any]] = {
        f"{name} {value}": {name: value}
        for name, values in _FACTORS.items()
        for value in values
        if value != getattr(config, name) and not (name == "pooling" and config.extractor)
    }
    poolings = [changes["pooling"] for changes in varied.values() if "pooling" in changes]
    raw = [
        Row(f"{_RAW}, {pooling} pooling", dataclasses.replace(config, pooling=pooling), False)
        for pooling in (config.pooling, *poolings)
    ]
    chosen = " + ".join(getattr(config, name) for name in _FACTORS)
    rows = {config: Row(chosen, config)}
    for name, changes in {**varied, **_COMBINATIONS}.items():
        try:
            changed = dataclasses.replace(config, **changes)
        except InputError:  # such as hard mining where the loss has no triplets
            continue
        rows.setdefault(changed, Row(name, changed))
    return [*raw, *rows.values()]


def compare(
    config: TrainingConfig, out: Path, *, seeds: int = 5, progress: bool = True
) -> dict[str, Any]:
    """Train and judge every row with every seed, going on from what ``out`` already holds.

    Args:
        config: the settings the rows are made around; seeds count from its own.
        out: folder of the results; made if needed.
        seeds: how many runs each row has.
        progress: draw progress bars on standard error.

    Returns:
        What ``comparison.json`` holds.

    Raises:
        InputError: settings or photos cannot be used, or ``out`` holds another comparison.
    """
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    photos = read_labelled_photos(Path(config.photos), config.label)
    build_dataset(photos, config.label, config.seed)  # refuses what cannot be split
    recipe = feature_recipe(config)
    rows = rows_around(config)
    cells = [(row, config.seed + number) for row in rows for number in range(seeds)]
    out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out):
        bench = _Bench(photos, recipe, progress)
        digest = photos_digest(photos, config.label, bench.table(config.pooling).digests)
        inputs = {"features": recipe.key, "photos": digest}
        runs = _finished_runs(out, config, inputs)
        todo = [(row, seed) for row, seed in cells if (row.key, seed) not in runs]
        bar = tqdm(todo, desc="comparing", unit="run", disable=not (progress and todo))
        for row, seed in bar:
            bar.set_postfix_str(f"{row.name}, seed {seed}")
            runs[row.key, seed] = bench.run(row, seed)
            _write(out, config, inputs, rows, runs)
        return _write(out, config, inputs, rows, runs)


class _Bench:
    """Runs single cells, with the features of each pooling extracted once."""

    def __init__(self, photos: Sequence[Photo], recipe: FeatureRecipe, progress: bool) -> None:
        self._photos = photos
        self._recipe = recipe
        self._progress = progress
        self._tables: dict[Pooling, FeatureTable] = {}

    def run(self, row: Row, seed: int) -> dict[str, Any]:
        """Train one row with one seed (or take the raw features) and judge it."""
        config = dataclasses.replace(row.config, seed=seed)
        dataset = build_dataset(self._photos, config.label, seed, undersample=config.undersample)
        parts, table = Parts.of(dataset, config), self.table(config.pooling)
        validation = table.of(parts.validation, config.label)
        vectors, start = validation.features, time.perf_counter()
        if row.trained:
            learnt = table.of(parts.train, config.label)
            head, _ = fit_head(
                learnt.features,
                learnt.codes(dataset.classes),
                config,
                selection=table.of(parts.selection, config.label) if parts.selection else None,
                progress=False,
            )
            with torch.inference_mode():
                vectors = head(vectors)
        seconds = time.perf_counter() - start if row.trained else 0.0
        figures = validation.metrics(vectors)
        return {
            "row": row.key,
            "seed": seed,
            "figures": {name: _number(figures[name]) for name in COLUMNS},
            "seconds": round(seconds, 3),
        }

    def table(self, pooling: Pooling) -> FeatureTable:
        """The features of all photos in one pooling."""
        if pooling not in self._tables:
            recipe = dataclasses.replace(self._recipe, pooling=pooling)
            self._tables[pooling] = FeatureTable.extract(
                self._photos, recipe, progress=self._progress
            )
        return self._tables[pooling]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# --- the stored comparison


def _finished_runs(
    out: Path, config: TrainingConfig, inputs: Mapping[str, str]
) -> dict[tuple[str, int], dict[str, Any]]:
    path = out / JSON_FILENAME
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        theirs = TrainingConfig(**stored["settings"])
        runs = {(run["row"], run["seed"]): run for run in stored["runs"]}
        same_inputs = stored["inputs"] == inputs
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as a comparison ({error}); remove it or choose another --out"
        ) from error
    different = sorted(theirs.differences(config))
    if different or not same_inputs:
        what = ", ".join(different) or "photos, labels or backbone"
        raise InputError(
            f"{out} holds another comparison ({what} differ); choose another --out or remove it"
        )
    return runs


def _write(
    out: Path,
    config: TrainingConfig,
    inputs: Mapping[str, str],
    rows: Sequence[Row],
    runs: Mapping[tuple[str, int], dict[str, Any]],
) -> dict[str, Any]:
    lines = [
        _summary(row, [run for (key, _), run in runs.items() if key == row.key]) for row in rows
    ]
    comparison = {
        "settings": dataclasses.asdict(config),
        "inputs": dict(inputs),
        "rows": [line for line in lines if line["runs"]],
        "runs": list(runs.values()),
    }
    write_atomically(out / MARKDOWN_FILENAME, markdown(comparison))
    write_atomically(
        out / JSON_FILENAME, json.dumps(comparison, indent=2, ensure_ascii=False) + "\n"
    )
    return comparison


def _summary(row: Row, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures: dict[str, dict[str, float | None]] = {}
    for name in COLUMNS:
        values = [run["figures"][name] for run in runs if run["figures"][name] is not None]
        figures[name] = {
            "mean": float(np.mean(values)) if values else None,
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }
    seconds = [run["seconds"] for run in runs]
    return {
        "name": row.name,
        "key": row.key,
        "trained": row.trained,
        "runs": len(runs),
        "figures": figures,
        "seconds": float(np.mean(seconds)) if seconds else None,
    }


# --- the table


def best_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Figure → key of the trained row with the best mean."""
    best = {}
    for name in COLUMNS:
        sign = -1 if name in _LOWER_IS_BETTER else 1
        means = {
            row["key"]: sign * row["figures"][name]["mean"]
            for row in rows
            if row["trained"] and row["figures"][name]["mean"] is not None
        }
        if means:
            best[name] = max(means, key=means.__getitem__)
    return best


def _cells(row: Mapping[str, Any], between: str) -> dict[str, str]:
    """Figure → its mean and standard deviation."""
    cells = {}
    for name in COLUMNS:
        mean, sd = row["figures"][name]["mean"], row["figures"][name]["sd"]
        cells[name] = "-" if mean is None else f"{mean:.3f}"
        if sd is not None:
            cells[name] += f"{between}±{sd:.3f}"
    return cells


def _caption(comparison: Mapping[str, Any]) -> str:
    settings = comparison["settings"]
    canvas = f"{settings['height']}x{settings['width']}"
    counts = sorted({row["runs"] for row in comparison["rows"]})
    return (
        f"Mean and standard deviation over {' or '.join(map(str, counts))} seeds, on people not "
        f"in training; label {settings['label']}, backbone {settings['backbone']}, {canvas}, "
        f"epochs: {settings['epochs']} where the row says no other. The best trained row of each "
        "column is marked: the lowest intra, the highest of the others. A difference within the "
        "deviation is none."
    )


def markdown(comparison: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table."""
    best = best_rows(comparison["rows"])
    lines = [
        _caption(comparison),
        "",
        "| | " + " | ".join(COLUMNS.values()) + " | s/run |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for row in comparison["rows"]:
        cells = [
            f"**{cell}**" if best.get(name) == row["key"] else cell
            for name, cell in _cells(row, " ").items()
        ]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + f" | {_seconds(row)} |")
    return "\n".join(lines) + "\n"


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the comparison as a table."""
    best = best_rows(comparison["rows"])
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", min_width=16)
    for heading in (*COLUMNS.values(), "s/run"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison["rows"]:
        cells = [
            f"[bold green]*{cell}[/]" if best.get(name) == row["key"] else cell
            for name, cell in _cells(row, "\n").items()
        ]
        table.add_row(row["name"], *cells, _seconds(row))
    console = Console(highlight=False)
    console.print(table)
    console.print(_caption(comparison), markup=False)


def _seconds(row: Mapping[str, Any]) -> str:
    return f"{row['seconds']:.1f}" if row["trained"] else "-"
