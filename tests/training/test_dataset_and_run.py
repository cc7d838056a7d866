from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vibematch.errors import InputError
from vibematch.photos import Photo
from vibematch_training.dataset import build_dataset
from vibematch_training.run import TrainedRun, TrainingConfig, parse_size


def _photo(user: int, idx: int = 0, **labels: str) -> Photo:
    return Photo(Path(f"user_{user}_{idx}.jpg"), f"user_{user}", idx, labels)


def test_the_split_column_decides() -> None:
    photos = [
        _photo(user, style="ab"[user % 2], split="validation" if user > 5 else "train")
        for user in range(8)
    ]
    dataset = build_dataset(photos, "style", seed=0)
    assert [photo.user_id for photo in dataset.validation] == ["user_6", "user_7"]
    assert len(dataset.train) == 6


def test_low_quality_is_dropped_from_training_only() -> None:
    photos = [
        _photo(
            user,
            style="ab"[user % 2],
            split="validation" if user > 5 else "train",
            visual_quality="Low" if user in (0, 7) else "High",
        )
        for user in range(8)
    ]
    dataset = build_dataset(photos, "style", seed=0)
    assert "user_0" not in {photo.user_id for photo in dataset.train}
    assert "user_7" in {photo.user_id for photo in dataset.validation}
    assert dataset.dropped == {"unlabelled": 0, "low quality": 1}


@settings(max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=10, max_size=60), st.integers(0, 1000))
def test_without_one_users_are_held_out_whole(counts: list[int], seed: int) -> None:
    photos = [
        _photo(user, idx, style="ab"[user % 2])
        for user, count in enumerate(counts)
        for idx in range(count)
    ]
    dataset = build_dataset(photos, "style", seed)
    train = {photo.user_id for photo in dataset.train}
    held_out = {photo.user_id for photo in dataset.validation}
    assert train and held_out and not train & held_out
    assert len(dataset.train) + len(dataset.validation) == len(photos)
    assert build_dataset(photos, "style", seed) == dataset


def test_a_user_on_both_sides_is_refused() -> None:
    photos = [_photo(user, style="ab"[user % 2], split="train") for user in range(4)]
    with pytest.raises(InputError, match=r"both splits, e\.g\. user_1"):
        build_dataset([*photos, _photo(1, 1, style="b", split="validation")], "style", 0)


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ([_photo(0, mood="calm")], "no photo has the label 'style'; metadata.csv has mood"),
        ([_photo(0)], "no label columns"),
        ([_photo(user, style="a", split="train") for user in range(9)], "at least two classes"),
        ([_photo(user, style="ab"[user % 2]) for user in range(3)], "too few to hold a fifth"),
        ([_photo(user, style="ab"[user % 2], split="train") for user in range(9)], "no photo as"),
        ([_photo(user, style="a", split="test") for user in range(9)], "must be train or validat"),
    ],
)
def test_unusable_labels_are_named(photos: list[Photo], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_dataset(photos, "style", 0)


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = TrainingConfig("사진", label="digit", height=512, width=384, epochs=3)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert TrainingConfig.from_yaml(tmp_path / "config.yaml") == config
    assert TrainingConfig.from_yaml(tmp_path / "config.yaml", epochs=9).epochs == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\nmargins: 1", "unknown setting.s. epoch, margins"),
        ("- 3", "must hold settings"),
        ("a: [", "cannot be read as YAML"),
        ("photos: x\nepochs: many", "epochs must be of type int, got 'many'"),
        ("photos: x\nweight_decay: 1e-2", "weight_decay must be of type float, got '1e-2'"),
        ("photos: x\nepochs: 20.5", "epochs must be of type int"),
        ("photos: x\ndropout: 2", "dropout must be in"),
        ("epochs: 3", "incomplete .*photos"),
        ("photos: x\nepochs: 0", "epochs must be positive"),
        ("photos: x\nheight: 100", "canvas height must be a positive multiple of 32, got 100"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        TrainingConfig.from_yaml(tmp_path / "c.yaml")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a finished run \(no config.yaml"):
        TrainedRun.load(tmp_path)


def test_size() -> None:
    assert parse_size("512x384") == (512, 384)
    for wrong in ("512", "512x", "axb", "-32x32"):
        with pytest.raises(InputError, match="size must look like"):
            parse_size(wrong)
