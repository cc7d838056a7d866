from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vibematch.errors import InputError
from vibematch.gallery import THUMBNAIL_SIZE, Person, Row, write_gallery

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects what the tests ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "gallery.html"


def test_page_holds_everything_itself(page: Path) -> None:
    photo = Image.new("RGB", (90, 60), "red")
    rows = [
        Row(
            Person("anna", photo, "Street_Hip"),
            [(Person("ben", photo, "Street_Hip"), 0.893), (Person("cora", photo, "Minimal"), -0.2)],
        )
    ]
    write_gallery(page, rows, title="Matches & more", subtitle="model abc")
    parsed = Page(page)
    for text in ("Matches & more", "model abc", "anna", "ben", "0.89", "-0.20", "Street Hip"):
        assert text in parsed.text
    assert [image["alt"] for image in parsed.images] == [
        "anna, query photo",
        "ben, match photo",
        "cora, match photo",
    ]
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parsed.tags}
    source = page.read_text()
    assert not re.search(r"https?://|url\(|@import", source)
    assert source.count("same style)") == 1
    assert [a["style"] for t, a in parsed.tags if t == "i"] == ["width:89.3%", "width:0.0%"]


def test_thumbnails_are_upright_and_cut_to_size(page: Path) -> None:
    sideways = np.zeros((60, 100, 3), np.uint8)
    sideways[:, :50] = 255  # white left half: the top half, once upright
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(sideways).save(file, "JPEG", exif=exif)
    write_gallery(page, [Row(Person("anna", file.getvalue()), [])])
    source = str(Page(page).images[0]["src"])
    thumbnail = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", THUMBNAIL_SIZE)
    pixels = np.asarray(thumbnail.convert("L"))
    assert pixels[20].mean() > 240
    assert pixels[-20].mean() < 15


def test_everything_is_escaped(page: Path) -> None:
    nasty = "<script>alert('x')</script>\"&$user"
    photo = Image.new("RGB", (9, 9))
    row = Row(Person(nasty, photo, nasty), [(Person(nasty, None, nasty), 0.5)])
    write_gallery(page, [row], title=nasty, subtitle=nasty)
    parsed = Page(page)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert parsed.text.count(nasty) >= 6
    assert parsed.images[0]["alt"] == f"{nasty}, query photo"


@pytest.mark.parametrize("photo", [None, Path("/no/such.jpg"), b"not a photo", b""])
def test_a_missing_photo_becomes_a_placeholder(page: Path, photo: Path | bytes | None) -> None:
    write_gallery(page, [Row(Person("anna", photo), [])])
    parsed = Page(page)
    assert parsed.images == []
    assert "anna, no photo" in {attributes.get("aria-label") for _, attributes in parsed.tags}


def test_nothing_to_show(page: Path) -> None:
    write_gallery(page, [])
    assert "No matches to show." in Page(page).text
    write_gallery(page, [Row(Person("anna"), [])])
    assert "Nobody qualifies." in Page(page).text


def test_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_gallery(tmp_path / "nowhere" / "gallery.html", [])
