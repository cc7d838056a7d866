"""Photos → pooled features of the frozen backbone, computed once and kept.

The forward pass is Hugging Face's own: it is also the reference every exported graph is held to.
An exported graph can take its place (:class:`~vibematch_training.graph_extractor.GraphExtractor`).
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
import transformers
from tqdm import tqdm

from vibematch.errors import InputError, PhotoError
from vibematch.preprocess import REVISION, Preprocessing, preprocess
from vibematch_training.backbone import Backbone
from vibematch_training.feature_cache import FeatureCache, recipe_key
from vibematch_training.threads import one_core_per_operation

if TYPE_CHECKING:
    from vibematch_training.graph_extractor import GraphExtractor

Pooling = Literal["mean", "last", "image"]
"""All tokens' mean, the last token, or the mean of the image's tokens."""

_CPU_BATCH_PIXELS: Final = 8 * 256 * 192
"""A thread's batch: larger ones were no faster, as their activations fall out of its cache."""
_GPU_BATCH_PIXELS: Final = 32 * 448 * 448
"""7,000 tokens (25,000 patches) of a 2B model: matrices large enough for any chip, and activations
that leave room on a small one."""
_GPU_FEEDERS: Final = 8
"""Threads that prepare photos for a GPU; each holds a batch of about 300 MB."""

_ONE_BATCH_ON_THE_GPU: Final = threading.Lock()

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FeatureRecipe:
    """Everything besides the photo that decides its features.

    Attributes:
        backbone: the frozen model.
        preprocessing: photo → pixels.
        prompt: the instruction beside the photo.
        pooling: how token states become one vector.
        graph: an exported graph to run in place of Hugging Face's forward.

    Raises:
        InputError: on construction, if there is no such pooling, or the graph computes features
            of another recipe.
    """

    backbone: Backbone
    preprocessing: Preprocessing
    prompt: str
    pooling: Pooling = "mean"
    graph: GraphExtractor | None = None

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise InputError(
                f"pooling must be one of {', '.join(get_args(Pooling))}, got {self.pooling!r}"
            )
        if self.graph is not None:
            self.graph.require_agreement(
                backbone_sha256=self.backbone.sha256,
                preprocessing=self.preprocessing,
                prompt=self.prompt,
                pooling=self.pooling,
            )
        _ = self.image_tokens  # now: a tokenizer must not be used by several threads at a time

    @cached_property
    def token_ids(self) -> torch.Tensor:
        """The chat-templated prompt with one photo's image tokens, int64, shape ``[tokens]``."""
        canvas = self.preprocessing
        return self.backbone.token_ids(self.prompt, canvas.height, canvas.width)

    @cached_property
    def image_tokens(self) -> slice:
        """Where in :attr:`token_ids` the image is."""
        is_image = self.token_ids == self.backbone.model.config.image_token_id
        start = int(is_image.int().argmax())
        return slice(start, start + int(is_image.sum()))

    @property
    def fields(self) -> dict[str, str | int]:
        """The recipe as plain values: what :attr:`key` is made of, and people can read.

        The backbone's digest covers its weights, configuration, tokenizer and chat template.
        """
        model, canvas = self.backbone.model, self.preprocessing
        if self.graph is None:
            extractor = f"transformers {transformers.__version__}"
            arithmetic = f"{str(model.dtype).removeprefix('torch.')} on {model.device.type}"
        else:
            extractor = f"graph {self.graph.sha256}"
            arithmetic = f"{self.graph.manifest.precision} on cpu"
        return {
            "backbone_sha256": self.backbone.sha256,
            "feature_dim": self.backbone.feature_dim,
            "extractor": extractor,
            "arithmetic": arithmetic,
            "canvas_height": canvas.height,
            "canvas_width": canvas.width,
            "canvas_fit": canvas.fit,
            "preprocessing_revision": REVISION,
            "prompt": self.prompt,
            "pooling": self.pooling,
        }

    @property
    def key(self) -> str:
        """SHA-256 (hex) of the recipe: features of different keys must never meet."""
        return recipe_key(self.fields)


def pool_tokens(states: torch.Tensor, pooling: Pooling, image_tokens: slice) -> torch.Tensor:
    """Token states ``[batch, tokens, width]`` → one vector each, ``[batch, width]``."""
    if pooling == "last":
        return states[:, -1]
    return states[:, image_tokens].mean(dim=1) if pooling == "image" else states.mean(dim=1)


@torch.inference_mode()
def pooled_features(pixels: npt.NDArray[np.uint8], recipe: FeatureRecipe) -> torch.Tensor:
    """Run Hugging Face's own forward and pool its last hidden state.

    Calls may come from several threads; on a GPU, one batch is computed at a time while the next
    ones are prepared.

    Args:
        pixels: uint8 RGB, shape ``[batch, 3, height, width]``.
        recipe: backbone, prompt and pooling.

    Returns:
        float32, shape ``[batch, feature_dim]``, on the CPU.
    """
    model = recipe.backbone.model
    images = recipe.backbone.image_processor(
        list(pixels), do_resize=False, input_data_format="channels_first", return_tensors="pt"
    )
    ids = recipe.token_ids.expand(len(pixels), -1)
    inputs: dict[str, torch.Tensor] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
        "pixel_values": images["pixel_values"],
        "image_grid_thw": images["image_grid_thw"],
    }
    turn: AbstractContextManager[Any] = nullcontext()
    if model.device.type == "cuda":
        inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
        turn = _ONE_BATCH_ON_THE_GPU
    with turn:
        moved: dict[str, Any] = {
            name: tensor.to(model.device, non_blocking=True) for name, tensor in inputs.items()
        }
        states = model(**moved, use_cache=False).last_hidden_state
        return pool_tokens(states.float(), recipe.pooling, recipe.image_tokens).cpu()


def load_pixels(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Read a photo file into pixels, uint8 ``[3, height, width]``.

    Raises:
        PhotoError: naming the file and the reason.
    """
    try:
        return preprocess(path.read_bytes(), preprocessing)
    except OSError as error:
        raise PhotoError(f"{path}: {error.strerror}") from error
    except PhotoError as error:
        raise PhotoError(f"{path}: {error}") from error


@dataclass(frozen=True)
class ExtractedFeatures:
    """What :func:`extract_features` made of a list of photos.

    Attributes:
        vectors: float32, shape ``[usable photos, feature_dim]``, mapped from disk: memory holds
            the rows in use.
        usable: positions of those photos in the given list, ascending.
        rejected: the reasons why the others could not be used, one sentence for each file.
        digests: SHA-256 of every file in the list; ``None`` where it cannot be read.
    """

    vectors: torch.Tensor
    usable: list[int]
    rejected: list[str]
    digests: list[bytes | None]


def extract_features(
    paths: Sequence[Path], recipe: FeatureRecipe, cache: Path, *, progress: bool = True
) -> ExtractedFeatures:
    """Features of all photos, reading those already known from the cache.

    What was computed is kept batch by batch, so that a rerun after an interruption of any kind
    goes on from there. Each core reads, preprocesses and computes batches of its own; with a GPU,
    the cores read and preprocess for it.

    Args:
        paths: photo files.
        recipe: what decides the features; each recipe has a cache of its own.
        cache: an existing folder.
        progress: draw progress bars on standard error.

    Raises:
        InputError: the cached features are not of this recipe.
    """
    show = partial(tqdm, unit="photo", disable=not progress)
    with _workers(recipe) as (pool, ahead):
        reading = _in_order(pool, read_digest, paths, ahead)
        digests = list(show(reading, total=len(paths), desc="reading", delay=1))
        distinct = {d: p for d, p in zip(digests, paths, strict=True) if isinstance(d, bytes)}
        with FeatureCache(cache, recipe.fields, recipe.backbone.feature_dim) as store:
            batches = _missing_batches(list(distinct.items()), store, _batch_size(recipe))
            refused: dict[bytes, str] = {}
            missing = sum(map(len, batches))
            with show(total=missing, desc="features", disable=not (progress and missing)) as bar:
                for batch in _in_order(pool, partial(_compute, recipe=recipe), batches, ahead):
                    store.add(batch.photos, batch.vectors)
                    refused |= batch.refused
                    bar.update(len(batch.photos) + len(batch.refused))
            usable = {
                position: digest
                for position, digest in enumerate(digests)
                if isinstance(digest, bytes) and digest not in refused
            }
            vectors = store.gather(list(usable.values()))
    rejected = [
        f"{path}: {digest if isinstance(digest, str) else refused[digest]}"
        for position, (path, digest) in enumerate(zip(paths, digests, strict=True))
        if position not in usable
    ]
    read = [digest if isinstance(digest, bytes) else None for digest in digests]
    return ExtractedFeatures(vectors, list(usable), rejected, read)


@contextmanager
def _workers(recipe: FeatureRecipe) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """A thread for each core that torch may use, and how many tasks to hand out ahead of results.

    Several batches side by side waste less than one batch cut into pieces at every operation.
    """
    with one_core_per_operation() as cores:
        threads = min(cores, _GPU_FEEDERS) if _on_gpu(recipe) else cores
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield pool, 2 * threads
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    ahead: int,
) -> Iterator[_Result]:
    """``pool.map`` that keeps at most ``ahead`` tasks and results waiting."""
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_digest(path: Path) -> bytes | str:
    """SHA-256 of a file, or the reason why it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return str(error.strerror)


def _batch_size(recipe: FeatureRecipe) -> int:
    pixels = recipe.preprocessing.height * recipe.preprocessing.width
    return max(1, (_GPU_BATCH_PIXELS if _on_gpu(recipe) else _CPU_BATCH_PIXELS) // pixels)


def _on_gpu(recipe: FeatureRecipe) -> bool:
    return recipe.graph is None and recipe.backbone.model.device.type == "cuda"


def _missing_batches(
    photos: Sequence[tuple[bytes, Path]], store: FeatureCache, size: int
) -> list[list[tuple[bytes, Path]]]:
    """Batches of the photos that are not in the cache.

    Known photos leave gaps, so that an interrupted extraction goes on with the very batches it
    would have had: features of one photo can differ in their last bits with its batch's size.
    """
    batches = [photos[start : start + size] for start in range(0, len(photos), size)]
    missing = [[photo for photo in batch if photo[0] not in store] for batch in batches]
    return [batch for batch in missing if batch]


@dataclass(frozen=True)
class _Batch:
    """Features of some photos (by SHA-256), and why others have none."""

    photos: list[bytes]
    vectors: npt.NDArray[np.float32]
    refused: dict[bytes, str]


def _compute(photos: Sequence[tuple[bytes, Path]], recipe: FeatureRecipe) -> _Batch:
    pixels: dict[bytes, npt.NDArray[np.uint8]] = {}
    refused: dict[bytes, str] = {}
    for digest, path in photos:
        try:
            pixels[digest] = _pixels_of(digest, path, recipe.preprocessing)
        except PhotoError as error:
            refused[digest] = str(error)
    if not pixels:
        return _Batch([], np.empty((0, recipe.backbone.feature_dim), np.float32), refused)
    stacked = np.stack(list(pixels.values()))
    features = recipe.graph(stacked) if recipe.graph else pooled_features(stacked, recipe)
    vectors = features.numpy()
    finite = np.isfinite(vectors).all(axis=1)
    for digest, good in zip(pixels, finite, strict=True):
        if not good:
            refused[digest] = "the backbone gives features that are not finite"
    return _Batch([d for d in pixels if d not in refused], vectors[finite], refused)


def _pixels_of(digest: bytes, path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    try:
        photo = path.read_bytes()
    except OSError as error:
        raise PhotoError(str(error.strerror)) from error
    if hashlib.sha256(photo).digest() != digest:  # or these features would be kept as the other's
        raise PhotoError("the file changed while it was being read")
    return preprocess(photo, preprocessing)
