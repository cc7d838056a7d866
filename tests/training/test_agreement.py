from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vibematch.errors import InputError
from vibematch_training.annotation.agreement import agreement, print_agreement, read_human_labels
from vibematch_training.schema import SHOT_TYPES


def _kappa(confusion: np.ndarray) -> float:
    """Cohen's kappa from its definition."""
    shares = confusion / confusion.sum()
    by_chance = shares.sum(0) @ shares.sum(1)
    return (np.trace(shares) - by_chance) / (1 - by_chance)


def test_figures_follow_their_definitions():
    rng = np.random.default_rng(0)
    human = {f"{i}.jpg": {"shot_type": SHOT_TYPES[rng.integers(3)]} for i in range(50)}
    model = {
        photo: labels if rng.random() < 0.7 else {"shot_type": SHOT_TYPES[rng.integers(3)]}
        for photo, labels in human.items()
    }
    confusion = np.zeros((3, 3))
    for photo in human:
        row, column = (SHOT_TYPES.index(x[photo]["shot_type"]) for x in (human, model))
        confusion[row, column] += 1

    report = agreement(human, model)
    assert list(report) == ["shot_type"]
    figures = report["shot_type"]
    assert figures["values"] == list(SHOT_TYPES)
    assert figures["confusion"] == confusion.astype(int).tolist()
    assert figures["accuracy"] == pytest.approx(np.trace(confusion) / 50)
    assert figures["cohen_kappa"] == pytest.approx(_kappa(confusion))
    assert len(figures["disagreements"]) == 50 - np.trace(confusion)
    wrong = figures["disagreements"][0]
    assert wrong["human"] == human[wrong["photo"]]["shot_type"] != wrong["model"]


def test_only_what_both_have_counts():
    human = {"a": {"fashion_style": "Street_Hip"}, "b": {}, "c": {"fashion_style": "Goth"}}
    model = {"a": {"fashion_style": "Street_Hip"}, "b": {"fashion_style": "Street_Hip"}}
    figures = agreement(human, model)["fashion_style"]
    assert (figures["n"], figures["accuracy"], figures["cohen_kappa"]) == (1, 1.0, None)
    assert json.loads(json.dumps(figures)) == figures
    assert agreement({}, model) == {}


def test_a_value_of_ones_own_is_a_disagreement(capsys: pytest.CaptureFixture[str]):
    report = agreement({"a": {"fashion_style": "Goth"}}, {"a": {"fashion_style": "Street_Hip"}})
    assert report["fashion_style"]["values"] == ["Street_Hip", "Goth"]
    print_agreement(report)
    assert "Goth" in capsys.readouterr().out


def test_values_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]):
    human = {"[b]a": {"shot_type": "[/red]"}}
    print_agreement(agreement(human, {"[b]a": {"shot_type": "[red]x"}}))
    shown = capsys.readouterr().out
    assert "[/red]" in shown and "[red]x" in shown and "[b]a" in shown


def test_human_labels_are_found_by_file_name(tmp_path: Path):
    path = tmp_path / "human.csv"
    path.write_text("filename,fashion_style,note\na.jpg,Street_Hip,hm\nb.jpg,,\n")
    labels = read_human_labels(path, {"in/a.jpg": "a.jpg", "in/b.jpg": "b.jpg"})
    assert labels == {"in/a.jpg": {"fashion_style": "Street_Hip"}, "in/b.jpg": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,fashion_style\na.jpg,Street_Hip\n", "needs a column filename"),
        ("filename,style\na.jpg,Street_Hip\n", "at least one of fashion_style"),
        ("filename,fashion_style\nz.jpg,Street_Hip\n", "1 file.s. .* 'z.jpg'"),
        ("filename,fashion_style\ntwice.jpg,Street_Hip\n", "exactly once"),
    ],
)
def test_unusable_human_labels_are_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "human.csv"
    path.write_text(content)
    known = {"a.jpg": "a.jpg", "x/twice.jpg": "twice.jpg", "y/twice.jpg": "twice.jpg"}
    with pytest.raises(InputError, match=message):
        read_human_labels(path, known)
