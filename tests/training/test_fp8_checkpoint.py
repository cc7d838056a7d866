from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoints import (
    Weights,
    change_config,
    quantise_to_fp8,
    read_weights,
    rewrite,
    write_checkpoint,
)

from vibematch.errors import InputError
from vibematch.preprocess import Preprocessing
from vibematch_training.backbone import PROMPT, load_backbone
from vibematch_training.features import FeatureRecipe, pooled_features
from vibematch_training.tiny import tiny_backbone


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    folder = tmp_path_factory.mktemp("fp8")
    return folder, quantise_to_fp8(tiny_backbone(), folder)


def _loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Weights:
    state = load_backbone(str(folder), dtype, "cpu").model.state_dict()
    return {f"model.{name}": weight for name, weight in state.items()}


def test_each_weight_is_its_fp8_number_times_its_blocks_factor(
    quantised: tuple[Path, Weights],
) -> None:
    folder, expected = quantised
    loaded = _loaded(folder)
    assert not any(weight.isnan().any() for weight in expected.values())
    assert len(expected) == 2 * 7 + (2 * 4 - 1) + 3 * 2  # decoder, vision blocks, mergers
    for name, weight in expected.items():
        assert torch.equal(loaded[name], weight), name
    for name, weight in read_weights(folder).items():
        if name in loaded and name not in expected:
            assert torch.equal(loaded[name], weight.float()), name


def test_bfloat16_is_that_product_rounded_once(quantised: tuple[Path, Weights]) -> None:
    folder, expected = quantised
    loaded = _loaded(folder, torch.bfloat16)
    assert {weight.dtype for weight in loaded.values()} == {torch.bfloat16}
    for name, weight in expected.items():
        assert torch.equal(loaded[name], weight.bfloat16()), name


def test_features_are_those_of_the_original_but_for_fp8s_rounding(
    quantised: tuple[Path, Weights],
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 96), dtype=np.uint8)
    original, read_back = (
        pooled_features(pixels, FeatureRecipe(load_backbone(source), Preprocessing(64, 96), PROMPT))
        for source in ("tiny", str(quantised[0]))
    )
    cosine = torch.nn.functional.cosine_similarity(original, read_back)
    assert cosine.min() > 0.99


def test_blocks_at_the_edge_are_smaller_than_128(tmp_path: Path) -> None:
    """192 rows are blocks of 128 and 64; the larger vision towers' 4304 is no multiple either."""
    sizes = {"hidden_size": 192, "intermediate_size": 200}
    text = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5]}
    taps: dict[str, object] = {"deepstack_visual_indexes": [0]}
    vision = {"depth": 1, "num_heads": 2, "out_hidden_size": 192, "num_position_embeddings": 16}
    (tmp_path / "original").mkdir()
    write_checkpoint(
        tmp_path / "original",
        {**sizes, **text, "head_dim": 32, "rope_parameters": rope},
        {**sizes, **vision, **taps},
    )
    expected = quantise_to_fp8(tmp_path / "original", tmp_path / "fp8", scale_dtype=torch.float32)
    loaded = _loaded(tmp_path / "fp8")
    assert {192, 200} <= {side for weight in expected.values() for side in weight.shape}
    for name, weight in expected.items():
        assert torch.equal(loaded[name], weight), name


def test_factors_may_lie_in_another_shard(tmp_path: Path, quantised: tuple[Path, Weights]) -> None:
    source, expected = quantised
    rewrite(source, tmp_path, lambda weights: weights)
    tensors = read_weights(source)
    (tmp_path / "model.safetensors").unlink()
    shards = {
        "model-00001-of-00002.safetensors": [name for name in tensors if "scale_inv" not in name],
        "model-00002-of-00002.safetensors": [name for name in tensors if "scale_inv" in name],
    }
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, tmp_path / file, {"format": "pt"})
    index = {name: file for file, names in shards.items() for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    loaded = _loaded(tmp_path)
    for name, weight in expected.items():
        assert torch.equal(loaded[name], weight), name


Q_PROJ = "model.language_model.layers.0.self_attn.q_proj.weight"


def _without_factor(weights: Weights) -> Weights:
    return {name: weight for name, weight in weights.items() if name != f"{Q_PROJ}_scale_inv"}


def _other_blocks(weights: Weights) -> Weights:
    return {**weights, f"{Q_PROJ}_scale_inv": torch.ones(4, 12)}


def _not_fp8(weights: Weights) -> Weights:
    return {**weights, Q_PROJ: weights[Q_PROJ].bfloat16()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_factor, f"has no {Q_PROJ}_scale_inv for its FP8 weight"),
        (_other_blocks, r"FP8 factors that do not fit .*q_proj.weight: torch.float32 \[4, 12\]"),
        (_not_fp8, "FP8 factors that do not fit .*q_proj.weight: .* for torch.bfloat16"),
    ],
)
def test_weights_and_factors_that_do_not_belong_together_are_refused(
    tmp_path: Path,
    quantised: tuple[Path, Weights],
    damage: Callable[[Weights], Weights],
    message: str,
) -> None:
    rewrite(quantised[0], tmp_path, damage)
    with pytest.raises(InputError, match=f"{tmp_path} .*{message}"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "fp8", "weight_block_size": None},
    ],
)
def test_other_kinds_of_quantisation_are_named(
    tmp_path: Path, quantised: tuple[Path, Weights], quantization: dict[str, object]
) -> None:
    rewrite(quantised[0], tmp_path, lambda weights: weights)
    change_config(tmp_path, quantization_config=quantization)
    method = quantization["quant_method"]
    with pytest.raises(InputError, match=f"{tmp_path} is quantised by '{method}'"):
        load_backbone(str(tmp_path))
