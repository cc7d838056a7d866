from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vibematch.errors import InputError
from vibematch.preprocess import Preprocessing
from vibematch_export.calibration import (
    ACCEPTED,
    FILENAME,
    Calibration,
    Choice,
    LayerFigures,
    Trial,
    calibrate,
    centred,
    choose,
    fp16_wide,
    measure_layers,
)
from vibematch_export.fused import FusedEncoder
from vibematch_export.onnx_graph import FIRST_LAYER, Precision, write_onnx
from vibematch_export.parity import onnx_runner
from vibematch_training.backbone import PROMPT, load_backbone
from vibematch_training.features import FeatureRecipe, pooled_features
from vibematch_training.head import ProjectionHead

_CANVAS = Preprocessing(64, 64)
_FC1, _FC2 = "vision.block_01.mlp.fc1", "vision.block_01.mlp.fc2"
_SENSITIVE = "decoder.layer_01.mlp.gate_up"

Change = Callable[[torch.nn.Module], None]


def _encoder(change: Change = lambda model: None) -> FusedEncoder:
    """The tiny model, perhaps changed, with a head that standardises its features."""
    backbone = load_backbone("tiny", torch.float32, "cpu")
    change(backbone.model)
    recipe = FeatureRecipe(backbone, _CANVAS, PROMPT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = ProjectionHead(backbone.feature_dim, 32, 64).eval()
    head.standardise(pooled_features(_photos(24, seed=1), recipe))
    return FusedEncoder(recipe, head).eval()


def _photos(count: int, seed: int = 0) -> np.ndarray:
    """Stripes of many directions, widths and colours, and noise; uint8 [count, 3, 64, 64]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    waves = rng.uniform(-0.8, 0.8, (2, count, 3, 1, 1))
    strength, phase = rng.uniform(20, 100, (count, 3, 1, 1)), rng.uniform(0, 6, (count, 3, 1, 1))
    stripes = 128 + strength * np.sin(waves[0] * x + waves[1] * y + phase)
    return np.clip(stripes + rng.normal(0, 8, stripes.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def encoder() -> FusedEncoder:
    return _encoder()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return _photos(8)


@pytest.fixture(scope="module")
def figures(encoder: FusedEncoder, pixels: np.ndarray) -> dict[str, LayerFigures]:
    return {layer.name: layer for layer in measure_layers(encoder, pixels, progress=False)}


def _seen(encoder: FusedEncoder, name: str, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a layer is given and gives, photo by photo."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer = encoder.linears()[name]
    with (
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output))),
        torch.inference_mode(),
    ):
        encoder(torch.from_numpy(pixels))
    return seen[0][0].numpy(), seen[0][1].numpy()


def _int8(values: np.ndarray, axis: int) -> np.ndarray:
    step = np.abs(values).max(axis=axis, keepdims=True) / 127
    return np.rint(values / np.where(step == 0, 1, step)) * step


@pytest.mark.parametrize("name", [_FC1, _SENSITIVE, "decoder.layer_00.attn.qkv"])
def test_figures_are_those_of_a_calculation_in_numpy(
    encoder: FusedEncoder, pixels: np.ndarray, figures: dict[str, LayerFigures], name: str
) -> None:
    layer, found = encoder.linears()[name], figures[name]
    weight = np.concatenate([part.weight.numpy() for part in layer.parts]).astype(np.float64)
    bias = layer.bias().numpy().astype(np.float64)
    states, output = _seen(encoder, name, pixels)
    exact = states @ weight.T + bias
    rounded = _int8(states.astype(np.float64), axis=-1) @ _int8(weight, axis=1).T + bias
    assert found.input == pytest.approx(np.abs(states).max())
    assert found.output == pytest.approx(np.abs(exact).max(), rel=1e-5)
    assert found.activated == pytest.approx(np.abs(output).max() if layer.epilogue else 0)
    assert found.parameter == pytest.approx(max(np.abs(weight).max(), np.abs(bias).max()))
    assert found.multiplications == states.shape[1] * weight.size
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert found.int8_error == pytest.approx(error, rel=1e-3)


def test_attention_scores_are_measured(
    encoder: FusedEncoder, pixels: np.ndarray, figures: dict[str, LayerFigures]
) -> None:
    """Block 0 of the vision tower; its rotation keeps lengths, which bound the scores."""
    _, qkv = _seen(encoder, "vision.block_00.attn.qkv", pixels)
    heads = encoder.vision.block[0].attn.heads
    query, key, _ = np.moveaxis(qkv.reshape(*qkv.shape[:2], 3, heads, -1), 2, 0)
    lengths = np.linalg.norm(query, axis=-1).max() * np.linalg.norm(key, axis=-1).max()
    bound = lengths / np.sqrt(query.shape[-1])
    assert 0.1 * bound < figures["vision.block_00.attn.qkv"].score <= bound * 1.0001
    scored = {name for name, layer in figures.items() if layer.score > 0}
    assert scored == {name for name in figures if name.endswith("qkv")}


def test_the_effect_is_that_of_a_forward_pass_with_one_layer_in_int8(
    encoder: FusedEncoder, pixels: np.ndarray, figures: dict[str, LayerFigures]
) -> None:
    layers, head = encoder.linears(), encoder.head

    def standardised(name: str | None) -> torch.Tensor:
        changed = copy.deepcopy(encoder)
        for part in changed.linears()[name].parts if name else ():
            weight = torch.from_numpy(_int8(part.weight.numpy(), axis=1))
            part.register_forward_hook(
                lambda part, inputs, _, weight=weight: F.linear(
                    torch.from_numpy(_int8(inputs[0].numpy(), axis=-1)), weight, part.bias
                )
            )
        with torch.inference_mode():
            _, features = changed(torch.from_numpy(pixels))
            return (features - head.feature_mean) / head.feature_std

    exact = standardised(None)
    real, estimated = [], []
    for name in set(layers) - {FIRST_LAYER}:
        change = standardised(name) - exact
        # half of the squared length of what photos do not share, per feature
        real.append(float(change.var(dim=0).mean()) / 2)
        estimated.append(figures[name].int8_effect)
    # few photos and directions: an effect is known to a factor, over four orders of magnitude
    ratios = np.array(estimated) / real
    assert ratios.min() > 0.2
    assert ratios.max() < 5
    assert np.corrcoef(np.log(real), np.log(estimated))[0, 1] > 0.95


def test_figures_are_the_same_each_time(
    encoder: FusedEncoder, pixels: np.ndarray, figures: dict[str, LayerFigures]
) -> None:
    again = measure_layers(encoder, pixels, progress=False)
    assert again == list(figures.values())
    assert not any(part._forward_hooks for part in encoder.modules())


def test_the_layers_come_in_the_order_of_the_graph(
    encoder: FusedEncoder, figures: dict[str, LayerFigures]
) -> None:
    assert [FIRST_LAYER, *figures] == list(encoder.linears())


def test_the_tiny_model_fits_into_float16(figures: dict[str, LayerFigures]) -> None:
    assert fp16_wide(figures.values()) == []


def test_what_overflows_float16_stays_float32(pixels: np.ndarray) -> None:
    def overflow(model: torch.nn.Module) -> None:
        mlp = model.visual.blocks[1].mlp
        mlp.linear_fc1.weight[5] *= 1e5
        mlp.linear_fc2.weight[:, 5] /= 1e5

    encoder = _encoder(overflow)
    found = {layer.name: layer for layer in measure_layers(encoder, pixels, progress=False)}
    assert found[_FC1].output > 65_504
    assert fp16_wide(found.values()) == [_FC1, _FC2]  # what fc1 gives is what fc2 is given


@pytest.mark.parametrize("field", ["parameter", "input", "output", "activated", "score"])
@pytest.mark.parametrize(("value", "is_wide"), [(16_000, False), (17_000, True)])
def test_any_magnitude_near_the_end_of_float16_makes_a_layer_wide(
    figures: dict[str, LayerFigures], field: str, value: float, is_wide: bool
) -> None:
    layer = dataclasses.replace(figures[_FC1], **{field: value})
    assert bool(fp16_wide([layer])) == is_wide


def _sensitive(model: torch.nn.Module) -> None:
    """Let a few inputs of one layer be so large that int8 sees nothing else."""
    layer = model.language_model.layers[1]
    layer.post_attention_layernorm.weight[:3] *= 300
    for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
        linear.weight[:, :3] /= 300


@pytest.mark.slow
def test_the_layer_that_int8_cannot_follow_is_found(pixels: np.ndarray, tmp_path: Path) -> None:
    encoder = _encoder(_sensitive)
    figures = measure_layers(encoder, pixels, progress=False)
    choice = choose(
        encoder, _CANVAS, pixels, figures, "int8", scratch=tmp_path, accepted=0.01, progress=False
    )
    trials = choice.trials
    assert choice.wide == [_SENSITIVE]
    assert [trial.wide for trial in trials] == [0, 1]
    assert trials[0].error > 0.1 and trials[0].min_cosine < 0.9
    assert trials[1].error < 0.01 and trials[1].min_cosine > 0.995
    assert len(choice.shift) == len(encoder.head.feature_mean)
    assert list(tmp_path.iterdir()) == []  # graphs are gone


@pytest.mark.slow
def test_if_nothing_helps_the_best_that_was_tried_is_returned(
    encoder: FusedEncoder, figures: dict[str, LayerFigures], tmp_path: Path
) -> None:
    layers = list(figures.values())
    choice = choose(
        encoder, _CANVAS, _photos(2), layers, "int8", scratch=tmp_path, accepted=0.0, progress=False
    )
    trials = choice.trials
    assert [trial.wide for trial in trials] == [0, len(choice.wide)]
    assert trials[1].error < trials[0].error
    assert 0.3 < trials[1].wide_share <= 0.5


def test_a_head_is_centred_for_what_int8_moves(encoder: FusedEncoder, pixels: np.ndarray) -> None:
    with torch.inference_mode():
        embedding, features = encoder(torch.from_numpy(pixels))
        shift = torch.linspace(-1, 1, features.shape[1])
        moved = centred(encoder.head, shift)(features + shift)
        torch.testing.assert_close(moved, embedding, atol=1e-4, rtol=0)
        torch.testing.assert_close(encoder.head(features), embedding)


@pytest.fixture
def calibration(figures: dict[str, LayerFigures]) -> Calibration:
    return Calibration(
        pixels_sha256="0" * 64,
        photos=8,
        layers=list(figures.values()),
        choices={"int8": Choice([_FC1], [0.25, -1e-7], [Trial(1, 0.1, 1e-4, 0.998, 0.9999)])},
        revision=3,
    )


def test_a_calibration_can_be_kept(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"layers": [{"name": 1}]}'])
def test_a_damaged_calibration_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / FILENAME).write_text(content)
    with pytest.raises(InputError, match=r"calibration\.json is missing or damaged"):
        Calibration.load(tmp_path)


def test_a_missing_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing or damaged"):
        Calibration.load(tmp_path)


def test_layers_are_ranked_by_their_effect(calibration: Calibration) -> None:
    effects = [layer.int8_effect for layer in calibration.ranked()]
    assert effects == sorted(effects, reverse=True)


def test_one_photo_does_not_calibrate(encoder: FusedEncoder) -> None:
    with pytest.raises(InputError, match="at least two photos, got 1"):
        measure_layers(encoder, _photos(1), progress=False)


def test_a_model_that_is_not_finite_is_not_calibrated() -> None:
    def damage(model: torch.nn.Module) -> None:
        model.language_model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")

    with pytest.raises(InputError, match="no finite features for calibration photo 0"):
        measure_layers(_encoder(damage), _photos(2), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_the_head_is_centred_for_the_very_set_that_was_chosen(
    encoder: FusedEncoder, pixels: np.ndarray, tmp_path: Path, precision: Precision
) -> None:
    found = calibrate(encoder, pixels, revision=1, progress=False)
    assert found.photos == 8 and len(found.pixels_sha256) == 64
    choice = choose(
        encoder, _CANVAS, pixels, found.layers, precision, scratch=tmp_path, progress=False
    )
    (best,) = (trial for trial in choice.trials if trial.wide == len(choice.wide))
    assert best.error <= ACCEPTED[precision] and best.min_cosine > 0.999
    graph = tmp_path / "model.onnx"
    encoder = copy.deepcopy(encoder)
    exact = encoder(torch.from_numpy(pixels))[0].detach().numpy()
    encoder.head = choice.head(encoder.head)
    write_onnx(encoder, _CANVAS, graph, precision, wide=choice.wide)
    cosines = (onnx_runner(graph, precision)(pixels) * exact).sum(axis=1)
    assert cosines.min() == pytest.approx(best.min_cosine, abs=1e-5)


@pytest.mark.slow
def test_what_overflows_comes_before_what_is_merely_inexact(
    figures: dict[str, LayerFigures], encoder: FusedEncoder, tmp_path: Path
) -> None:
    layers = [
        dataclasses.replace(layer, output=1e5) if layer.name == _FC1 else layer
        for layer in figures.values()
    ]
    choice = choose(
        encoder, _CANVAS, _photos(2), layers, "fp16", scratch=tmp_path, accepted=1, progress=False
    )
    assert choice.wide == [_FC1]
    assert len(choice.trials) == 1
