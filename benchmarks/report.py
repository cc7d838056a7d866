"""Results as people read them: in the terminal, as Markdown and as one HTML page with plots.

    python benchmarks/report.py build/benchmarks/tiny    # its *.json → report.md and report.html

Everything is drawn from the JSON files alone. In a table, rows of the same group compete in each
column that says which figures are better. Where a peer is better than the best of our rows, and
the two spreads (median and quartiles) do not overlap, our cell is bold and a sentence below the
table says by how much; a spread reaches at least half a percent to each side.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Content = Mapping[str, Any]
"""A result as it is in its file; see ``harness.Result``."""

COMPUTED: Final = "computed, not measured"
NOTHING: Final = "\N{EN DASH}"
ORDER: Final = ("model", "serving", "serving_overhead", "search", "end_to_end",
                "growth", "gpu_features", "a10g", "capacity", "client_size", "guard")  # fmt: skip
_LEAST: Final = 0.005
_WIDTH: Final = 120
_LABEL_WIDTH: Final = 20
_ARROWS: Final = {"less": " ↓", "more": " ↑", None: ""}
_SHARED: Final = ("date", "commit", "seed")


def main() -> None:
    """Write both reports of a folder."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/report.py", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="with the results, NAME.json")
    for path in write_report(parser.parse_args().folder):
        print(f"written to {path}")


def write_report(folder: Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html`` into a folder of results, and return their paths.

    Raises:
        SystemExit: there is no result in the folder.
    """
    results = load(folder)
    if not results:
        raise SystemExit(f"{folder} has no results; `make bench` makes some")
    written = folder / "report.md", folder / "report.html"
    for path, text in zip(written, (markdown(results), page(results)), strict=True):
        path.write_text(text, encoding="utf-8")
    return written


def load(folder: Path) -> dict[str, Content]:
    """File name without its ending → result, in the order in which one reads them."""
    results = {}
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "question" in content:
            results[path.stem] = content
        else:
            print(f"{path} is not a result: left out", file=sys.stderr)
    places = {name: place for place, name in enumerate(ORDER)}
    return dict(sorted(results.items(), key=lambda item: (places.get(item[0], 99), item[0])))


# --- what the figures say


class Behind(NamedTuple):
    """Peers that are better than us in one column of one group.

    Attributes:
        row: the number of our best row.
        column: the column's.
        peers: label → how many times better, the best first; infinite where one figure is 0.
        text: for people, without markup: the first part is what to stress.
    """

    row: int
    column: int
    peers: dict[str, float]
    text: tuple[str, str]


def behind(table: Content) -> list[Behind]:
    """Where a table's peers are ahead of the best of our rows."""
    found = []
    for group in dict.fromkeys(row["group"] for row in table["rows"]):
        for column, about in enumerate(table["columns"]):
            if about["better"] and (one := _behind(table, group, column)):
                found.append(one)
    return found


def _behind(table: Content, group: str, column: int) -> Behind | None:
    about = table["columns"][column]
    sign = 1 if about["better"] == "less" else -1
    ours: dict[int, tuple[float, float, float]] = {}
    theirs: dict[int, tuple[float, float, float]] = {}
    for number, row in enumerate(table["rows"]):
        value = spread(row["cells"][column])
        if row["group"] == group and value:
            (ours if row["ours"] else theirs)[number] = value
    if not ours:
        return None
    best = min(ours, key=lambda number: sign * ours[number][1])
    peers = {
        table["rows"][number]["label"]: _times(ours[best][1], value[1], sign)
        for number, value in sorted(theirs.items(), key=lambda item: sign * item[1][1])
        if (value[2] < ours[best][0] if sign > 0 else value[0] > ours[best][2])
    }
    if not peers:
        return None
    named = " and ".join(
        name + (f" by {show(times)}x" if math.isfinite(times) else "")
        for name, times in peers.items()
    )
    place = f" in {heading(about)}" + (f" ({group})" if group else "")
    return Behind(best, column, peers, (f"Behind {named}", place))


def _times(ours: float, theirs: float, sign: int) -> float:
    more, less = (ours, theirs) if sign > 0 else (theirs, ours)
    return more / less if less > 0 else math.inf


def spread(cell: Any) -> tuple[float, float, float] | None:
    """Low, median and high of a cell; none of text and of what was not measured."""
    if isinstance(cell, list):
        median, low, high = cell
    elif isinstance(cell, int | float) and not isinstance(cell, bool):
        low = median = high = cell
    else:
        return None
    half = _LEAST * abs(median)
    found = (min(low, median - half), median, max(high, median + half))
    return found if math.isfinite(median) else None


# --- figures as text


def show(value: Any) -> str:
    """A figure, a text or anything else of a result: three digits, or more where they matter."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(show(part) for part in value)
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.5g}" if 0.99 <= abs(value) < 1 else f"{value:.3g}"


def parts(cell: Any) -> tuple[str, str]:
    """A cell's figure, and its quartiles if it has some."""
    if isinstance(cell, list):
        median, low, high = cell
        return show(median), f"{show(low)} to {show(high)}" if spread(cell) else ""
    return show(cell), ""


def heading(column: Content) -> str:
    """A column's name with its unit."""
    return f"{column['name']}, {column['unit']}" if column["unit"] else str(column["name"])


def _heading_with_arrow(column: Content) -> str:
    return heading(column) + _ARROWS[column["better"]]


def _setting(content: Content) -> list[str]:
    return [f"{key}: {show(value)}" for key, value in content["setting"].items()]


# --- the terminal


def print_result(content: Content) -> None:
    """Print one result."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(f"\n[bold]{escape(content['question'])}[/]")
    computed = [COMPUTED] if content["computed"] else []
    console.print("; ".join([*computed, *_setting(content)]), markup=False)
    for table in content["tables"]:
        console.print(_terminal_table(table))
        for one in behind(table):
            stressed, rest = map(escape, one.text)
            console.print(f"[bold red]{stressed}[/]{rest}")
        if table["note"]:
            console.print(table["note"], style="dim", markup=False)
    for note in content["notes"]:
        console.print(note, markup=False)
    for bar in content["bars"]:
        kept = "[green]met   [/]" if bar["met"] else "[bold red]MISSED[/]"
        console.print(f"{kept} {escape(bar['promise'])}: {escape(show(bar['value']))}")


def _terminal_table(table: Content) -> Table:
    drawn = Table(title=escape(table["title"]), title_justify="left", box=box.SIMPLE)
    drawn.add_column("", min_width=_LABEL_WIDTH, overflow="fold")
    for number, column in enumerate(table["columns"]):
        figures = not any(isinstance(row["cells"][number], str) for row in table["rows"])
        drawn.add_column(escape(_heading_with_arrow(column)), justify="right", no_wrap=figures)
    losing = {(one.row, one.column) for one in behind(table)}
    number = 0
    for group, rows in groupby(table["rows"], key=lambda row: row["group"]):
        if group:
            drawn.add_section()
            drawn.add_row(escape(group), style="italic")
        for row in rows:
            cells = []
            for column, cell in enumerate(row["cells"]):
                median, quartiles = map(escape, parts(cell))
                median = f"[bold red]{median}[/]" if (number, column) in losing else median
                cells.append(f"{median}\n[dim]{quartiles}[/]" if quartiles else median)
            label = escape(row["label"])
            drawn.add_row(f"[cyan]{label}[/]" if row["ours"] else label, *cells)
            number += 1
    return drawn


# --- what results have in common


class Run(NamedTuple):
    """What is said once for all results.

    Attributes:
        facts: name → value that all, or most, results share.
        differences: result → what is otherwise there.
    """

    facts: dict[str, str]
    differences: dict[str, list[str]]


def common(results: Mapping[str, Content]) -> Run:
    """Dates, commit, machine and versions of all results, and which of them differ."""
    stated = {name: dict(_stated(content)) for name, content in results.items()}
    keys = list(dict.fromkeys(key for facts in stated.values() for key in facts))
    facts = {}
    for key in keys:
        values = Counter(own[key] for own in stated.values() if key in own)
        facts[key] = values.most_common(1)[0][0]
    differences = {
        name: [f"{key} {own[key]}" for key in keys if key in own and own[key] != facts[key]]
        for name, own in stated.items()
    }
    loads = [content["machine"]["load"] for content in results.values()]
    facts["load when a script was done"] = f"{min(loads):g} to {max(loads):g}"
    return Run(facts, {name: found for name, found in differences.items() if found})


def _stated(content: Content) -> Iterator[tuple[str, str]]:
    yield from ((key, str(content[key])) for key in _SHARED)
    machine = content["machine"]
    yield from ((key, str(machine[key])) for key in machine if key != "load")
    yield from content["versions"].items()


# --- Markdown


def markdown(results: Mapping[str, Content]) -> str:
    """All results, without the plots."""
    run = common(results)
    lines = ["# Benchmarks", "", _summary(results), "", _index(results), ""]
    lines += ["; ".join(f"{key} {value}" for key, value in run.facts.items()) + ".", ""]
    for name, found in run.differences.items():
        lines += [f"Otherwise in {name}: {'; '.join(found)}.", ""]
    lines += ["↓ less is better, ↑ more is better; quartiles in brackets. Plots: report.html.", ""]
    for name, content in results.items():
        lines += _section(name, content)
    return "\n".join(lines).rstrip() + "\n"


def _summary(results: Mapping[str, Content]) -> str:
    bars = [bar for content in results.values() for bar in content["bars"]]
    cells = sum(len(behind(table)) for content in results.values() for table in content["tables"])
    met = sum(bar["met"] for bar in bars)
    comparisons = f"{cells} comparison{'s' if cells > 1 else ''}"
    ahead = f"a peer is ahead of us in {comparisons}, said below the table"
    return f"{met} of {len(bars)} bars met; {ahead if cells else 'no peer is ahead of us'}."


def _index(results: Mapping[str, Content]) -> str:
    rows = [
        [
            f"[{name}](#{name})",
            content["question"] + (f" ({COMPUTED})" if content["computed"] else ""),
            _bars_met(content),
            str(sum(len(behind(table)) for table in content["tables"]) or NOTHING),
        ]
        for name, content in results.items()
    ]
    return _grid(["", "question", "bars met", "peers ahead"], rows)


def _bars_met(content: Content) -> str:
    bars = content["bars"]
    return f"{sum(bar['met'] for bar in bars)} of {len(bars)}" if bars else NOTHING


def _section(name: str, content: Content) -> list[str]:
    lines = [f"## {name}", "", content["question"], ""]
    if content["computed"]:
        lines += [f"**{COMPUTED.capitalize()}.**", ""]
    lines += ["; ".join(_setting(content)) + ".", ""] if content["setting"] else []
    lines += [
        f"- {'met' if bar['met'] else '**missed**'}: {bar['promise']}: {show(bar['value'])}"
        for bar in content["bars"]
    ]
    lines += [""] if content["bars"] else []
    for table in content["tables"]:
        lines += [f"### {table['title']}", "", _markdown_table(table), ""]
        for one in behind(table):
            lines += [f"**{one.text[0]}**{one.text[1]}.", ""]
        lines += [table["note"], ""] if table["note"] else []
    for note in content["notes"]:
        lines += [note, ""]
    return lines


def _markdown_table(table: Content) -> str:
    losing = {(one.row, one.column) for one in behind(table)}
    lines, before = [], ""
    for number, row in enumerate(table["rows"]):
        if row["group"] != before:
            before = row["group"]
            lines.append([f"*{before}*", *[""] * len(table["columns"])])
        cells = []
        for column, cell in enumerate(row["cells"]):
            median, quartiles = parts(cell)
            median = f"**{median}**" if (number, column) in losing else median
            cells.append(f"{median} ({quartiles})" if quartiles else median)
        lines.append([row["label"], *cells])
    return _grid(["", *map(_heading_with_arrow, table["columns"])], lines)


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)


# --- HTML


def page(results: Mapping[str, Content]) -> str:
    """All results as one page that loads nothing."""
    from report_plots import draw  # here: it takes long to load

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"show": show, "parts": parts, "heading": heading}
    text: str = environment.get_template("report.html.jinja").render(
        results=results,
        run=common(results),
        summary=_summary(results),
        behind={
            name: [behind(table) for table in content["tables"]]
            for name, content in results.items()
        },
        pictures={name: draw(name, content["plots"]) for name, content in results.items()},
        bars_met=_bars_met,
        computed=COMPUTED,
        nothing=NOTHING,
    )
    return text


if __name__ == "__main__":
    main()
