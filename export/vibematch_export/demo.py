"""``vibematch demo``: the whole path once, for someone who has just cloned the project."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from vibematch.encoder import Encoder
from vibematch.engine import MatchingEngine
from vibematch.errors import InputError
from vibematch.gallery import Person, Row, person, write_gallery
from vibematch.index import Match
from vibematch.manifest import Manifest
from vibematch.photos import Photo, read_photos
from vibematch_export.export import export
from vibematch_export.repository import write_repository
from vibematch_export.triton import TritonServer
from vibematch_training.evaluation.report import REPORT_FILENAME, print_results
from vibematch_training.run import TrainingConfig
from vibematch_training.sample_photos import write_sample_photos
from vibematch_training.schema import SPLIT_COLUMN, VALIDATION
from vibematch_training.train import train

TOP_K: Final = 5
QUERIES: Final = 5
VISITOR_PHOTOS: Final = 200
"""Of a visitor's own folder, so many are matched: enough to see, quick to wait for."""

_MARKER: Final = ".vibematch-demo"


def demo(out: Path, *, photos: Path | None = None) -> None:
    """Draw photos, train, export, serve, index and match, then show what came of it.

    Args:
        out: folder for everything that is made; one of an earlier demo is replaced.
        photos: a folder to match instead of the drawn people the model has not seen.

    Raises:
        InputError: ``out`` holds something else, or ``photos`` cannot be used.
        VibematchError: a stage failed; the message says which part and why.
    """
    visitors = _visitors(photos) if photos is not None else None
    _prepare(out)
    timer = _Timer()
    with timer.stage("draw photos"):
        write_sample_photos(out / "photos")
    run = out / "run"
    with timer.stage("train"):
        results = train(TrainingConfig(str(out / "photos")), run)
    with timer.stage("export and prove"):
        model = export(run)
        repository = write_repository(out / "model_repository", model)
    people = visitors if visitors is not None else _unseen_people(out / "photos")
    with ExitStack() as stack:
        with timer.stage("start Triton"):
            server = stack.enter_context(TritonServer(repository))
        encoder = stack.enter_context(Encoder(server.grpc_url))
        engine = stack.enter_context(MatchingEngine.open(out / "index", encoder=encoder))
        with timer.stage(f"encode and index {len(people)} photos"):
            _add(engine, people)
        users = sorted({photo.user_id for photo in people if photo.user_id in engine})
        if len(users) < 2:
            raise InputError(f"only {len(users)} of the {len(people)} photos can be used")
        with timer.stage(f"match {len(users)} people"):
            matches = {user: engine.search(user, TOP_K) for user in users}
        cards = {user: person(engine, user) for user in users}
    queries = _queries(cards)
    gallery = out / "gallery.html"
    manifest = Manifest.load(model)
    _write_gallery(gallery, queries, matches, cards, results, manifest)

    console = Console()
    console.print(_matches_table(queries, matches, cards))
    print_results(results)
    console.print(
        f"Parity: least cosine {manifest.parity['min_cosine']:.10f} between the served graph and "
        f"Hugging Face's forward + trained head, over {manifest.parity['photos']:.0f} photos."
    )
    console.print(timer.table())
    print(f"Report:  {(run / REPORT_FILENAME).resolve()}\nGallery: {gallery.resolve()}")


def _visitors(folder: Path) -> list[Photo]:
    photos = [photo for photo in read_photos(folder) if not photo.generated][:VISITOR_PHOTOS]
    if len({photo.user_id for photo in photos}) < 2:
        raise InputError(f"{folder} holds photos of one person only; matching takes two or more")
    return photos


def _unseen_people(folder: Path) -> list[Photo]:
    return [photo for photo in read_photos(folder) if photo.labels[SPLIT_COLUMN] == VALIDATION]


def _prepare(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise InputError(f"{out} holds something other than an earlier demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    for name in ("run", "index"):  # the drawn photos stay: they are the same every time
        shutil.rmtree(out / name, ignore_errors=True)


def _add(engine: MatchingEngine, photos: Sequence[Photo]) -> None:
    with tqdm(total=len(photos), desc="indexing", unit="photo") as bar:

        def advance(done: int, _: int) -> None:
            bar.update(done - bar.n)

        added = engine.add_photos(photos, on_progress=advance)
    for rejected in added.rejected:
        print(f"left out: {rejected.photo}: {rejected.reason}")


def _queries(cards: Mapping[str, Person]) -> list[Person]:
    """One person of each style; where no styles are known, the first few."""
    by_style = {card.style or card.user_id: card for card in reversed(list(cards.values()))}
    return sorted(by_style.values(), key=lambda card: card.style or card.user_id)[:QUERIES]


def _write_gallery(
    path: Path,
    queries: Sequence[Person],
    matches: Mapping[str, Sequence[Match]],
    cards: Mapping[str, Person],
    results: Mapping[str, Any],
    manifest: Manifest,
) -> None:
    rows = [
        Row(query, [(cards[user], score) for user, score in matches[query.user_id]])
        for query in queries
    ]
    raw, trained = results["raw_backbone"], results["trained_head"]
    write_gallery(
        path,
        rows,
        title="People who share a style",
        subtitle=f"Recall@1 {trained['recall_at_1']:.2f} on people the model has not seen "
        f"(backbone alone {raw['recall_at_1']:.2f}) · backbone {manifest.backbone} · model "
        f"{manifest.fingerprint[:12]}",
    )


def _matches_table(
    queries: Sequence[Person],
    matches: Mapping[str, Sequence[Match]],
    cards: Mapping[str, Person],
) -> Table:
    table = Table(title="Who shares a style? Cosine similarity, best first")
    table.add_column("person")
    for rank in range(1, TOP_K + 1):
        table.add_column(f"match {rank}")
    for query in queries:
        found = [
            f"{user} {score:.2f}\n{_style(cards[user])}" for user, score in matches[query.user_id]
        ]
        table.add_row(f"[bold]{query.user_id}[/bold]\n{_style(query)}", *found, end_section=True)
    return table


def _style(card: Person) -> str:
    return f"[dim]{card.style.replace('_', ' ')}[/dim]" if card.style else ""


class _Timer:
    """Announces stages and remembers how long each took."""

    def __init__(self) -> None:
        self._elapsed_s: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(f"▸ {name}", flush=True)
        start = time.perf_counter()
        yield
        self._elapsed_s[name] = time.perf_counter() - start

    def table(self) -> Table:
        table = Table(title="Time per stage", show_footer=True)
        table.add_column("stage", footer="all")
        total = f"{sum(self._elapsed_s.values()):.1f}"
        table.add_column("seconds", justify="right", footer=total)
        for name, elapsed_s in self._elapsed_s.items():
            table.add_row(name, f"{elapsed_s:.2f}")
        return table
