from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from vibematch.manifest import Manifest
from vibematch.photos import Photo
from vibematch_training.evaluation.evaluate import EvaluationSet, evaluate
from vibematch_training.evaluation.model_card import CHECKS, PROHIBITED, model_card
from vibematch_training.run import TrainedRun, TrainingConfig

HOSTILE = "a|b <b>\n`x` [c](d)"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    photos = [
        Photo(Path(f"{i}.jpg"), f"u{i}", 0, {"style": "xy"[i % 2], "shot_type": HOSTILE})
        for i in range(20)
    ]
    vectors = rng.normal(size=(20, 4)).astype(np.float32)
    data = EvaluationSet(photos, "style", ["x", "y"], vectors, vectors)
    header = {"label": "style", "backbone": "Qwen/Qwen3-VL-2B-Instruct", "dropped": {"bad": 3}}
    return header | {"caution": ""} | evaluate(data, seed=0)


@pytest.fixture(scope="module")
def manifest(trained_run: Path) -> Manifest:
    return Manifest.load(trained_run)


def _card(results: dict[str, Any], manifest: Manifest, **figures: Any) -> str:
    backbone = results["backbone"]
    config = TrainingConfig("photos", backbone=backbone)
    return model_card(results, config, figures, dataclasses.replace(manifest, backbone=backbone))


def test_the_run_carries_its_card(trained_run: Path) -> None:
    text = (trained_run / "model_card.md").read_text(encoding="utf-8")
    run = TrainedRun.load(trained_run)
    figures = run.results()
    low, high = figures["trained_head"]["intervals"]["recall_at_1"]
    value = figures["trained_head"]["recall_at_1"]
    assert f"{value:.3f} ({low:.3f} to {high:.3f})" in text
    assert f"{figures['raw_backbone']['recall_at_1']:.3f} (" in text
    assert f"{figures['train_photos']} photos of" in text
    assert run.manifest.fingerprint in text
    assert run.manifest.head_sha256 in text
    assert run.manifest.created_at in text
    assert "Untrained backbone." in text
    for style in run.manifest.labels["fashion_style"]:
        assert f"| {style} |" in text


def test_it_has_the_papers_sections_in_order(results: dict[str, Any], manifest: Manifest) -> None:
    headings = re.findall(r"^## (.+)$", _card(results, manifest), flags=re.MULTILINE)
    assert headings == [
        "Model details",
        "Intended use",
        "Prohibited and out-of-scope uses",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
        "Provenance",
    ]


def test_it_says_what_is_forbidden_and_what_to_check(
    results: dict[str, Any], manifest: Manifest
) -> None:
    card = _card(results, manifest)
    for text in (*PROHIBITED, *CHECKS):
        assert f"- {text}" in card


def test_the_hub_reads_its_front_matter(results: dict[str, Any], manifest: Manifest) -> None:
    data = ModelCard(_card(results, manifest)).data
    assert data.library_name == "vibematch"
    assert data.base_model == "Qwen/Qwen3-VL-2B-Instruct"
    metrics = {result.metric_type: result.metric_value for result in data.eval_results}
    assert metrics["recall_at_1"] == pytest.approx(results["trained_head"]["recall_at_1"], abs=1e-4)


@pytest.mark.parametrize("backbone", ["tiny", "/models/qwen", "../qwen"])
def test_only_a_hub_id_is_a_base_model(
    results: dict[str, Any], manifest: Manifest, backbone: str
) -> None:
    card = _card(results | {"backbone": backbone}, manifest)
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])
    assert ("Untrained backbone." in card) == (backbone == "tiny")


def test_names_from_a_csv_break_no_table(results: dict[str, Any], manifest: Manifest) -> None:
    counts = {"photos": 9, "users": 5, "generated": 1, "columns": {"style": {HOSTILE: 9}}}
    card = _card(results, manifest, train=counts, validation={})
    row = next(line for line in card.splitlines() if line.startswith("| a") and "| 9 |" in line)
    assert row == r"| a\|b \<b\> \`x\` \[c\](d) | 9 | 0 |"
    assert "9 photos of 5 people, 1 of the photos generated." in card
    assert "Left out: 3 bad." in card


def test_a_head_that_recognises_people_says_so(results: dict[str, Any], manifest: Manifest) -> None:
    assert "biometric" in _card(results | {"label": "user_id"}, manifest)
    assert "biometric" not in _card(results, manifest)
