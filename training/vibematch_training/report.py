"""What a person reads about a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_results(results: Mapping[str, Any]) -> None:
    """Print a run's retrieval figures beside the untrained backbone's."""
    dropped = ", ".join(f"{count} {why}" for why, count in results["dropped"].items() if count)
    table = Table(
        title=f"Retrieval by {results['label']} on {results['validation_photos']} photos of "
        "people not in training",
        caption=f"trained on {results['train_photos']} photos"
        + (f"; left out: {dropped}" if dropped else "")
        + f"; backbone {results['backbone']}, seed {results['seed']}",
    )
    table.add_column("")
    for heading in ("Recall@1", "Recall@5", "MAP@R"):
        table.add_column(heading, justify="right")
    for name, key in (("raw backbone features", "raw_backbone"), ("trained head", "trained_head")):
        figures = results[key]
        columns = ("recall_at_1", "recall_at_5", "map_at_r")
        table.add_row(name, *(f"{figures[column]:.3f}" for column in columns))
    Console().print(table)
