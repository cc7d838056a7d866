"""Matches as one self-contained HTML page: thumbnails inside, no scripts, no requests."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageOps

from vibematch.errors import InputError, PhotoError
from vibematch.photo_bytes import MAX_BYTES
from vibematch.photo_input import PhotoLike, read_photo
from vibematch.preprocess import decode

if TYPE_CHECKING:
    from vibematch.engine import MatchingEngine

THUMBNAIL_SIZE: Final = (360, 450)
"""Width and height in pixels; shown at about half of that, so that it is sharp everywhere."""

_JPEG_QUALITY: Final = 82
_STYLE: Final = "fashion_style"


@dataclass(frozen=True)
class Person:
    """Someone on the page.

    Attributes:
        user_id: shown as the name.
        photo: in any form that is encoded; ``None`` where there is none.
        style: the style label, where it is known.
    """

    user_id: str
    photo: PhotoLike | None = None
    style: str | None = None


@dataclass(frozen=True)
class Row:
    """One query and what was found for it.

    Attributes:
        query: whose matches these are.
        matches: ``(person, score)`` pairs, best first.
    """

    query: Person
    matches: Sequence[tuple[Person, float]]


def person(engine: MatchingEngine, user_id: str) -> Person:
    """A user of an index as shown on the page: first photo, and the style if it is known.

    The style is the attribute that the model was trained on.

    Raises:
        UnknownUserError: there is no such user.
    """
    column = next(iter(engine.manifest.labels), _STYLE)
    style = engine.attributes(user_id).get(column)
    photos = engine.photo_paths(user_id)
    return Person(user_id, photos[0] if photos else None, None if style is None else str(style))


def write_gallery(
    path: Path,
    rows: Sequence[Row],
    *,
    title: str = "Style matches",
    subtitle: str = "",
) -> None:
    """Write the page.

    A photo that is missing or damaged becomes a placeholder.

    Args:
        path: the HTML file to write.
        rows: queries with their matches.
        title: heading of the page.
        subtitle: a line below it, e.g. the model's fingerprint and figures.

    Raises:
        InputError: the file cannot be written.
    """
    page = _PAGE.substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        rows="\n".join(_row(row) for row in rows) or '<p class="empty">No matches to show.</p>',
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from error


def _row(row: Row) -> str:
    query = row.query
    cards = "\n".join(
        _card(person, score, agrees=query.style is not None and person.style == query.style)
        for person, score in row.matches
    )
    return _ROW.substitute(
        user=html.escape(query.user_id),
        picture=_picture(query, "query"),
        style=_style(query.style, agrees=False),
        cards=cards or '<li class="empty">Nobody qualifies.</li>',
    )


def _card(person: Person, score: float, *, agrees: bool) -> str:
    return _CARD.substitute(
        user=html.escape(person.user_id),
        picture=_picture(person, "match"),
        style=_style(person.style, agrees=agrees),
        score=f"{score:.2f}",
        percent=f"{100 * min(max(score, 0.0), 1.0):.1f}",
    )


def _style(style: str | None, *, agrees: bool) -> str:
    if style is None:
        return ""
    label = html.escape(style.replace("_", " "))
    if not agrees:
        return f'<span class="style">{label}</span>'
    return (
        f'<span class="style same" title="same style label">{label}'
        '<span class="unseen"> (same style)</span></span>'
    )


def _picture(person: Person, role: str) -> str:
    name = html.escape(person.user_id)
    picture = None if person.photo is None else thumbnail(person.photo, THUMBNAIL_SIZE)
    if picture is None:
        return f'<div class="photo none" role="img" aria-label="{name}, no photo">no photo</div>'
    width, height = THUMBNAIL_SIZE
    return (
        f'<img class="photo" src="data:image/jpeg;base64,{picture}" width="{width}" '
        f'height="{height}" alt="{name}, {role} photo">'
    )


def thumbnail(photo: PhotoLike, size: tuple[int, int], quality: int = _JPEG_QUALITY) -> str | None:
    """A photo for the inside of a page, as base64 JPEG: upright, cut to size, without metadata.

    Args:
        photo: in any form that is encoded.
        size: width and height in pixels.
        quality: of the JPEG, 1 to 95.

    Returns:
        The text; ``None`` if the photo is missing or damaged.
    """
    try:
        image = decode(read_photo(photo, MAX_BYTES))
    except PhotoError:
        return None
    # People stand in the middle, their faces above it: keep more of the top.
    fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS, centering=(0.5, 0.3))
    file = io.BytesIO()
    fitted.save(file, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


_CARD: Final = Template(
    """<li class="card">
$picture
<div class="caption">
<span class="user">$user</span>
<span class="score">$score</span>
<span class="bar" aria-hidden="true"><i style="width:$percent%"></i></span>
$style
</div>
</li>"""
)

_ROW: Final = Template(
    """<section class="row" aria-label="Matches for $user">
<div class="query">
$picture
<div class="caption"><h2 class="user">$user</h2>$style</div>
</div>
<ol class="matches" tabindex="0" aria-label="Matches, best first">
$cards
</ol>
</section>"""
)

_PAGE: Final = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  --page: #f7f5f2; --card: #fff; --ink: #1d1a17; --soft: #6d665e; --line: #e6e1da;
  --accent: #c2410c; --track: #ece7e0; --agree: #15694a; --agree-page: #e3f3ea;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141210; --card: #1f1c19; --ink: #f3efe9; --soft: #a69d92; --line: #322d28;
    --accent: #fb923c; --track: #37312b; --agree: #86dcb4; --agree-page: #173528;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%;
}
header, main { max-width: 1240px; margin: 0 auto; padding: 0 32px; }
header { padding-top: 48px; padding-bottom: 24px; }
h1 { margin: 0; font-size: 32px; line-height: 1.15; letter-spacing: -.02em; font-weight: 680; }
header p { margin: 8px 0 0; color: var(--soft); overflow-wrap: anywhere; max-width: 110ch; }
main { padding-bottom: 56px; }
.row {
  display: grid; grid-template-columns: 196px 1fr; gap: 28px; align-items: start;
  padding: 24px; margin-bottom: 20px; background: var(--card);
  border: 1px solid var(--line); border-radius: 20px;
}
.matches {
  display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 16px;
  margin: 0; padding: 0; list-style: none;
}
.query { padding-right: 28px; border-right: 1px solid var(--line); height: 100%; }
.photo {
  display: block; width: 100%; height: auto; aspect-ratio: 4 / 5; object-fit: cover;
  border-radius: 14px; background: var(--track);
}
.none {
  display: grid; place-items: center; color: var(--soft); font-size: 13px;
}
.query .photo { outline: 3px solid var(--accent); outline-offset: 3px; }
.caption {
  display: grid; grid-template-columns: 1fr auto; gap: 4px 8px; align-items: baseline;
  margin-top: 12px;
}
.user {
  margin: 0; font-size: 15px; font-weight: 600; min-width: 0;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
}
.query .user { font-size: 17px; grid-column: 1 / -1; }
.score { font-variant-numeric: tabular-nums; font-weight: 600; color: var(--accent); }
.bar {
  grid-column: 1 / -1; height: 4px; border-radius: 2px; background: var(--track);
  overflow: hidden;
}
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--accent); }
.style {
  position: relative; grid-column: 1 / -1; justify-self: start; max-width: 100%;
  color: var(--soft); font-size: 13px;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
}
.same {
  color: var(--agree); background: var(--agree-page); border-radius: 99px; padding: 1px 9px;
  margin-left: -3px;
}
.same::before { content: "\\2713\\00a0"; }
.empty { color: var(--soft); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 900px) {
  header, main { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 32px; padding-bottom: 16px; }
  h1 { font-size: 26px; }
  .row { grid-template-columns: minmax(0, 1fr); gap: 16px; padding: 16px; border-radius: 18px; }
  .query {
    display: grid; grid-template-columns: 96px 1fr; gap: 18px; align-items: center;
    padding: 0 0 18px; border-right: 0; border-bottom: 1px solid var(--line);
  }
  .query .caption { margin: 0; }
  .query .user { font-size: 19px; }
  .matches {
    display: flex; overflow-x: auto; scroll-snap-type: x proximity; gap: 14px;
    margin: 0 -16px -4px; padding: 0 16px 8px; scroll-padding: 16px;
    scrollbar-width: thin; scrollbar-color: var(--line) transparent;
  }
  .card { flex: 0 0 38%; min-width: 132px; max-width: 190px; scroll-snap-align: start; }
}
@media print { .row { break-inside: avoid; } }
</style>
</head>
<body>
<header><h1>$title</h1><p>$subtitle</p></header>
<main>
$rows
</main>
</body>
</html>
"""
)
