from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vibematch.cli import main
from vibematch.errors import InputError, ManifestError, VibematchError
from vibematch.photos import Photo
from vibematch_training import train as train_module
from vibematch_training.dataset import hold_out_people, load_dataset
from vibematch_training.files import FolderLock
from vibematch_training.fit import best_epoch
from vibematch_training.head import ProjectionHead
from vibematch_training.run import PAPER, TrainedRun, TrainingConfig
from vibematch_training.train import Parts, train

COMPARED = ("config.yaml", "head.safetensors", "metrics.jsonl", "evaluation_results.json")


@pytest.fixture(scope="module")
def photos(sample_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 120 training and 40 validation photos, whose features are known already."""
    folder = tmp_path_factory.mktemp("few")
    with (sample_photos / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [row for row in rows if row["split"] == "train"][:120]
    chosen += [row for row in rows if row["split"] == "validation"][:40]
    _write_csv(folder, [{**row, "filepath": sample_photos / row["filepath"]} for row in chosen])
    return folder


def _write_csv(folder: Path, rows: list[dict[str, object]]) -> None:
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _config(photos: Path, **settings: object) -> TrainingConfig:
    few = {"hidden_dim": 64, "epochs": 4, "checkpoint_every_epochs": 2, "selection_share": 0.2}
    return TrainingConfig(str(photos), **{**PAPER, **few, **settings})


def _history(run: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run that keeps the best epoch."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(_config(photos, keep="best"), out, tensorboard=True, progress=False)
    return out


# --- a whole run


def test_the_head_beats_the_raw_backbone_on_people_it_has_not_seen(trained_run: Path) -> None:
    results = TrainedRun.load(trained_run).results()
    raw, trained = results["raw_backbone"], results["trained_head"]
    assert results["validation_photos"] == 60
    assert trained["recall_at_1"] >= raw["recall_at_1"] + 0.1
    assert trained["recall_at_1"] >= 0.5
    assert trained["map_at_r"] > raw["map_at_r"]


def test_the_run_folder_tells_the_whole_story(trained_run: Path, sample_photos: Path) -> None:
    run = TrainedRun.load(trained_run)
    assert run.config.photos == str(sample_photos)
    assert run.manifest.labels == {"fashion_style": run.results()["classes"]}
    assert len(run.manifest.labels["fashion_style"]) == 5
    assert [entry["epoch"] for entry in _history(trained_run)] == list(range(1, 21))
    last = _history(trained_run)[-1]
    assert last["validation_map_at_r"] == pytest.approx(run.results()["trained_head"]["map_at_r"])


def test_choices_are_told_in_the_manifest_and_people_are_not(photos: Path, tmp_path: Path) -> None:
    with (photos / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    _write_csv(tmp_path, [*rows[:30], *rows[-10:]])
    config = _config(tmp_path, head="plan", mining="hard", embedding_dim=128, pooling="image")
    config = dataclasses.replace(config, label="user_id")
    results = train(config, tmp_path / "run", progress=False)
    run = TrainedRun.load(tmp_path / "run")
    assert (run.manifest.head, run.manifest.pooling) == ("plan", "image")
    assert (run.head.kind, run.manifest.embedding_dim) == ("plan", 128)
    assert run.manifest.labels == {}
    for published in ("manifest.json", "model_card.md"):
        text = (tmp_path / "run" / published).read_text(encoding="utf-8")
        assert not [user for user in results["classes"] if user in text]


def test_the_recipe_is_what_the_manifest_says(trained_run: Path) -> None:
    run = TrainedRun.load(trained_run)
    backbone = run.load_backbone(torch.bfloat16, "cpu")
    assert backbone.sha256 == run.manifest.backbone_sha256
    assert backbone.model.dtype == torch.bfloat16
    manifest = dataclasses.replace(run.manifest, pooling="image", prompt="Describe the room.")
    recipe = dataclasses.replace(run, manifest=manifest).recipe(backbone)
    assert (recipe.pooling, recipe.prompt) == ("image", "Describe the room.")
    newer = dataclasses.replace(run.manifest, pooling="attention")
    with pytest.raises(ManifestError, match=r"manifest\.json has pooling 'attention'; .* upgrade"):
        dataclasses.replace(run, manifest=newer).recipe(backbone)


def test_a_head_that_was_replaced_is_refused(trained_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns("export"))
    weights = copy / "head.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="is not the head"):
        TrainedRun.load(copy)


def test_a_backbone_that_changed_since_is_refused(trained_run: Path) -> None:
    run = TrainedRun.load(trained_run)
    stale = dataclasses.replace(run.manifest, backbone_sha256="0" * 64)
    with pytest.raises(InputError, match="not the one this head was trained on"):
        dataclasses.replace(run, manifest=stale).load_backbone()


def test_what_cannot_be_trained_makes_no_folder(photos: Path, tmp_path: Path) -> None:
    wrong = [
        ({"photos_per_class": 200}, "one batch takes 1000"),
        ({"label": "nonsense"}, "nonsense: no photo has this label"),
        ({"backbone": "./nowhere"}, "no checkpoint folder"),
        ({"extractor": str(tmp_path / "nowhere")}, "nowhere"),
    ]
    for settings, message in wrong:
        with pytest.raises(VibematchError, match=message):
            train(_config(photos, **settings), tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_curves_for_tensorboard(whole: Path) -> None:
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    history = _history(whole)
    for name in ("loss", "triplets", "learning_rate", "validation_loss", "validation_map_at_r"):
        drawn = [(event.step, event.value) for event in events.Scalars(name)]
        assert drawn == [(entry["epoch"], pytest.approx(entry[name])) for entry in history]


def test_tensorboard_that_is_missing_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[tensorboard\]'"):
        train(_config(photos), tmp_path / "run", tensorboard=True, progress=False)
    assert list(tmp_path.iterdir()) == []


# --- who selects


def _photo(user: int, idx: int, style: str, *, generated: bool = False) -> Photo:
    name = f"gen_{user}{idx}" if generated else f"user_{user}_{idx}"
    return Photo(Path(f"{name}.jpg"), f"user_{user}", idx, {"style": style})


def test_people_are_held_out_whole_and_by_class() -> None:
    photos = [_photo(user, idx, "abcde"[user % 5]) for user in range(100) for idx in range(3)]
    photos += [_photo(user, 9, "abcde"[user % 5], generated=True) for user in range(100)]
    kept, held_out = hold_out_people(photos, "style", 0.1, seed=3)
    assert not {photo.user_id for photo in kept} & {photo.user_id for photo in held_out}
    assert Counter(photo.labels["style"] for photo in held_out) == dict.fromkeys("abcde", 6)
    assert not any(photo.generated for photo in held_out)
    assert sum(photo.generated for photo in kept) == 90
    assert (kept, held_out) == hold_out_people(photos, "style", 0.1, seed=3)
    assert held_out != hold_out_people(photos, "style", 0.1, seed=4)[1]


def test_too_few_people_to_hold_out_are_named() -> None:
    photos = [_photo(user, idx, "ab"[user % 2]) for user in range(8) for idx in range(20)]
    with pytest.raises(
        InputError, match="160 photos of 8 people to train on are too few to hold 10%"
    ):
        hold_out_people(photos, "style", 0.1, seed=0)


def test_held_out_people_who_share_no_class_cannot_judge() -> None:
    photos = [_photo(user, idx, "abcde"[user % 5]) for user in range(50) for idx in range(3)]
    with pytest.raises(
        InputError, match=r"5 of 50 people .* no two of them share a class of style"
    ):
        hold_out_people(photos, "style", 0.1, seed=0)
    assert hold_out_people(photos, "user_id", 0.1, seed=0)[1]  # each has photos to find


def test_nothing_is_selected_on_the_people_who_are_reported(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    config, results = _config(photos, keep="best"), TrainedRun.load(whole).results()
    dataset = load_dataset(photos, config.label, config.seed)
    parts = Parts.of(dataset, config)
    groups = [
        {photo.user_id for photo in part}
        for part in (parts.train, parts.selection, parts.validation)
    ]
    assert not groups[0] & groups[1] and not groups[1] & groups[2] and not groups[0] & groups[2]
    assert results["selection_photos"] == len(parts.selection) > 0
    assert results["train_photos"] == len(parts.train) == len(dataset.train) - len(parts.selection)
    assert results["kept_epoch"] == best_epoch(_history(whole))
    # other validation people, the same head
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    with (photos / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    judged = [row for row in rows if row["split"] == "validation"]
    _write_csv(swapped, [row for row in rows if row["split"] == "train"] + judged[:20])
    train(dataclasses.replace(config, photos=str(swapped)), tmp_path / "other", progress=False)
    heads = [(run / "head.safetensors").read_bytes() for run in (whole, tmp_path / "other")]
    assert heads[0] == heads[1]


# --- resuming


class _Killed(BaseException):
    pass


def _kill_when(monkeypatch: pytest.MonkeyPatch, name: str, owner: object = train_module) -> None:
    """The next call of a function ends the training as a kill would: nothing is cleaned up."""
    original = getattr(owner, name)

    def kill(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr(owner, name, original)
        raise _Killed

    monkeypatch.setattr(owner, name, kill)


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("fit_head", train_module),
        ("save", ProjectionHead),
        ("write_evaluation", train_module),
    ],
)
def test_killed_at_any_stage_it_ends_the_same(
    name: str,
    owner: object,
    whole: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = _config(photos, keep="best"), tmp_path / "run"
    _kill_when(monkeypatch, name, owner)
    with pytest.raises(_Killed):
        train(config, out, progress=False)
    with pytest.raises(InputError, match="not finished"):
        train(config, out, progress=False)
    with pytest.raises(InputError, match=r"not a finished run .*--resume"):
        TrainedRun.load(out)
    train(config, out, resume=True, progress=False)
    for file in COMPARED:
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert not list(out.rglob("*.partial"))


def test_a_finished_run_is_left_alone(whole: Path, photos: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="exists already, a finished run"):
        train(_config(photos, keep="best"), whole)
    results = train(_config(photos, keep="best"), whole, resume=True)
    assert results == TrainedRun.load(whole).results()
    with pytest.raises(InputError, match="epochs was 4, not 9"):
        train(_config(photos, keep="best", epochs=9), whole, resume=True)
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert after == before


def test_resuming_nothing_begins_and_the_same_seed_gives_the_same_run(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    train(_config(photos, keep="best"), tmp_path, resume=True, progress=False)
    for name in COMPARED:
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_a_folder_of_something_else_is_not_touched(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with pytest.raises(InputError, match="is not a run folder"):
            train(_config(photos), tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture
def begun(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a copy of the photos' CSV, killed after its features were made."""
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    _kill_when(monkeypatch, "fit_head")
    with pytest.raises(_Killed):
        train(_config(copy), tmp_path / "run", progress=False)
    return tmp_path / "run"


def test_other_settings_are_named(begun: Path) -> None:
    config = TrainingConfig.from_yaml(begun / "config.yaml")
    other = dataclasses.replace(config, epochs=9, head="plan", margin=0.2)
    with pytest.raises(InputError) as error:
        train(other, begun, resume=True, progress=False)
    for words in ("head was 'paper', not 'plan'", "margin was 0.3, not 0.2", "epochs was 4, not 9"):
        assert words in str(error.value)


@pytest.mark.parametrize("change", ["label", "photo"])
def test_other_photos_are_refused(begun: Path, change: str) -> None:
    config = TrainingConfig.from_yaml(begun / "config.yaml")
    folder = Path(config.photos)
    with (folder / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if change == "label":
        rows[0]["fashion_style"] = rows[1]["fashion_style"] = next(
            row["fashion_style"] for row in rows if row["fashion_style"] != rows[0]["fashion_style"]
        )
    else:
        content = Path(rows[0]["filepath"]).read_bytes()
        changed = folder / rows[0]["filename"]
        changed.write_bytes(content + b"\0")
        rows[0]["filepath"] = str(changed)
    _write_csv(folder, rows)
    with pytest.raises(InputError, match=r"other photos: files or labels in .* changed"):
        train(config, begun, resume=True, progress=False)


def test_another_backbone_is_refused(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = train_module.load_backbone

    def changed(source: str) -> object:
        return dataclasses.replace(load(source), sha256="0" * 64)

    monkeypatch.setattr(train_module, "load_backbone", changed)
    config = TrainingConfig.from_yaml(begun / "config.yaml")
    monkeypatch.setattr(train_module.FeatureTable, "extract", lambda *a, **k: None)
    with pytest.raises(InputError, match="the files of backbone tiny changed"):
        train(config, begun, resume=True, progress=False)


def test_two_processes_do_not_train_one_run(begun: Path) -> None:
    config = TrainingConfig.from_yaml(begun / "config.yaml")
    with FolderLock(begun), pytest.raises(InputError, match="another vibematch is working"):
        train(config, begun, resume=True, progress=False)


# --- the command, killed by the operating system


def _start(photos: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vibematch", "train", str(photos), "--out", str(out)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [*command, "--json", *options],
        env={**os.environ, **threads},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _kill(process: subprocess.Popen[bytes], when: Callable[[], bool]) -> None:
    """Send SIGKILL as soon as something is so."""
    deadline_s = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def _lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def _kill_and_resume(
    config: TrainingConfig, out: Path, whole: Path, kills: list[Callable[[], bool]]
) -> None:
    train(config, whole, progress=False)
    settings = whole.with_suffix(".yaml")
    settings.write_text(config.to_yaml())
    for when in kills:
        _kill(_start(Path(config.photos), out, "--resume", "--config", str(settings)), when)
        assert not (out / "manifest.json").exists()
    # the settings come from the run folder
    assert main(["train", config.photos, "--out", str(out), "--resume"]) == 0
    for file in COMPARED:
        assert (out / file).read_bytes() == (whole / file).read_bytes()


def test_a_killed_process_resumes_to_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    config = _config(photos, hidden_dim=512, epochs=15)
    metrics = tmp_path / "run" / "metrics.jsonl"
    kills = [lambda: _lines(metrics) >= 3]
    _kill_and_resume(config, tmp_path / "run", tmp_path / "whole", kills)


@pytest.mark.slow
def test_however_often_it_is_killed(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    metrics, checkpoints = out / "metrics.jsonl", out / "checkpoints"
    kills: list[Callable[[], bool]] = [
        out.exists,
        (out / "config.yaml").exists,
        (out / "inputs.json").exists,
        lambda: _lines(metrics) >= 1,
        (checkpoints / ".latest.safetensors.partial").exists,
        lambda: _lines(metrics) >= 11,
        lambda: _lines(metrics) >= 16,
        lambda: _lines(metrics) >= 29,
        (out / "head.safetensors").exists,
    ]
    config = _config(photos, hidden_dim=2048, epochs=30, keep="best")
    _kill_and_resume(config, out, tmp_path / "whole", kills)


@pytest.mark.slow
def test_an_exported_graph_extracts_the_same_features(
    trained_run: Path, exported_model: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        TrainedRun.load(trained_run).config, extractor=str(exported_model), epochs=2
    )
    train(config, tmp_path / "graph", progress=False)
    train(dataclasses.replace(config, extractor=""), tmp_path / "reference", progress=False)
    for ours, theirs in zip(
        _history(tmp_path / "graph"), _history(tmp_path / "reference"), strict=True
    ):
        assert ours["validation_map_at_r"] == pytest.approx(theirs["validation_map_at_r"], abs=0.01)
    wrong = dataclasses.replace(config, pooling="last")
    with pytest.raises(InputError, match="pooling"):
        train(wrong, tmp_path / "wrong", progress=False)
