"""The training loop: pooled features and classes → the fitted head, resumable at every epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from tqdm import tqdm

from vibematch.errors import InputError
from vibematch_training.evaluation.metrics import retrieval_metrics
from vibematch_training.files import write_atomically
from vibematch_training.head import ProjectionHead
from vibematch_training.objective import Objective
from vibematch_training.run import TrainingConfig
from vibematch_training.threads import one_core_per_operation

Epoch = dict[str, float | None]
"""One line of ``metrics.jsonl``."""

WATCHED_PHOTOS: Final = 1000
"""At most so many photos are watched between epochs: the time to rank them grows with the square of
their number, and for so many it is a tenth of a second on one core."""

_WATCHED_BATCHES: Final = 20
_CHECKPOINT_KEY: Final = "history"
_HEAD, _BEST, _OPTIMIZER = "head.", "best.", "optimizer."


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of photos with the classes and owners they are judged by.

    Attributes:
        features: pooled features, float32, shape ``[photos, feature_dim]``.
        labels: class of each photo.
        users: owner of each photo.
    """

    features: torch.Tensor
    labels: Sequence[str]
    users: Sequence[str]

    def codes(self, classes: Sequence[str]) -> torch.Tensor:
        """Each photo's class as its position among ``classes``, int64 ``[photos]``."""
        code = {name: number for number, name in enumerate(classes)}
        return torch.tensor([code[label] for label in self.labels], dtype=torch.int64)

    def metrics(self, vectors: torch.Tensor) -> dict[str, float]:
        """Retrieval metrics of these photos, represented by ``[photos, dim]`` vectors."""
        return retrieval_metrics(vectors.numpy(), self.labels, self.users)

    def take(self, positions: Sequence[int]) -> LabelledFeatures:
        """Those photos, in that order."""
        return LabelledFeatures(
            self.features[list(positions)],
            [self.labels[i] for i in positions],
            [self.users[i] for i in positions],
        )


def require_a_batch(photos: int, classes: int, config: TrainingConfig) -> None:
    """Refuse to train on fewer photos than a PK batch takes.

    Raises:
        InputError: naming both numbers.
    """
    least = min(config.classes_per_batch, classes) * config.photos_per_class
    if photos < least:
        raise InputError(f"{photos} photos to train on are too few; one batch takes {least}")


@one_core_per_operation()
def fit_head(
    features: torch.Tensor,
    codes: torch.Tensor,
    config: TrainingConfig,
    *,
    validation: LabelledFeatures | None = None,
    selection: LabelledFeatures | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Sequence[Epoch]], None] | None = None,
    progress: bool = True,
) -> tuple[ProjectionHead, list[Epoch]]:
    """Fit the head on PK batches with AdamW, linear warmup and a cosine schedule.

    Runs on the GPU in bf16 autocast where there is one, otherwise on the CPU in float32, where
    equal arguments give equal bits. Every epoch draws from generators seeded by ``(seed, epoch)``,
    so that going on from a checkpoint is the same as never having stopped.

    Args:
        features: pooled features, float32, shape ``[photos, feature_dim]``.
        codes: integer class of each photo, int64, shape ``[photos]``.
        config: the settings; those about photos and backbone are not looked at.
        validation: photos to report on, never to select by.
        selection: photos of yet other people, to select by; see ``config.selects``.
        checkpoint: file to go on from if it exists, and to write every
            ``config.checkpoint_every_epochs``.
        on_epoch: called after each epoch with the history so far.
        progress: draw a progress bar on standard error.

    Returns:
        The head in evaluation mode on the CPU, and the history: per epoch the mean ``loss``, the
        mean number of mined ``triplets`` in a batch (``None`` without triplets), the
        ``learning_rate`` of its last step, ``validation_loss`` and ``validation_map_at_r``, and
        ``selection_map_at_r`` where something is selected.

    Raises:
        InputError: ``config`` selects but ``selection`` cannot be judged, or the checkpoint is
            damaged or of another head.
    """
    loop = _Loop(features, codes, config)
    watched = _Watched(validation, config) if validation else None
    judged = _Watched(selection, config) if selection and config.selects else None
    if config.selects and (judged is None or judged.map_at_r(judged.embed(loop.head)) is None):
        raise InputError(
            "keep: best and patience_epochs need photos to select by, of at least two people who "
            "share a class"
        )
    if checkpoint is not None and checkpoint.exists():
        loop.restore(checkpoint)
    with tqdm(
        total=config.epochs,
        initial=len(loop.history),
        desc="training",
        unit="epoch",
        disable=not progress,
    ) as bar:
        while not loop.finished:
            entry = loop.train_epoch()
            entry |= dict.fromkeys(("validation_loss", "validation_map_at_r"))
            if watched is not None:
                vectors = watched.embed(loop.head)
                entry["validation_loss"] = watched.loss(vectors, loop.objective)
                entry["validation_map_at_r"] = watched.map_at_r(vectors)
            if judged is not None:
                entry["selection_map_at_r"] = judged.map_at_r(judged.embed(loop.head))
            loop.record(entry)
            if on_epoch is not None:
                on_epoch(loop.history)
            if checkpoint is not None and loop.checkpoint_due:
                loop.save(checkpoint)
            bar.update()
            bar.set_postfix(
                {name: f"{value:.3f}" for name, value in entry.items() if name in _SHOWN and value}
            )
    return loop.result(), loop.history


_SHOWN: Final = ("loss", "validation_map_at_r", "selection_map_at_r")


def best_epoch(history: Sequence[Mapping[str, float | None]]) -> int:
    """The first epoch of the highest ``selection_map_at_r``."""
    best = max(history, key=lambda entry: (entry["selection_map_at_r"] or 0, -_number(entry)))
    return _number(best)


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Linear warmup, then half a cosine down to 0.

    Args:
        step: number of the optimiser step, from 0.
        steps: how many there will be.
        config: the highest rate and ``warmup_share``.
    """
    warmup_steps = round(config.warmup_share * steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    done = (step - warmup_steps) / (steps - warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class _Loop:
    """Head, optimiser and history of a training: all that a checkpoint has to hold."""

    def __init__(self, features: torch.Tensor, codes: torch.Tensor, config: TrainingConfig) -> None:
        self.config = config
        self.history: list[Epoch] = []
        self.objective = Objective(config.loss, config.mining, config.margin, config.temperature)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._labels = codes.cpu()
        self._features, self._codes = features.to(self._device), codes.to(self._device)
        require_a_batch(len(codes), len(codes.unique()), config)
        self._steps_per_epoch = len(codes) // _batch_size(self._labels, config)
        _seed(config, epoch=0)
        self.head = ProjectionHead(
            features.shape[1], config.embedding_dim, config.hidden_dim, config.dropout, config.head
        )
        self.head.standardise(features)
        self.head.to(self._device)
        self._optimizer = torch.optim.AdamW(
            self.head.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over the weights: the step takes a third of the time
        )
        self._best: dict[str, torch.Tensor] = {}

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or patience has run out."""
        epochs, patience = len(self.history), self.config.patience_epochs
        if epochs and patience and epochs - best_epoch(self.history) >= patience:
            return True
        return epochs >= self.config.epochs

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last epoch is one to save."""
        return self.finished or len(self.history) % self.config.checkpoint_every_epochs == 0

    def train_epoch(self) -> Epoch:
        """One pass over the training photos."""
        epoch, steps = len(self.history) + 1, self.config.epochs * self._steps_per_epoch
        _seed(self.config, epoch)
        self.head.train()
        losses, triplets, rate = [], [], 0.0
        batches = _pk_batches(self._labels, self.config, len(self._labels))
        for number, batch in enumerate(batches.to(self._device)):
            rate = learning_rate((epoch - 1) * len(batches) + number, steps, self.config)
            self._optimizer.param_groups[0]["lr"] = rate
            with torch.autocast(
                self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"
            ):
                embeddings = self.head(self._features[batch])
            loss, mined = self.objective(embeddings.float(), self._codes[batch])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            losses.append(loss.detach())
            triplets.append(mined)
        self.head.eval()
        counts = [count for count in triplets if count is not None]
        return {
            "epoch": epoch,
            "loss": torch.stack(losses).mean().item(),
            "triplets": float(np.mean(counts)) if counts else None,
            "learning_rate": rate,
        }

    def record(self, entry: Epoch) -> None:
        """Add an epoch to the history, remembering its head if it is the best one."""
        self.history.append(entry)
        if self.config.keep == "best" and best_epoch(self.history) == entry["epoch"]:
            self._best = {name: value.clone() for name, value in self.head.state_dict().items()}

    def result(self) -> ProjectionHead:
        """The head to keep."""
        if self._best:
            self.head.load_state_dict(self._best)
        return self.head.eval().cpu()

    def save(self, path: Path) -> None:
        """Write a checkpoint: a kill leaves the one before or this one."""
        moments = self._optimizer.state_dict()["state"]
        tensors = {
            **{_HEAD + name: value for name, value in self.head.state_dict().items()},
            **{_BEST + name: value for name, value in self._best.items()},
            **{
                f"{_OPTIMIZER}{number}.{name}": value
                for number, state in moments.items()
                for name, value in state.items()
            },
        }
        content = serialise(tensors, metadata={_CHECKPOINT_KEY: json.dumps(self.history)})
        write_atomically(path, content)

    def restore(self, path: Path) -> None:
        """Take over what :meth:`save` wrote."""
        try:
            with safe_open(path, framework="pt", device=str(self._device)) as file:
                self.history = json.loads(file.metadata()[_CHECKPOINT_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.head.load_state_dict(_under(_HEAD, tensors))
            self._best = _under(_BEST, tensors)
            moments: dict[int, dict[str, Any]] = {}
            for name, value in _under(_OPTIMIZER, tensors).items():
                number, _, what = name.partition(".")
                moments.setdefault(int(number), {})[what] = value
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path} is damaged or of another head; remove it to train from the start ({error})"
            ) from error


class _Watched:
    """Photos that are looked at between epochs and never learnt from."""

    def __init__(self, data: LabelledFeatures, config: TrainingConfig) -> None:
        if len(data.labels) > WATCHED_PHOTOS:
            chosen = np.random.default_rng(config.seed).permutation(len(data.labels))
            data = data.take(sorted(chosen[:WATCHED_PHOTOS].tolist()))
        self._data = data
        classes = sorted(set(data.labels))
        self._codes = data.codes(classes)
        self._batches = None
        if len(classes) > 1:
            _seed(config, epoch=0)  # the same batches after every epoch
            batch_size = _batch_size(self._codes, config)
            length = max(len(data.labels), _WATCHED_BATCHES * batch_size)
            self._batches = _pk_batches(self._codes, config, length)

    @torch.inference_mode()
    def embed(self, head: ProjectionHead) -> torch.Tensor:
        """The photos' unit vectors, on the CPU."""
        features = self._data.features.to(head.feature_mean.device)
        vectors: torch.Tensor = head.eval()(features).cpu()
        return vectors

    @torch.inference_mode()
    def loss(self, vectors: torch.Tensor, objective: Objective) -> float | None:
        """The training's loss on fixed PK batches; ``None`` if there is one class only."""
        if self._batches is None:
            return None
        losses = [objective(vectors[batch], self._codes[batch])[0] for batch in self._batches]
        return torch.stack(losses).mean().item()

    def map_at_r(self, vectors: torch.Tensor) -> float | None:
        """Retrieval of other people's photos of the same class; ``None`` if nobody shares one."""
        value = self._data.metrics(vectors)["map_at_r"]
        return None if math.isnan(value) else value


def _pk_batches(codes: torch.Tensor, config: TrainingConfig, length: int) -> torch.Tensor:
    """Positions of PK batches, int64 ``[batches, P x K]``, of about ``length`` photos together.

    Fewer classes than P make smaller batches.
    """
    batch_size = _batch_size(codes, config)
    sampler = MPerClassSampler(codes, config.photos_per_class, batch_size, length)
    return torch.tensor(list(sampler)).reshape(-1, batch_size)


def _batch_size(codes: torch.Tensor, config: TrainingConfig) -> int:
    return min(config.classes_per_batch, len(codes.unique())) * config.photos_per_class


def _seed(config: TrainingConfig, epoch: int) -> None:
    """Start the generators of an epoch; 0 is before the first."""
    word = int(np.random.SeedSequence((config.seed, epoch)).generate_state(1)[0])
    torch.manual_seed(word)
    np.random.seed(word)  # the sampler draws from numpy's global generator


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _number(entry: Mapping[str, float | None]) -> int:
    return int(entry["epoch"] or 0)
