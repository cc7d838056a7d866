"""The pictures of the report, as SVG for the inside of an HTML page.

Ink, lines and page take the page's own colours (``currentColor``, ``var(--line)`` and
``var(--card)``), so that a picture fits a light page, a dark one and paper. Text stays text.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from vibematch_training.evaluation.metrics import unit_vectors

Vectors = npt.NDArray[np.float32]

COLOURS: Final = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")
"""Paul Tol's "bright" palette, made for colour-blind readers."""

MAX_POINTS: Final = 1000
"""Maps and histograms of more photos than this show a random choice of them."""
MAX_HEATMAP_PHOTOS: Final = 300
"""Likewise; every pair of photos is a dot in the file."""

_MARKERS: Final = "os^DvPX"
INK, LINE, _PAGE = "#010203", "#040506", "#070809"
"""Stand-ins, which :func:`svg_of` replaces by the page's own colours."""
_THEME: Final = {INK: "currentColor", LINE: "var(--line)", _PAGE: "var(--card)"}
_STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 10,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "vibematch",
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $
    "xtick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
}
_NO_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_TSNE_PERPLEXITY: Final = 30.0


@dataclass(frozen=True)
class Picture:
    """One panel.

    Attributes:
        title: what it shows.
        svg: an ``<svg>`` element.
    """

    title: str
    svg: str


def choose(count: int, limit: int, seed: int) -> npt.NDArray[np.int64]:
    """At most ``limit`` of ``count`` positions, ascending; a random choice where some must go."""
    chosen = np.random.default_rng(seed).permutation(count)[:limit]
    return np.sort(chosen)


def loss_curves(history: Sequence[Mapping[str, Any]], kept_epoch: int) -> list[Picture]:
    """Loss and validation MAP@R by epoch, with the epoch whose head was kept.

    Args:
        history: the rows of ``metrics.jsonl``; what a row lacks is not drawn.
        kept_epoch: number of that epoch.
    """
    panels = (
        ("Loss", "loss", {"loss": "training", "validation_loss": "validation"}),
        (
            "MAP@R after each epoch",
            "map",
            {"validation_map_at_r": "validation", "selection_map_at_r": "held out for selection"},
        ),
    )
    pictures = []
    for title, name, series in panels:
        drawn = {
            label: [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
            for key, label in series.items()
        }
        if any(drawn.values()):
            pictures.append(_curves(title, f"curve-{name}", drawn, kept_epoch))
    return pictures


def _curves(
    title: str, name: str, series: Mapping[str, Sequence[tuple[float, float]]], kept_epoch: int
) -> Picture:
    with drawing(4.6, 3.2) as (figure, axes):
        for (label, points), colour, dashes in zip(
            series.items(), COLOURS, ("-", "--"), strict=False
        ):
            if points:
                epochs, values = zip(*points, strict=True)
                marker = "o" if len(points) == 1 else ""
                axes.plot(epochs, values, dashes, color=colour, lw=2, label=label, marker=marker)
        axes.axvline(kept_epoch, color=INK, lw=1, ls=":", label=f"kept: epoch {kept_epoch}")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=LINE, lw=0.6)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handlelength=1.6)
        ends = ", ".join(
            f"{label} from {points[0][1]:.3f} to {points[-1][1]:.3f}"
            for label, points in series.items()
            if points
        )
        return Picture(title, svg_of(figure, name, f"{title} by epoch: {ends}"))


def tsne_maps(
    spaces: Mapping[str, Vectors], labels: Sequence[str], classes: Sequence[str], seed: int
) -> list[Picture]:
    """A t-SNE map (van der Maaten and Hinton, 2008) of each space, by cosine distance.

    Args:
        spaces: title → float32 ``[photos, dim]``.
        labels: class of each photo.
        classes: all classes; their order decides colours and shapes.
        seed: of the layout.
    """
    pictures = []
    for number, (title, vectors) in enumerate(spaces.items()):
        places = _tsne(vectors, seed)
        with drawing(4.6, 4.6) as (figure, axes):
            for code, label in enumerate(classes):
                members = np.asarray(labels) == label
                axes.scatter(
                    places[members, 0],
                    places[members, 1],
                    s=42,
                    marker=_MARKERS[code % len(_MARKERS)],
                    color=COLOURS[code % len(COLOURS)],
                    edgecolors=_PAGE,
                    linewidths=0.5,
                    label=words(label),
                )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(True)
            if len(classes) <= 2 * len(COLOURS):
                figure.legend(loc="outside lower center", ncols=2, handletextpad=0.2)
            about = f"{title}: {len(labels)} photos as points, coloured and shaped by class"
            pictures.append(Picture(title, svg_of(figure, f"tsne-{number}", about)))
    return pictures


def _tsne(vectors: Vectors, seed: int) -> npt.NDArray[np.float32]:
    unit = unit_vectors(vectors)
    layout = TSNE(
        perplexity=min(_TSNE_PERPLEXITY, (len(unit) - 1) / 3),
        metric="cosine",
        init="pca" if np.ptp(unit, axis=0).any() else "random",
        random_state=seed,
    )
    with threadpool_limits(1):  # sums over several threads differ from run to run
        places: npt.NDArray[np.float32] = layout.fit_transform(unit)
    return places


def similarity_heatmaps(
    spaces: Mapping[str, Vectors], labels: Sequence[str], classes: Sequence[str]
) -> list[Picture]:
    """Cosine similarity of every two photos, sorted by class; each space has its own scale."""
    order = np.argsort([classes.index(label) for label in labels], kind="stable")
    sizes = [labels.count(name) for name in classes]
    ends = np.cumsum(sizes)
    pictures = []
    for number, (title, vectors) in enumerate(spaces.items()):
        unit = unit_vectors(vectors[order])
        similarity = unit @ unit.T
        pairs = similarity[~np.eye(len(unit), dtype=bool)]
        low, high = np.quantile(pairs, [0.02, 0.98])
        with drawing(4.6, 4.3) as (figure, axes):
            image = axes.imshow(
                similarity, cmap="cividis", vmin=low, vmax=high, interpolation="none"
            )
            for end in ends[:-1]:
                axes.axhline(end - 0.5, color="white", lw=1)
                axes.axvline(end - 0.5, color="white", lw=1)
            axes.set_xticks([])
            names = [_wrapped(name) for name in classes]
            axes.set_yticks(ends - np.asarray(sizes) / 2 - 0.5, names)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            bar = figure.colorbar(
                image, ax=axes, location="bottom", shrink=0.8, aspect=30, extend="both"
            )
            bar.set_label("cosine similarity")
            bar.outline.set_visible(False)
            about = (
                f"{title}: similarity of every two photos, sorted by class; colours run from "
                f"{low:.2f} to {high:.2f}"
            )
            pictures.append(Picture(title, svg_of(figure, f"heatmap-{number}", about)))
    return pictures


def distance_histograms(
    spaces: Mapping[str, Vectors], labels: Sequence[str], users: Sequence[str]
) -> list[Picture]:
    """Distribution of the cosine distance of pairs within and between classes; none, no picture."""
    label, user = np.asarray(labels), np.asarray(users)
    one, other = np.triu_indices(len(label), k=1)
    if not np.array_equal(label, user):
        apart = user[one] != user[other]
        one, other = one[apart], other[apart]
    if not len(one):
        return []
    same = label[one] == label[other]
    pictures = []
    for number, (title, vectors) in enumerate(spaces.items()):
        unit = unit_vectors(vectors)
        distance = (1 - unit @ unit.T)[one, other]
        top = max(1.0, float(distance.max()))
        bins = np.linspace(min(0.0, float(distance.min())), top, 41).tolist()
        with drawing(4.6, 3.0) as (figure, axes):
            for members, name, colour, dashes in (
                (same, "same class", COLOURS[0], "-"),
                (~same, "different classes", COLOURS[1], "--"),
            ):
                if members.any():
                    share = np.full(int(members.sum()), 100 / members.sum())
                    axes.hist(
                        distance[members],
                        bins,
                        weights=share,
                        histtype="stepfilled",
                        facecolor=(colour, 0.35),
                        edgecolor=colour,
                        ls=dashes,
                        lw=1.5,
                        label=name,
                    )
            axes.set_xlabel("cosine distance")
            axes.set_ylabel("% of pairs")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
            about = f"{title}: distances of pairs of the same class and of different classes"
            pictures.append(Picture(title, svg_of(figure, f"distances-{number}", about)))
    return pictures


def words(name: str) -> str:
    """A class as people read it: ``Street_Hip`` → Street Hip."""
    return name.replace("_", " ")


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(textwrap.shorten(words(name), 30, placeholder="…"), 12))


@contextmanager
def drawing(width_in: float, height_in: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure in the page's style, to be drawn on and given to :func:`svg_of`."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # the browser draws the text, with fonts of its own
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        yield figure, figure.subplots()


def svg_of(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element whose ids start with ``name``."""
    with mpl.rc_context(_STYLE):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\g<1>{name}-", text)
    # the page decides the font and the size
    text = re.sub(r"font-family: [^;\"]+; ?", "", text)
    text = re.sub(r" (width|height)=\"[\d.]+pt\"", "", text, count=2)
    for placeholder, colour in _THEME.items():
        text = text.replace(placeholder, colour)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)
