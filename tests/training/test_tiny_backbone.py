from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen3VLForConditionalGeneration

from vibematch.errors import InputError
from vibematch_training.backbone import PROMPT, Backbone, load_backbone
from vibematch_training.tiny import SPECIAL_TOKENS, tiny_backbone, write_tiny_backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny")


def test_the_folder_is_a_checkpoint_that_transformers_itself_reads() -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_backbone())
    assert isinstance(model, Qwen3VLForConditionalGeneration)
    assert 1e6 < model.num_parameters() < 2e7
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone())
    assert tokenizer.decode(tokenizer(PROMPT)["input_ids"]) == PROMPT
    for token in SPECIAL_TOKENS:
        assert len(tokenizer(token)["input_ids"]) == 1


def test_the_same_seed_writes_the_same_checkpoint(tmp_path: Path, backbone: Backbone) -> None:
    write_tiny_backbone(tmp_path)
    assert load_backbone(str(tmp_path)).sha256 == backbone.sha256


def test_building_it_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    write_tiny_backbone(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_is_frozen(backbone: Backbone) -> None:
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@pytest.mark.parametrize(("height", "width"), [(224, 224), (512, 384), (32, 64)])
def test_one_token_per_32_pixels_squared(backbone: Backbone, height: int, width: int) -> None:
    ids = backbone.token_ids(PROMPT, height, width)
    image_tokens = int((ids == backbone.model.config.image_token_id).sum())
    assert image_tokens == height * width // 32**2


def test_an_older_checkpoint_keeps_its_chat_template_beside_the_processor(
    tmp_path: Path, backbone: Backbone
) -> None:
    write_tiny_backbone(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        load_backbone(str(tmp_path))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    older = load_backbone(str(tmp_path))
    assert torch.equal(older.token_ids(PROMPT, 64, 64), backbone.token_ids(PROMPT, 64, 64))


@pytest.mark.parametrize("source", ["/no/such/folder", "./missing", "gibberish"])
def test_a_source_that_is_nothing_is_named(source: str) -> None:
    with pytest.raises(InputError, match="no checkpoint folder"):
        load_backbone(source)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} is not a usable Qwen3-VL checkpoint"):
        load_backbone(str(tmp_path))


def test_weights_that_the_digest_would_not_cover_are_refused(tmp_path: Path) -> None:
    write_tiny_backbone(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no \*\.safetensors"):
        load_backbone(str(tmp_path))


def test_changed_weights_change_the_digest(tmp_path: Path, backbone: Backbone) -> None:
    write_tiny_backbone(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load_backbone(str(tmp_path)).sha256 != backbone.sha256
