"""The plots of a result as SVG, in the style of the training report's pictures.

Ours is always the same colour, with a thicker line; peers keep theirs within a result. Series are
told apart by marker and dashes too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from report import show

from vibematch_training.evaluation.pictures import (
    COLOURS,
    INK,
    LINE,
    Picture,
    drawing,
    svg_of,
)

LIMIT: Final = "limit"
_WIDTH_IN: Final = 4.6
_HEIGHT_IN: Final = 3.4
_BAR_IN: Final = 0.45
_CDF_POINTS: Final = 200
_MARKERS: Final = "osD^vPX*"
_OURS, *_PEERS = COLOURS
_DASHES: Final = ("-", "--", "-.", ":")
_FILLED: Final = ("full", "none", "left")
_X_CHARACTERS: Final = 52
_Y_CHARACTERS: Final = 28
_NARROW_DECADES: Final = 2
Content = Mapping[str, Any]


def draw(name: str, plots: Sequence[Content]) -> list[Picture]:
    """Draw the plots of one result.

    Args:
        name: the result's, which makes ids on the page differ.
        plots: as in the file; see ``harness.Plot``.
    """
    peers = [
        series["label"]
        for plot in plots
        if plot["kind"] != "stacked"
        for series in plot["series"]
        if not series["ours"] and not _is_limit(plot, series)
    ]
    styles = {
        label: {"color": colour, "marker": marker}
        for label, colour, marker in zip(
            dict.fromkeys(peers), cycle(_PEERS), cycle(_MARKERS[1:]), strict=False
        )
    }
    return [_picture(f"{name}-{number}", plot, styles) for number, plot in enumerate(plots)]


def _picture(name: str, plot: Content, styles: Mapping[str, Any]) -> Picture:
    stacked = plot["kind"] == "stacked"
    bars = list(dict.fromkeys(x for series in plot["series"] for x in series["x"]))
    height = _BAR_IN * len(bars) + 1.6 if stacked else _HEIGHT_IN
    with drawing(_WIDTH_IN, height) as (figure, axes):
        if stacked:
            _draw_bars(axes, plot, bars)
        else:
            _draw_series(axes, plot, styles)
        _scale(axes.xaxis, axes.set_xscale, plot["x"], _X_CHARACTERS)
        if not stacked:
            _scale(axes.yaxis, axes.set_yscale, plot["y"], _Y_CHARACTERS)
        if len(plot["series"]) > 1:
            figure.legend(loc="outside lower center", ncols=2, fontsize=9)
        return Picture(plot["title"], svg_of(figure, name, _description(plot)))


def _draw_series(axes: Axes, plot: Content, styles: Mapping[str, Any]) -> None:
    ours = limits = 0
    for series in plot["series"]:
        x, y = series["x"], series["y"]
        style: dict[str, Any]
        if _is_limit(plot, series):
            style = {"color": INK, "lw": 1, "ls": _DASHES[1 + limits % 3]}
            limits += 1
        elif series["ours"]:
            style = {"color": _OURS, "marker": "o", "lw": 2.6, "ls": _DASHES[ours % 4]}
            style |= {"markersize": 7, "zorder": 3, "fillstyle": _FILLED[ours % 3]}
            ours += 1
        else:
            style = {**styles[series["label"]], "lw": 1.5}
        if plot["kind"] == "cdf":
            x, y = _thinned(x, y)
            style |= {"marker": "", "drawstyle": "steps-post"}
        elif plot["kind"] == "points" or (
            plot["kind"] == "roofline" and not _is_limit(plot, series)
        ):
            style["ls"] = ""
        axes.plot(x, y, label=series["label"], **style)
    axes.grid(color=LINE, lw=0.6)


def _is_limit(plot: Content, series: Content) -> bool:
    return plot["kind"] == "roofline" and str(series["label"]).startswith(LIMIT)


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Few of many points of a distribution, its ends among them."""
    places = np.unique(np.linspace(0, len(x) - 1, _CDF_POINTS).round().astype(int)).tolist()
    return [x[place] for place in places], [y[place] for place in places]


def _draw_bars(axes: Axes, plot: Content, bars: Sequence[str]) -> None:
    starts = dict.fromkeys(bars, 0.0)
    for series, colour, hatch in zip(
        plot["series"],
        cycle(COLOURS),
        cycle([""] * len(COLOURS) + ["//"] * len(COLOURS)),
        strict=False,
    ):
        lengths = dict(zip(series["x"], series["y"], strict=True))
        axes.barh(
            [bars.index(bar) for bar in lengths],
            list(lengths.values()),
            left=[starts[bar] for bar in lengths],
            height=0.7,
            color=colour,
            hatch=hatch,
            label=series["label"],
        )
        for bar, length in lengths.items():
            starts[bar] += length
    for place, total in enumerate(starts.values()):
        axes.annotate(show(total), (total, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), bars)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * max(starts.values()))


def _scale(axis: Axis, set_scale: Callable[[str], None], about: Content, characters: int) -> None:
    """Label one axis, so many characters a line; if logarithmic and short, also number 2 and 5."""
    axis.set_label_text(fill(about["label"], characters))
    if not about["log"]:
        return
    set_scale("log")
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    axis.set_major_formatter(plain)
    low, high = axis.get_view_interval()
    short = high < low * 10**_NARROW_DECADES
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter(plain if short else NullFormatter())


def _description(plot: Content) -> str:
    """What somebody hears who does not see the picture."""
    if plot["kind"] == "stacked":
        said = [
            f"{series['label']}: "
            + ", ".join(
                f"{bar} {show(length)}"
                for bar, length in zip(series["x"], series["y"], strict=True)
            )
            for series in plot["series"]
        ]
    else:
        said = [
            f"{series['label']} from {show(series['x'][0])}, {show(series['y'][0])} "
            f"to {show(series['x'][-1])}, {show(series['y'][-1])}"
            for series in plot["series"]
            if series["x"]
        ]
    axes = " against ".join(plot[axis]["label"] for axis in ("y", "x") if plot[axis]["label"])
    return f"{plot['title']}, {axes}. {'; '.join(said)}"
