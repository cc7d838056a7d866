"""The ``vibematch`` command: matching here; the lab, where installed, adds its own commands."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import vibematch
from vibematch.errors import InputError, VibematchError

if TYPE_CHECKING:  # at run time, each command imports what it needs
    from vibematch.encoder import Encoder
    from vibematch.engine import MatchingEngine
    from vibematch.index import Match
    from vibematch.photos import Photo
    from vibematch.store import Value, Where

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_URL: Final = "localhost:8001"
ENTRY_POINTS: Final = "vibematch.commands"
LAB_COMMANDS: Final[tuple[str, ...]] = (
    "sample-photos",
    "dataset",
    "label",
    "augment",
    "train",
    "compare",
    "evaluate",
    "export",
    "parity",
    "serve",
    "publish",
    "demo",
)

_INSTALL_LAB: Final = "clone the repository and run `make install` there"
_PATIENCE_S: Final = 300.0
"""Deadline of one photo: a large model on a CPU, with others waiting in front, takes its time."""
_CELL_WIDTH: Final = 24
_TTY_EVERY_S: Final = 0.1
_LOG_EVERY_S: Final = 5.0
_EXAMPLES: Final = """\
examples:
  vibematch add index/ photos/                        encode a folder, remember its users
  vibematch match index/ user_001 -k 5                who shares this user's style?
  vibematch match index/ me.jpg --where age=25..35    who shares the style of this photo?
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; ``None`` takes the process's own.

    Returns:
        The exit status: 0 done, 1 failed (with one line on stderr), 130 interrupted. Misuse
        exits with status 2.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a failed handshake is our line to say
    try:
        status = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return status
    except VibematchError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader has seen enough, as in `vibematch ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error), 1)


def _run(argv: list[str]) -> int:
    parser, commands = _parser()
    if argv and argv[0] in LAB_COMMANDS and argv[0] not in commands.choices:
        raise InputError(
            f"`vibematch {argv[0]}` is part of the lab, which is not installed: {_INSTALL_LAB}"
        )
    args = parser.parse_args(argv or ["--help"])
    status: int | None = args.run(args)
    return status or 0


def _fail(message: str, status: int) -> int:
    _say(f"error: {message}")
    return status


def _say(message: str) -> None:
    print("vibematch:", " ".join(message.split()), file=sys.stderr)


# --- what can be typed


def _parser() -> tuple[argparse.ArgumentParser, Commands]:
    parser = argparse.ArgumentParser(
        prog="vibematch",
        usage="vibematch COMMAND ...",
        description="Match people by the style of their photos.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vibematch {vibematch.__version__}")
    commands = parser.add_subparsers(
        prog="vibematch", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    for declare in (_declare_add, _declare_match, _declare_remove, _declare_info, _declare_encode):
        declare(commands)
    matching = _summaries(commands)
    _declare_lab(commands)
    declared = _summaries(commands)
    lab = {name: declared[name] for name in LAB_COMMANDS if name in declared}
    parser.epilog = "\n".join([*_listing("matching", matching), *_lab_listing(lab), _EXAMPLES])
    return parser, commands


def _summaries(commands: Commands) -> dict[str, str]:
    return {action.dest: action.help or "" for action in commands._choices_actions}


def _listing(heading: str, summaries: Mapping[str, str]) -> list[str]:
    return [f"{heading}:", *(f"  {name:<15}{text}" for name, text in summaries.items()), ""]


def _lab_listing(summaries: Mapping[str, str]) -> list[str]:
    if summaries:
        return _listing("the lab", summaries)
    return ["the lab (not installed):", f"  {', '.join(LAB_COMMANDS)}", f"  {_INSTALL_LAB}", ""]


def _declare_lab(commands: Commands) -> None:
    for entry_point in entry_points(group=ENTRY_POINTS):
        try:
            register: Callable[[Commands], None] = entry_point.load()
        except ImportError as error:
            _say(f"warning: {entry_point.value} cannot be loaded ({error}); {_INSTALL_LAB}")
            continue
        register(commands)


def _declare_add(commands: Commands) -> None:
    parser = commands.add_parser(
        "add",
        help="encode photos and remember whose they are",
        description="Encode photos and add them to an index, which is made if there is none. "
        "Photos that are in it already are not sent again: an interrupted run can be repeated.",
    )
    _index_argument(parser)
    parser.add_argument(
        "photos",
        nargs="+",
        type=Path,
        metavar="PHOTOS",
        help="folders (with or without metadata.csv) and files named USER_NUMBER.jpg",
    )
    parser.add_argument(
        "--attributes",
        type=Path,
        metavar="CSV",
        help="a table with a user_id column; its other columns become the users' attributes",
    )
    _server_options(parser)
    _json_option(parser)
    parser.set_defaults(run=_add)


def _declare_match(commands: Commands) -> None:
    parser = commands.add_parser(
        "match",
        help="find the users whose style is most alike",
        description="Find the users whose style is most like that of a user or a photo. "
        "Only a photo needs the server.",
    )
    _index_argument(parser)
    parser.add_argument("query", metavar="USER|PHOTO", help="a photo file, or else a user's id")
    parser.add_argument(
        "-k", "--top-k", type=int, default=5, metavar="N", help="how many; default: %(default)s"
    )
    parser.add_argument(
        "--where",
        default="",
        metavar="CONDITIONS",
        help="what the users have to be, e.g. gender=F,age=25..35,region=Seoul|Busan",
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="USER", help="leave out; may be repeated"
    )
    parser.add_argument(
        "--gallery", type=Path, metavar="HTML", help="also write a page with the photos"
    )
    _server_options(parser)
    _json_option(parser)
    parser.set_defaults(run=_match)


def _declare_remove(commands: Commands) -> None:
    parser = commands.add_parser(
        "remove",
        help="forget users",
        description="Delete users with their vectors and attributes from an index. "
        "Photo files are left alone.",
    )
    _index_argument(parser)
    parser.add_argument("users", nargs="+", metavar="USER")
    parser.set_defaults(run=_remove)


def _declare_info(commands: Commands) -> None:
    parser = commands.add_parser(
        "info",
        help="describe an index or a server",
        description="Describe an index folder, or the model that a server offers.",
    )
    parser.add_argument(
        "target", metavar="INDEX|HOST:PORT", help="an index folder, or a server's gRPC endpoint"
    )
    _certificates_option(parser)
    _json_option(parser)
    parser.set_defaults(run=_info)


def _declare_encode(commands: Commands) -> None:
    parser = commands.add_parser(
        "encode",
        help="write photos' vectors to a NumPy file",
        description="Encode photos and write their unit vectors, float32 [photos, dim], in the "
        "order given. Nothing is written if a photo cannot be used.",
    )
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--out", type=Path, required=True, metavar="NPY")
    _server_options(parser)
    parser.set_defaults(run=_encode)


def _index_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="index folder")


def _server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default=DEFAULT_URL,
        metavar="HOST:PORT",
        help="the server's gRPC endpoint; default: %(default)s",
    )
    _certificates_option(parser)


def _certificates_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root-certificates",
        type=Path,
        metavar="PEM",
        help="the authority that signed the server's certificate; turns encryption (TLS) on",
    )


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


# --- what the commands do


def _add(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine

    photos = list(_photos(args.photos))
    if args.attributes is not None:
        photos = list(_with_attributes(photos, args.attributes))
    with (
        _encoder(args) as encoder,
        MatchingEngine.open(args.index, encoder=encoder) as engine,
        _progress() as on_progress,
    ):
        result = engine.add_photos(photos, on_progress=on_progress)
        info = engine.info()
    if result.rejected and not (result.added or result.known):
        photo, reason = result.rejected[0]
        others = len(result.rejected) - 1
        more = f", and {others} more like it" if others else ""
        raise InputError(f"no photo could be added: {photo}: {reason}{more}")
    for photo, reason in result.rejected:
        _say(f"warning: {photo}: {reason}")
    if args.json:
        rejected = [rejection._asdict() for rejection in result.rejected]
        counts = {"added": result.added, "known": result.known, "rejected": rejected}
        _print_json({**counts, "users": info.users, "photos": info.photos})
    else:
        print(
            f"{result.added:,} photos added, {result.known:,} known already, "
            f"{len(result.rejected):,} rejected; {args.index} holds {info.users:,} users with "
            f"{info.photos:,} photos"
        )


def _match(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine

    where = parse_where(args.where)
    photo = Path(args.query) if Path(args.query).is_file() else None
    encoder = _encoder(args) if photo else None
    with MatchingEngine.open(args.index, encoder=encoder, read_only=True) as engine:
        matches = engine.search(
            None if photo else args.query,
            args.top_k,
            photo=photo,
            where=where,
            exclude=args.exclude,
        )
        attributes = [engine.attributes(match.user_id) for match in matches]
        if args.gallery is not None:
            _write_gallery(args.gallery, engine, args.query, photo, matches)
    if args.json:
        found = [
            {**match._asdict(), "attributes": known}
            for match, known in zip(matches, attributes, strict=True)
        ]
        _print_json({"query": args.query, "matches": found})
    elif matches:
        _print_table(matches, attributes)
    if len(matches) < args.top_k:
        _say(f"{len(matches)} of the {args.top_k} asked for: no more users qualify")


def _remove(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine

    with MatchingEngine.open(args.index) as engine:
        for user_id in args.users:
            engine.remove(user_id)
            print(f"removed {user_id}")


def _info(args: argparse.Namespace) -> None:
    if re.fullmatch(r"[^/]+:\d+", args.target) and not Path(args.target).exists():
        _info_of_server(args)
    else:
        _info_of_index(args)


def _info_of_server(args: argparse.Namespace) -> None:
    from vibematch.encoder import Encoder

    with Encoder(args.target, root_certificates=args.root_certificates) as encoder:
        info = encoder.info()
    model = info.manifest
    if args.json:
        facts = dataclasses.asdict(info)
        del facts["manifest"]
        _print_json({"url": args.target, **facts, **json.loads(model.to_json())})
        return
    canvas = model.preprocessing
    _print_facts(
        {
            "server": f"{info.server} at {args.target}",
            "model": f"{info.model} version {info.version}; "
            f"ready: {', '.join(map(str, info.versions_ready))}",
            "fingerprint": model.fingerprint,
            "precision": model.precision,
            "backbone": model.backbone,
            "photos": f"{canvas.width} x {canvas.height} pixels, fit {canvas.fit}",
            "limits": f"{canvas.max_bytes:,} bytes and {canvas.max_pixels:,} pixels a photo, "
            f"{info.max_batch_size} photos a request",
            "vectors": f"{model.embedding_dim} numbers of unit length",
            "inputs": ", ".join(map(str, info.inputs)),
            "outputs": ", ".join(map(str, info.outputs)),
        }
    )


def _info_of_index(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine

    with MatchingEngine.open(args.target, read_only=True) as engine:
        facts = dataclasses.asdict(engine.info())
    if args.json:
        _print_json(facts)
    else:
        _print_facts(facts)


def _encode(args: argparse.Namespace) -> None:
    import numpy as np

    with _encoder(args) as encoder:
        vectors = encoder.encode(args.photos)
    try:
        with args.out.open("wb") as file:
            np.save(file, vectors)
    except OSError as error:
        raise InputError(f"{args.out} cannot be written ({error.strerror})") from error
    print(f"{args.out}: {vectors.dtype} {list(vectors.shape)}")


# --- helpers of the commands


def _encoder(args: argparse.Namespace) -> Encoder:
    from vibematch.encoder import Encoder

    return Encoder(args.url, timeout_s=_PATIENCE_S, root_certificates=args.root_certificates)


def _photos(paths: Iterable[Path]) -> Iterator[Photo]:
    from vibematch.photos import photo_from_name, read_photos

    for path in paths:
        if path.is_dir():
            yield from read_photos(path)
        elif path.exists():
            yield photo_from_name(path)
        else:
            raise InputError(f"no such photo or folder: {path}")


def _with_attributes(photos: Iterable[Photo], csv_path: Path) -> Iterator[Photo]:
    """The photos with their users' attributes as further labels."""
    try:
        with csv_path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{csv_path} cannot be read as a CSV ({error})") from error
    if not rows or "user_id" not in rows[0]:
        raise InputError(f"{csv_path} needs a user_id column and at least one row")
    if any(None in row for row in rows):
        raise InputError(f"{csv_path} has a row with more cells than columns")
    attributes = {row.pop("user_id"): {k: v for k, v in row.items() if v} for row in rows}
    for photo in photos:
        labels = {**photo.labels, **attributes.get(photo.user_id, {})}
        yield dataclasses.replace(photo, labels=labels)


def parse_where(text: str) -> Where:
    """Read conditions as typed: ``gender=F,age=25..35,region=Seoul|Busan``.

    A range may be open on one side: ``age=25..``.

    Raises:
        InputError: naming the condition that makes no sense.
    """
    from vibematch.store import value_from_text

    conditions: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise InputError(f"a condition must be NAME=VALUE, got {part!r}")
        if name in conditions:
            raise InputError(f"there are two conditions on {name!r}; keep one")
        if ".." in value:
            conditions[name] = _range(part, value)
        else:
            conditions[name] = [value_from_text(choice) for choice in value.split("|")]
    return conditions


def _range(part: str, value: str) -> tuple[float, float]:
    low, _, high = value.partition("..")
    try:
        return float(low or "-inf"), float(high or "inf")
    except ValueError:
        raise InputError(f"a range must be NAME=LOW..HIGH in numbers, got {part!r}") from None


def _write_gallery(
    path: Path,
    engine: MatchingEngine,
    query: str,
    photo: Path | None,
    matches: Sequence[Match],
) -> None:
    from vibematch.gallery import Person, Row, person, write_gallery

    asked = Person(query, photo) if photo else person(engine, query)
    found = [(person(engine, match.user_id), match.score) for match in matches]
    info = engine.info()
    write_gallery(
        path,
        [Row(asked, found)],
        subtitle=f"model {info.fingerprint[:12]} · {info.users:,} users · {info.photos:,} photos",
    )


def _print_table(matches: Sequence[Match], attributes: Sequence[Mapping[str, Value]]) -> None:
    columns = sorted({name for known in attributes for name in known})
    rows = [["", "user", "score", *columns]]
    for rank, (match, known) in enumerate(zip(matches, attributes, strict=True), start=1):
        cells = [_shortened(str(known.get(column, ""))) for column in columns]
        rows.append([str(rank), match.user_id, f"{match.score:.3f}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def _shortened(text: str) -> str:
    """One line that leaves room for others; ``--json`` shows everything."""
    line = " ".join(text.split())
    return line if len(line) <= _CELL_WIDTH else f"{line[: _CELL_WIDTH - 1]}…"


def _print_facts(facts: Mapping[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        text = value if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False)
        print(f"{name:<{width}}  {text}")


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A counter on stderr: one living line on a terminal, a line now and then in a log."""
    living = sys.stderr.isatty()
    every_s = _TTY_EVERY_S if living else _LOG_EVERY_S
    shown_s = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown_s
        if time.monotonic() - shown_s < every_s:
            return
        shown_s = time.monotonic()
        start, end = ("\r", "") if living else ("", "\n")
        print(f"{start}{done:,} of {total:,} photos", end=end, file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if living:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
