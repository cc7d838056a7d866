from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix

from vibematch.cli import main
from vibematch.photos import Photo
from vibematch_training.evaluation.evaluate import MAX_CLASSES, EvaluationSet, evaluate
from vibematch_training.evaluation.metrics import retrieve

SHOTS = ("Selfie_CloseUp", "Others_Cam")


def _set(
    labels: Sequence[str], users: Sequence[str], *, noise: float = 1.5, label: str = "style"
) -> EvaluationSet:
    """Raw features are noise; embeddings stand around a place of their class."""
    rng = np.random.default_rng(7)
    classes = sorted(set(labels))
    centres = np.eye(len(classes))[[classes.index(name) for name in labels]]
    photos = [
        Photo(Path(f"{user}_{i}.jpg"), user, i, {"style": name, "shot_type": SHOTS[i % 2]})
        for i, (name, user) in enumerate(zip(labels, users, strict=True))
    ]
    return EvaluationSet(
        photos,
        label,
        classes,
        rng.normal(size=(len(labels), 8)).astype(np.float32),
        (centres + noise * rng.normal(size=centres.shape) / len(classes)).astype(np.float32),
    )


def _styles(count: int, photos_per_user: int = 1) -> EvaluationSet:
    users = [f"u{i // photos_per_user:03d}" for i in range(count)]
    return _set([f"s{(i // photos_per_user) % 4}" for i in range(count)], users)


def test_intervals_equal_scipys_where_every_photo_has_its_own_user() -> None:
    data = _styles(120)
    results = evaluate(data, seed=0)
    found = retrieve(data.embeddings, data.labels, data.users)
    for name, values in (("recall_at_1", found.recall[1]), ("map_at_r", found.average_precision)):
        reference = stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=4000, random_state=1
        ).confidence_interval
        figures = results["trained_head"]
        assert figures[name] == pytest.approx(values.mean())
        assert figures["intervals"][name] == pytest.approx(list(reference), abs=0.015)


def test_users_are_resampled_not_photos() -> None:
    data = _styles(120, photos_per_user=4)
    interval = evaluate(data, seed=0)["trained_head"]["intervals"]["map_at_r"]
    values = retrieve(data.embeddings, data.labels, data.users).average_precision
    by_user = values.reshape(-1, 4).mean(axis=1)  # users of equal size: the mean of their means
    reference = stats.bootstrap(
        (by_user,), np.mean, method="percentile", n_resamples=4000, random_state=1
    ).confidence_interval
    assert interval == pytest.approx(list(reference), abs=0.015)


def test_the_difference_is_paired() -> None:
    data = _styles(60)
    same = EvaluationSet(data.photos, data.label, data.classes, data.embeddings, data.embeddings)
    difference = evaluate(same, seed=0)["difference"]
    assert all(interval == [0, 0] for interval in difference["intervals"].values())
    figures = evaluate(data, seed=0)
    for name in ("recall_at_5", "separation"):
        expected = figures["trained_head"][name] - figures["raw_backbone"][name]
        assert figures["difference"][name] == pytest.approx(expected)
        low, high = figures["difference"]["intervals"][name]
        assert low < figures["difference"][name] < high


def test_chance_is_that_of_a_random_order() -> None:
    labels = ["a"] * 6 + ["b"] * 3
    chance = evaluate(_set(labels, [str(i) for i in range(9)]), seed=0)["chance"]
    for k in (1, 5):
        missed = [math.comb(8 - relevant, k) / math.comb(8, k) for relevant in [5] * 6 + [2] * 3]
        assert chance[f"recall_at_{k}"] == pytest.approx(1 - np.mean(missed))
    assert chance["recall_at_10"] == 1  # there are eight others


def test_targets_are_met_by_a_perfect_embedding_and_missed_by_noise() -> None:
    data = _set(list("abcd") * 10, [str(i) for i in range(40)], noise=0)
    results = evaluate(data, seed=0)
    assert [target["met"] for target in results["targets"]] == [True] * 5
    assert results["trained_head"]["separation"] == pytest.approx(1)
    noise = EvaluationSet(data.photos, data.label, data.classes, data.features, data.features)
    assert not any(
        target["met"]
        for target in evaluate(noise, seed=0)["targets"]
        if target["figure"] in ("recall_at_1", "intra_class_distance", "separation")
    )


def test_confusion_equals_scikit_learns_and_classes_add_up() -> None:
    data = _styles(60, photos_per_user=2)
    results = evaluate(data, seed=0)
    found = retrieve(data.embeddings, data.labels, data.users)
    nearest = [data.labels[other] for other in found.neighbours[:, 0]]
    table = results["confusion"]["trained_head"]
    np.testing.assert_array_equal(table["counts"], confusion_matrix(data.labels, nearest))
    expected = confusion_matrix(data.labels, nearest, normalize="true")
    np.testing.assert_allclose(table["rates"], expected)
    for row, name in enumerate(data.classes):
        group = results["per_class"][name]
        assert group["trained_head"]["recall_at_1"] == pytest.approx(table["rates"][row][row])
        assert group["photos"] == sum(table["counts"][row])
        assert group["trained_head"]["nearest_class"] != name


def test_shot_types_add_up_to_the_whole() -> None:
    results = evaluate(_styles(60), seed=0)
    groups = results["per_shot_type"]
    assert list(groups) == sorted(SHOTS)
    mean = np.average(
        [group["trained_head"]["recall_at_1"] for group in groups.values()],
        weights=[group["photos"] for group in groups.values()],
    )
    assert results["trained_head"]["recall_at_1"] == pytest.approx(mean)


def test_the_result_is_json_without_nan_and_repeats() -> None:
    data = _styles(40)
    text = json.dumps(evaluate(data, seed=3), allow_nan=False)
    assert text == json.dumps(evaluate(data, seed=3), allow_nan=False)
    assert text != json.dumps(evaluate(data, seed=4), allow_nan=False)


def test_what_is_undefined_is_none() -> None:
    one_person = evaluate(_set(["a", "b", "a"], ["ann"] * 3), seed=0)
    json.dumps(one_person, allow_nan=False)
    assert one_person["queries"] == 0
    assert one_person["trained_head"]["recall_at_1"] is None
    assert one_person["trained_head"]["intervals"]["recall_at_1"] is None
    assert one_person["targets"][0] == {
        "figure": "recall_at_1",
        "comparison": ">=",
        "target": 0.6,
        "value": None,
        "met": False,
    }


def test_people_as_classes_have_no_tables_by_class() -> None:
    users = [f"u{i // 2}" for i in range(2 * (MAX_CLASSES + 1))]
    data = _set(users, users, label="user_id", noise=0.1)
    results = evaluate(data, seed=0)
    assert results["per_class"] == {}
    assert results["confusion"] is None
    assert results["trained_head"]["recall_at_1"] > 0.9
    assert results["trained_head"]["intra_class_distance"] < 0.1


# --- vibematch evaluate


@pytest.fixture(scope="module")
def run_folder(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may be written to."""
    copy = tmp_path_factory.mktemp("evaluate") / "run"
    ignored = shutil.ignore_patterns("export", "checkpoints", "report.html", "model_card.md")
    shutil.copytree(trained_run, copy, ignore=ignored)
    return copy


def _results(directory: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((directory / "evaluation_results.json").read_text())
    return results


def test_evaluating_a_run_again_gives_what_training_wrote(
    run_folder: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == _results(trained_run)
    for name in ("evaluation_results.json", "report.html", "model_card.md"):
        assert (run_folder / name).read_bytes() == (trained_run / name).read_bytes()


def test_other_photos_are_measured_beside_the_run_with_a_warning(
    run_folder: Path, sample_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    rows = (sample_photos / "metadata.csv").read_text().splitlines()
    kept = [row for row in rows[1:] if ",train," in row][:20] + rows[-20:]
    (other / "metadata.csv").write_text("\n".join([rows[0], *kept]) + "\n")
    for row in kept:
        name = row.split(",")[0]
        (other / name).write_bytes((sample_photos / name).read_bytes())
    before = (run_folder / "evaluation_results.json").read_bytes()
    assert main(["evaluate", str(run_folder), "--photos", str(other)]) == 0
    captured = capsys.readouterr()
    assert "have ids that were trained on" in captured.err
    assert "Recall@1" in captured.out
    results = _results(run_folder / "evaluation-other")
    assert results["photos"] == results["data"]["validation"]["photos"] == 40
    assert results["train_photos"] == _results(run_folder)["train_photos"]
    assert "have ids that were trained on" in results["caution"]
    assert (run_folder / "evaluation-other" / "report.html").is_file()
    assert (run_folder / "evaluation_results.json").read_bytes() == before


def test_photos_without_the_runs_label_are_refused(
    run_folder: Path, digit_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_folder), "--photos", str(digit_photos)]) != 0
    assert "has the label 'fashion_style'" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path)]) != 0
    assert "is not a finished run" in capsys.readouterr().err


def test_training_photos_that_are_gone_are_named(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    config = (copy / "config.yaml").read_text().splitlines()
    config = [line if not line.startswith("photos:") else "photos: /gone" for line in config]
    (copy / "config.yaml").write_text("\n".join(config))
    assert main(["evaluate", str(copy)]) != 0
    assert "is gone; restore it, or measure on other photos" in capsys.readouterr().err


def test_photos_that_changed_since_training_are_not_measured_as_if_held_out(
    tmp_path: Path, sample_photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A split drawn again after the folder grew would hold out people who were trained on."""
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    with (sample_photos / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name != "split"]
    for row in rows[:80]:
        (photos / row["filename"]).symlink_to(sample_photos / row["filename"])

    def describe(count: int) -> None:
        with (photos / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows[:count])

    describe(60)
    assert main(["train", str(photos), "--out", str(run), "--epochs", "1"]) == 0
    before = (run / "evaluation_results.json").read_bytes()
    assert main(["evaluate", str(run)]) == 0
    describe(80)
    capsys.readouterr()
    assert main(["evaluate", str(run)]) != 0
    assert "is no longer what" in capsys.readouterr().err
    assert (run / "evaluation_results.json").read_bytes() == before
    assert main(["evaluate", str(run), "--photos", str(photos)]) == 0
    assert "cannot be checked" in capsys.readouterr().err


def test_damaged_results_are_named(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    (copy / "evaluation_results.json").write_text("{")
    assert main(["evaluate", str(copy)]) != 0
    assert "evaluation_results.json is missing or damaged" in capsys.readouterr().err
