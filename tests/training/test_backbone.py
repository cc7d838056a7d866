from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoints import (
    FP16_MAX,
    MASSIVE,
    Severity,
    Weights,
    change_config,
    copy_all_but_weights,
    plant_massive_activations,
    read_weights,
    rewrite,
)
from transformers import Qwen3VLMoeConfig

from vibematch.errors import InputError
from vibematch.preprocess import Preprocessing, preprocess
from vibematch_training.backbone import PROMPT, Backbone, load_backbone
from vibematch_training.features import FeatureRecipe, pooled_features
from vibematch_training.tiny import tiny_backbone

NORM = "model.language_model.norm.weight"


def _state(folder: Path) -> Weights:
    return load_backbone(str(folder), torch.float32, "cpu").model.state_dict()


def _is_tiny(folder: Path) -> None:
    expected, loaded = _state(tiny_backbone()), _state(folder)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_tensors_may_be_named_as_the_model_without_a_head_names_them(tmp_path: Path) -> None:
    """``language_model.…`` and ``visual.…``, as ``Qwen3VLModel.save_pretrained`` writes them."""

    def change(weights: Weights) -> Weights:
        assert all(name.startswith("model.") for name in weights)
        return {name.removeprefix("model."): weight for name, weight in weights.items()}

    rewrite(tiny_backbone(), tmp_path, change)
    change_config(tmp_path, architectures=["Qwen3VLModel"])
    _is_tiny(tmp_path)


@pytest.mark.parametrize("head", [True, False])
def test_a_language_model_head_of_its_own_is_left_aside(tmp_path: Path, head: bool) -> None:
    """Qwen3-VL-Embedding has none; the larger Instruct models have one that is not tied."""

    def change(weights: Weights) -> Weights:
        embedding = weights["model.language_model.embed_tokens.weight"]
        return {**weights, "lm_head.weight": torch.rand_like(embedding)} if head else weights

    rewrite(tiny_backbone(), tmp_path, change)
    change_config(tmp_path, tie_word_embeddings=False)
    _is_tiny(tmp_path)


def test_weights_may_lie_in_several_files(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    _is_tiny(tmp_path)


def _write_shards(folder: Path) -> list[Path]:
    copy_all_but_weights(tiny_backbone(), folder)
    weights = read_weights(tiny_backbone())
    files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    index = {name: files[number % 3] for number, name in enumerate(sorted(weights))}
    for file in files:
        shard = {name: weights[name] for name, place in index.items() if place == file}
        save_file(shard, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    return [folder / file for file in files]


def test_a_file_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    missing = _write_shards(tmp_path)[1]
    missing.unlink()
    with pytest.raises(InputError, match=missing.name):
        load_backbone(str(tmp_path))


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    rewrite(tiny_backbone(), tmp_path, lambda weights: weights)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=f"{tmp_path} is not a usable Qwen3-VL checkpoint"):
        load_backbone(str(tmp_path))


def test_weights_that_the_checkpoint_lacks_are_not_drawn_at_random(tmp_path: Path) -> None:
    def change(weights: Weights) -> Weights:
        del weights[NORM]
        return weights

    rewrite(tiny_backbone(), tmp_path, change)
    with pytest.raises(InputError, match=r"lacks 1 of the model's weights, such as .*norm.weight"):
        load_backbone(str(tmp_path))


def test_weights_of_another_size_than_the_configuration_says_are_refused(tmp_path: Path) -> None:
    rewrite(tiny_backbone(), tmp_path, lambda weights: {**weights, NORM: weights[NORM][:-1]})
    with pytest.raises(
        InputError, match=r"1 weights .* such as .*norm.weight: \[767\] instead of \[768\]"
    ):
        load_backbone(str(tmp_path))


def test_a_configuration_as_published_means_the_same(tmp_path: Path) -> None:
    """Qwen's own files name some settings as an older transformers did."""
    rewrite(tiny_backbone(), tmp_path, lambda weights: weights)
    config = json.loads((tmp_path / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    vision["model_type"] = "qwen3_vl"
    vision.pop("rope_parameters", None)
    change_config(tmp_path, text_config=text, vision_config=vision)
    path = tmp_path / "preprocessor_config.json"
    processor = json.loads(path.read_text())
    processor["image_processor_type"] = "Qwen2VLImageProcessorFast"
    path.write_text(json.dumps(processor))

    published, tiny = load_backbone(str(tmp_path)), load_backbone("tiny")
    for tower in ("language_model", "visual"):
        ours, theirs = (getattr(backbone.model, tower) for backbone in (tiny, published))
        buffers = dict(ours.named_buffers())
        assert buffers
        for name, buffer in theirs.named_buffers():
            assert torch.equal(buffer, buffers[name]), name
    assert published.model.config.text_config.rope_parameters["mrope_section"] == [12, 10, 10]
    assert published.image_processor.image_mean == tiny.image_processor.image_mean
    _is_tiny(tmp_path)


def test_a_mixture_of_experts_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    rewrite(tiny_backbone(), tmp_path, lambda weights: {"x": torch.ones(1)})
    Qwen3VLMoeConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path} holds a model of type 'qwen3_vl_moe'; give"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(("height", "width"), [(500, 384), (512, 400)])
def test_a_canvas_that_is_no_whole_number_of_tokens_is_refused(height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"multiples of 32, got {height} x {width}"):
        load_backbone("tiny").token_ids(PROMPT, height, width)


def _largest_inputs(backbone: Backbone, photos: int) -> Weights:
    """Layer → largest magnitude of each input channel, on the photo where that is least."""
    largest: Weights = {}

    def record(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            by_photo = inputs[0].reshape(photos, -1, inputs[0].shape[-1])
            largest[name] = by_photo.abs().amax(dim=1).amin(dim=0)

        return hook

    for name, module in backbone.model.named_modules():
        if isinstance(module, torch.nn.Linear) or name.endswith("layernorm"):
            module.register_forward_pre_hook(record(name))
    return largest


def test_planted_activations_are_massive_and_the_model_still_tells_photos_apart(
    tmp_path: Path, sample_photos: Path
) -> None:
    """What the tests of reduced precision build on."""
    preprocessing = Preprocessing(96, 64)
    photos = sorted(sample_photos.glob("*.jpg"))[:12]
    pixels = np.stack([preprocess(photo.read_bytes(), preprocessing) for photo in photos])
    spread = {}
    for severity in get_args(Severity):
        plant_massive_activations(tiny_backbone(), tmp_path / severity, severity)
        backbone = load_backbone(str(tmp_path / severity))
        inputs = _largest_inputs(backbone, len(pixels))
        features = pooled_features(pixels, FeatureRecipe(backbone, preprocessing, PROMPT))
        spread[severity] = features.std(dim=0) / features.abs().mean(dim=0)

        residual = inputs["language_model.layers.0.input_layernorm"]
        rest = np.delete(np.arange(768), MASSIVE)
        assert residual[list(MASSIVE)].min() > 900 > 90 > residual[rest].max()
        assert inputs["visual.blocks.1.mlp.linear_fc2"][list(MASSIVE)].min() > FP16_MAX
        blocks = {n: i for n, i in inputs.items() if "layers" in n or "blocks" in n}
        overflowing = [name for name, largest in blocks.items() if largest.max() > FP16_MAX]
        assert len(overflowing) == (1 if severity == "some" else 2 * 6 + 2 * 3), overflowing
    assert spread["some"].median() > 0.05
    torch.testing.assert_close(spread["some"], spread["everywhere"], rtol=0.02, atol=0.01)
