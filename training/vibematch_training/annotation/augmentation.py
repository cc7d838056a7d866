"""Augmented photos (``gen_*.jpg``) beside real ones: classic, or from an image model.

Only photos that may be trained on are sources: real, not of the validation split, not of low
quality. What was decided for each augmented photo (its file name above all) is noted in
``augment.ledger.jsonl`` before it is made, so that a killed run goes on as if it had not been.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tqdm import tqdm

from vibematch.errors import InputError, PhotoError
from vibematch.photos import METADATA_FILENAME
from vibematch_training.annotation import classic
from vibematch_training.annotation.endpoint import (
    Endpoint,
    InvalidAnswerError,
    Outcome,
    Usage,
    run_jobs,
)
from vibematch_training.annotation.ledger import Ledger, save_quarantine
from vibematch_training.annotation.metadata import Row, is_generated, table_of, write_table
from vibematch_training.annotation.prices import Estimate, Price, text_tokens
from vibematch_training.annotation.upload import decoded, jpeg, read_upright
from vibematch_training.files import write_atomically
from vibematch_training.schema import (
    LOW_QUALITY,
    PROVENANCE_COLUMNS,
    QUALITY_COLUMN,
    SPLIT_COLUMN,
    VALIDATION,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LEDGER_FILENAME: Final = "augment.ledger.jsonl"
QUARANTINE_FILENAME: Final = "augment.quarantine.jsonl"

_BACKGROUNDS: Final = (
    "a quiet city street",
    "a park with trees out of focus",
    "a bright café",
    "a plain light wall",
    "a living room with a bookshelf",
    "a riverside promenade",
    "a modern office lobby",
    "a brick wall",
    "a hotel corridor",
    "a rooftop terrace",
)
_LIGHTS: Final = (
    "soft overcast daylight",
    "warm evening sun from the side",
    "bright midday sun",
    "even indoor light",
    "window light from the left",
    "cool light on a cloudy morning",
    "warm lamps at night",
)
_POSES: Final = (
    "facing the camera, relaxed",
    "turned slightly to the left",
    "turned slightly to the right",
    "weight on one leg",
    "leaning lightly against something",
    "looking past the camera",
    "with a hint of a smile",
)
_REJECTS_RESPONSE_FORMAT: Final = ("gpt-image", "chatgpt-image")
"""OpenAI's own image models always send the picture itself and refuse the parameter."""


def edit_prompt(seed: int) -> str:
    """What an image model is asked to change, drawn from a seed; clothing and style stay."""
    rng = np.random.default_rng(seed)
    background, light, pose = (rng.choice(options) for options in (_BACKGROUNDS, _LIGHTS, _POSES))
    return (
        f"Show the same person in another moment. Background: {background}. Light: {light}. "
        f"Pose: {pose}. Keep every garment, shoe and accessory with its cut, colour, pattern and "
        "material, the hair, the body and the face exactly as they are, and keep how the photo "
        "was taken: a selfie stays a selfie, a mirror stays a mirror. A realistic photograph of "
        "this one person, without added text, logos or watermarks."
    )


@dataclass(frozen=True)
class EditJob:
    """The request for one edited photo (see :class:`vibematch_training.annotation.endpoint.Job`).

    Attributes:
        item: its name in the ledger.
        source: the real photo.
        output: the file to write.
        model: whom to ask.
        prompt: what to change.
    """

    item: str
    source: Path
    output: Path
    model: str
    prompt: str

    @property
    def tokens(self) -> int:
        """Estimated tokens of the prompt, for the pace."""
        return text_tokens(self.prompt)

    def prepare(self) -> bytes:
        """The photo as JPEG."""
        return jpeg(read_upright(self.source))

    async def send(self, client: AsyncOpenAI, request: Any, headers: dict[str, str]) -> object:
        """One image edit; the file's name is not sent."""
        plain = self.model.startswith(_REJECTS_RESPONSE_FORMAT)
        extra: dict[str, Any] = {} if plain else {"response_format": "b64_json"}
        response: object = await client.images.edit(
            model=self.model,
            image=("photo.jpg", request, "image/jpeg"),
            prompt=self.prompt,
            n=1,
            extra_headers=headers,
            **extra,
        )
        return response

    def read(self, response: Any) -> dict[str, Any]:
        """Check the picture and write it; the ledger keeps its hash."""
        try:
            [image] = response.data
            encoded, url = image.b64_json, image.url
        except (AttributeError, TypeError, ValueError) as error:
            shown = str(response)[:1000]
            raise InvalidAnswerError("not an answer with one image", shown) from error
        if not encoded:
            reason = "an address came instead of a picture; vibematch fetches no URLs"
            raise InvalidAnswerError(reason if url else "no image", url, ask_again=not url)
        try:
            content = jpeg(decoded(base64.b64decode(encoded, validate=True)))
        except (binascii.Error, ValueError) as error:  # PhotoError is a ValueError
            reason = f"the image cannot be used: {error}"
            raise InvalidAnswerError(reason, encoded[:200]) from error
        write_atomically(self.output, content)
        return {"output": self.output.name, "sha256": hashlib.sha256(content).hexdigest()}


@dataclass(frozen=True)
class AugmentationResult:
    """What :func:`augment` did.

    Attributes:
        sources: real photos that may be augmented.
        wanted: augmented photos asked for.
        made: of these, added to ``metadata.csv`` in this run.
        present: of these, in ``metadata.csv`` now.
        quarantined: of these, given up because no usable picture came.
        unanswered: requests of this run that were not sent, or failed for a passing reason.
        unreadable: what is wrong with source photos that could not be read.
        usage: what the endpoint counted in this run.
        repeated: requests sent again after a timeout or a lost connection.
        interrupted: whether the run was stopped.
        error: why it ended early, if it did.
        metadata: the folder's CSV.
        quarantine: the list of what was given up; ``None`` if there is nothing.
    """

    sources: int
    wanted: int
    made: int
    present: int
    quarantined: int
    unanswered: int
    unreadable: list[str]
    usage: Usage
    repeated: int
    interrupted: bool
    error: Exception | None
    metadata: Path
    quarantine: Path | None


def augment(
    directory: Path,
    per_photo: int,
    *,
    seed: int = 0,
    endpoint: Endpoint | None = None,
    price: Price | None = None,
    retry_quarantined: bool = False,
    confirm: Callable[[Estimate], None] = lambda _: None,
    progress: bool = True,
) -> AugmentationResult:
    """Add augmented photos to a folder until each real one has ``per_photo`` of this kind and seed.

    Args:
        directory: folder with photos; gets a ``metadata.csv`` if it has none.
        per_photo: augmented photos for each real one.
        seed: chooses the changes; with classic augmentation the same seed gives the same bytes.
        endpoint: an image model to ask; ``None`` augments on this machine.
        price: of the model, if known.
        retry_quarantined: ask again for what is in quarantine.
        confirm: called with the estimate before the first request; raises to send nothing.
        progress: draw progress bars on standard error.

    Raises:
        InputError: the folder or a number cannot be used, or no photo in it may be augmented.
    """
    if per_photo < 1 or seed < 0:
        raise InputError("--per-photo must be at least 1 and --seed at least 0")
    columns, rows = table_of(directory)
    sources = [row for row in rows if _may_be_augmented(row)]
    if not sources:
        raise InputError(
            f"{directory} holds no photo to augment: only real photos are, outside the validation "
            "split and not of Low quality"
        )
    generator = endpoint.model if endpoint else classic.GENERATOR
    with Ledger(directory / LEDGER_FILENAME) as ledger:
        ledger.settle()
        wanted = _wanted(directory, sources, per_photo, seed, generator, progress)
        listed = {_identity(row) for row in rows}
        unlisted = [one for one in wanted if one.identity not in listed]
        _plan(directory, rows, unlisted, ledger)
        missing = [one for one in unlisted if not one.output(ledger).exists()]
        outcome, unreadable = Outcome(), []
        jobs = [
            EditJob(one.item, one.path, one.output(ledger), generator, one.prompt(ledger))
            for one in missing
            if endpoint and not ledger.finished(one.item, retry_quarantined=retry_quarantined)
        ]
        if endpoint and jobs:
            confirm(_estimate(jobs, endpoint, price or Price()))
        if not (directory / METADATA_FILENAME).exists():
            # so that nobody takes a gen_ file of a later, interrupted run for a person's photo
            write_table(directory / METADATA_FILENAME, columns, rows)
        try:
            if endpoint and jobs:
                outcome = run_jobs(endpoint, ledger, jobs, progress=progress)
            elif not endpoint:
                unreadable = _make_classic(missing, ledger, progress)
        finally:
            made = _list_finished(directory, unlisted, ledger)
        quarantined = _save_quarantine(directory, unlisted, ledger)
        return AugmentationResult(
            sources=len(sources),
            wanted=len(wanted),
            made=made,
            present=len(wanted) - len(unlisted) + made,
            quarantined=quarantined,
            unanswered=outcome.unanswered,
            unreadable=unreadable,
            usage=outcome.usage,
            repeated=outcome.repeated,
            interrupted=outcome.interrupted,
            error=outcome.error,
            metadata=directory / METADATA_FILENAME,
            quarantine=directory / QUARANTINE_FILENAME if quarantined else None,
        )


def _may_be_augmented(row: Row) -> bool:
    held_out = row.get(SPLIT_COLUMN) == VALIDATION or row.get(QUALITY_COLUMN) == LOW_QUALITY
    return not (held_out or is_generated(row))


def _identity(row: Row) -> tuple[str, ...]:
    return tuple(row.get(name, "") for name in ("source", "generator", "generation_seed"))


@dataclass(frozen=True)
class _Wanted:
    """One augmented photo to have; what was decided for it is in the ledger."""

    directory: Path
    source: Row
    generator: str
    seed: int

    @property
    def item(self) -> str:
        return f"{self.generator}:{self.seed}:{self.source['filepath']}"

    @property
    def identity(self) -> tuple[str, ...]:
        return (self.source["filepath"], self.generator, str(self.seed))

    @property
    def path(self) -> Path:
        return self.directory / self.source["filepath"]

    def output(self, ledger: Ledger) -> Path:
        return self.directory / str(ledger.entries[self.item].plan["output"])

    def prompt(self, ledger: Ledger) -> str:
        return str(ledger.entries[self.item].plan["prompt"])

    def row(self, ledger: Ledger) -> Row:
        """Its line of metadata.csv: the source's labels, and where it comes from."""
        plan = ledger.entries[self.item].plan
        provenance = (self.source["filepath"], self.generator, plan["prompt"], str(self.seed))
        changes = {
            "filename": plan["output"],
            "filepath": plan["output"],
            "image_idx": str(plan["image_idx"]),
            **dict(zip(PROVENANCE_COLUMNS, provenance, strict=True)),
        }
        if self.generator != classic.GENERATOR and "caption" in self.source:
            changes["caption"] = ""  # it would describe the old background; label writes a new one
        return self.source | changes


def _wanted(
    directory: Path,
    sources: Sequence[Row],
    per_photo: int,
    seed: int,
    generator: str,
    progress: bool,
) -> list[_Wanted]:
    wanted = []
    for row in tqdm(sources, desc="Reading photos", unit="photo", disable=not progress):
        content = hashlib.sha256((directory / row["filepath"]).read_bytes()).hexdigest()
        for number in range(per_photo):
            drawn = hashlib.sha256(f"{seed}:{number}:{content}".encode()).digest()
            wanted.append(_Wanted(directory, row, generator, int.from_bytes(drawn[:4])))
    return wanted


def _plan(directory: Path, rows: Sequence[Row], wanted: Sequence[_Wanted], ledger: Ledger) -> None:
    """Decide file name, index and prompt of every new one, for good."""
    planned = [entry.plan for entry in ledger.entries.values()]
    names = [path.name for path in directory.glob("gen_*")]
    names += [Path(row["filepath"]).name for row in rows]
    names += [plan["output"] for plan in planned]
    taken = (int(match[1]) for name in names if (match := re.match(r"gen_(\d+)\.", name)))
    numbers = itertools.count(max(taken, default=0) + 1)
    next_idx: dict[str, int] = defaultdict(int)
    for row in [*rows, *planned]:
        idx = int(row["image_idx"]) + 1
        next_idx[row["user_id"]] = max(next_idx[row["user_id"]], idx)
    plans = {}
    for one in wanted:
        if one.item in ledger.entries:
            continue
        user_id = one.source["user_id"]
        real = one.generator != classic.GENERATOR
        plans[one.item] = {
            "output": f"gen_{next(numbers):06d}.jpg",
            "user_id": user_id,
            "image_idx": next_idx[user_id],
            "prompt": edit_prompt(one.seed) if real else str(classic.Recipe.draw(one.seed)),
        }
        next_idx[user_id] += 1
    ledger.plan(plans)


def _estimate(jobs: Sequence[EditJob], endpoint: Endpoint, price: Price) -> Estimate:
    what = f"{len(jobs):,} edited photo(s)"
    usage = Usage(requests=len(jobs))
    return Estimate(what, endpoint.model, endpoint.base_url, usage, price, "as stated")


def _make_classic(wanted: Sequence[_Wanted], ledger: Ledger, progress: bool) -> list[str]:
    """Write the missing files; returns what is wrong with photos that cannot be read."""

    def make(one: _Wanted) -> None:
        content = classic.Recipe.draw(one.seed).apply(read_upright(one.path))
        write_atomically(one.output(ledger), content)

    unreadable = []
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow works outside the interpreter's lock
    try:
        futures = {pool.submit(make, one): one for one in wanted}
        done = as_completed(futures)
        for future in tqdm(
            done, desc="Augmenting", total=len(futures), unit="photo", disable=not progress
        ):
            try:
                future.result()
            except PhotoError as error:
                unreadable.append(f"{futures[future].source['filepath']}: {error}")
    finally:
        pool.shutdown(cancel_futures=True)
    return sorted(set(unreadable))


def _list_finished(directory: Path, wanted: Sequence[_Wanted], ledger: Ledger) -> int:
    """Add the rows of files that are there to metadata.csv; returns how many."""
    columns, rows = table_of(directory)  # again: it may have been edited while we worked
    finished = [one.row(ledger) for one in wanted if one.output(ledger).exists()]
    if finished:
        columns += [name for name in PROVENANCE_COLUMNS if name not in columns]
        real = [row for row in rows if not is_generated(row)]
        generated = [row for row in rows if is_generated(row)] + finished
        generated.sort(key=lambda row: row["filepath"])
        write_table(directory / METADATA_FILENAME, columns, real + generated)
    return len(finished)


def _save_quarantine(directory: Path, wanted: Sequence[_Wanted], ledger: Ledger) -> int:
    given_up = [
        ({"photo": one.source["filepath"], "prompt": one.prompt(ledger)}, entry)
        for one in wanted
        if (entry := ledger.entries[one.item]).event == "quarantined"
        and not one.output(ledger).exists()
    ]
    return save_quarantine(directory / QUARANTINE_FILENAME, given_up)
