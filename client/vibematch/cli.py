"""The ``vibematch`` command: matching here; the lab, where installed, adds its own commands."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import vibematch
from vibematch.errors import InputError, PhotoError, VibematchError

if TYPE_CHECKING:  # at run time, each command imports what it needs
    from vibematch.attributes import Value, Where
    from vibematch.encoder import Encoder
    from vibematch.engine import MatchingEngine
    from vibematch.index import Match
    from vibematch.photos import Photo
    from vibematch.vectors import Vector

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
"""Of one photo: a large model on a CPU, with others waiting in front, takes its time."""
_CELL_WIDTH: Final = 24
_TTY_EVERY_S: Final = 0.1
_LOG_EVERY_S: Final = 5.0
_EXAMPLES: Final = """\
examples:
  vibematch add index/ photos/                        encode a folder, remember its users
  vibematch match index/ user_001 -k 5                who shares this user's style?
  vibematch match index/ me.jpg --where age=25..35    who shares the style of this photo?
  vibematch match index/ user_001 --mutual            ... and would each accept the other?
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
    for declare in (
        _declare_add,
        _declare_match,
        _declare_remove,
        _declare_info,
        _declare_encode,
        _declare_reindex,
        _declare_recall,
    ):
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
        help="a table with a user_id column; columns named prefers:NAME hold what the user wants "
        "of the others, written as for `match --where` (M, 25..35, Seoul|Busan); all other "
        "columns become the users' attributes",
    )
    _server_options(parser)
    _json_option(parser)
    parser.set_defaults(run=_add)


def _declare_match(commands: Commands) -> None:
    parser = commands.add_parser(
        "match",
        help="find the users whose style is most alike",
        description="Find the users whose style is most like that of a user or of photos. "
        "Only photos need the server.",
    )
    _index_argument(parser)
    parser.add_argument(
        "query",
        nargs="+",
        metavar="USER|PHOTO",
        help="a user's id, or photo files of one person",
    )
    _top_k_option(parser, 5)
    parser.add_argument(
        "--where",
        default="",
        metavar="CONDITIONS",
        help="what the users have to be, e.g. gender=F,age=25..35,region=Seoul|Busan; nothing "
        "stands for an attribute that is missing: region= or region=Seoul|",
    )
    parser.add_argument(
        "--mutual",
        action="store_true",
        help="only users whose preferences accept the user, and whom the user's accept",
    )
    parser.add_argument(
        "--min-score", type=float, metavar="COSINE", help="only users at least so much alike"
    )
    parser.add_argument(
        "--best-pair",
        action="store_true",
        help="compare the most similar photos of two users instead of all their photos' mean",
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="USER", help="leave out; may be repeated"
    )
    parser.add_argument(
        "--explain", action="store_true", help="also say how the search was carried out"
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
        help="forget users, or single photos",
        description="Delete users with their vectors and attributes from an index, or single "
        "photos of one user. Photo files are left alone. Nothing is deleted if a user or photo "
        "is unknown.",
    )
    _index_argument(parser)
    parser.add_argument("users", nargs="+", metavar="USER")
    parser.add_argument(
        "--photo",
        action="append",
        default=[],
        metavar="PHOTO_ID",
        help="delete only this photo, as `info INDEX --user USER` calls it; may be repeated",
    )
    _json_option(parser)
    parser.set_defaults(run=_remove)


def _declare_info(commands: Commands) -> None:
    parser = commands.add_parser(
        "info",
        help="describe an index, one of its users, or a server",
        description="Describe an index folder, one of its users, or the model a server offers.",
    )
    parser.add_argument(
        "target",
        metavar="INDEX|HOST:PORT|URL",
        help="an index folder, or a server: HOST:PORT for gRPC, http://... or https://...",
    )
    parser.add_argument("--user", metavar="USER", help="what the index knows about this user")
    _certificates_option(parser)
    _json_option(parser)
    parser.set_defaults(run=_info)


def _declare_encode(commands: Commands) -> None:
    parser = commands.add_parser(
        "encode",
        help="write photos' vectors to a NumPy file",
        description="Encode photos and write their unit vectors, float32 [photos, dim], in the "
        "order given. Nothing is written if a photo cannot be used, unless --skip-bad is given.",
    )
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--out", type=Path, required=True, metavar="NPY")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="write the others' vectors; --json lists the photo of each row",
    )
    _server_options(parser)
    _json_option(parser)
    parser.set_defaults(run=_encode)


def _declare_reindex(commands: Commands) -> None:
    parser = commands.add_parser(
        "reindex",
        help="go over to another model",
        description="Encode all photos of an index anew with the model that a server offers, and "
        "switch over when all is there; meanwhile the index answers as before. Run it again after "
        "an interruption: what was encoded is kept.",
    )
    _index_argument(parser)
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="look for photos here, by their content, that are not where they were",
    )
    parser.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out photos that are not found, and users who have no others",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="if going over to yet another model was begun and not finished, give that up",
    )
    parser.add_argument(
        "--forget-old",
        action="store_true",
        help="delete the vectors of earlier models in the end",
    )
    _server_options(parser)
    _json_option(parser)
    parser.set_defaults(run=_reindex)


def _declare_recall(commands: Commands) -> None:
    parser = commands.add_parser(
        "recall",
        help="measure how much of the truth the index finds",
        description="Search for random users, with the graph and exactly, and compare.",
    )
    _index_argument(parser)
    _top_k_option(parser, 10)
    parser.add_argument(
        "--queries",
        type=int,
        default=100,
        metavar="N",
        help="users to search for; default: %(default)s",
    )
    _json_option(parser)
    parser.set_defaults(run=_recall)


def _index_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="index folder")


def _top_k_option(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "-k",
        "--top-k",
        type=int,
        default=default,
        metavar="N",
        help="how many; default: %(default)s",
    )


def _server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default=DEFAULT_URL,
        metavar="ADDRESS",
        help="the server: HOST:PORT for gRPC, http://... or https://...; default: %(default)s",
    )
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=_PATIENCE_S,
        metavar="SECONDS",
        help="how long one photo may take; default: %(default)g",
    )
    parser.add_argument(
        "--downscale",
        action="store_true",
        help="send what the model sees, some 30 kB, instead of whole files",
    )
    _certificates_option(parser)


def _certificates_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root-certificates",
        type=Path,
        metavar="PEM",
        help="the authority that signed the server's certificate; turns encryption on for gRPC, "
        "and takes the place of the system's authorities for https",
    )


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


# --- what the commands do


def _add(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine

    photos = list(_photos(args.photos))
    preferences: Mapping[str, Where] = {}
    if args.attributes is not None:
        from vibematch.typed import read_table

        labels, preferences = read_table(args.attributes)
        named = {photo.user_id for photo in photos}
        strangers = sorted(labels.keys() - named)
        preferences = {user_id: preferences[user_id] for user_id in preferences.keys() & named}
        if strangers:
            some = ", ".join(strangers[:3]) + ", …" * (len(strangers) > 3)
            _say(
                f"warning: {_counted(len(strangers), 'row')} of {args.attributes} for users of "
                f"whom no photo was given: {some}"
            )
        photos = [
            dataclasses.replace(photo, labels={**photo.labels, **labels.get(photo.user_id, {})})
            for photo in photos
        ]
    with (
        _encoder(args) as encoder,
        MatchingEngine.open(args.index, encoder=encoder) as engine,
        _progress() as on_progress,
    ):
        result = engine.add_photos(photos, preferences=preferences, on_progress=on_progress)
        info = engine.info()
    if result.rejected and not (result.added or result.known):
        photo, reason, _ = result.rejected[0]
        others = len(result.rejected) - 1
        more = f", and {others} more like it" if others else ""
        raise InputError(f"no photo could be added: {photo}: {reason}{more}")
    for photo, reason, _ in result.rejected:
        _say(f"warning: {photo}: {reason}")
    if args.json:
        rejected = [rejection._asdict() for rejection in result.rejected]
        counts = {"added": result.added, "known": result.known, "rejected": rejected}
        _print_json({**counts, "users": info.users, "photos": info.photos})
    else:
        print(
            f"{_counted(result.added, 'photo')} added, {result.known:,} known already, "
            f"{len(result.rejected):,} rejected; {args.index} holds "
            f"{_counted(info.users, 'user')} with {_counted(info.photos, 'photo')}"
        )


def _match(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine
    from vibematch.typed import parse_where

    where = parse_where(args.where)
    photos = _photo_query(args.query)
    encoder = _encoder(args) if photos else None
    with (
        encoder or nullcontext(),
        MatchingEngine.open(args.index, encoder=encoder, read_only=True) as engine,
    ):
        explained = engine.search(
            None if photos else args.query[0],
            args.top_k,
            photo=photos or None,
            where=where,
            mutual=args.mutual,
            exclude=args.exclude,
            min_score=args.min_score,
            aggregate="best_pair" if args.best_pair else "mean",
            explain=True,
        )
        matches = explained.matches
        attributes = [engine.attributes(match.user_id) for match in matches]
        if args.gallery is not None:
            _write_gallery(args.gallery, engine, args.query, photos, matches)
    if args.json:
        found = [
            {**match._asdict(), "attributes": known}
            for match, known in zip(matches, attributes, strict=True)
        ]
        plan = {"plan": _finite(explained.plan._asdict())} if args.explain else {}
        _print_json({"query": args.query, "matches": found, **plan})
    elif matches:
        _print_table(matches, attributes)
    if args.explain and not args.json:
        print(explained.plan)
    if len(matches) < args.top_k:
        _say(f"{len(matches)} of the {args.top_k} asked for: no more users qualify")


def _photo_query(query: Sequence[str]) -> list[Path]:
    """The photos to search by; none if it is a user."""
    from vibematch.photos import SUFFIXES

    paths = [Path(part) for part in query]
    missing = [path for path in paths if not path.is_file()]
    if not missing:
        return paths
    if len(paths) > 1 or paths[0].suffix.lower() in SUFFIXES:
        raise InputError(f"no such photo: {missing[0]} (search by one user, or by photo files)")
    return []


def _remove(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine

    if args.photo and len(args.users) > 1:
        raise InputError("--photo goes with one user: photos are named within their user's")
    users, photos = list(dict.fromkeys(args.users)), list(dict.fromkeys(args.photo))
    with MatchingEngine.open(args.index) as engine:
        for user_id in users:
            _require_photos(engine, user_id, photos)
        for user_id in users:
            for photo_id in photos:
                engine.remove_photo(user_id, photo_id)
            if not photos:
                engine.remove(user_id)
    if args.json:
        _print_json({"users": users, "photos": photos})
    else:
        removed = [f"{users[0]}'s photo {photo_id}" for photo_id in photos] or users
        print("\n".join(f"removed {what}" for what in removed))


def _require_photos(engine: MatchingEngine, user_id: str, photo_ids: Collection[str]) -> None:
    """Make sure that a user is there, with these photos and another one."""
    known = {photo.photo_id for photo in engine.photos(user_id)}
    unknown = [photo_id for photo_id in photo_ids if photo_id not in known]
    if unknown:
        raise InputError(
            f"user {user_id!r} has no photo {unknown[0]!r}; `vibematch info INDEX --user "
            f"{user_id}` lists them"
        )
    if known == set(photo_ids):
        raise InputError(
            f"user {user_id!r} has no other photos: remove the user, that is leave --photo out"
        )


def _info(args: argparse.Namespace) -> None:
    named = re.fullmatch(r"[^/]+:\d+|https?://.*", args.target)
    if named and not Path(args.target).exists():
        if args.user is not None:
            raise InputError(
                f"a server knows no users: --user goes with an index, {args.target} "
                "is a server's address"
            )
        _info_of_server(args)
    elif args.user is not None:
        _info_of_user(args)
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


def _info_of_user(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine
    from vibematch.typed import PREFERS, typed

    with MatchingEngine.open(args.target, read_only=True) as engine:
        attributes = engine.attributes(args.user)
        preferences = {n: typed(wish) for n, wish in engine.preferences(args.user).items()}
        photos = engine.photos(args.user)
    if args.json:
        listed = [{"photo_id": photo.photo_id, "path": photo.path} for photo in photos]
        known = {"attributes": attributes, "preferences": preferences, "photos": listed}
        _print_json({"user_id": args.user, **known})
        return
    wishes = {f"{PREFERS}{name}": wish for name, wish in preferences.items()}
    _print_facts({"user_id": args.user, **attributes, **wishes})
    for photo in photos:
        print(f"photo  {photo.photo_id}  {photo.path or ''}".rstrip())


def _info_of_index(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine
    from vibematch.folder import generations

    folder = Path(args.target)
    with MatchingEngine.open(folder, read_only=True) as engine:
        facts = dataclasses.asdict(engine.info())
    facts["generations"] = sorted(generations(folder))
    facts["bytes_on_disk"] = _bytes_in(folder)
    if args.json:
        _print_json(facts)
    else:
        _print_facts(facts)


def _bytes_in(folder: Path) -> int:
    size = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a writer's files come and go
            size += file.stat().st_size if file.is_file() else 0
    return size


def _encode(args: argparse.Namespace) -> None:
    import numpy as np

    vectors: list[Vector] = []
    used: list[Path] = []
    rejected: list[tuple[Path, PhotoError]] = []
    with _encoder(args) as encoder, _progress() as on_progress:
        fingerprint = encoder.manifest.fingerprint
        outcomes = encoder.encode_each(args.photos, fingerprint=fingerprint)
        for done, (path, outcome) in enumerate(zip(args.photos, outcomes, strict=True), start=1):
            on_progress(done, len(args.photos))
            if isinstance(outcome, PhotoError):
                if not args.skip_bad:
                    raise InputError(f"{path}: {outcome} (--skip-bad leaves such photos out)")
                rejected.append((path, outcome))
            elif isinstance(outcome, VibematchError):
                raise outcome
            else:
                vectors.append(outcome)
                used.append(path)
    if not vectors:
        raise InputError(f"no photo could be encoded: {rejected[0][0]}: {rejected[0][1]}")
    try:
        with args.out.open("wb") as file:
            np.save(file, np.stack(vectors))
    except OSError as error:
        raise InputError(f"{args.out} cannot be written ({error.strerror})") from error
    shape = [len(vectors), len(vectors[0])]
    for path, reason in rejected:
        _say(f"warning: {path}: {reason}")
    if args.json:
        _print_json(
            {
                "out": str(args.out),
                "dtype": "float32",
                "shape": shape,
                "fingerprint": fingerprint,
                "photos": [str(path) for path in used],
                "rejected": [
                    {"photo": str(path), "reason": str(reason)} for path, reason in rejected
                ],
            }
        )
    else:
        print(f"{args.out}: float32 {shape}")


def _reindex(args: argparse.Namespace) -> None:
    from vibematch.reindex import forget_old, photos_in, reindex

    with _encoder(args) as encoder, _progress() as on_progress:
        model = encoder.manifest
        result = reindex(
            args.index,
            encoder,
            source=args.photos and photos_in(args.photos, model.preprocessing.max_bytes),
            skip_missing=args.skip_missing,
            restart=args.restart,
            on_progress=on_progress,
        )
    # What was left out may be on a disk that is away just now: the next call may delete it.
    forgotten = forget_old(args.index) if args.forget_old and not result.left_out_photos else 0
    if args.json:
        facts = {"fingerprint": model.fingerprint, **dataclasses.asdict(result)}
        _print_json({**facts, "generations_deleted": forgotten})
        return
    went = "went over to" if result.switched else "has already"
    print(
        f"{args.index} {went} model {model.fingerprint[:12]}: "
        f"{_counted(result.users, 'user')} with {_counted(result.photos, 'photo')}, "
        f"{result.encoded:,} encoded now"
    )
    if result.left_out_photos:
        _say(
            f"warning: left out {_counted(result.left_out_photos, 'photo')} not found, and with "
            f"them {_counted(result.left_out_users, 'user')}; the old vectors are kept: run again "
            "with --forget-old to delete them"
        )
    if forgotten:
        print(f"deleted {_counted(forgotten, 'earlier generation')}")


def _recall(args: argparse.Namespace) -> None:
    from vibematch.engine import MatchingEngine

    with MatchingEngine.open(args.index, read_only=True) as engine:
        recall = engine.recall(args.top_k, queries=args.queries)
    if args.json:
        _print_json(dataclasses.asdict(recall))
    else:
        print(
            f"recall@{recall.top_k} {recall.recall:.4f} over {recall.queries:,} users, worst "
            f"{recall.worst:.2f}; a search takes {recall.search_ms:.2f} ms, an exact one "
            f"{recall.exact_ms:.2f} ms"
        )


# --- helpers of the commands


def _encoder(args: argparse.Namespace) -> Encoder:
    from vibematch.encoder import Encoder

    return Encoder(
        args.url,
        timeout_s=args.timeout_s,
        root_certificates=args.root_certificates,
        downscale=args.downscale,
    )


def _photos(paths: Iterable[Path]) -> Iterator[Photo]:
    from vibematch.photos import photo_from_name, read_photos

    for path in paths:
        if path.is_dir():
            yield from read_photos(path)
        elif path.exists():
            yield photo_from_name(path)
        else:
            raise InputError(f"no such photo or folder: {path}")


def _write_gallery(
    path: Path,
    engine: MatchingEngine,
    query: Sequence[str],
    photos: Sequence[Path],
    matches: Sequence[Match],
) -> None:
    from vibematch.gallery import Person, Row, person, write_gallery

    asked = Person(" ".join(query), photos[0]) if photos else person(engine, query[0])
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


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Without the infinities, which JSON does not have."""
    return {name: None if value == math.inf else value for name, value in facts.items()}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


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
