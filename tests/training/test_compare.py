from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from vibematch.cli import main
from vibematch.errors import InputError
from vibematch_training import compare as compare_module
from vibematch_training.compare import best_rows, compare, markdown, rows_around
from vibematch_training.run import TrainedRun, TrainingConfig
from vibematch_training.train import train

SEEDS = 2


@pytest.fixture(scope="module")
def photos(digit_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty handwritten digits, of three kinds."""
    folder = tmp_path_factory.mktemp("digits")
    with (digit_photos / "metadata.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["digit"] in "148"][:60]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "filepath": digit_photos / row["filepath"]} for row in rows)
    return folder


@pytest.fixture(scope="module")
def config(photos: Path) -> TrainingConfig:
    return TrainingConfig(
        str(photos), label="digit", height=64, width=64, hidden_dim=64, epochs=3, seed=3
    )


@pytest.fixture(scope="module")
def whole(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    compare(config, out, seeds=SEEDS, progress=False)
    return out


def _stored(out: Path) -> dict[str, object]:
    return json.loads((out / "comparison.json").read_text())


def _without_seconds(comparison: dict[str, object]) -> dict[str, object]:
    runs = sorted(comparison["runs"], key=lambda run: (run["row"], run["seed"]))
    return {
        **comparison,
        "rows": [{**row, "seconds": None} for row in comparison["rows"]],
        "runs": [{**run, "seconds": None} for run in runs],
    }


def test_each_choice_is_changed_alone(config: TrainingConfig) -> None:
    rows = rows_around(config)
    assert [row.trained for row in rows[:4]] == [False, False, False, True]
    assert rows[3].config == config
    together = compare_module._COMBINATIONS
    alone = [row.config.differences(config) for row in rows[4:] if row.name not in together]
    assert all(len(changed) == 1 for changed in alone)
    assert {(name, values[0]) for changed in alone for name, values in changed.items()} == {
        ("head", "plan"),
        ("mining", "hard"),
        ("loss", "supcon"),
        ("loss", "multi_similarity"),
        ("loss", "infonce"),
        ("pooling", "last"),
        ("pooling", "image"),
    }
    assert {*together} < {row.name for row in rows}
    assert len({row.key for row in rows}) == len(rows)


def test_rows_around_other_settings_make_sense(photos: Path) -> None:
    rows = rows_around(TrainingConfig(str(photos), loss="supcon", head="plan", extractor="graph"))
    assert not any(row.config.mining == "hard" for row in rows)
    assert {row.config.pooling for row in rows} == {"mean"}  # the graph has one
    assert {row.config.head for row in rows} == {"plan", "paper"}
    assert len({row.key for row in rows}) == len(rows)


def test_figures_are_means_over_seeds(whole: Path, config: TrainingConfig) -> None:
    comparison = _stored(whole)
    assert len(comparison["runs"]) == SEEDS * len(rows_around(config))
    for row in comparison["rows"]:
        runs = [run for run in comparison["runs"] if run["row"] == row["key"]]
        assert sorted(run["seed"] for run in runs) == [3, 4]
        for name, figure in row["figures"].items():
            values = [run["figures"][name] for run in runs]
            assert figure["mean"] == pytest.approx(np.mean(values))
            assert figure["sd"] == pytest.approx(np.std(values, ddof=1))


def test_a_run_is_what_train_gives(whole: Path, config: TrainingConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "run", progress=False)
    results = TrainedRun.load(tmp_path / "run").results()
    rows = rows_around(config)
    runs = {(run["row"], run["seed"]): run["figures"] for run in _stored(whole)["runs"]}
    for row, key in ((rows[0], "raw_backbone"), (rows[3], "trained_head")):
        figures = runs[row.key, config.seed]
        assert figures == {name: pytest.approx(results[key][name]) for name in figures}


@pytest.mark.parametrize("stop", [1, 9])
def test_interrupted_it_goes_on(
    stop: int,
    whole: Path,
    config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, done = compare_module._Bench.run, []

    def counted(bench: object, row: object, seed: int) -> object:
        if len(done) == stop:
            done.append("interrupted")
            raise KeyboardInterrupt
        done.append((row.key, seed))
        return run(bench, row, seed)

    monkeypatch.setattr(compare_module._Bench, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(config, tmp_path, seeds=SEEDS, progress=False)
    assert len(_stored(tmp_path)["runs"]) == stop
    compare(config, tmp_path, seeds=SEEDS, progress=False)
    cells = [cell for cell in done if cell != "interrupted"]
    assert len(set(cells)) == len(cells) == SEEDS * len(rows_around(config))
    assert _without_seconds(_stored(tmp_path)) == _without_seconds(_stored(whole))


def test_a_finished_comparison_trains_nothing(
    whole: Path, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _stored(whole)
    monkeypatch.setattr(compare_module._Bench, "run", None)
    assert compare(config, whole, seeds=1, progress=False) == before == _stored(whole)


def test_another_comparison_is_not_overwritten(
    whole: Path, config: TrainingConfig, photos: Path, tmp_path: Path
) -> None:
    before = _stored(whole)
    other = TrainingConfig.from_yaml(_yaml(tmp_path, config), epochs=9, margin=0.2)
    with pytest.raises(InputError, match=r"another comparison \(epochs, margin differ\)"):
        compare(other, whole)
    assert _stored(whole) == before
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a comparison"):
        compare(config, tmp_path)


def _yaml(folder: Path, config: TrainingConfig) -> Path:
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


def _line(key: str, *, trained: bool = True, **means: float | None) -> dict[str, object]:
    figures = {name: {"mean": means.get(name), "sd": 0.01} for name in compare_module.COLUMNS}
    return {"name": key, "key": key, "trained": trained, "runs": 5, "figures": figures} | {
        "seconds": 1.0
    }


def test_the_best_is_the_highest_but_for_intra_the_lowest(config: TrainingConfig) -> None:
    lines = [
        _line("raw", trained=False, recall_at_1=0.9, intra_class_distance=0.0),
        _line("a", recall_at_1=0.7, intra_class_distance=0.3, map_at_r=0.5),
        _line("b", recall_at_1=0.8, intra_class_distance=0.4),
    ]
    best = best_rows(lines)
    assert best == {"recall_at_1": "b", "intra_class_distance": "a", "map_at_r": "a"}
    settings = {"label": "style", "backbone": "tiny", "height": 64, "width": 64, "epochs": 3}
    text = markdown({"rows": lines, "settings": settings})
    assert "| a | 0.700 ±0.010 | - ±0.010 | **0.500 ±0.010** |" in text
    assert "| b | **0.800 ±0.010** |" in text
    assert "over 5 seeds" in text


def test_the_command(
    whole: Path, config: TrainingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", config.photos, "--out", str(whole), "--seeds", str(SEEDS)]
    command += ["--config", str(_yaml(tmp_path, config))]
    assert main(command) == 0
    table = capsys.readouterr().out
    for words in ("raw backbone", "loss supcon", "R@1", "±", "*0."):
        assert words in table
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == _stored(whole)
    assert main([*command[:-2], "--seeds", "0"]) == 1
    assert "seeds must be at least 1" in capsys.readouterr().err
    assert (whole / "comparison.md").read_text() == markdown(_stored(whole))
