from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vibematch.manifest import Manifest
from vibematch.photos import Photo
from vibematch.preprocess import Preprocessing
from vibematch_training.evaluation import report as report_module
from vibematch_training.evaluation.evaluate import EvaluationSet
from vibematch_training.evaluation.report import print_results, verdict, write_evaluation
from vibematch_training.run import TrainingConfig

SCRIPT = "<script>alert('style')</script>"
USER = "\"><img src=x onerror=alert('user')>"
CLASSES = sorted([SCRIPT, "Street_Hip", "$\\frac$ 한국"])
VOID = {"meta", "img", "br", "col", "link", "input", "hr"}
SECTIONS = [
    "figures",
    "reading",
    "training",
    "maps",
    "similarity",
    "confusion",
    "groups",
    "gallery",
    "data",
    "recipe",
    "limits",
]
CONFIG = TrainingConfig("some photos", backbone="tiny")
HISTORY = [
    {"epoch": 1, "loss": 0.2, "validation_loss": 0.3, "validation_map_at_r": 0.1},
    {"epoch": 2, "loss": 0.1, "validation_loss": None, "validation_map_at_r": 0.4},
]
FIGURES = {
    "train": {"photos": 50, "users": 9, "generated": 2, "columns": {"style": {SCRIPT: 7}}},
    "validation": {"photos": 36, "users": 18, "generated": 0, "columns": {"style": {SCRIPT: 12}}},
    "dropped": {"low quality": 4, "unlabelled": 0},
}
MANIFEST = Manifest(
    embedding_dim=3,
    preprocessing=Preprocessing(256, 192),
    prompt="prompt",
    pooling="mean",
    backbone="tiny",
    backbone_sha256="b" * 64,
    head="paper",
    head_sha256="a" * 64,
    precision="fp32",
    library_versions={"torch": "2.13.0"},
    created_at="2026-01-02T03:04:05+00:00",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSet:
    """36 photos of 18 people with hostile names; a quarter of the embeddings is misplaced."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(18) % 3, 2)
    photos = []
    for number, code in enumerate(codes):
        path = folder / f"{number}.jpg"
        photo = Image.new("RGB", (60, 40), (int(80 * code), 90, 40))
        photo.paste((255, 255, 255), (0, 0, 20, 40))  # the top, once it is upright
        exif = Image.Exif()
        exif[0x0112] = 6
        exif[0x010E] = "secret place"
        photo.save(path, exif=exif)
        labels = {"style": CLASSES[code], "shot_type": "Others_Cam"}
        photos.append(Photo(path, f"{USER}{number // 2}", number % 2, labels))
    photos[5].path.write_bytes(b"damaged")
    places = np.where(rng.random(36) < 0.25, rng.integers(3, size=36), codes)
    embeddings = np.eye(3)[places] + 0.2 * rng.normal(size=(36, 3))
    features = rng.normal(size=(36, 6))
    return EvaluationSet(
        photos, "style", CLASSES, features.astype(np.float32), embeddings.astype(np.float32)
    )


@pytest.fixture(scope="module")
def written(data: EvaluationSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_evaluation(folder, data, CONFIG, HISTORY, FIGURES, MANIFEST)
    return folder


class _Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def page(written: Path) -> _Page:
    return _Page((written / "report.html").read_text(encoding="utf-8"))


def test_all_sections_are_there_in_order(page: _Page) -> None:
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == SECTIONS
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == [f"#{section}" for section in sections]


def test_the_page_loads_nothing(page: _Page, written: Path) -> None:
    references = [*page.values("src"), *page.values("href"), *page.values("xlink:href")]
    assert references
    assert all(reference.startswith(("data:image/", "#")) for reference in references)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    text = (written / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import", text)


def test_what_a_csv_says_stays_text(page: _Page) -> None:
    assert SCRIPT in page.text
    assert USER in page.text
    assert "$\\frac$ 한국" in page.text
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_everything_that_is_a_picture_says_what_it_shows(page: _Page) -> None:
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(pictures) == 8  # curves, maps, heatmaps, histograms: two of each
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in pictures)
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")


def test_ids_are_unique_and_references_within_the_page_lead_somewhere(page: _Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = [*page.values("href"), *page.values("xlink:href"), *page.values("aria-labelledby")]
    wanted += [f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", " ".join(_all_values(page)))]
    assert {name.lstrip("#") for name in wanted if not name.startswith("data:")} <= set(ids)


def _all_values(page: _Page) -> list[str]:
    return [value or "" for _, attrs in page.tags for value in attrs.values()]


def test_failures_come_first_and_begin_with_a_wrong_neighbour(page: _Page) -> None:
    rows, titles = [], []
    for tag, attrs in page.tags:
        if "row-title" in (attrs.get("class") or ""):
            titles.append(tag)
        if tag == "ol":
            rows.append([])
        elif tag == "li" and "tile" in (attrs.get("class") or ""):
            rows[-1].append((attrs["class"] or "").split()[1])
    assert all(row[0] == "query" and len(row) == 6 for row in rows)
    failures = [row for row in rows if row[1] == "wrong"]
    assert failures
    assert rows[: len(failures)] == failures
    assert all(row[1] == "right" for row in rows[len(failures) :])
    gallery = page.text.partition("Nearest neighbours, failures first")[2]
    headings = re.findall(r"taken for|Successes", gallery)
    assert headings == ["taken for"] * (len(titles) - 1) + ["Successes"]


def test_thumbnails_are_upright_and_carry_no_metadata(page: _Page) -> None:
    source = next(attrs["src"] for tag, attrs in page.tags if tag == "img")
    content = base64.b64decode((source or "").partition(",")[2])
    assert b"secret" not in content
    with Image.open(io.BytesIO(content)) as thumbnail:
        assert not thumbnail.getexif()
        assert thumbnail.size == (160, 200)
        assert min(thumbnail.getpixel((80, 10))) > 200  # white at the top
        assert min(thumbnail.getpixel((80, 190))) < 200


def test_a_photo_that_cannot_be_read_leaves_a_note(data: EvaluationSet, tmp_path: Path) -> None:
    photos = [Photo(tmp_path / "gone.jpg", p.user_id, 0, p.labels) for p in data.photos[:8]]
    gone = EvaluationSet(photos, data.label, data.classes, data.features[:8], data.embeddings[:8])
    write_evaluation(tmp_path, gone, CONFIG, HISTORY, FIGURES, MANIFEST)
    assert "photo not readable" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_equal_input_gives_equal_bytes(data: EvaluationSet, written: Path, tmp_path: Path) -> None:
    write_evaluation(tmp_path, data, CONFIG, HISTORY, FIGURES, MANIFEST)
    for name in ("report.html", "model_card.md", "evaluation_results.json"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["report.html", "model_card.md", "evaluation_results.json"]
    )


def test_a_failure_leaves_what_was_there(
    data: EvaluationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("before")

    def fails(*args: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(report_module, "report", lambda *_: "after")
    monkeypatch.setattr(report_module, "model_card", fails)
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(tmp_path, data, CONFIG, HISTORY, FIGURES, MANIFEST)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("photos", [2, 3, 4, 6])
def test_a_handful_of_photos_and_nothing_known_still_make_a_page(
    data: EvaluationSet, tmp_path: Path, photos: int
) -> None:
    few = EvaluationSet(
        data.photos[:photos],
        data.label,
        data.classes,
        data.features[:photos],
        np.ones_like(data.embeddings[:photos]),  # collapsed
    )
    results = write_evaluation(tmp_path, few, CONFIG, [], {}, MANIFEST)
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert results["train_photos"] is None
    assert "Not recorded." in page.text


def test_people_as_classes_make_a_page(data: EvaluationSet, tmp_path: Path) -> None:
    people = EvaluationSet(
        data.photos, "user_id", sorted(set(data.users)), data.features, data.embeddings
    )
    write_evaluation(tmp_path, people, CONFIG, HISTORY, FIGURES, MANIFEST)
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "the most similar photo is of the same person" in page.text


def _results(low: float, high: float) -> dict[str, Any]:
    figures = {"recall_at_1": 0.5, "intervals": {"recall_at_1": [0.4, 0.6]}}
    return {
        "label": "fashion_style",
        "raw_backbone": figures,
        "trained_head": figures,
        "difference": {"recall_at_1": 0.0, "intervals": {"recall_at_1": [low, high]}},
        "chance": {"recall_at_1": 0.2},
        "per_class": {},
        "targets": [{"figure": "recall_at_1", "met": False}, {"figure": "separation", "met": True}],
    }


def test_the_verdict_claims_no_more_than_the_interval_allows() -> None:
    assert "Training helps" in verdict(_results(0.01, 0.2))
    assert "Training harms" in verdict(_results(-0.2, -0.01))
    assert "is not shown" in verdict(_results(-0.1, 0.1))
    assert "1 of 2 targets are met; missed: Recall@1." in verdict(_results(-0.1, 0.1))


def test_the_table_shows_both_with_intervals_and_targets(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((written / "evaluation_results.json").read_text(encoding="utf-8"))
    print_results(results)
    printed = capsys.readouterr().out
    for space in ("raw_backbone", "trained_head"):
        low, high = results[space]["intervals"]["recall_at_1"]
        assert f"{results[space]['recall_at_1']:.2f} ({low:.2f}, {high:.2f})" in printed
    assert re.search(r"[✓✗] ≥ 0\.60", printed)
    assert "Trained on 50 photos; left out: 4 low quality." in printed
