from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vibematch.errors import InputError
from vibematch.photos import Photo
from vibematch_training.dataset import (
    build_dataset,
    check_labels,
    class_of,
    load_dataset,
)
from vibematch_training.schema import CATEGORIES, USER_LABEL

NOTHING_DROPPED = {
    "unlabelled": 0,
    "generated from validation": 0,
    "generated of an unknown person": 0,
    "low quality": 0,
    "only photo of its user": 0,
    "undersampled": 0,
}


def _photo(user: int, idx: int = 0, line: int | None = None, **labels: str) -> Photo:
    return Photo(Path(f"d/user_{user}_{idx}.jpg"), f"user_{user}", idx, labels, line)


def _generated(idx: int, user_id: str, **labels: str) -> Photo:
    return Photo(Path(f"d/gen_{idx}.jpg"), user_id, 0, labels)


def _users(photos: list[Photo]) -> set[str]:
    return {photo.user_id for photo in photos}


# --- selection and split


def test_the_split_column_decides() -> None:
    photos = [
        _photo(user, style="ab"[user % 2], split="validation" if user > 5 else "train")
        for user in range(8)
    ]
    dataset = build_dataset(photos, "style", seed=0)
    assert [photo.user_id for photo in dataset.validation] == ["user_6", "user_7"]
    assert len(dataset.train) == 6
    assert dataset.dropped == NOTHING_DROPPED


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
    dataset = build_dataset([*photos, _photo(9)], "style", seed=0)
    assert "user_0" not in _users(dataset.train)
    assert "user_7" in _users(dataset.validation)
    assert dataset.dropped == {**NOTHING_DROPPED, "unlabelled": 1, "low quality": 1}


def test_classes_are_those_of_both_sides() -> None:
    """So that every photo has an integer code, also one of a class nobody trains on."""
    photos = [_photo(user, style="ba"[user % 2], split="train") for user in range(4)]
    dataset = build_dataset([*photos, _photo(5, style="c", split="validation")], "style", 0)
    assert dataset.classes == ["a", "b", "c"]


users = st.lists(
    st.tuples(
        st.integers(1, 4), st.sampled_from("aaabbc"), st.sampled_from(["High", "High", "Low"])
    ),
    min_size=10,
    max_size=60,
)


def _people(drawn: list[tuple[int, str, str]]) -> list[Photo]:
    return [
        _photo(user, idx, style=style, visual_quality=quality)
        for user, (count, style, quality) in enumerate(drawn)
        for idx in range(count)
    ]


def _trainable(photos: list[Photo], label: str) -> set[str | None]:
    return {class_of(p, label) for p in photos if p.labels.get("visual_quality") != "Low"}


@settings(max_examples=60, deadline=None)
@given(users, st.integers(0, 1000), st.booleans())
def test_users_are_held_out_whole(
    drawn: list[tuple[int, str, str]], seed: int, undersample: bool
) -> None:
    photos = _people(drawn)
    try:
        dataset = build_dataset(photos, "style", seed, undersample=undersample)
    except InputError:  # nothing to learn from, or nobody to spare
        owners = defaultdict(set)
        for photo in photos:
            owners[photo.labels["style"]].add(photo.user_id)
        counts = Counter(photo.labels["style"] for photo in photos)
        assert (
            len(_trainable(photos, "style")) < 2
            or max(counts.values()) < 5
            or min(map(len, owners.values())) < 3
        )
        return
    assert dataset.train and dataset.validation
    assert not _users(dataset.train) & _users(dataset.validation)
    # every class that can be trained on still is
    assert {photo.labels["style"] for photo in dataset.train} == _trainable(photos, "style")
    kept = len(dataset.train) + len(dataset.validation)
    assert kept + sum(dataset.dropped.values()) == len(photos)
    # and nothing is left to chance
    assert build_dataset(photos, "style", seed, undersample=undersample) == dataset


@given(st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_a_fifth_of_each_class_is_held_out(seed: int) -> None:
    photos = [
        _photo(user, idx, style="aabbbcccccc"[user % 11])
        for user in range(220)
        for idx in range(1 + user % 3)
    ]
    dataset = build_dataset(photos, "style", seed)
    everyone = Counter(photo.labels["style"] for photo in photos)
    held_out = Counter(photo.labels["style"] for photo in dataset.validation)
    for name, count in everyone.items():
        assert held_out[name] / count == pytest.approx(0.2, abs=0.05)


def test_a_class_of_one_user_is_trained_on() -> None:
    photos = [_photo(user, style="ab"[user % 2]) for user in range(20)]
    rare = [_photo(100, idx, style="rare") for idx in range(6)]
    for seed in range(20):
        dataset = build_dataset([*photos, *rare], "style", seed)
        assert "user_100" in _users(dataset.train)


# --- people as classes


@settings(max_examples=40, deadline=None)
@given(users, st.integers(0, 1000))
def test_by_user_everyone_kept_has_a_second_photo(
    drawn: list[tuple[int, str, str]], seed: int
) -> None:
    photos = _people(drawn)
    try:
        dataset = build_dataset(photos, USER_LABEL, seed)
    except InputError:
        pairs = Counter(p.user_id for p in photos if p.labels["visual_quality"] != "Low")
        assert sum(count > 1 for count in pairs.values()) <= len(drawn) * 0.6
        return
    assert not _users(dataset.train) & _users(dataset.validation)
    for side in (dataset.train, dataset.validation):
        assert min(Counter(photo.user_id for photo in side).values()) >= 2
    assert dataset.classes == sorted(_users(dataset.train) | _users(dataset.validation))
    kept = len(dataset.train) + len(dataset.validation)
    assert kept + sum(dataset.dropped.values()) == len(photos)


def test_by_user_needs_pairs() -> None:
    with pytest.raises(InputError, match=r"at least two users of two photos .*found none"):
        build_dataset([_photo(user) for user in range(30)], USER_LABEL, 0)


# --- undersampling


@settings(max_examples=60, deadline=None)
@given(users, st.integers(0, 100))
def test_undersampling_keeps_as_many_users_as_it_can(
    drawn: list[tuple[int, str, str]], seed: int
) -> None:
    photos = [
        Photo(p.path, p.user_id, p.image_idx, {"style": p.labels["style"], "split": "train"})
        for p in _people(drawn)
    ]
    photos.append(_photo(900, style="a", split="validation"))
    if len({style for _, style, _ in drawn}) < 2:
        return
    everything = build_dataset(photos, "style", seed).train
    dataset = build_dataset(photos, "style", seed, undersample=True)
    least = min(Counter(photo.labels["style"] for photo in everything).values())
    for style in dataset.classes:
        before = [photo for photo in everything if photo.labels["style"] == style]
        after = [photo for photo in dataset.train if photo.labels["style"] == style]
        assert len(after) == least
        assert len(_users(after)) == min(least, len(_users(before)))
    assert dataset.dropped["undersampled"] == len(everything) - len(dataset.train)
    order = [everything.index(photo) for photo in dataset.train]
    assert order == sorted(order)


def test_undersampling_prefers_real_photos() -> None:
    real = [_photo(user, style="a", split="train") for user in range(3)]
    copies = [_generated(n, f"user_{n % 3}", style="a", split="train") for n in range(9)]
    other = [_photo(10 + user, style="b", split="train") for user in range(3)]
    held_out = [_photo(20, style="a", split="validation")]
    for seed in range(5):
        dataset = build_dataset(
            [*copies, *real, *other, *held_out], "style", seed, undersample=True
        )
        assert not any(photo.generated for photo in dataset.train)


def test_the_seed_decides_who_stays() -> None:
    photos = [
        _photo(user, style="aaab"[user % 4], split="train" if user < 60 else "validation")
        for user in range(80)
    ]
    chosen = {
        tuple(p.path for p in build_dataset(photos, "style", seed, undersample=True).train)
        for seed in range(3)
    }
    assert len(chosen) == 3


# --- generated photos


@settings(max_examples=60, deadline=None)
@given(users, st.integers(0, 1000), st.data())
def test_generated_photos_never_show_who_is_held_out(
    drawn: list[tuple[int, str, str]], seed: int, data: st.DataObject
) -> None:
    """Whatever their rows say about user, source and split."""
    photos = _people(drawn)
    names = [photo.path.name for photo in photos] + ["gone.jpg", "gen_0.jpg", "gen_1.jpg"]
    for idx in range(data.draw(st.integers(1, 8))):
        labels = {"style": data.draw(st.sampled_from("abc"))}
        if data.draw(st.booleans()):
            labels["source"] = data.draw(st.sampled_from(names))
        if data.draw(st.booleans()):
            labels["split"] = data.draw(st.sampled_from(["train", "validation"]))
        someone = data.draw(st.sampled_from([*(f"user_{n}" for n in range(70)), "gen_0"]))
        photos.append(_generated(idx, someone, **labels))
    try:
        dataset = build_dataset(photos, "style", seed)
    except InputError:
        return
    assert not any(photo.generated for photo in dataset.validation)
    by_name = {photo.path.name: photo for photo in photos}
    held_out = _users(dataset.validation)
    for photo in dataset.train:
        step: Photo | None = photo
        for _ in range(len(photos)):  # however long the chain
            if step is None:
                break
            assert step.user_id not in held_out
            step = by_name[step.labels["source"]] if "source" in step.labels else None


def test_a_copy_of_any_name_is_never_measured() -> None:
    photos = [_photo(user, style="ab"[user % 2]) for user in range(20)]
    labels = {"style": "a", "source": "user_0_0.jpg"}
    copies = [Photo(Path(f"d/aug_{n}.jpg"), "user_0", n, labels) for n in range(9)]
    for seed in range(10):
        dataset = build_dataset([*photos, *copies], "style", seed)
        assert not {photo.path for photo in copies} & {photo.path for photo in dataset.validation}


def test_decomposed_text_is_a_misspelling() -> None:
    """Of photos that were not read from a CSV, where it is composed."""
    values = ["민지", "민지", unicodedata.normalize("NFD", "민지")]
    photos = [_photo(line, line=line, style=value) for line, value in enumerate(values, 2)]
    assert [problem.line for problem in check_labels(photos, "style")] == [4]


def test_generated_photos_follow_their_person() -> None:
    photos = [_photo(user, style="ab"[user % 2], split="train") for user in range(4)]
    photos += [_photo(user, style="ab"[user % 2], split="validation") for user in (4, 5)]
    kept = [
        _generated(0, "user_0", style="a"),
        _generated(1, "user_1", style="b", source="user_1_0.jpg", split="validation"),
        _generated(2, "gen_2", style="a", source="user_2_0.jpg"),
        _generated(3, "user_1", style="b", source="gen_1.jpg"),
    ]
    held_out = [
        _generated(4, "user_4", style="a", split="train"),
        _generated(5, "user_0", style="a", source="user_4_0.jpg"),
        _generated(6, "user_4", style="a", source="user_0_0.jpg"),
        _generated(7, "user_0", style="a", source="gen_5.jpg"),
    ]
    unknown = [
        _generated(8, "gen_8", style="a"),
        _generated(9, "user_0", style="a", source="gone.jpg"),
        _generated(10, "gen_10", style="a", source="gen_10.jpg"),
        _generated(11, "user_0", style="a", source="user_1_0.jpg"),
    ]
    dataset = build_dataset([*photos, *kept, *held_out, *unknown], "style", 0)
    trained = [photo for photo in dataset.train if photo.generated]
    assert [photo.path for photo in trained] == [photo.path for photo in kept]
    assert [photo.user_id for photo in trained] == ["user_0", "user_1", "user_2", "user_1"]
    assert dataset.dropped == {
        **NOTHING_DROPPED,
        "generated from validation": len(held_out),
        "generated of an unknown person": len(unknown),
    }


def test_sources_are_found_from_any_folder() -> None:
    """``source`` is relative to the CSV's folder, not to the generated photo's."""
    photos = [
        Photo(Path(f"d/real/u{user}.jpg"), f"u{user}", 0, {"style": "ab"[user % 2], "split": side})
        for user, side in enumerate(["train"] * 4 + ["validation"] * 2)
    ]
    labels = {"style": "a", "source": "real/u4.jpg"}
    made = [
        Photo(Path("d/made/today/gen_0.jpg"), "u0", 0, labels),
        Photo(Path("d/made/today/gen_1.jpg"), "u0", 0, {**labels, "source": "real/u0.jpg"}),
    ]
    dataset = build_dataset([*photos, *made], "style", 0)
    assert [photo.path.name for photo in dataset.train if photo.generated] == ["gen_1.jpg"]
    assert dataset.dropped["generated from validation"] == 1


# --- misspelt labels


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("visual_quality", "low", "'low' must be written 'Low'"),
        ("visual_quality", "bad", "'bad' is none of High, Medium, Low"),
        ("shot_type", "selfie closeup", "'selfie closeup' must be written 'Selfie_CloseUp'"),
        ("shot_type", "Selfie", "'Selfie' is none of Selfie_CloseUp, Mirrored_Selfie, Others_Cam"),
        ("split", "Train ", "'Train ' must be written 'train'"),
        ("split", "test", "'test' is none of train, validation"),
        ("fashion_style", "street-hip", "'street-hip' must be written 'Street_Hip'"),
        ("fashion_style", "Cyberpunk", None),
        ("mood", "Calm", "'Calm' must be written 'calm'"),
        ("mood", "stormy", None),
        ("caption", "Low", None),
    ],
)
def test_misspelt_values_are_named(column: str, value: str, problem: str | None) -> None:
    usual = {
        "visual_quality": "High", "shot_type": "Others_Cam", "split": "train",
        "fashion_style": "Casual_Basic", "mood": "calm", "caption": "low",
    }  # fmt: skip
    photos = [_photo(user, line=user, **usual) for user in range(2, 6)]
    photos.append(_photo(6, line=6, **{**usual, column: value}))
    expected = [f"line 6, {column}: {problem}"] if problem else []
    assert [str(found) for found in check_labels(photos, "mood")] == expected


@pytest.mark.parametrize(
    "values",
    ["0123456789", ["-1", "1", "1.0", "10", "0.1"], ["A", "A-", "A+", "B"], ["+", "-", "_"]],
)
def test_any_vocabulary_is_a_label(values: list[str]) -> None:
    photos = [_photo(user, grade=value) for user, value in enumerate(values)]
    assert check_labels(photos, "grade") == []
    assert check_labels(photos, USER_LABEL) == []


@settings(deadline=None)
@given(st.lists(st.sampled_from([v for vs in CATEGORIES.values() for v in vs]), min_size=1))
def test_the_schema_s_own_values_are_never_a_problem(values: list[str]) -> None:
    photos = [
        _photo(user, **{column: value})
        for user, value in enumerate(values)
        for column in CATEGORIES
        if value in CATEGORIES[column]
    ]
    for label in {column for photo in photos for column in photo.labels}:
        assert check_labels(photos, label) == []


def test_a_column_written_otherwise_is_named() -> None:
    """A ``Visual_Quality`` would not filter anything."""
    photos = [_photo(0, line=2, **{"Visual Quality": "Low", "style": "a", "Style": "b"})]
    assert [str(problem) for problem in check_labels(photos, "style")] == [
        "line 1, Style: the column's name must be 'style' exactly",
        "line 1, Visual Quality: the column's name must be 'visual_quality' exactly",
    ]


def test_splits_that_contradict_each_other_are_named() -> None:
    photos = [
        _photo(1, 0, line=2, style="a", split="train"),
        _photo(1, 1, line=3, style="a", split="validation"),
        _photo(2, 0, line=4, style="b"),
        _photo(3, 0, line=5, split="validation"),  # no label: it is not used
        _generated(0, "user_1", style="a", split="validation"),  # follows its person
    ]
    assert [str(problem) for problem in check_labels(photos, "style")] == [
        "line 3, split: user 'user_1' is in validation here and in train on line 2; a person must "
        "be in one of them",
        "line 4, split: empty, but other photos have a value",
    ]


@pytest.mark.parametrize(
    ("photos", "message"),
    [
        ([_photo(0, mood="calm")], "style: no photo has this label; metadata.csv has mood"),
        ([_photo(0)], "no label columns"),
        ([_photo(user, style="a", split="train") for user in range(9)], "two classes.* found a$"),
        ([_photo(user, style="ab"[user % 2]) for user in range(3)], "too few to hold a fifth"),
        ([_photo(user, style="abc"[user % 3]) for user in range(9)], "no class of style has 5"),
        (
            [_photo(user, style="bbbbba"[user % 6]) for user in range(5)]
            + [_photo(9, style="a", visual_quality="Low")],
            "at least two classes",
        ),
        ([_photo(user, style="ab"[user % 2], split="train") for user in range(9)], "no photo as"),
        ([_photo(user, style="a", split="test") for user in range(9)], "is none of train, valid"),
        ([_generated(user, "x", style="ab"[user % 2]) for user in range(9)], "0 user.s. are too"),
    ],
)
def test_unusable_labels_are_named(photos: list[Photo], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_dataset(photos, "style", 0)


# --- from a folder


def test_rows_and_labels_are_refused_together(tmp_path: Path) -> None:
    (tmp_path / "a_0.jpg").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text(
        "filename,user_id,image_idx,filepath,visual_quality\n"
        "a_0.jpg,a,0,a_0.jpg,High\n"
        "b_0.jpg,b,0,b_0.jpg,high\n"
    )
    with pytest.raises(InputError) as raised:
        load_dataset(tmp_path, USER_LABEL, 0)
    assert str(raised.value).endswith(
        "has 2 problem(s): line 3, filepath: no file 'b_0.jpg'; "
        "line 3, visual_quality: 'high' must be written 'High'"
    )


def test_a_folder_without_a_csv_trains_by_user(tmp_path: Path) -> None:
    for user in range(10):
        for idx in range(2):
            (tmp_path / f"user_{user}_{idx}.jpg").write_bytes(b"")
    dataset = load_dataset(tmp_path, USER_LABEL, 0)
    assert (len(dataset.train), len(dataset.validation)) == (16, 4)
