"""Train the projection head: the paper's recipe, from a photo folder to a run folder."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from pytorch_metric_learning.samplers import MPerClassSampler
from tqdm import tqdm, trange

from vibematch.errors import InputError
from vibematch.manifest import Manifest
from vibematch.photos import Photo, read_photos
from vibematch_training.backbone import load_backbone
from vibematch_training.cache import cache_dir
from vibematch_training.dataset import Dataset, build_dataset
from vibematch_training.features import FeatureRecipe, extract_features
from vibematch_training.head import ProjectionHead
from vibematch_training.metrics import retrieval_metrics
from vibematch_training.run import (
    CONFIG_FILENAME,
    HEAD_FILENAME,
    METRICS_FILENAME,
    RESULTS_FILENAME,
    TrainingConfig,
)

HEAD_KIND: Final = "paper"


def train(config: TrainingConfig, out: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train a head and write the run folder, complete or not at all.

    Args:
        config: every setting.
        out: the run folder to make.
        progress: draw progress bars on standard error.

    Returns:
        What ``evaluation_results.json`` holds.

    Raises:
        InputError: settings, photos or labels cannot be used, or ``out`` exists already.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out or remove it first")
    dataset = build_dataset(read_photos(Path(config.photos)), config.label, config.seed)
    _require_a_batch(dataset, config)
    recipe = FeatureRecipe(load_backbone(config.backbone), config.preprocessing, config.prompt)
    training = _LabelledFeatures.extract(dataset.train, config.label, recipe, progress)
    validation = _LabelledFeatures.extract(dataset.validation, config.label, recipe, progress)

    codes = torch.tensor([dataset.classes.index(label) for label in training.labels])
    head, history = fit_head(training.features, codes, config, progress=progress)

    with torch.inference_mode():
        embeddings = head(validation.features)
    results = {
        "label": config.label,
        "classes": dataset.classes,
        "backbone": config.backbone,
        "seed": config.seed,
        "train_photos": len(training.labels),
        "validation_photos": len(validation.labels),
        "dropped": dataset.dropped | {"unreadable": training.rejected + validation.rejected},
        "raw_backbone": validation.metrics(validation.features),
        "trained_head": validation.metrics(embeddings),
    }
    _write_run(out, config, recipe, dataset, head, history, results)
    return results


def _require_a_batch(dataset: Dataset, config: TrainingConfig) -> None:
    least = min(config.classes_per_batch, len(dataset.classes)) * config.photos_per_class
    if len(dataset.train) < least:
        raise InputError(
            f"{len(dataset.train)} photos to train on are too few; one batch takes {least}"
        )


def fit_head(
    features: torch.Tensor, codes: torch.Tensor, config: TrainingConfig, *, progress: bool = True
) -> tuple[ProjectionHead, list[dict[str, float]]]:
    """Fit the head with triplet margin loss, semi-hard mining and PK batches.

    Loss, miner and sampler are PyTorch Metric Learning's; the recipe is the paper's.

    Args:
        features: pooled features, float32, shape ``[photos, feature_dim]``.
        codes: integer class of each photo, int64, shape ``[photos]``.
        config: the settings; ``config.seed`` makes the result repeatable.
        progress: draw a progress bar on standard error.

    Returns:
        The head in evaluation mode, and per epoch the mean ``loss`` and the mean number of
        semi-hard ``triplets`` in a batch.
    """
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)  # the sampler draws from numpy's global generator
    head = ProjectionHead(
        features.shape[1], config.embedding_dim, config.hidden_dim, config.dropout
    )
    head.standardise(features)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    distance = CosineSimilarity()
    mine = TripletMarginMiner(config.margin, type_of_triplets="semihard", distance=distance)
    triplet_loss = TripletMarginLoss(config.margin, distance=distance)
    classes_per_batch = min(config.classes_per_batch, len(codes.unique()))
    batch_size = classes_per_batch * config.photos_per_class
    sampler = MPerClassSampler(
        codes, config.photos_per_class, batch_size, length_before_new_iter=len(codes)
    )
    history = []
    head.train()
    bar = trange(1, config.epochs + 1, desc="training", unit="epoch", disable=not progress)
    for epoch in bar:
        losses, triplets = [], []
        for batch in torch.tensor(list(sampler)).split(batch_size):
            embeddings, classes = head(features[batch]), codes[batch]
            mined = mine(embeddings, classes)
            loss = triplet_loss(embeddings, classes, mined)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            triplets.append(len(mined[0]))
        history.append(
            {"epoch": epoch, "loss": float(np.mean(losses)), "triplets": float(np.mean(triplets))}
        )
        bar.set_postfix(loss=f"{history[-1]['loss']:.3f}")
    return head.eval(), history


@dataclass(frozen=True)
class _LabelledFeatures:
    """Features of photos with the classes and owners they are judged by."""

    features: torch.Tensor
    labels: list[str]
    users: list[str]
    rejected: int

    @classmethod
    def extract(
        cls, photos: Sequence[Photo], label: str, recipe: FeatureRecipe, progress: bool
    ) -> _LabelledFeatures:
        """Compute features, leaving out (and naming) photos that cannot be read."""
        extracted = extract_features(
            [photo.path for photo in photos], recipe, cache_dir("features"), progress=progress
        )
        for reason in extracted.rejected:
            tqdm.write(f"left out: {reason}", file=sys.stderr)
        usable = [photos[position] for position in extracted.usable]
        return cls(
            extracted.vectors,
            [photo.labels[label] for photo in usable],
            [photo.user_id for photo in usable],
            len(extracted.rejected),
        )

    def metrics(self, vectors: torch.Tensor) -> dict[str, float]:
        """Retrieval metrics of these photos, represented by ``[photos, dim]`` vectors."""
        return retrieval_metrics(vectors.numpy(), self.labels, self.users)


def _write_run(
    out: Path,
    config: TrainingConfig,
    recipe: FeatureRecipe,
    dataset: Dataset,
    head: ProjectionHead,
    history: Sequence[dict[str, float]],
    results: dict[str, Any],
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
        partial = Path(name) / out.name
        partial.mkdir()
        head_sha256 = head.save(partial / HEAD_FILENAME)
        Manifest(
            embedding_dim=config.embedding_dim,
            preprocessing=config.preprocessing,
            prompt=config.prompt,
            pooling=recipe.pooling,
            backbone=config.backbone,
            backbone_sha256=recipe.backbone.sha256,
            head=HEAD_KIND,
            head_sha256=head_sha256,
            precision="fp32",
            labels={config.label: dataset.classes},
            library_versions={name: version(name) for name in ("torch", "transformers")},
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ).save(partial)
        (partial / CONFIG_FILENAME).write_text(config.to_yaml(), encoding="utf-8")
        lines = [json.dumps(entry) + "\n" for entry in history]
        (partial / METRICS_FILENAME).write_text("".join(lines), encoding="utf-8")
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
        (partial / RESULTS_FILENAME).write_text(text, encoding="utf-8")
        partial.rename(out)
