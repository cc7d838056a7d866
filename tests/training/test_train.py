from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from vibematch.errors import InputError
from vibematch_training import train as train_module
from vibematch_training.run import TrainedRun, TrainingConfig
from vibematch_training.train import fit_head, train


def _clusters(classes: int, photos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that differ in a few of many noisy channels."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.arange(photos) % classes
    centres = torch.randn(classes, 64, generator=generator)
    centres[:, 8:] = 0
    return centres[codes] + torch.randn(photos, 64, generator=generator), codes


def _config(**settings: object) -> TrainingConfig:
    return TrainingConfig(**{"photos": "unused", "hidden_dim": 64, "epochs": 5, **settings})


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


def test_every_mined_triplet_is_semi_hard(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    mine = train_module.TripletMarginMiner.forward

    def watched(miner: object, embeddings: torch.Tensor, *rest: object) -> object:
        triplets = mine(miner, embeddings, *rest)
        seen.append((embeddings.detach(), triplets))
        return triplets

    monkeypatch.setattr(train_module.TripletMarginMiner, "forward", watched)
    features, codes = _clusters(classes=5, photos=100)
    fit_head(features, codes, _config(epochs=1), progress=False)
    checked = 0
    for embeddings, (anchors, positives, negatives) in seen:
        assert len(embeddings) == 20  # P = 5 classes x K = 4 photos
        near = (embeddings[anchors] * embeddings[positives]).sum(dim=1)
        far = (embeddings[anchors] * embeddings[negatives]).sum(dim=1)
        assert (far < near).all() and (near - far <= 0.3 + 1e-6).all()
        checked += len(anchors)
    assert checked > 100


def test_fewer_classes_than_p_make_smaller_batches() -> None:
    features, codes = _clusters(classes=2, photos=40)
    _, history = fit_head(features, codes, _config(epochs=1), progress=False)
    assert history[0]["triplets"] > 0


def test_the_same_seed_gives_the_same_run(trained_run: Path, tmp_path: Path) -> None:
    config = TrainedRun.load(trained_run).config
    train(config, tmp_path / "again", progress=False)
    for name in ("head.safetensors", "metrics.jsonl", "evaluation_results.json", "config.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (trained_run / name).read_bytes()
    other = dataclasses.replace(config, seed=1, epochs=1)
    train(other, tmp_path / "other", progress=False)
    first, second = TrainedRun.load(trained_run), TrainedRun.load(tmp_path / "other")
    assert first.manifest.fingerprint != second.manifest.fingerprint


def test_the_head_beats_the_raw_backbone_on_people_it_has_not_seen(trained_run: Path) -> None:
    results = TrainedRun.load(trained_run).results()
    raw, trained = results["raw_backbone"], results["trained_head"]
    assert results["validation_photos"] == 98
    assert trained["recall_at_1"] >= raw["recall_at_1"] + 0.1
    assert trained["recall_at_1"] >= 0.5
    assert trained["map_at_r"] > raw["map_at_r"]


def test_the_run_folder_tells_the_whole_story(trained_run: Path, sample_photos: Path) -> None:
    run = TrainedRun.load(trained_run)
    assert run.config.photos == str(sample_photos)
    assert run.manifest.labels == {"fashion_style": run.results()["classes"]}
    assert len(run.manifest.labels["fashion_style"]) == 5
    lines = (trained_run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 21))
    assert run.load_backbone().sha256 == run.manifest.backbone_sha256


def test_a_head_that_was_replaced_is_refused(trained_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns("export"))
    weights = copy / "head.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="is not the head"):
        TrainedRun.load(copy)


def test_too_few_photos_for_a_batch_are_named(sample_photos: Path, tmp_path: Path) -> None:
    config = _config(photos=str(sample_photos), photos_per_class=200)
    with pytest.raises(InputError, match="one batch takes 1000"):
        train(config, tmp_path / "run", progress=False)


def test_an_existing_run_is_never_overwritten(trained_run: Path) -> None:
    before = (trained_run / "head.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        train(_config(), trained_run)
    assert (trained_run / "head.safetensors").read_bytes() == before


def test_a_failed_training_leaves_nothing(
    sample_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module.ProjectionHead, "save", fails)
    with pytest.raises(KeyboardInterrupt):
        train(_config(photos=str(sample_photos), epochs=1), tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_that_changed_since_is_refused(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainedRun.load(trained_run)
    stale = dataclasses.replace(run.manifest, backbone_sha256="0" * 64)
    with pytest.raises(InputError, match="not the one this head was trained on"):
        dataclasses.replace(run, manifest=stale).load_backbone()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_papers_targets_on_the_whole_sample(seed: int, tmp_path: Path) -> None:
    """1,508 training and 98 validation photos: R@1 >= 0.60, R@5 >= 0.80, raw far below."""
    from vibematch_training.sample_photos import write_sample_photos

    write_sample_photos(tmp_path / "photos", seed=seed, progress=False)
    results = train(TrainingConfig(str(tmp_path / "photos"), seed=seed), tmp_path / "run")
    assert results["trained_head"]["recall_at_1"] >= 0.60
    assert results["trained_head"]["recall_at_5"] >= 0.80
    assert results["raw_backbone"]["recall_at_1"] <= results["trained_head"]["recall_at_1"] - 0.15
