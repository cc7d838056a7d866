"""Train the projection head: from a photo folder to a run folder, resumable at any moment."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from vibematch.errors import InputError
from vibematch.manifest import FILENAME as MANIFEST_FILENAME
from vibematch.manifest import Manifest
from vibematch.photos import Photo
from vibematch_training import tracking
from vibematch_training.backbone import load_backbone
from vibematch_training.cache import cache_dir
from vibematch_training.dataset import Dataset, class_of, hold_out_people, load_dataset
from vibematch_training.evaluation.evaluate import EvaluationSet
from vibematch_training.evaluation.report import write_evaluation
from vibematch_training.features import FeatureRecipe, extract_features, read_digest
from vibematch_training.files import FolderLock, write_atomically
from vibematch_training.fit import Epoch, LabelledFeatures, fit_head, require_a_batch
from vibematch_training.head import ProjectionHead
from vibematch_training.run import (
    CONFIG_FILENAME,
    HEAD_FILENAME,
    INPUTS_FILENAME,
    METRICS_FILENAME,
    TrainedRun,
    TrainingConfig,
    is_finished,
    read_json,
)
from vibematch_training.schema import USER_LABEL
from vibematch_training.summary import counts

CHECKPOINTS: Final = "checkpoints"
_CHECKPOINT_FILENAME: Final = "latest.safetensors"
_CHANGED: Final = {
    "features": "the files of backbone {backbone} changed since, or this version makes features "
    "differently; restore what it was",
    "photos": "files or labels in {photos} changed since; restore them",
}
"""Why a run cannot be resumed."""


def train(
    config: TrainingConfig,
    out: Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a head and write the run folder; its manifest is written last.

    Args:
        config: every setting.
        out: the run folder to make.
        resume: go on with ``out`` if it was begun. The result is, bit for bit, that of a run which
            was never interrupted; a run that was finished is left as it is.
        tensorboard: write curves to ``out/tensorboard``.
        progress: draw progress bars on standard error.

    Returns:
        What ``evaluation_results.json`` holds.

    Raises:
        InputError: settings, photos or labels cannot be used, ``out`` is taken, or what is to be
            resumed was begun with other settings, photos or another backbone.
    """
    _require_room(config, out, resume)
    if is_finished(out):
        return TrainedRun.load(out).results()
    board = tracking.TensorBoard(out / tracking.DIRECTORY) if tensorboard else None
    dataset = load_dataset(
        Path(config.photos), config.label, config.seed, undersample=config.undersample
    )
    parts = Parts.of(dataset, config)
    recipe = feature_recipe(config)
    out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out):
        write_atomically(out / CONFIG_FILENAME, config.to_yaml())
        (out / CHECKPOINTS).mkdir(exist_ok=True)
        _require_same(out, config, "features", recipe.key)
        everyone = parts.everyone
        table = FeatureTable.extract(everyone, recipe, progress=progress)
        _require_same(out, config, "photos", photos_digest(everyone, config.label, table.digests))

        def on_epoch(history: Sequence[Epoch]) -> None:
            lines = [json.dumps(entry) + "\n" for entry in history]
            write_atomically(out / METRICS_FILENAME, "".join(lines))
            if board is not None:
                board.log(history[-1])

        learnt = table.of(parts.train, config.label)
        head, history = fit_head(
            learnt.features,
            learnt.codes(dataset.classes),
            config,
            validation=table.of(parts.validation, config.label),
            selection=table.of(parts.selection, config.label) if parts.selection else None,
            checkpoint=out / CHECKPOINTS / _CHECKPOINT_FILENAME,
            on_epoch=on_epoch,
            progress=progress,
        )
        if board is not None:
            board.close()
        manifest = _manifest(config, recipe, dataset, head.save(out / HEAD_FILENAME))
        judged = table.evaluation_set(parts.validation, config.label, dataset.classes, head)
        figures = _data_figures(config, dataset, parts, table)
        results = write_evaluation(out, judged, config, history, figures, manifest)
        write_atomically(out / MANIFEST_FILENAME, manifest.to_json())
    return results


def feature_recipe(config: TrainingConfig) -> FeatureRecipe:
    """The recipe a configuration asks for, backbone and exported graph loaded.

    Raises:
        InputError: one of them cannot be used, or the graph computes something else.
    """
    graph = None
    if config.extractor:
        from vibematch_training.graph_extractor import GraphExtractor

        graph = GraphExtractor(Path(config.extractor))
    backbone = load_backbone(config.backbone)
    return FeatureRecipe(backbone, config.preprocessing, config.prompt, config.pooling, graph=graph)


@dataclass(frozen=True)
class Parts:
    """Who is learnt from, who decides which epoch is kept, and who is reported on.

    Attributes:
        train: photos to learn from.
        selection: photos of other people, to select an epoch by; empty if nothing is selected.
        validation: photos of yet other people, whose figures are reported.
    """

    train: list[Photo]
    selection: list[Photo]
    validation: list[Photo]

    @classmethod
    def of(cls, dataset: Dataset, config: TrainingConfig) -> Parts:
        """Hold people out of training if the configuration selects.

        Raises:
            InputError: too few photos or people are left.
        """
        train, selection = dataset.train, list[Photo]()
        if config.selects:
            train, selection = hold_out_people(
                train, config.label, config.selection_share, config.seed
            )
        classes = {class_of(photo, config.label) for photo in train}
        require_a_batch(len(train), len(classes), config)
        return cls(train, selection, dataset.validation)

    @property
    def everyone(self) -> list[Photo]:
        """All photos of the run."""
        return [*self.train, *self.selection, *self.validation]


@dataclass(frozen=True)
class FeatureTable:
    """Features of photos, by file.

    Attributes:
        vectors: float32, shape ``[usable photos, feature_dim]``.
        rows: file → its row.
        rejected: why the other photos could not be used, one sentence each.
        digests: file → SHA-256 of its content, where it can be read.
    """

    vectors: torch.Tensor
    rows: dict[Path, int]
    rejected: list[str]
    digests: dict[Path, bytes]

    @classmethod
    def extract(
        cls, photos: Sequence[Photo], recipe: FeatureRecipe, *, progress: bool = True
    ) -> FeatureTable:
        """Compute features or read them from the cache, naming photos that cannot be read."""
        paths = [photo.path for photo in photos]
        extracted = extract_features(paths, recipe, cache_dir("features"), progress=progress)
        for reason in extracted.rejected:
            tqdm.write(f"left out: {reason}", file=sys.stderr)
        rows = {paths[position]: row for row, position in enumerate(extracted.usable)}
        digests = {path: d for path, d in zip(paths, extracted.digests, strict=True) if d}
        return cls(extracted.vectors, rows, extracted.rejected, digests)

    def usable(self, photos: Sequence[Photo]) -> list[Photo]:
        """Those of the photos that have features."""
        return [photo for photo in photos if photo.path in self.rows]

    def of(self, photos: Sequence[Photo], label: str) -> LabelledFeatures:
        """The features of the usable ones among photos, in their order."""
        usable = self.usable(photos)
        return LabelledFeatures(
            self.vectors[[self.rows[photo.path] for photo in usable]],
            [str(class_of(photo, label)) for photo in usable],
            [photo.user_id for photo in usable],
        )

    def evaluation_set(
        self, photos: Sequence[Photo], label: str, classes: Sequence[str], head: ProjectionHead
    ) -> EvaluationSet:
        """The usable ones among photos, as the backbone and as a head see them."""
        features = self.of(photos, label).features
        with torch.inference_mode():
            embeddings = head(features)
        return EvaluationSet(
            self.usable(photos), label, classes, features.numpy(), embeddings.numpy()
        )


def photos_digest(photos: Sequence[Photo], label: str, contents: Mapping[Path, bytes]) -> str:
    """SHA-256 (hex) of what the loop sees of photos: content, class and owner, in order.

    Args:
        photos: the photos.
        label: the column that makes two photos a positive pair.
        contents: file → SHA-256 of its content, where it can be read.
    """
    digest = hashlib.sha256()
    for photo in photos:
        content = contents.get(photo.path, b"unreadable").hex()
        digest.update(json.dumps([content, class_of(photo, label), photo.user_id]).encode())
    return digest.hexdigest()


def unchanged_parts(run: TrainedRun) -> tuple[Dataset, Parts]:
    """The photos of a finished run, divided as they were when it was trained.

    Raises:
        InputError: files, labels or the division are no longer the same, or the folder is gone.
    """
    config, directory = run.config, Path(run.config.photos)
    if not directory.is_dir():
        raise InputError(f"{directory}, which {run.directory} was trained on, is gone")
    dataset = load_dataset(directory, config.label, config.seed, undersample=config.undersample)
    parts = Parts.of(dataset, config)
    digests = {photo.path: read_digest(photo.path) for photo in parts.everyone}
    contents = {path: digest for path, digest in digests.items() if isinstance(digest, bytes)}
    begun = read_json(run.directory / INPUTS_FILENAME)
    if begun.get("photos") != photos_digest(parts.everyone, config.label, contents):
        raise InputError(
            f"{directory} is no longer what {run.directory} was trained on: files or labels changed"
        )
    return dataset, parts


# --- the run folder


def _require_room(config: TrainingConfig, out: Path, resume: bool) -> None:
    """Refuse to touch what is not this run."""
    if not out.exists():
        return
    begun = (out / CONFIG_FILENAME).is_file()
    if not begun:
        if out.is_dir() and all(path.suffix == ".partial" for path in out.iterdir()):
            return
        raise InputError(f"{out} exists already and is not a run folder; choose another --out")
    if not resume:
        if is_finished(out):
            raise InputError(
                f"{out} exists already, a finished run; choose another --out or remove it first"
            )
        raise InputError(
            f"{out} exists already, a run that was not finished: go on with it by --resume, "
            "choose another --out, or remove it first"
        )
    theirs = TrainingConfig.from_yaml(out / CONFIG_FILENAME)
    different = theirs.differences(config)
    if different:
        raise InputError(
            f"{out} was begun with other settings: "
            + ", ".join(
                f"{name} was {old!r}, not {new!r}" for name, (old, new) in different.items()
            )
            + "; resume it with its own, or choose another --out"
        )


def _require_same(out: Path, config: TrainingConfig, what: str, digest: str) -> None:
    """Note what the run was begun on, or compare with what was noted."""
    path = out / INPUTS_FILENAME
    begun = read_json(path) if path.exists() else {}
    if begun.get(what, digest) != digest:
        why = _CHANGED[what].format(backbone=config.backbone, photos=config.photos)
        raise InputError(
            f"{out} was begun with other {what}: {why}, or start a new run with another --out"
        )
    if what not in begun:
        write_atomically(path, json.dumps({**begun, what: digest}, indent=2) + "\n")


def _data_figures(
    config: TrainingConfig, dataset: Dataset, parts: Parts, table: FeatureTable
) -> dict[str, Any]:
    """Counts of the photos that were used, and of those that were not."""
    groups = {"train": parts.train, "validation": parts.validation}
    if parts.selection:
        groups["selection"] = parts.selection
    figures: dict[str, Any] = {
        name: counts(table.usable(photos), config.label) for name, photos in groups.items()
    }
    figures["dropped"] = dataset.dropped | {"unreadable": len(table.rejected)}
    return figures


def _manifest(
    config: TrainingConfig, recipe: FeatureRecipe, dataset: Dataset, head_sha256: str
) -> Manifest:
    return Manifest(
        embedding_dim=config.embedding_dim,
        preprocessing=config.preprocessing,
        prompt=config.prompt,
        pooling=config.pooling,
        backbone=config.backbone,
        backbone_sha256=recipe.backbone.sha256,
        head=config.head,
        head_sha256=head_sha256,
        precision="fp32",
        # people as classes: their ids do not travel with the model
        labels={} if config.label == USER_LABEL else {config.label: dataset.classes},
        library_versions={name: version(name) for name in ("torch", "transformers")},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
