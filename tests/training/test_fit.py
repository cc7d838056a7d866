from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from vibematch.errors import InputError
from vibematch_training import fit as fit_module
from vibematch_training.evaluation.metrics import retrieval_metrics
from vibematch_training.fit import (
    LabelledFeatures,
    best_epoch,
    fit_head,
    learning_rate,
)
from vibematch_training.head import ProjectionHead
from vibematch_training.run import PAPER, TrainingConfig


def _clusters(classes: int, photos: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that differ in a few of many noisy channels."""
    centres = torch.randn(classes, 64, generator=torch.Generator().manual_seed(0))
    centres[:, 8:] = 0
    centres *= 1.5
    codes = torch.arange(photos) % classes
    noise = torch.randn(photos, 64, generator=torch.Generator().manual_seed(seed))
    return centres[codes] + noise, codes


def _people(photos: int, seed: int, classes: int = 5) -> LabelledFeatures:
    features, codes = _clusters(classes, photos, seed)
    users = [f"person {number // (2 * classes)}-{number % classes}" for number in range(photos)]
    return LabelledFeatures(features, [f"class {code}" for code in codes.tolist()], users)


def _config(**settings: object) -> TrainingConfig:
    small = {"photos": "unused", "hidden_dim": 64, "epochs": 5}
    return TrainingConfig(**{**PAPER, **small, **settings})


# --- learning


def test_triplets_are_used_up_and_classes_part() -> None:
    features, codes = _clusters(classes=5, photos=200)
    config = _config(epochs=20, learning_rate=1e-3)
    head, history = fit_head(features, codes, config, progress=False)
    # the loss is a mean over triplets within the margin; it is their number that tells
    assert history[-1]["triplets"] < 0.5 * history[0]["triplets"]
    with torch.inference_mode():
        similarity = head(features) @ head(features).T
    same = codes[:, None] == codes[None, :]
    assert similarity[same].mean() > similarity[~same].mean() + 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "plan"},
        {"mining": "hard"},
        {"loss": "supcon"},
        {"loss": "infonce"},
        {"loss": "multi_similarity"},
        {"head": "plan", "mining": "hard", "embedding_dim": 128},
    ],
)
def test_every_choice_learns(settings: dict[str, object]) -> None:
    features, codes = _clusters(classes=5, photos=200)
    unseen = _people(100, seed=1)
    config = _config(epochs=20, learning_rate=3e-3, **settings)
    head, history = fit_head(features, codes, config, validation=unseen, progress=False)
    before = retrieval_metrics(unseen.features.numpy(), unseen.labels, unseen.users)["map_at_r"]
    assert history[-1]["validation_map_at_r"] > before + 0.1
    assert head.kind == config.head
    assert (history[0]["triplets"] is None) == (config.loss != "triplet")


def test_batches_are_p_classes_of_k_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    compute = fit_module.Objective.__call__

    def watched(objective: object, embeddings: torch.Tensor, codes: torch.Tensor) -> object:
        seen.append(codes)
        return compute(objective, embeddings, codes)

    monkeypatch.setattr(fit_module.Objective, "__call__", watched)
    features, codes = _clusters(classes=7, photos=140)
    fit_head(features, codes, _config(epochs=2, classes_per_batch=3), progress=False)
    assert len(seen) == 2 * (140 // 12)
    for batch in seen:
        assert sorted(batch.bincount()[batch.unique()].tolist()) == [4, 4, 4]


def test_fewer_classes_than_p_make_smaller_batches() -> None:
    features, codes = _clusters(classes=2, photos=40)
    _, history = fit_head(features, codes, _config(epochs=1), progress=False)
    assert history[0]["triplets"] > 0


def test_too_few_photos_for_a_batch_are_named() -> None:
    features, codes = _clusters(classes=5, photos=15)
    with pytest.raises(InputError, match="15 photos to train on are too few; one batch takes 20"):
        fit_head(features, codes, _config(), progress=False)


@pytest.mark.parametrize(("steps", "share"), [(100, 0.1), (37, 0.3), (5, 0.0), (1, 0.9)])
def test_the_schedule_is_the_usual_one(steps: int, share: float) -> None:
    """transformers' warmup starts from a rate of 0; ours skips that idle step."""
    config = _config(warmup_share=share, learning_rate=0.5)
    warmup = round(share * steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    reference = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    expected = []
    for _ in range(steps):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    ours = [learning_rate(step, steps, config) for step in range(steps)]
    ahead = [*expected[1 : warmup + 1], *expected[warmup:]] if warmup < steps else [0.5]
    assert ours == pytest.approx(ahead[:steps])
    assert max(ours) <= 0.5


def test_the_history_tells_each_epochs_rate() -> None:
    features, codes = _clusters(classes=5, photos=100)
    config = _config(warmup_share=0.5, epochs=4)
    _, history = fit_head(features, codes, config, progress=False)
    rates = [entry["learning_rate"] for entry in history]
    assert rates[0] < rates[1] == config.learning_rate > rates[2] > rates[3] > 0


# --- watching and selecting


def test_watching_changes_nothing() -> None:
    features, codes = _clusters(classes=5, photos=100)
    alone, _ = fit_head(features, codes, _config(), progress=False)
    watched, history = fit_head(
        features, codes, _config(), validation=_people(60, seed=2), progress=False
    )
    assert all(
        torch.equal(value, watched.state_dict()[n]) for n, value in alone.state_dict().items()
    )
    assert len({entry["validation_loss"] for entry in history}) > 1


def test_what_is_watched_is_what_the_head_gives() -> None:
    features, codes = _clusters(classes=5, photos=100)
    unseen = _people(60, seed=2)
    head, history = fit_head(features, codes, _config(), validation=unseen, progress=False)
    with torch.inference_mode():
        vectors = head(unseen.features).numpy()
    figures = retrieval_metrics(vectors, unseen.labels, unseen.users)
    assert history[-1]["validation_map_at_r"] == figures["map_at_r"]


def test_what_cannot_be_judged_is_null() -> None:
    features, codes = _clusters(classes=5, photos=100)
    one_class = LabelledFeatures(features[:4], ["class 0"] * 4, ["ann"] * 4)
    _, history = fit_head(features, codes, _config(epochs=1), validation=one_class, progress=False)
    assert history[0]["validation_loss"] is None
    assert history[0]["validation_map_at_r"] is None
    assert json.loads(json.dumps(history)) == history


def test_many_watched_photos_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "WATCHED_PHOTOS", 40)
    watched = fit_module._Watched(_people(200, seed=2), _config())
    again = fit_module._Watched(_people(200, seed=2), _config())
    assert len(watched._data.labels) == 40
    assert len(set(watched._data.users)) > 20
    assert torch.equal(watched._data.features, again._data.features)


def _guessers() -> LabelledFeatures:
    """People whose labels mean nothing: their figures go up and down."""
    people = _people(50, seed=3)
    mixed = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    return LabelledFeatures(people.features[mixed], people.labels, people.users)


def test_the_best_epoch_is_kept() -> None:
    features, codes = _clusters(classes=5, photos=100)
    judges = _guessers()
    config = _config(epochs=6, keep="best")
    head, history = fit_head(features, codes, config, selection=judges, progress=False)
    values = [entry["selection_map_at_r"] for entry in history]
    assert best_epoch(history) == 1 + int(np.argmax(values)) != 6
    with torch.inference_mode():
        vectors = head(judges.features).numpy()
    assert retrieval_metrics(vectors, judges.labels, judges.users)["map_at_r"] == max(values)


def test_patience_ends_a_training_that_does_not_improve() -> None:
    features, codes = _clusters(classes=5, photos=100)
    config = _config(epochs=50, patience_epochs=2)
    _, history = fit_head(features, codes, config, selection=_guessers(), progress=False)
    assert len(history) == best_epoch(history) + 2 < 50


def test_selecting_needs_someone_to_select_by() -> None:
    features, codes = _clusters(classes=5, photos=100)
    alone = LabelledFeatures(features[:4], ["class 0"] * 4, ["ann"] * 4)
    for selection in (None, alone):
        with pytest.raises(InputError, match="photos to select by"):
            fit_head(features, codes, _config(keep="best"), selection=selection, progress=False)


# --- repeating and resuming


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "plan", "mining": "hard"},
        {"keep": "best"},
        {"keep": "best", "patience_epochs": 2, "epochs": 30},
        {"checkpoint_every_epochs": 3, "keep": "best"},
    ],
)
def test_interrupted_after_any_epochs_it_ends_the_same(
    settings: dict[str, object], tmp_path: Path
) -> None:
    features, codes = _clusters(classes=5, photos=60)
    config = _config(**{"epochs": 4, "checkpoint_every_epochs": 1, **settings})
    watched = {"validation": _people(40, seed=2), "selection": _guessers()}
    head, history = fit_head(features, codes, config, **watched, progress=False)
    head.save(tmp_path / "whole")
    epochs = range(1, len(history) + 1)

    # once after each epoch, and after every epoch of one training
    for stops in [*([stop] for stop in epochs), list(epochs)]:
        checkpoint = tmp_path / f"{stops}.safetensors"
        pending = list(stops)

        def on_epoch(so_far: Sequence[object], pending: list[int] = pending) -> None:
            if pending and len(so_far) >= pending[0]:
                del pending[0]
                raise _Killed

        for _ in range(len(stops)):
            try:
                fit_head(
                    features,
                    codes,
                    config,
                    **watched,
                    checkpoint=checkpoint,
                    on_epoch=on_epoch,
                    progress=False,
                )
            except _Killed:
                torch.rand(7)  # the generators are elsewhere when the next process begins
                np.random.rand(7)
        resumed, same = fit_head(
            features, codes, config, **watched, checkpoint=checkpoint, progress=False
        )
        assert same == history
        resumed.save(tmp_path / "resumed")
        assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, codes = _clusters(classes=5, photos=100)
    config = _config(checkpoint_every_epochs=1)
    whole, history = fit_head(features, codes, config, progress=False)
    calls = itertools.count()

    def torn(descriptor: int) -> None:
        if next(calls) == 2:
            os.ftruncate(descriptor, 1000)
            raise _Killed

    monkeypatch.setattr(os, "fsync", torn)
    checkpoint = tmp_path / "latest.safetensors"
    with pytest.raises(_Killed):
        fit_head(features, codes, config, checkpoint=checkpoint, progress=False)
    epochs: list[int] = []
    resumed, same = fit_head(
        features,
        codes,
        config,
        checkpoint=checkpoint,
        on_epoch=lambda so_far: epochs.append(len(so_far)),
        progress=False,
    )
    assert epochs == [3, 4, 5]
    assert same == history
    assert all(torch.equal(v, resumed.state_dict()[n]) for n, v in whole.state_dict().items())


@pytest.mark.parametrize("damage", ["torn", "other head", "no checkpoint"])
def test_a_checkpoint_that_cannot_be_used_is_named(damage: str, tmp_path: Path) -> None:
    features, codes = _clusters(classes=5, photos=100)
    checkpoint = tmp_path / "latest.safetensors"
    fit_head(features, codes, _config(epochs=1), checkpoint=checkpoint, progress=False)
    if damage == "torn":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    elif damage == "no checkpoint":
        ProjectionHead(64, 256, 64).save(checkpoint)
    config = _config(hidden_dim=32) if damage == "other head" else _config()
    with pytest.raises(InputError, match=r"latest\.safetensors is damaged or of another head"):
        fit_head(features, codes, config, checkpoint=checkpoint, progress=False)


def test_a_seed_repeats_and_another_differs() -> None:
    features, codes = _clusters(classes=5, photos=100)
    histories = [
        fit_head(features, codes, _config(epochs=1, seed=seed), progress=False)[1]
        for seed in (0, 0, 1, 2**40)
    ]
    assert histories[0] == histories[1]
    assert histories[1] != histories[2] != histories[3]
