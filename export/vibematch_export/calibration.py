"""Which layers stay in float32 in an int8, bf16 or fp16 graph: decided by measurement on photos.

Calibration photos pass through the fused module in float32, forwards and backwards, while each
linear layer is watched:

- The largest numbers around it tell whether float16 can hold them. Small ones are no concern: each
  number that falls below float16's normal range is off by 2**-25 at most, and what decides a
  layer's output are its largest inputs, which come from norms and are of the order of 1.
- What 8 bits do to its output, and what this alone does to the features, orders the layers, for
  the other formats too: a layer that passes one rounding on passes on another. How many of the
  worst have to stay in float32 is then tried out on real graphs.

Errors are measured on the features, standardised as the head does, and not on embeddings:
those of the photos a head was trained on lie safely inside their classes, where it hides errors
that it would magnify between them. On features, training photos are like any others.

Most of what a format changes there is the same for all photos, as the rounding of weights is. The
head's own standardisation takes it out: the mean that it subtracts is measured anew. (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", do so per layer;
once at the end was as good.)
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from vibematch.errors import InputError
from vibematch.preprocess import Preprocessing
from vibematch_export.fused import FusedEncoder, Linear
from vibematch_export.onnx_graph import FIRST_LAYER, Precision, quantize, write_onnx
from vibematch_export.parity import onnx_runner
from vibematch_training.files import write_atomically
from vibematch_training.graph_extractor import FEATURES_NAME, GRAPH_FILENAME
from vibematch_training.head import ProjectionHead

FILENAME: Final = "calibration.json"

Pixels = npt.NDArray[np.uint8]

_FP16_MARGIN: Final = 4
"""Photos to come may reach so many times the magnitudes of the calibration photos."""
ACCEPTED: Final[Mapping[Precision, float]] = {"int8": 1.5e-4, "bf16": 3e-5, "fp16": 3e-5}
"""Accepted mean of 1 - cosine of standardised features. Of photos it was not trained on, a head
gives about as much to the mean embedding, and some 25 times as much to the one in a hundred that
lies just between two classes: the proof of int8 allows 1e-3 and 5e-3, of the others a fifth."""
_SHIFT_STEP: Final = 1e-3
"""Of a feature's standard deviation: finer differences of its mean do not matter."""
_MOST_WIDE: Final = 0.5
"""Share of the multiplications beyond which a graph would hardly be faster than float32."""
_TRIALS: Final = 6
"""Graphs to try; with 2 billion parameters each takes a minute."""
_DIRECTIONS: Final = 4
"""Backward passes per photo; with 16 photos, an effect is known to about a fifth of it."""


@dataclass(frozen=True)
class LayerFigures:
    """What one linear layer does on the calibration photos.

    Attributes:
        name: as in the graph, ``vision.block_07.attn.qkv``.
        multiplications: per photo.
        parameter: largest magnitude of a weight or bias.
        input: largest magnitude of an input.
        output: largest magnitude of an output, before its activation or residual.
        activated: the same after the activation; 0 where none follows.
        score: largest magnitude of an attention score before masking and softmax; 0 except for
            ``qkv``.
        int8_error: by how much int8 changes its output, relative, in the Frobenius norm.
        int8_effect: what this layer alone in int8 does to the standardised features: 1 - cosine,
            to first order, without what all photos share.
    """

    name: str
    multiplications: int
    parameter: float
    input: float
    output: float
    activated: float
    score: float
    int8_error: float
    int8_effect: float

    @property
    def largest(self) -> float:
        """The largest magnitude that a float16 graph would hold around this layer."""
        return max(self.parameter, self.input, self.output, self.activated, self.score)


@dataclass(frozen=True)
class Trial:
    """A graph that was tried, with the head centred for it.

    Attributes:
        wide: how many layers were left in float32.
        wide_share: their share of all multiplications.
        error: mean of 1 - cosine with the float32 standardised features.
        min_cosine: with the float32 embedding, least of the photos.
        mean_cosine: mean of the photos.
    """

    wide: int
    wide_share: float
    error: float
    min_cosine: float
    mean_cosine: float


@dataclass(frozen=True)
class Choice:
    """What follows for one precision.

    Attributes:
        wide: names of the layers to leave in float32.
        shift: by how much the graph then moves the mean of each feature.
        trials: the graphs that were tried, in that order.
    """

    wide: list[str]
    shift: list[float]
    trials: list[Trial]

    @property
    def sha256(self) -> str:
        """Digest of all that the choice changes in a graph."""
        return hashlib.sha256(json.dumps([sorted(self.wide), self.shift]).encode()).hexdigest()

    def head(self, head: ProjectionHead) -> ProjectionHead:
        """The head centred for this graph; it is to be exported instead of ``head``."""
        return centred(head, torch.tensor(self.shift))


@dataclass(frozen=True)
class Calibration:
    """All that was measured, and what follows from it.

    Attributes:
        pixels_sha256: digest of the photos' pixels.
        photos: how many there were.
        layers: figures, in the order in which the layers compute.
        choices: by precision, as far as they were asked for.
        revision: of the code that measured; another one has to measure again.
    """

    pixels_sha256: str
    photos: int
    layers: list[LayerFigures]
    choices: dict[Precision, Choice]
    revision: int

    def ranked(self) -> list[LayerFigures]:
        """The layers by their effect in int8, the worst first."""
        return sorted(self.layers, key=lambda layer: -layer.int8_effect)

    def save(self, directory: Path) -> None:
        """Write ``calibration.json``."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        write_atomically(directory / FILENAME, text + "\n")

    @classmethod
    def load(cls, directory: Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: it is missing, damaged, or of another version.
        """
        path = directory / FILENAME
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            layers = [LayerFigures(**layer) for layer in content.pop("layers")]
            choices = {
                precision: Choice(
                    trials=[Trial(**trial) for trial in choice.pop("trials")], **choice
                )
                for precision, choice in content.pop("choices").items()
            }
            return cls(layers=layers, choices=choices, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} is missing or damaged ({error!r}); delete it and export again"
            ) from error


def calibrate(
    encoder: FusedEncoder, pixels: Pixels, *, revision: int, progress: bool = True
) -> Calibration:
    """Measure all layers; :func:`choose` then finds those that stay in float32.

    Args:
        encoder: the fused module in float32, in evaluation mode, on the CPU.
        pixels: training photos, uint8 ``[photos, 3, H, W]``; not those of the proof.
        revision: kept with what is measured.
        progress: draw a progress bar on standard error.

    Raises:
        InputError: fewer than two photos, or one for which the model gives no finite features.
    """
    return Calibration(
        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        photos=len(pixels),
        layers=measure_layers(encoder, pixels, progress=progress),
        choices={},
        revision=revision,
    )


# --- figures of each layer


def measure_layers(
    encoder: FusedEncoder, pixels: Pixels, *, progress: bool = True
) -> list[LayerFigures]:
    """Watch the linear layers, photo by photo; not the first one, which is always float32.

    The effect of a layer needs no forward pass of its own. If int8 changes the layer's output by d,
    the standardised features change by J d, where J is their derivative by that output. For a
    direction r of independent standard normal numbers, the mean of ``(r J d)²`` is ``|J d|²``
    (Hutchinson's estimator), and one backward pass from r gives r J for all layers. With the same
    directions for all photos, the variance over photos is without what they share.

    Args:
        encoder: the fused module in float32, in evaluation mode, on the CPU.
        pixels: uint8 ``[photos, 3, H, W]``.
        progress: draw a progress bar on standard error.

    Returns:
        Figures in the order in which the layers compute.

    Raises:
        InputError: fewer than two photos, or one for which the model gives no finite features.
    """
    if len(pixels) < 2:
        raise InputError(f"calibration needs at least two photos, got {len(pixels)}")
    layers = encoder.linears()
    first = layers.pop(FIRST_LAYER)
    meters = {name: _Meter(layer) for name, layer in layers.items()}
    std = encoder.head.feature_std
    directions = torch.randn(
        _DIRECTIONS, 1, len(std), generator=torch.Generator().manual_seed(0)
    ) / (std * math.sqrt(len(std)))
    with ExitStack() as stack:
        scores = stack.enter_context(_AttentionScores())
        for meter in meters.values():
            for hook in meter.hooks(scores):
                stack.enter_context(hook)
        for number, photo in enumerate(_one_by_one(pixels, "measuring layers", progress)):
            if not _pass_back(encoder, first, photo, directions, meters.values()):
                raise InputError(
                    f"the model gives no finite features for calibration photo {number}, in "
                    "float32: leave that photo out, or look for damaged weights"
                )
    return [meter.figures(name, len(pixels)) for name, meter in meters.items()]


def _pass_back(
    encoder: FusedEncoder,
    first: Linear,
    photo: torch.Tensor,
    directions: torch.Tensor,
    meters: Iterable[_Meter],
) -> bool:
    """Show the meters a photo and its gradients; whether its features are finite.

    A function, so that the activations are gone before the next photo's: gigabytes.
    """
    features, start = _differentiable(encoder, first, photo)
    for direction in directions:
        torch.autograd.grad(features, start, direction, retain_graph=True)
        for meter in meters:
            meter.end_direction()
    return bool(features.isfinite().all())


def _differentiable(
    encoder: FusedEncoder, first: Linear, photo: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The features, and the first layer's output, from which on all is differentiable."""
    starts: list[torch.Tensor] = []

    def start_here(_: nn.Module, __: object, output: torch.Tensor) -> None:
        starts.append(output.requires_grad_())

    with torch.enable_grad(), first.register_forward_hook(start_here):
        _, features = encoder(photo)
    return features, starts[0]


class _AttentionScores(TorchFunctionMode):
    """Sees each attention of PyTorch and notes its largest score with the layer before it."""

    latest: _Meter

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            query, key = arguments[0].detach(), arguments[1].detach()
            score = _largest(query @ key.transpose(-2, -1)) / math.sqrt(query.shape[-1])
            self.latest.score = max(self.latest.score, score)
        return function(*arguments, **(options or {}))


class _Meter:
    """Figures of one layer while they grow."""

    def __init__(self, layer: Linear) -> None:
        self._layer = layer
        self._multiplications = 0
        self._parameter = max(_largest(layer.weight()), _largest(layer.bias()))
        self._input = self._output = self._activated = self.score = 0.0
        self._squared_error = self._squared_norm = 0.0
        self._change = 0.0  # of the features, along the present direction
        self._changes: list[float] = []

    def hooks(self, scores: _AttentionScores) -> Iterator[RemovableHandle]:
        """Hang hooks into the layer; each is removed by its context."""

        def see_part(part: nn.Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            scores.latest = self
            self._see_part(part, inputs[0], output)

        def see_activated(_: nn.Module, __: object, output: torch.Tensor) -> None:
            self._activated = max(self._activated, _largest(output))

        for part in self._layer.parts:
            yield part.register_forward_hook(see_part)
        if self._layer.epilogue not in ("", "Add"):
            yield self._layer.register_forward_hook(see_activated)

    def end_direction(self) -> None:
        self._changes.append(self._change)
        self._change = 0.0

    def figures(self, name: str, photos: int) -> LayerFigures:
        changes = np.reshape(self._changes, (photos, _DIRECTIONS))
        return LayerFigures(
            name=name,
            multiplications=self._multiplications // photos,
            parameter=self._parameter,
            input=self._input,
            output=self._output,
            activated=self._activated,
            score=self.score,
            int8_error=math.sqrt(self._squared_error / (self._squared_norm or 1)),
            int8_effect=float(changes.var(axis=0, ddof=1).mean()) / 2,
        )

    def _see_part(self, part: nn.Linear, states: torch.Tensor, output: torch.Tensor) -> None:
        """Take in what one of the layers side by side was given, and gave."""
        with torch.no_grad():
            error = _in_int8(part, states) - output
            self._squared_error += float(error.square().sum())
            self._squared_norm += float(output.square().sum())
        self._multiplications += states[..., 0].numel() * part.weight.numel()
        self._input = max(self._input, _largest(states))
        self._output = max(self._output, _largest(output))
        kept = error.bfloat16()  # until the backward passes are done; this rounding has no bias

        def see_gradient(gradient: torch.Tensor) -> None:
            self._change += float((gradient * kept).sum())

        output.register_hook(see_gradient)


def _in_int8(part: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """What the int8 operator gives for these inputs.

    It sums integers exactly; float32 sums of the same products are off by about 1e-6, a ten
    thousandth of what rounding to 8 bits does.
    """
    codes, scale = quantize(part.weight.detach().T)
    step = states.abs().amax(dim=-1, keepdim=True) / 127
    rounded = (states / torch.where(step == 0, 1, step)).round_().mul_(step)
    return F.linear(rounded, (codes * scale).T, part.bias)


def _largest(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), float("inf")))


def _one_by_one(pixels: Pixels, what: str, progress: bool) -> Iterator[torch.Tensor]:
    """Batches of one photo: a large model's activations are gigabytes."""
    for number in tqdm(range(len(pixels)), desc=what, unit="photo", disable=not progress):
        yield torch.from_numpy(pixels[number : number + 1])


# --- what stays wide


def fp16_wide(figures: Iterable[LayerFigures]) -> list[str]:
    """Layers around which float16 could overflow, if photos to come go beyond these ones.

    A layer in float32 keeps its output so: the activation behind it, or attention behind ``qkv``,
    computes in float32 as well, and the next layer is here too if its input is out of range.

    Args:
        figures: of :func:`measure_layers`.
    """
    limit = torch.finfo(torch.float16).max / _FP16_MARGIN
    return [layer.name for layer in figures if layer.largest > limit]


def choose(
    encoder: FusedEncoder,
    preprocessing: Preprocessing,
    pixels: Pixels,
    figures: Sequence[LayerFigures],
    precision: Precision,
    *,
    scratch: Path,
    accepted: float | None = None,
    progress: bool = True,
) -> Choice:
    """Find the smallest number of the worst layers that must be float32, by trying graphs.

    Layers are widened in the order of their effect per multiplication: what gains most for its
    time comes first, after those around which float16 could overflow. If more float32 would be
    needed than is sensible, the best set that was tried is returned; it is for the proof to refuse
    it.

    Args:
        encoder: the fused module in float32, in evaluation mode, on the CPU.
        preprocessing: gives the canvas.
        pixels: uint8 ``[photos, 3, H, W]``.
        figures: of :func:`measure_layers` on these photos.
        precision: ``int8``, ``bf16`` or ``fp16``.
        scratch: an existing folder with room for one graph.
        accepted: mean of 1 - cosine of standardised features that is good enough; that of
            :data:`ACCEPTED` if not given.
        progress: draw progress bars on standard error.
    """
    accepted = ACCEPTED[precision] if accepted is None else accepted
    overflowing = set(fp16_wide(figures)) if precision == "fp16" else set()
    order = sorted(
        figures,
        key=lambda layer: (
            layer.name not in overflowing,
            -layer.int8_effect / layer.multiplications,
        ),
    )
    # work[k] is that of the first k layers, left[k] the effect of all others: effects add up
    work = list(accumulate((layer.multiplications for layer in order), initial=0))
    left = list(accumulate((layer.int8_effect for layer in reversed(order)), initial=0.0))[::-1]
    fewest = len(overflowing)
    most = max(count for count, done in enumerate(work) if done <= _MOST_WIDE * work[-1])
    with torch.inference_mode():
        photos = _one_by_one(pixels, "float32", progress)
        exact = torch.cat([encoder(photo)[1] for photo in photos])

    shifts: dict[int, torch.Tensor] = {}
    errors: dict[int, float] = {}
    trials: list[Trial] = []
    bad, good, count = fewest - 1, max(fewest, most) + 1, fewest
    while len(trials) < _TRIALS and good - bad > 1:
        wide = [layer.name for layer in order[:count]]
        found = _features(encoder, preprocessing, pixels, precision, wide, scratch, progress)
        shifts[count] = (found - exact).mean(dim=0)
        trial = _trial(encoder.head, found, exact, count, work[count] / work[-1])
        trials.append(trial)
        errors[count] = trial.error
        if trial.error <= accepted:
            good = count
        else:
            bad = count
        # effects add up; should they fall short of the truth, double until a graph is good
        wanted = left[bad] * accepted / errors[bad] if bad in errors else 0
        start = bad + 1 if good <= most else max(1, 2 * bad)
        count = next((k for k in range(start, good) if left[k] <= wanted), good - 1)
    best = min(trials, key=lambda trial: (max(trial.error, accepted), trial.wide))
    # rounded to what matters, so that machines agree; NaN is for the proof to refuse
    step = encoder.head.feature_std * _SHIFT_STEP
    shift = (shifts[best.wide].nan_to_num(0) / step).round() * step
    return Choice([layer.name for layer in order[: best.wide]], shift.tolist(), trials)


def centred(head: ProjectionHead, shift: torch.Tensor) -> ProjectionHead:
    """A copy of the head for features whose mean has moved.

    Args:
        head: the trained head.
        shift: float32 ``[feature_dim]``.
    """
    moved = copy.deepcopy(head)
    moved.feature_mean += shift
    return moved


def _features(
    encoder: FusedEncoder,
    preprocessing: Preprocessing,
    pixels: Pixels,
    precision: Precision,
    wide: Collection[str],
    scratch: Path,
    progress: bool,
) -> torch.Tensor:
    """Features that a graph gives in ONNX Runtime, ``[photos, feature_dim]``."""
    with TemporaryDirectory(dir=scratch) as folder:
        graph = Path(folder) / GRAPH_FILENAME
        write_onnx(encoder, preprocessing, graph, precision, wide=wide)
        run = onnx_runner(graph, precision, output=FEATURES_NAME)
        what = f"{precision} with {len(wide)} wide"
        features = [run(photo.numpy()) for photo in _one_by_one(pixels, what, progress)]
    return torch.from_numpy(np.concatenate(features))


@torch.inference_mode()
def _trial(
    head: ProjectionHead, found: torch.Tensor, exact: torch.Tensor, wide: int, share: float
) -> Trial:
    shift = (found - exact).mean(dim=0)
    standard = (exact - head.feature_mean) / head.feature_std
    moved = (found - shift - head.feature_mean) / head.feature_std
    photos = len(exact)
    error = (1 - _cosines(moved, standard)).mean() * photos / (photos - 1)  # the mean was fitted
    cosines = _cosines(centred(head, shift)(found), head(exact))
    # what is not finite is as wrong as can be
    return Trial(
        wide, share, float(error.nan_to_num(1)), float(cosines.min()), float(cosines.mean())
    )


def _cosines(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return F.cosine_similarity(left.double(), right.double())
