"""The drawn sample of profile photos: reproducible, well formed, and labelled without leaks."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from scipy.stats import chi2_contingency
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vibematch.errors import InputError
from vibematch_training.sample_photos import write_sample_photos
from vibematch_training.sample_photos.camera import encode
from vibematch_training.sample_photos.photos import PhotoPlan
from vibematch_training.sample_photos.writer import lay_out

STYLES = {"Casual_Basic", "Street_Hip", "Sporty_Athleisure", "Chic_Modern", "Classy_Elegant"}
COLUMNS = ["filename", "user_id", "image_idx", "filepath", "split", "fashion_style", "shot_type",
           "visual_quality", "physical_features", "caption"]  # fmt: skip
ORIENTATION = 0x0112


def _rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sample")
    write_sample_photos(directory, train_photos=100, validation_photos=35, seed=3, progress=False)
    return directory


def _small(directory: Path, seed: int = 0, processes: int = 1) -> Path:
    return write_sample_photos(
        directory,
        train_photos=8,
        validation_photos=6,
        seed=seed,
        processes=processes,
        progress=False,
    )


def test_same_seed_gives_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    path = _small(tmp_path / "one", processes=1)
    _small(tmp_path / "two", processes=2)
    assert path == tmp_path / "one" / "metadata.csv"
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")


def test_another_seed_gives_other_photos(tmp_path: Path) -> None:
    _small(tmp_path / "zero")
    _small(tmp_path / "one", seed=1)
    zero = {d for n, d in _digests(tmp_path / "zero").items() if n.endswith(".jpg")}
    one = {d for n, d in _digests(tmp_path / "one").items() if n.endswith(".jpg")}
    assert not zero & one


def test_metadata_describes_every_file(sample: Path) -> None:
    rows = _rows(sample)
    assert list(rows[0]) == COLUMNS
    assert {row["filepath"] for row in rows} == {path.name for path in sample.glob("*.jpg")}
    for row in rows:
        assert row["filename"] == f"{row['user_id']}_{row['image_idx']}.jpg"
        assert row["fashion_style"] in STYLES
        assert row["shot_type"] in {"Selfie_CloseUp", "Mirrored_Selfie", "Others_Cam"}
        assert row["visual_quality"] in {"High", "Medium", "Low"}
        assert row["physical_features"]
        assert row["caption"].endswith(".")
    assert len({row["shot_type"] for row in rows}) == 3
    assert len({row["caption"] for row in rows}) > 0.95 * len(rows)


def test_a_user_has_one_split_one_style_and_few_photos(sample: Path) -> None:
    rows = _rows(sample)
    users = {row["user_id"] for row in rows}
    assert len({(row["user_id"], row["split"], row["fashion_style"]) for row in rows}) == len(users)
    assert set(Counter(row["user_id"] for row in rows).values()) <= {1, 2, 3, 4}


def test_splits_have_the_requested_sizes_and_balanced_styles(sample: Path) -> None:
    rows = _rows(sample)
    for split, total in (("train", 100), ("validation", 35)):
        counts = Counter(row["fashion_style"] for row in rows if row["split"] == split)
        assert sum(counts.values()) == total
        assert max(counts.values()) - min(counts.values()) <= 1
    assert not any(r["visual_quality"] == "Low" for r in rows if r["split"] == "validation")


def test_a_share_of_photos_is_tagged_and_has_ordinary_shapes_when_upright(sample: Path) -> None:
    tags: Counter[int] = Counter()
    shapes: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
    for path in sorted(sample.glob("*.jpg")):
        with Image.open(path) as image:
            image.load()
            tag = image.getexif().get(ORIENTATION, 1)
            tags[tag] += 1
            if image.width * image.height > 160_000:  # poor photos are smaller
                shapes[tag != 1].add(ImageOps.exif_transpose(image).size)
    assert tags[1] > 70
    assert tags[6] > 3
    assert tags[3] > 0
    assert tags[8] > 0
    assert shapes[True] <= shapes[False]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_by_a_correct_reader(orientation: int) -> None:
    upright = Image.new("RGB", (96, 64), (20, 30, 40))
    upright.paste((250, 240, 230), (0, 0, 32, 16))
    with Image.open(io.BytesIO(encode(upright, 95, orientation))) as stored:
        seen = ImageOps.exif_transpose(stored)
    assert np.abs(np.asarray(seen, float) - np.asarray(upright, float)).mean() < 3


def test_a_deleted_photo_is_restored_exactly(tmp_path: Path) -> None:
    _small(tmp_path)
    before = _digests(tmp_path)
    gone = sorted(tmp_path.glob("*.jpg"))[3]
    gone.unlink()
    (tmp_path / "metadata.csv").unlink()
    _small(tmp_path)
    assert _digests(tmp_path) == before


def test_a_complete_sample_is_left_alone(tmp_path: Path) -> None:
    _small(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.jpg")}
    _small(tmp_path)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.jpg")}


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="empty folder"):
        _small(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_sample_with_other_settings_is_refused(tmp_path: Path) -> None:
    _small(tmp_path)
    with pytest.raises(InputError, match="another sample"):
        _small(tmp_path, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_photos": -1}, "train_photos is -1"),
        ({"train_photos": 4}, "train_photos is 4; at least 5"),
        ({"validation_photos": 0}, "validation_photos is 0"),
        ({"seed": -2}, "seed is -2"),
        ({"processes": 0}, "processes is 0"),
    ],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_sample_photos(tmp_path / "new", progress=False, **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def _cheap_features(path: Path) -> list[float]:
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        pixels = np.asarray(upright.resize((32, 32)), dtype=np.float64)
        border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[:, :2].reshape(-1, 3)])
        return [
            *pixels.mean(axis=(0, 1)), *pixels.std(axis=(0, 1)), *border.mean(axis=0),
            upright.width, upright.height, path.stat().st_size,
            image.getexif().get(ORIENTATION, 1), sum(image.quantization[0]),
        ]  # fmt: skip


def test_style_cannot_be_told_from_colour_size_or_encoding(sample: Path) -> None:
    rows = _rows(sample)
    features: npt.NDArray[np.float64] = np.array(
        [_cheap_features(sample / r["filepath"]) for r in rows]
    )
    styles = np.array([row["fashion_style"] for row in rows])
    users = np.array([row["user_id"] for row in rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    guessed = cross_val_predict(model, features, styles, groups=users, cv=GroupKFold(5))
    # Chance is 0.20; with 135 photos a lucky draw stays below about 0.30.
    assert (guessed == styles).mean() < 0.34
    assert (guessed == styles).mean() > 0.05


PLANNED: dict[str, Callable[[PhotoPlan], object]] = {
    "shot_type": lambda plan: plan.shot,
    "visual_quality": lambda plan: plan.quality,
    "place": lambda plan: plan.scene,
    "canvas_size": lambda plan: plan.size,
    "full_length": lambda plan: plan.full_length,
    "smile": lambda plan: plan.smile > 0.5,
    "skin_tone": lambda plan: plan.person.skin_name,
    "hair": lambda plan: plan.person.hair_name,
    "gender_and_age": lambda plan: plan.person.noun,
    "glasses": lambda plan: plan.person.glasses,
    "top_colour": lambda plan: plan.outfit.top.colour_name,
    "top_accent": lambda plan: plan.outfit.top.accent,
    "metal": lambda plan: plan.outfit.metal,
}


@pytest.fixture(scope="module")
def plans() -> list[tuple[str, PhotoPlan]]:
    """One plan per user, so that they are independent of each other."""
    first = [photo for photo in lay_out(4000, 5, seed=7) if photo.index == 0]
    return [(photo.style, photo.plan()) for photo in first]


def _chance(plans: list[tuple[str, PhotoPlan]], value: Callable[[PhotoPlan], object]) -> float:
    """How likely a table at least this uneven is if the value does not depend on the style."""
    table = Counter((style, value(plan)) for style, plan in plans)
    values = {seen for _, seen in table}
    return float(chi2_contingency([[table[s, v] for v in values] for s in sorted(STYLES)]).pvalue)


@pytest.mark.parametrize("name", PLANNED)
def test_style_does_not_depend_on_anything_but_clothes(
    plans: list[tuple[str, PhotoPlan]], name: str
) -> None:
    assert _chance(plans, PLANNED[name]) > 0.001


def test_the_check_for_leaks_finds_what_does_depend_on_style(
    plans: list[tuple[str, PhotoPlan]],
) -> None:
    assert _chance(plans, lambda plan: plan.outfit.outer is None) < 1e-6
