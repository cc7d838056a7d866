"""Proof that an exported model is the model that was trained.

The reference is Hugging Face's own forward in float32 with the trained head behind it. It is
computed once for all artefacts of a run. The features come from training's feature cache, where
each batch is kept as soon as it is computed: an interrupted proof goes on from there.

Each artefact sees every photo alone and in a batch of eight, and the worse of the two counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from tqdm import tqdm

from vibematch.encoder import NORM_TOLERANCE
from vibematch.errors import InputError, PhotoError, VibematchError
from vibematch.photos import Photo, read_photos
from vibematch.preprocess import Preprocessing
from vibematch_export import kernels
from vibematch_export.half_on_cpu import emulated
from vibematch_export.onnx_graph import OUTPUT_NAME
from vibematch_training.cache import cache_dir
from vibematch_training.dataset import class_of, load_dataset
from vibematch_training.evaluation.metrics import NEIGHBOURS, retrieve
from vibematch_training.features import FeatureRecipe, extract_features, load_pixels
from vibematch_training.graph_extractor import INPUT_NAME
from vibematch_training.head import ProjectionHead
from vibematch_training.run import TrainedRun

Vectors = npt.NDArray[np.float32]
Run = Callable[[npt.NDArray[np.uint8]], Vectors]
"""An artefact: pixels, uint8 ``[batch, 3, H, W]`` → embeddings, float32 ``[batch, dim]``."""

PHOTOS: Final = 98
"""So many photos are compared, where there are so many: the paper's validation set."""
BATCH_SIZES: Final = (1, 8)
RECALL_CHANGE: Final = 0.01
"""Recall@1 may change by so much, for every precision; but see :func:`shortfalls`."""

_NAMED: Final = 5


class ParityError(VibematchError):
    """The exported model and the trained model disagree."""


@dataclass(frozen=True)
class Threshold:
    """What the vectors of a precision have to reach.

    Attributes:
        min_cosine: of every photo, with the reference and between its two batch sizes.
        mean_cosine: over the photos.
    """

    min_cosine: float
    mean_cosine: float


THRESHOLDS: Final = {
    "fp32": Threshold(0.99999, 0.99999),
    "bf16": Threshold(0.999, 0.999),
    "fp16": Threshold(0.999, 0.999),
    "int8": Threshold(0.995, 0.999),
}


@dataclass(frozen=True)
class Reference:
    """What the trained model gives for the photos of a proof.

    Attributes:
        photos: the photo files.
        pixels: uint8, shape ``[photos, 3, H, W]``; 59 MB for 98 photos of 448 x 448.
        embeddings: unit vectors, float32, shape ``[photos, dim]``.
        users: owner of each photo.
        labels: class of each photo; ``None`` where not all have one.
    """

    photos: list[Path]
    pixels: npt.NDArray[np.uint8]
    embeddings: Vectors
    users: list[str]
    labels: list[str] | None


@dataclass(frozen=True)
class Parity:
    """How far an artefact is from the reference.

    Each photo counts with the worse of its cosines at batch 1 and 8, and each figure over all
    photos is that of the worse batch size.

    Attributes:
        photos: how many were compared.
        min_cosine: least cosine of a photo's vector and its reference.
        mean_cosine: mean over the photos.
        max_abs_difference: the largest difference of two numbers.
        batch_cosine: least cosine of a photo's vectors at batch 1 and batch 8.
        top_10_agreement: mean share of a photo's 10 nearest photos that are the reference's too;
            ``None`` for fewer than 12 photos, which have no choice.
        recall_at_1_change: Recall@1 of the artefact minus that of the reference, each photo
            searching among the other users' photos; ``None`` without labels, or if no photo has
            anything to find.
        queries: how many photos that is measured on.
        worst: photos and their cosines, the least first.
    """

    photos: int
    min_cosine: float
    mean_cosine: float
    max_abs_difference: float
    batch_cosine: float
    top_10_agreement: float | None
    recall_at_1_change: float | None
    queries: int
    worst: list[tuple[Path, float]]

    @property
    def figures(self) -> dict[str, float]:
        """The figures that are defined, by name, for the manifest."""
        figures: dict[str, float | None] = {
            "photos": self.photos,
            "min_cosine": self.min_cosine,
            "mean_cosine": self.mean_cosine,
            "max_abs_difference": self.max_abs_difference,
            "batch_cosine": self.batch_cosine,
            "top_10_agreement": self.top_10_agreement,
            "recall_at_1_change": self.recall_at_1_change,
            "recall_at_1_queries": self.queries or None,
        }
        return {name: value for name, value in figures.items() if value is not None}


# --- the reference


def proof_photos(run: TrainedRun, directory: Path | None = None) -> list[Photo]:
    """Photos to compare on, the preferred ones first.

    Those of a folder if one is given; else the run's validation photos, and after them the real
    ones it was trained on. People are shuffled, so that the first photos are of all classes even
    in a sorted folder, and each person's photos stay together, since they may be each other's only
    positives.

    Raises:
        InputError: the folder, or the run's own, is gone or cannot be used.
    """
    config = run.config
    if directory is not None:
        return _by_person(read_photos(directory), config.seed)
    folder = Path(config.photos)
    if not folder.is_dir():
        raise InputError(
            f"the run's photos are no longer at {folder}; name a folder to prove parity on with "
            "--photos"
        )
    dataset = load_dataset(folder, config.label, config.seed)
    others = [photo for photo in dataset.train if not photo.generated]
    return _by_person(dataset.validation, config.seed) + _by_person(others, config.seed)


def _by_person(photos: Sequence[Photo], seed: int) -> list[Photo]:
    users = sorted({photo.user_id for photo in photos})
    rank = dict(zip(users, np.random.default_rng(seed).permutation(len(users)), strict=True))
    return sorted(photos, key=lambda photo: rank[photo.user_id])


def reference(
    photos: Sequence[Photo], recipe: FeatureRecipe, head: ProjectionHead, *, label: str
) -> Reference:
    """Compute what the trained model gives for the first 98 photos that can be read.

    Features are read from training's feature cache and added to it; its key covers all that
    decides them. What cannot be compared is said on standard error.

    Args:
        photos: candidates, the preferred ones first.
        recipe: backbone in float32, canvas, prompt and pooling.
        head: the trained head, in evaluation mode.
        label: the column that makes classes; Recall@1 is compared if all photos have it.

    Raises:
        InputError: none of the photos can be read, or the recipe is not Hugging Face's forward
            in float32.
        ParityError: the trained model itself gives no unit vectors.
    """
    if recipe.graph is not None or recipe.backbone.model.dtype != torch.float32:
        raise InputError(
            "exports are compared with Hugging Face's forward in float32: load the backbone with "
            "torch.float32, and no graph in its place"
        )
    compared, pixels = readable(photos, recipe.preprocessing, PHOTOS)
    extracted = extract_features([photo.path for photo in compared], recipe, cache_dir("features"))
    _say_left_out(extracted.rejected)
    compared = [compared[position] for position in extracted.usable]
    if not compared:
        raise InputError(f"none of the {len(photos)} photos to compare on can be used")
    with torch.inference_mode():
        embeddings: Vectors = head(extracted.vectors).numpy()
    paths = [photo.path for photo in compared]
    _require_unit_vectors(embeddings, paths, "the trained model itself")
    if len(compared) < PHOTOS:
        say(f"only {len(compared)} photos could be compared; {PHOTOS} make a full proof")
    labels = [name for photo in compared if (name := class_of(photo, label)) is not None]
    if len(labels) < len(compared):
        say(f"not all photos have the label {label}: Recall@1 is not compared")
    return Reference(
        paths,
        np.stack([pixels[position] for position in extracted.usable]),
        embeddings,
        [photo.user_id for photo in compared],
        labels if len(labels) == len(compared) else None,
    )


def readable(
    photos: Sequence[Photo], preprocessing: Preprocessing, count: int
) -> tuple[list[Photo], list[npt.NDArray[np.uint8]]]:
    """The first ``count`` photos that can be read, and their pixels, uint8 ``[3, H, W]``.

    What cannot be read is said on standard error.
    """
    compared: list[Photo] = []
    pixels: list[npt.NDArray[np.uint8]] = []
    for photo in photos:
        if len(compared) == count:
            break
        try:
            pixels.append(load_pixels(photo.path, preprocessing))
            compared.append(photo)
        except PhotoError as error:
            _say_left_out([str(error)])
    return compared, pixels


def _say_left_out(reasons: Sequence[str]) -> None:
    for reason in reasons:
        say(f"left out: {reason}")


def say(text: str) -> None:
    """Print a line on standard error, above a progress bar."""
    tqdm.write(text, file=sys.stderr)


# --- an artefact


def onnx_runner(graph: Path, precision: str = "fp32", *, output: str = OUTPUT_NAME) -> Run:
    """Run an ONNX graph in ONNX Runtime on the CPU, with our kernels where they can be had.

    Args:
        graph: the ``.onnx`` file.
        precision: of the graph; a ``bf16`` or ``fp16`` graph, made for GPUs, is emulated with the
            same rounding.
        output: which of its outputs is wanted.

    Raises:
        InputError: it cannot be loaded; the runner itself raises :class:`ParityError` where the
            graph does not run.
    """
    options = onnxruntime.SessionOptions()
    kernels.register(options)
    try:
        with emulated(graph) if precision in ("bf16", "fp16") else nullcontext(graph) as runnable:
            session = onnxruntime.InferenceSession(
                runnable, options, providers=["CPUExecutionProvider"]
            )
    except Exception as error:  # the runtime raises kinds of its own
        raise InputError(f"{graph} cannot be loaded ({error})") from error

    def run(pixels: npt.NDArray[np.uint8]) -> Vectors:
        try:
            (vectors,) = session.run([output], {INPUT_NAME: pixels})
        except Exception as error:
            raise ParityError(f"{graph} fails on a batch of {len(pixels)} ({error})") from error
        return np.asarray(vectors)

    return run


def measure_parity(run: Run, reference: Reference) -> Parity:
    """Compare an artefact with the reference, at batch 1 and at batch 8.

    Args:
        run: the artefact.
        reference: what it should give.

    Raises:
        ParityError: it fails, or gives vectors of another shape, that are not finite or not of
            length 1; the photos are named.
    """
    served = [_served(run, reference, size) for size in BATCH_SIZES]
    cosines = np.min([_cosines(vectors, reference.embeddings) for vectors in served], axis=0)
    changes, queries = _recall_at_1_changes(served, reference)
    return Parity(
        photos=len(cosines),
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        max_abs_difference=max(float(np.abs(v - reference.embeddings).max()) for v in served),
        batch_cosine=float(_cosines(*served).min()),
        top_10_agreement=_top_10_agreement(served, reference.embeddings),
        recall_at_1_change=max(changes, key=abs) / queries if queries else None,
        queries=queries,
        worst=[(reference.photos[n], float(cosines[n])) for n in np.argsort(cosines)[:_NAMED]],
    )


def _served(run: Run, reference: Reference, batch_size: int) -> Vectors:
    """The artefact's vectors of all photos; the last batch is filled up with the first photos."""
    count, dim = reference.embeddings.shape
    batches = []
    for start in tqdm(range(0, count, batch_size), desc=f"batch {batch_size}", unit="batch"):
        vectors = run(reference.pixels[np.arange(start, start + batch_size) % count])
        if vectors.shape != (batch_size, dim):
            raise ParityError(
                f"the exported model gives a batch of {batch_size} the shape {vectors.shape} "
                f"instead of {(batch_size, dim)}"
            )
        batches.append(vectors)
    served = np.concatenate(batches)[:count]
    _require_unit_vectors(served, reference.photos, f"the exported model, at batch {batch_size},")
    return served


def _require_unit_vectors(vectors: Vectors, photos: Sequence[Path], source: str) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ParityError(
            f"{source} gives vectors that are not finite for {_names(photos, ~finite)}"
        )
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    wrong = np.abs(lengths - 1) > NORM_TOLERANCE
    if wrong.any():
        raise ParityError(
            f"{source} gives vectors of length {lengths[wrong][0]:g} instead of 1 for "
            f"{_names(photos, wrong)}"
        )


def _names(photos: Sequence[Path], chosen: npt.NDArray[np.bool_]) -> str:
    positions = np.flatnonzero(chosen)
    named = ", ".join(str(photos[n]) for n in positions[:_NAMED])
    rest = len(positions) - _NAMED
    return f"{named} and {rest} more" if rest > 0 else named


def _cosines(left: Vectors, right: Vectors) -> npt.NDArray[np.float64]:
    """Cosine of each row of one with the same row of the other, ``[photos]``."""
    # float64: in float32 the norms alone would cost as much as the difference looked for
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: npt.NDArray[np.float64] = (a * b).sum(axis=1) / norms
    return cosines


def _top_10_agreement(served: Sequence[Vectors], expected: Vectors) -> float | None:
    if len(expected) < NEIGHBOURS + 2:
        return None
    right = _nearest(expected)
    shared = [
        [len(ours & theirs) for ours, theirs in zip(_nearest(vectors), right, strict=True)]
        for vectors in served
    ]
    return float(np.mean(shared, axis=1).min()) / NEIGHBOURS


def _nearest(vectors: Vectors) -> list[set[int]]:
    """Positions of each photo's 10 nearest among all others."""
    everyone = [str(number) for number in range(len(vectors))]  # a user each: nobody is left out
    return [set(row) for row in retrieve(vectors, everyone, everyone).neighbours.tolist()]


def _recall_at_1_changes(served: Sequence[Vectors], reference: Reference) -> tuple[list[int], int]:
    """How many more queries succeed than with the reference, by batch size; and all queries."""
    labels, users = reference.labels, reference.users
    if labels is None:
        return [], 0
    before, *after = (
        retrieve(vectors, labels, users).recall[1] for vectors in (reference.embeddings, *served)
    )
    changes = [round(float(np.nansum(recall) - np.nansum(before))) for recall in after]
    return changes, int(np.isfinite(before).sum())


# --- the verdict


def shortfalls(parity: Parity, precision: str) -> list[str]:
    """Every figure that is not good enough for a precision, with its threshold.

    Recall@1 moves in steps of one query. Where there are fewer than 100, one step is more than
    :data:`RECALL_CHANGE` already (0.0102 for 98): a single query may then change, since two near
    ties that swap are no evidence of a loss, and two may not.

    Args:
        parity: what was measured.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``int8``.

    Raises:
        InputError: there is no such precision.
    """
    if precision not in THRESHOLDS:
        raise InputError(f"precision must be one of {', '.join(THRESHOLDS)}, got {precision!r}")
    threshold = THRESHOLDS[precision]
    least = {
        "least cosine": (parity.min_cosine, threshold.min_cosine),
        "mean cosine": (parity.mean_cosine, threshold.mean_cosine),
        "least cosine between batch 1 and batch 8": (parity.batch_cosine, threshold.min_cosine),
    }
    found = [
        f"{name} {value:.7f} (at least {wanted} is required)"
        for name, (value, wanted) in least.items()
        if not value >= wanted  # written so that NaN fails it too
    ]
    change = parity.recall_at_1_change
    if change is not None and abs(change) > max(RECALL_CHANGE, 1 / parity.queries):
        found.append(
            f"Recall@1 changed by {change:+.4f}, {round(change * parity.queries):+d} of "
            f"{parity.queries} queries (at most {RECALL_CHANGE}, or one query, is allowed)"
        )
    return found


def explain(parity: Parity, found: Sequence[str]) -> str:
    """Shortfalls and the worst photos, in one line."""
    worst = ", ".join(f"{photo} ({cosine:.7f})" for photo, cosine in parity.worst)
    return f"{', '.join(found)}; worst of {parity.photos} photos: {worst}"


def require_parity(parity: Parity, precision: str) -> None:
    """Refuse to publish an export that strays from the trained model.

    Raises:
        ParityError: naming the figures, their thresholds and the worst photos.
        InputError: there is no such precision.
    """
    if found := shortfalls(parity, precision):
        raise ParityError(
            f"the {precision} graph strays from the trained model: {explain(parity, found)}; "
            "not published"
        )
