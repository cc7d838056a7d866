from __future__ import annotations

import argparse
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OURS_COLOUR = "#4477aa"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import harness

    return harness


@pytest.fixture
def report(harness: ModuleType) -> ModuleType:
    import report

    return report


def table(better: str | None, ours: Any, *peers: Any, group: str = "") -> dict[str, Any]:
    rows = [{"label": "ours", "cells": [ours], "ours": True, "group": group}]
    rows += [
        {"label": f"peer {number}", "cells": [cell], "ours": False, "group": group}
        for number, cell in enumerate(peers)
    ]
    column = {"name": "median", "unit": "ms", "better": better}
    return {"title": "Latency", "columns": [column], "rows": rows, "note": ""}


@pytest.fixture
def search(harness: ModuleType) -> Any:
    column, row, series = harness.Column, harness.Row, harness.Series
    spread = harness.Spread
    axis = harness.Axis("ms", log=True)
    share = harness.Axis("share")
    return harness.Result(
        name="search",
        question="How quickly is a search answered?",
        setting={"users": 10_000, "precision": "float32"},
        tables=[
            harness.Table(
                "Latency",
                [column("recall", better="more"), column("median", "ms", "less"), column("kept")],
                [
                    row("vibematch", [0.9991, spread(0.72, 0.7, 0.74), "yes"], True, "10 %"),
                    row("FAISS <b>|", [0.999, spread(0.36, 0.35, 0.4), "no"], group="10 %"),
                    row("vibematch", [0.9991, spread(0.15, 0.1, 0.2), "yes"], True, "all"),
                    row("hnswlib", [0.9912, spread(0.14, 0.1, 0.2), "no"], group="all"),
                    row("absent", [None, None, "no"], group="all"),
                ],
            )
        ],
        plots=[
            harness.Plot("Times", "cdf", axis, share,
                         [series("hnswlib", [1.0, 2.0], [0.5, 1.0]),
                          series("vibematch", [1.0, 1.5], [0.5, 1.0], ours=True)]),
            harness.Plot("Parts", "stacked", axis, share,
                         [series("decode", ["tiny", "2b"], [1.0, 2.0]),
                          series("model", ["tiny", "2b"], [3.0, 40.0])]),
            harness.Plot("Rates", "roofline", axis, axis,
                         [series("limit int8", [1, 32], [9, 9]),
                          series("ours", [1, 8], [5, 6], ours=True)]),
        ],
        bars=[harness.Bar("at least 3x the best", 0.5, False), harness.Bar("kept", "yes", True)],
        notes=["Ours keeps everything on the disk."],
    )  # fmt: skip


@pytest.fixture
def folder(harness: ModuleType, search: Any, tmp_path: Path) -> Path:
    """Two results, the second of another CPU and another numpy."""
    paper = harness.Result("a10g", "What would a GPU do?", {}, computed=True)
    for result in (search, paper):
        args = argparse.Namespace(out=tmp_path, seed=0, json=True)
        path = harness.publish(result, args)
    content = json.loads(path.read_text())
    content["machine"]["cpu"] = "Another CPU"
    content["versions"]["numpy"] = "0.1"
    path.write_text(json.dumps(content))
    return tmp_path


# --- who is ahead


@pytest.mark.parametrize(
    ("better", "ours", "peer"),
    [
        ("less", 2.0, 1.0),
        ("more", 1.0, 2.0),
        ("less", [2.0, 1.9, 2.1], [1.5, 1.4, 1.8]),
        ("less", [2.0, 1.9, 2.1], 1.5),
        ("less", 1.02, 1.0),
        ("less", 3, 0),
    ],
)
def test_a_peer_beyond_the_spreads_is_ahead(
    report: ModuleType, better: str, ours: Any, peer: Any
) -> None:
    (found,) = report.behind(table(better, ours, peer))
    assert list(found.peers) == ["peer 0"]
    assert (found.row, found.column) == (0, 0)


@pytest.mark.parametrize(
    ("better", "ours", "peer"),
    [
        ("less", 1.0, 2.0),
        ("more", 2.0, 1.0),
        ("less", [2.0, 1.7, 2.1], [1.5, 1.4, 1.8]),
        ("less", 1.005, 1.0),
        ("less", 1.0, 1.0),
        (None, 2.0, 1.0),
        ("less", 2.0, None),
        ("less", 2.0, "quick"),
        ("less", 2.0, math.nan),
        ("less", None, 1.0),
    ],
)
def test_nobody_else_is(report: ModuleType, better: str | None, ours: Any, peer: Any) -> None:
    assert report.behind(table(better, ours, peer)) == []


def test_the_sentence_names_the_peers_best_first_with_ratio_column_and_group(
    report: ModuleType,
) -> None:
    (found,) = report.behind(table("less", 3.0, 2.0, 1.5, 9.0, group="batch 1"))
    assert found.text == ("Behind peer 1 by 2x and peer 0 by 1.5x", " in median, ms (batch 1)")
    (found,) = report.behind(table("more", 0.0, 2.0))
    assert found.text == ("Behind peer 0", " in median, ms")


def test_groups_do_not_compete_and_our_best_row_counts(report: ModuleType) -> None:
    both = table("less", 2.0, 3.0, group="batch 1")
    both["rows"] += table("less", 9.0, 1.0, group="batch 8")["rows"]
    both["rows"].append({"label": "int8", "cells": [1.2], "ours": True, "group": "batch 8"})
    (found,) = report.behind(both)
    assert found.row == 4 and found.peers == {"peer 0": pytest.approx(1.2)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"), (math.nan, "\N{EN DASH}"), (12_345, "12,345"), (12345.6, "12,346"),
        (99.64, "99.6"), (0.99997, "0.99997"), (0.0123456, "0.0123"), (True, "yes"),
        ({"a": 1, "b": [2, 3.14159]}, "a 1, b 2, 3.14"),
    ],
)  # fmt: skip
def test_figures_have_the_digits_that_matter(report: ModuleType, value: Any, text: str) -> None:
    assert report.show(value) == text


# --- what is written


def test_markdown_has_our_losing_cell_bold_and_a_sentence(report: ModuleType, folder: Path) -> None:
    text = report.markdown(report.load(folder))
    assert "| vibematch | 0.9991 | **0.72** (0.7 to 0.74) | yes |" in text
    assert "**Behind FAISS <b>| by 2x** in median, ms (10 %)." in text
    assert text.count("**Behind") == 1
    assert "1 of 2 bars met; a peer is ahead of us in 1 comparison," in text
    assert "- **missed**: at least 3x the best: 0.5" in text
    assert "**Computed, not measured.**" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| vibematch")}
    assert widths == {line.count("|") for line in text.splitlines() if line.startswith("| FAISS")}


def test_the_terminal_says_the_same(
    report: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    report.print_result(report.load(folder)["search"])
    text = capsys.readouterr().out
    assert "Behind FAISS <b>| by 2x in median, ms (10 %)" in text
    assert "MISSED at least 3x the best: 0.5" in text
    assert "0.7 to 0.74" in text and "Ours keeps everything on the disk." in text


class Page(HTMLParser):
    """Collects what the tests look at, and that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = {name: value or "" for name, value in attrs}
        self.ids += [about["id"]] if "id" in about else []
        self.links += [about[name] for name in ("href", "src", "xlink:href") if name in about]
        if tag == "svg":
            self.pictures.append(about["aria-label"])
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_loads_nothing_and_describes_its_pictures(
    report: ModuleType, folder: Path
) -> None:
    markdown, html = report.write_report(folder)
    assert markdown.read_text() == report.markdown(report.load(folder))
    text = html.read_text()
    page = Page(text)
    assert page.open == []
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    times, parts, _ = page.pictures
    assert (
        times.startswith("Times, share against ms.") and "vibematch from 1, 0.5 to 1.5, 1" in times
    )
    assert "model: tiny 3, 2b 40" in parts
    assert "FAISS &lt;b&gt;|" in text and "FAISS <b>" not in text
    assert text.count("computed, not measured") == 1
    assert "a10g</a>: cpu Another CPU; numpy 0.1." in text


def test_ours_has_the_same_colour_in_every_plot_and_no_peer_has_it(
    report: ModuleType, folder: Path
) -> None:
    import report_plots

    plots = report.load(folder)["search"]["plots"]
    svgs = [picture.svg for picture in report_plots.draw("search", plots)]
    assert all(OURS_COLOUR in svg for svg in svgs)
    without = [
        {**plot, "series": [series for series in plot["series"] if not series["ours"]]}
        for plot in plots
        if plot["kind"] != "stacked"
    ]
    assert not any(OURS_COLOUR in picture.svg for picture in report_plots.draw("x", without))


def test_what_differs_between_results_is_said(report: ModuleType, folder: Path) -> None:
    results = report.load(folder)
    run = report.common(results)
    assert run.differences == {"a10g": ["cpu Another CPU", "numpy 0.1"]}
    assert "Otherwise in a10g: cpu Another CPU; numpy 0.1." in report.markdown(results)


def test_files_that_are_no_results_are_left_out_aloud(
    report: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "parts.json").write_text("[1, 2]")
    assert list(report.load(folder)) == ["search", "a10g"]
    assert "parts.json is not a result" in capsys.readouterr().err


def test_a_folder_without_results_is_refused(report: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no results"):
        report.write_report(tmp_path)
