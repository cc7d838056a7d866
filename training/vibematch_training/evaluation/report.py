"""What a person reads about a run: a table in the terminal and one self-contained page."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vibematch.gallery import thumbnail
from vibematch.manifest import Manifest
from vibematch.photos import Photo
from vibematch_training.backbone import TINY
from vibematch_training.dataset import class_of
from vibematch_training.evaluation.evaluate import EvaluationSet, evaluate
from vibematch_training.evaluation.metrics import IntArray, Retrieval, retrieve
from vibematch_training.evaluation.model_card import (
    CHECKS,
    FIGURES,
    NONE,
    PROHIBITED,
    SEES,
    SIGNS,
    limits,
    model_card,
)
from vibematch_training.evaluation.pictures import (
    MAX_HEATMAP_PHOTOS,
    MAX_POINTS,
    choose,
    distance_histograms,
    loss_curves,
    similarity_heatmaps,
    tsne_maps,
    words,
)
from vibematch_training.files import write_atomically
from vibematch_training.fit import best_epoch
from vibematch_training.run import RESULTS_FILENAME, TrainingConfig
from vibematch_training.schema import USER_LABEL

REPORT_FILENAME: Final = "report.html"
MODEL_CARD_FILENAME: Final = "model_card.md"

SIDES: Final = ("train", "selection", "validation")
SPACES: Final = {"raw_backbone": "Backbone alone", "trained_head": "Trained head"}

_MINUS: Final = "\N{MINUS SIGN}"
_NEIGHBOURS: Final = 5
_FAILURE_GROUPS: Final = 4
_FAILURES_PER_GROUP: Final = 3
_SUCCESSES: Final = 5
_FEWEST_ON_A_MAP: Final = 5

_THUMBNAIL_SIZE: Final = (160, 200)
_JPEG_QUALITY: Final = 75

_SECTIONS: Final = {
    "figures": "Key figures",
    "reading": "How to read it",
    "training": "Training",
    "maps": "Maps",
    "similarity": "Similarity",
    "confusion": "Confusion",
    "groups": "By group",
    "gallery": "Neighbours and failures",
    "data": "Data",
    "recipe": "Recipe",
    "limits": "Limits and fairness",
}


def write_evaluation(
    directory: Path,
    data: EvaluationSet,
    config: TrainingConfig,
    history: Sequence[Mapping[str, Any]],
    dataset_figures: Mapping[str, Any],
    manifest: Manifest,
    *,
    caution: str = "",
) -> dict[str, Any]:
    """Evaluate, and write ``evaluation_results.json``, ``report.html`` and ``model_card.md``.

    Each file is replaced at once. Equal arguments give equal bytes.

    Args:
        directory: an existing folder, normally the run's.
        data: photos of people who were not trained on, with features and embeddings.
        config: the run's settings.
        history: the rows of ``metrics.jsonl``.
        dataset_figures: counts of the data: ``train``, ``validation`` and, where people were held
            out to select an epoch by, ``selection``, each from
            :func:`vibematch_training.summary.counts`, and ``dropped``; what is absent is not shown.
        manifest: what the model is.
        caution: a sentence on why the figures may flatter, where there is a reason.

    Returns:
        What ``evaluation_results.json`` holds; docs/evaluation.md explains its keys.
    """
    results = {
        "label": data.label,
        "classes": list(data.classes),
        "backbone": config.backbone,
        "train_photos": dataset_figures.get("train", {}).get("photos"),
        "selection_photos": dataset_figures.get("selection", {}).get("photos", 0),
        "validation_photos": len(data.photos),
        "dropped": dict(dataset_figures.get("dropped", {})),
        "epochs": len(history),
        "kept_epoch": _kept_epoch(history, config),
        "caution": caution,
        **evaluate(data, config.seed),
        "seed": config.seed,
        "data": dict(dataset_figures),
    }
    page = report(results, data, config, history, dataset_figures, manifest)
    card = model_card(results, config, dataset_figures, manifest)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (
        (REPORT_FILENAME, page),
        (MODEL_CARD_FILENAME, card),
        (RESULTS_FILENAME, text),
    ):
        write_atomically(directory / name, content)
    return results


def print_results(results: Mapping[str, Any]) -> None:
    """Print the figures beside those of the backbone alone, with intervals and targets."""
    targets = {target["figure"]: target for target in results["targets"]}
    table = Table(
        title=f"Retrieval by {escape(results['label'])}: {results['photos']} photos of "
        f"{results['users']} people" + ("" if results["caution"] else " not in training"),
        caption=f"{_percent(results['bootstrap']['confidence'])} intervals over people; backbone "
        f"{escape(results['backbone'])}, seed {results['seed']}",
    )
    for heading in ("", "backbone alone", "trained head", "target"):
        table.add_column(heading, justify="left" if heading in ("", "target") else "right")
    for name, title in FIGURES.items():
        spaces = (results["raw_backbone"], results["trained_head"])
        table.add_row(
            title,
            *(_with_interval(space[name], space["intervals"][name]) for space in spaces),
            _target(targets[name]) if name in targets else "",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(escape(verdict(results)))
    if results["train_photos"]:
        left_out = _left_out(results["dropped"])
        ending = f"; left out: {left_out}" if left_out else ""
        console.print(f"Trained on {results['train_photos']} photos{ending}.")


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return _number(value)
    return f"{_number(value)} ({_number(interval[0])}, {_number(interval[1])})"


def _target(target: Mapping[str, Any]) -> str:
    colour, sign = ("green", "✓") if target["met"] else ("red", "✗")
    return f"[{colour}]{sign} {SIGNS[target['comparison']]} {target['target']:.2f}[/{colour}]"


def _percent(share: float) -> str:
    return f"{100 * share:g}\N{NO-BREAK SPACE}%"


def _left_out(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in dropped.items() if count)


# --- the page


def report(
    results: Mapping[str, Any],
    data: EvaluationSet,
    config: TrainingConfig,
    history: Sequence[Mapping[str, Any]],
    dataset_figures: Mapping[str, Any],
    manifest: Manifest,
) -> str:
    """The report as one HTML page that loads nothing; arguments as :func:`write_evaluation`."""
    environment = Environment(
        loader=PackageLoader("vibematch_training.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "signed": _signed,
        "words": words,
        "sign": SIGNS.__getitem__,
    }
    gallery = _gallery(data, config.seed)
    kept_epoch = _kept_epoch(history, config)
    curves = loss_curves(history, kept_epoch)
    pictures = _pictures(data, config.seed)
    absent = {
        "training": not curves,
        "maps": not pictures["maps"],
        "similarity": not pictures["heatmaps"] and not pictures["histograms"],
        "confusion": not results["confusion"],
        "groups": not results["per_class"] and not results["per_shot_type"],
    }
    return environment.get_template("report.html.jinja").render(
        results=results,
        manifest=manifest,
        label_words="person" if data.label == USER_LABEL else words(data.label),
        verdict=verdict(results),
        untrained_backbone=config.backbone == TINY,
        confidence=f"{100 * results['bootstrap']['confidence']:g}",
        sections=[item for item in _SECTIONS.items() if not absent.get(item[0])],
        forest=_forest(results),
        curves=curves,
        kept=_kept(history, kept_epoch, config),
        **pictures,
        spaces=SPACES,
        gallery=gallery,
        shown_people=len({card["user_id"] for group in gallery for card in group.cards}),
        dropped=_left_out(results["dropped"]),
        sides=_sides(dataset_figures),
        data_sections=_data_sections(dataset_figures),
        command=_command(config),
        settings=dataclasses.asdict(config),
        provenance=_provenance(manifest),
        statements={
            "limits": limits(results),
            "sees": SEES,
            "prohibited": PROHIBITED,
            "checks": CHECKS,
        },
    )


def verdict(results: Mapping[str, Any]) -> str:
    """The result in a few sentences, claiming no more than the intervals allow."""
    raw, trained = results["raw_backbone"], results["trained_head"]
    if trained["recall_at_1"] is None:
        return (
            "Nothing can be said: no photo has a counterpart of its class by which it could be "
            "judged."
        )
    label = results["label"]
    if label == USER_LABEL:
        found = "the most similar photo is of the same person"
    else:
        found = f"the most similar photo of someone else is of the same {words(label)}"
    sentences = [
        f"For {_share(trained['recall_at_1'])} of the photos, {found}"
        f"{_share_interval(trained)}; with the backbone alone it is "
        f"{_share(raw['recall_at_1'])}, by chance {_share(results['chance']['recall_at_1'])}."
    ]
    if interval := results["difference"]["intervals"]["recall_at_1"]:
        points = f"{100 * interval[0]:+.0f} to {100 * interval[1]:+.0f} points".replace("-", _MINUS)
        if interval[0] > 0:
            sentences.append(f"Training helps: the interval of the gain is {points}.")
        elif interval[1] < 0:
            sentences.append(f"Training harms: the interval of the change is {points}.")
        else:
            sentences.append(
                f"That training helps is not shown: the interval of the change is {points}."
            )
    shares = {
        name: group["trained_head"]["recall_at_1"]
        for name, group in results["per_class"].items()
        if group["trained_head"]["recall_at_1"] is not None
    }
    if len(shares) > 1:
        weakest = min(shares, key=shares.__getitem__)
        sentences.append(f"It is weakest on {words(weakest)} ({_share(shares[weakest])}).")
    missed = [target for target in results["targets"] if not target["met"]]
    total = len(results["targets"])
    if missed:
        names = ", ".join(_in_sentence(FIGURES[target["figure"]]) for target in missed)
        sentences.append(f"{total - len(missed)} of {total} targets are met; missed: {names}.")
    else:
        sentences.append(f"All {total} targets are met.")
    return " ".join(sentences)


def _in_sentence(title: str) -> str:
    return title if "@" in title else title.lower()


def _share(value: float) -> str:
    return f"{_points(value)}\N{NO-BREAK SPACE}%"


def _points(value: float) -> str:
    """Per cent, rounded as in the tables: 0.325 is 0.33 there."""
    return f"{100 * float(f'{value:.2f}'):.0f}"


def _share_interval(figures: Mapping[str, Any]) -> str:
    interval = figures["intervals"]["recall_at_1"]
    if interval is None:
        return ""
    return f" (interval {_points(interval[0])} to {_share(interval[1])})"


def _number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:z.{digits}f}".replace("-", _MINUS)


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+z.2f}".replace("-", _MINUS)


def _forest(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each figure; places are per cent of the row's scale."""
    targets = {target["figure"]: target for target in results["targets"]}
    rows = []
    for name, title in FIGURES.items():
        spaces = {
            "raw": (results["raw_backbone"][name], results["raw_backbone"]["intervals"][name]),
            "trained": (results["trained_head"][name], results["trained_head"]["intervals"][name]),
        }
        ends = [end for _, interval in spaces.values() for end in interval or ()]
        top = max(1.0, *ends) if ends else 1.0
        target, by_chance = targets.get(name), results["chance"].get(name)
        rows.append(
            {
                "title": title,
                "better": "lower" if name == "intra_class_distance" else "higher",
                "trained": spaces["trained"][0],
                "trained_interval": spaces["trained"][1],
                "raw": spaces["raw"][0],
                "raw_interval": spaces["raw"][1],
                "difference": results["difference"][name],
                "difference_interval": results["difference"]["intervals"][name],
                "target": target,
                "target_place": _place(target["target"] if target else None, top),
                "by_chance": by_chance,
                "chance": _place(by_chance, top),
                "marks": [
                    _mark(kind, value, interval, top) for kind, (value, interval) in spaces.items()
                ],
            }
        )
    return rows


def _mark(
    kind: str, value: float | None, interval: Sequence[float] | None, top: float
) -> dict[str, Any]:
    low, high = (_place(end, top) for end in interval) if interval else (None, None)
    width = round(high - low, 2) if low is not None and high is not None else None
    return {"kind": kind, "place": _place(value, top), "low": low, "width": width}


def _place(value: float | None, top: float) -> float | None:
    return None if value is None else round(100 * min(max(value / top, 0.0), 1.0), 2)


def _kept_epoch(history: Sequence[Mapping[str, Any]], config: TrainingConfig) -> int:
    if not history:
        return 0
    return best_epoch(history) if config.keep == "best" else int(history[-1]["epoch"])


def _kept(history: Sequence[Mapping[str, Any]], kept_epoch: int, config: TrainingConfig) -> str:
    if config.keep == "best":
        how = "the best by MAP@R on training people who were held out for that choice"
    else:
        how = "the last one: nothing was selected"
    return f"{len(history)} epochs; epoch {kept_epoch} was kept, {how}."


def _pictures(data: EvaluationSet, seed: int) -> dict[str, Any]:
    """Maps, heatmaps and histograms, of a random choice of photos where there are many."""
    shown = choose(len(data.photos), MAX_POINTS, seed)
    shown_heatmap = choose(len(data.photos), MAX_HEATMAP_PHOTOS, seed)
    labels, users = data.labels, data.users
    vectors = {SPACES[space]: np.asarray(vectors) for space, vectors in data.spaces.items()}

    def of(positions: IntArray) -> tuple[dict[str, Any], list[str]]:
        return (
            {title: rows[positions] for title, rows in vectors.items()},
            [labels[position] for position in positions],
        )

    maps, heatmaps = [], []
    if data.has_few_classes and len(shown) >= _FEWEST_ON_A_MAP:
        maps = tsne_maps(*of(shown), data.classes, seed)
        heatmaps = similarity_heatmaps(*of(shown_heatmap), data.classes)
    return {
        "maps": maps,
        "heatmaps": heatmaps,
        "histograms": distance_histograms(*of(shown), [users[position] for position in shown]),
        "shown_points": len(shown),
        "shown_heatmap": len(shown_heatmap),
    }


def _sides(figures: Mapping[str, Any]) -> list[str]:
    return [side for side in SIDES if figures.get(side, {}).get("photos")]


def _data_sections(figures: Mapping[str, Any]) -> dict[str, list[tuple[str, list[Any]]]]:
    """Heading → rows of a name and its count on each side of the split."""
    sides = [figures[side] for side in _sides(figures)]
    if not sides:
        return {}
    names = {"photos": "photos", "users": "people", "generated": "generated photos"}
    sections = {
        "Size": [(title, [side.get(name, NONE) for side in sides]) for name, title in names.items()]
    }
    columns = list(dict.fromkeys(column for side in sides for column in side.get("columns", {})))
    for column in columns:
        counts = [side.get("columns", {}).get(column, {}) for side in sides]
        values = list(dict.fromkeys(value for side in counts for value in side))
        sections[column] = [
            (value or "(none)", [side.get(value, 0) for side in counts]) for value in values
        ]
    return sections


def _command(config: TrainingConfig) -> str:
    words = ["vibematch", "train", config.photos, "--config", "config.yaml", "--out", "AGAIN"]
    return shlex.join(words)


def _provenance(manifest: Manifest) -> dict[str, Any]:
    return {
        "fingerprint": manifest.fingerprint,
        "backbone": manifest.backbone,
        "backbone SHA-256": manifest.backbone_sha256,
        "head": manifest.head,
        "head SHA-256": manifest.head_sha256,
        "embedding": f"{manifest.embedding_dim} numbers, {manifest.precision}",
        **manifest.library_versions,
        "made": manifest.created_at or "not recorded",
    }


# --- the gallery


@dataclass(frozen=True)
class _Group:
    title: str
    about: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def cards(self) -> list[Mapping[str, Any]]:
        return [card for row in self.rows for card in (row["query"], *row["neighbours"])]


def _gallery(data: EvaluationSet, seed: int) -> list[_Group]:
    """Queries with their neighbours by the trained head: failures, worst first, then successes."""
    found = retrieve(np.asarray(data.embeddings), data.labels, data.users)
    labels = data.labels
    queries = [int(query) for query in np.flatnonzero(found.relevant > 0)]
    failures = [query for query in queries if labels[found.neighbours[query, 0]] != labels[query]]
    groups = _failure_groups(data, found, failures)
    successes = sorted(set(queries) - set(failures))
    if successes:
        chosen = _successes(successes, labels, seed)
        groups.append(
            _Group(
                "Successes",
                f"{len(chosen)} of the {len(successes)} photos whose most similar photo is of the "
                "same class, chosen at random.",
                [_row(data, found, query) for query in chosen],
            )
        )
    return groups


def _failure_groups(data: EvaluationSet, found: Retrieval, failures: Sequence[int]) -> list[_Group]:
    """Failures by which class was taken for which, the most frequent confusion first."""
    labels = data.labels
    rates = Counter(labels)
    if not data.has_few_classes:
        if not failures:
            return []
        shown = _worst(failures, labels, found)[: _FAILURE_GROUPS * _FAILURES_PER_GROUP]
        about = f"{len(failures)} of {len(labels)} photos; the worst are shown."
        rows = [_row(data, found, query) for query in shown]
        whose = "person" if data.label == USER_LABEL else "class"
        return [_Group(f"The most similar photo is of another {whose}", about, rows)]
    pairs = defaultdict(list)
    for query in failures:
        pairs[labels[query], labels[found.neighbours[query, 0]]].append(query)
    groups = []
    for (wanted, taken), queries in sorted(
        pairs.items(), key=lambda item: (-len(item[1]), item[0])
    )[:_FAILURE_GROUPS]:
        shown = _worst(queries, labels, found)[:_FAILURES_PER_GROUP]
        which = "all" if len(shown) == len(queries) else f"the worst {len(shown)}"
        groups.append(
            _Group(
                f"{words(wanted)} taken for {words(taken)}",
                f"{len(queries)} of {rates[wanted]} photos of {words(wanted)}; {which} shown.",
                [_row(data, found, query) for query in shown],
            )
        )
    return groups


def _worst(queries: Sequence[int], labels: Sequence[str], found: Retrieval) -> list[int]:
    """Fewest right among the neighbours first, then the surest mistake."""

    def badness(query: int) -> tuple[int, float]:
        nearest = found.neighbours[query, :_NEIGHBOURS]
        right = sum(labels[other] == labels[query] for other in nearest if other >= 0)
        return right, -float(found.similarities[query, 0])

    return sorted(queries, key=badness)


def _successes(queries: Sequence[int], labels: Sequence[str], seed: int) -> list[int]:
    """A random choice, of different classes as far as there are."""
    shuffled = np.random.default_rng(seed).permutation(queries).tolist()
    seen: Counter[str] = Counter()
    turns = {}
    for query in shuffled:
        turns[query] = seen[labels[query]]
        seen[labels[query]] += 1
    return sorted(sorted(turns, key=turns.__getitem__)[:_SUCCESSES], key=lambda q: labels[q])


def _row(data: EvaluationSet, found: Retrieval, query: int) -> dict[str, Any]:
    neighbours = []
    for other, similarity in zip(
        found.neighbours[query, :_NEIGHBOURS], found.similarities[query], strict=False
    ):
        if other >= 0:
            right = data.labels[other] == data.labels[query]
            card = _card(data.photos[other], data.label)
            neighbours.append(card | {"similarity": float(similarity), "right": right})
    return {"query": _card(data.photos[query], data.label), "neighbours": neighbours}


def _card(photo: Photo, label: str) -> dict[str, Any]:
    return {
        "user_id": photo.user_id,
        "class_name": "" if label == USER_LABEL else words(class_of(photo, label) or ""),
        "thumbnail": thumbnail(photo.path, _THUMBNAIL_SIZE, _JPEG_QUALITY),
    }
