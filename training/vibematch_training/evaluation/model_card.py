"""The model card: what a trained head is, what it is worth, and what it must not be used for.

The sections are those of Mitchell et al., "Model Cards for Model Reporting" (2019); the front
matter is what the Hugging Face Hub reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from vibematch.manifest import Manifest
from vibematch_training.backbone import TINY
from vibematch_training.run import TrainingConfig
from vibematch_training.schema import USER_LABEL

FIGURES: Final = {
    "recall_at_1": "Recall@1",
    "recall_at_5": "Recall@5",
    "recall_at_10": "Recall@10",
    "map_at_r": "MAP@R",
    "intra_class_distance": "Intra-class distance",
    "inter_class_distance": "Inter-class distance",
    "separation": "Separation",
}
"""Names of the figures for people."""

NONE: Final = "\N{EN DASH}"
"""Stands for a figure that is not defined."""
SIGNS: Final = {">=": "≥", ">": ">", "<": "<"}

SEES: Final = (
    "The whole photo: clothes, but also face, skin, hair, body, apparent age and gender, "
    "background, light and pose. Nothing keeps it from using what correlates with the labels. If "
    "some group of people wears a style more often in the training photos, looking like that "
    "group can count as wearing that style."
)
PROHIBITED: Final = (
    "identifying or verifying a person, or finding other photos of somebody;",
    "inferring ethnicity, religion, health, sexual orientation, age, gender or any other protected "
    "attribute, or anything else than clothing style;",
    "ranking people by attractiveness, worth or trustworthiness;",
    "decisions on access, moderation, price, employment or safety;",
    "photos of children, or of people who have not agreed to this use.",
)
CHECKS: Final = (
    "Figures by group: measure on your own users' photos, by gender, age, skin tone and region as "
    "they state it themselves, and look at who is recommended to whom; do not ship if a group is "
    "served clearly worse.",
    "Opt-in: people know that their photos are matched by style, and can refuse.",
    "Deletion: when a photo goes, its vector goes too (vibematch remove), and so do reports and "
    "caches that show it.",
    "A vector is personal data: store and share it like the photo it comes from.",
)

_DECIMALS: Final = 4


class _Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


_SPECIAL: Final = str.maketrans({character: f"\\{character}" for character in "\\`*[]<>|#"})


def _markdown(value: object) -> str:
    """What stands in the card for a value; text from outside stays text, on one line."""
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, _Markdown):
        return value
    return " ".join(str(value).split()).translate(_SPECIAL)


def what_it_finds(label: str) -> str:
    """What the head was taught to find, in words."""
    if label == USER_LABEL:
        return "photos of the same person"
    return f"photos of the same {label.replace('_', ' ')}"


def limits(results: Mapping[str, Any]) -> list[str]:
    """What the figures do not say, from the results themselves."""
    texts = []
    if results["backbone"] == TINY:
        texts.append(
            "The backbone is the untrained tiny one. The figures say nothing about photos of real "
            "people, and the model is of no use on them."
        )
    if results["label"] == USER_LABEL:
        texts.append(
            "It learnt which photos show the same person, so it recognises people: in many "
            "countries its vectors are biometric data."
        )
    if interval := results["trained_head"]["intervals"]["recall_at_1"]:
        texts.append(
            f"{results['photos']} photos of {results['users']} people leave Recall@1 anywhere "
            f"from {interval[0]:.2f} to {interval[1]:.2f}."
        )
    if not results["caution"]:
        texts.append(
            "The people measured on were not trained on, but their photos come from the same "
            "collection."
        )
    texts += [
        f"A class is what column {results['label']} says. A wrong or debatable label counts as an "
        "error of the model, and a systematic one is learnt.",
        "Photos of another country, season, camera or app than those measured on have to be "
        "measured anew.",
        "One seed was trained. Another gives a head that differs a little.",
    ]
    return texts


def model_card(
    results: Mapping[str, Any],
    config: TrainingConfig,
    dataset_figures: Mapping[str, Any],
    manifest: Manifest,
) -> str:
    """The card as Markdown.

    Args:
        results: what ``evaluation_results.json`` holds.
        config: the run's settings.
        dataset_figures: counts of the data, as in ``write_evaluation``.
        manifest: what the model is.
    """
    environment = Environment(
        loader=PackageLoader("vibematch_training.evaluation"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_markdown,
        autoescape=False,  # noqa: S701 - Markdown; what comes from outside is escaped by finalize
    )
    return environment.get_template("model_card.md.jinja").render(
        front_matter=_Markdown(_front_matter(results, manifest)),
        results=results,
        config=config,
        manifest=manifest,
        train=dataset_figures.get("train", {}),
        validation=dataset_figures.get("validation", {}),
        figures=FIGURES,
        cell=_cell,
        targets={target["figure"]: _target(target) for target in results["targets"]},
        finds=what_it_finds(results["label"]),
        untrained=results["backbone"] == TINY,
        user_label=USER_LABEL,
        limits=limits(results),
        sees=SEES,
        prohibited=PROHIBITED,
        checks=CHECKS,
    )


def _cell(figures: Mapping[str, Any], name: str) -> str:
    interval = figures["intervals"][name]
    value = _markdown(figures[name])
    return f"{value} ({interval[0]:.3f} to {interval[1]:.3f})" if interval else value


def _target(target: Mapping[str, Any]) -> _Markdown:
    met = "met" if target["met"] else "**not met**"
    return _Markdown(f"{SIGNS[target['comparison']]} {target['target']:.2f}, {met}")


def _front_matter(results: Mapping[str, Any], manifest: Manifest) -> str:
    content: dict[str, Any] = {
        "library_name": "vibematch",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["metric-learning", "image-retrieval", "vibematch"],
    }
    if _is_hub_id(results["backbone"]):
        content["base_model"] = results["backbone"]
    metrics = [
        {"type": name, "name": title, "value": round(results["trained_head"][name], _DECIMALS)}
        for name, title in FIGURES.items()
        if results["trained_head"][name] is not None
    ]
    measured = {
        "task": {"type": "image-feature-extraction", "name": what_it_finds(results["label"])},
        "dataset": {"type": "private", "name": f"{results['photos']} held-out photos"},
        "metrics": metrics,
    }
    if metrics:
        name = f"vibematch-{manifest.fingerprint[:12]}"
        content["model-index"] = [{"name": name, "results": [measured]}]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def _is_hub_id(backbone: str) -> bool:
    return backbone.count("/") == 1 and not backbone.startswith(("/", ".", "~"))
