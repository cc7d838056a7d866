from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from vibematch.cli import main
from vibematch.errors import InputError
from vibematch_training.run import (
    TrainedRun,
    TrainingConfig,
    is_finished,
    parse_size,
)


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = TrainingConfig("사진", label="digit", height=512, width=384, epochs=3)
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert TrainingConfig.from_yaml(tmp_path / "config.yaml") == config
    assert TrainingConfig.from_yaml(tmp_path / "config.yaml", epochs=9).epochs == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\nmargins: 1", "unknown setting.s. epoch, margins"),
        ("- 3", "must hold settings"),
        ("a: [", "cannot be read as YAML"),
        ("photos: x\nepochs: many", "epochs must be of type int, got 'many'"),
        ("photos: x\nweight_decay: 1e-2", "weight_decay must be of type float, got '1e-2'"),
        ("photos: x\nepochs: 20.5", "epochs must be of type int"),
        ("photos: x\ndropout: 2", "dropout must be in"),
        ("epochs: 3", "incomplete .*photos"),
        ("photos: x\nepochs: 0", "epochs must be positive"),
        ("photos: x\nlearning_rate: .nan", "learning_rate must be a finite number"),
        ("photos: x\nmargin: .inf", "margin must be a finite number"),
        ("photos: x\nmargin: -0.1", "margin must be at least 0"),
        ("photos: x\nwarmup_share: 1", r"warmup_share must be in \[0, 1\)"),
        ("photos: x\nselection_share: 0", r"selection_share must be in \(0, 0.5\]"),
        ("photos: x\npatience_epochs: -1", "patience_epochs must be at least 0"),
        ("photos: x\ncheckpoint_every_epochs: 0", "checkpoint_every_epochs must be positive"),
        ("photos: x\ntemperature: 0", "temperature must be positive"),
        ("photos: x\nundersample: 1", "undersample must be of type bool, got 1"),
        ("photos: x\nepochs: true", "epochs must be of type int, got True"),
        ("photos: x\nhead: resnet", "head must be one of paper, plan, got 'resnet'"),
        ("photos: x\nloss: [a]", "loss must be one of triplet, supcon, multi_similarity, infonce"),
        ("photos: x\npooling: max", "pooling must be one of mean, last, image, got 'max'"),
        ("photos: x\nkeep: first", "keep must be one of last, best"),
        ("photos: x\nmining: easy", "mining must be one of semihard, hard"),
        ("photos: x\nloss: supcon\nmining: hard", "'hard' chooses triplets and loss 'supcon'"),
        ("photos: x\nclasses_per_batch: 1", "classes_per_batch and photos_per_class of at least"),
        ("photos: x\nheight: 100", "canvas height must be a positive multiple of 32, got 100"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        TrainingConfig.from_yaml(tmp_path / "c.yaml")


def test_what_selects() -> None:
    assert not TrainingConfig("x").selects
    assert TrainingConfig("x", keep="best").selects
    assert TrainingConfig("x", patience_epochs=3).selects


def test_differences_are_named() -> None:
    ours, theirs = TrainingConfig("x", epochs=3), TrainingConfig("x", epochs=4, loss="supcon")
    assert ours.differences(theirs) == {"epochs": (3, 4), "loss": ("triplet", "supcon")}
    assert ours.differences(ours) == {}


def test_every_setting_is_explained_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.partition("| setting | default | |")[2]
    stated = {}
    for names, values in re.findall(r"^\| (`[^|]*`) \| ([^|]*)\|", table, flags=re.MULTILINE):
        stated |= zip(re.findall(r"`(\w+)`", names), values.strip().split(", "), strict=True)
    for field in dataclasses.fields(TrainingConfig):
        assert f"        {field.name}: " in TrainingConfig.__doc__
        if field.name not in ("photos", "prompt"):
            assert yaml.safe_load(stated[field.name].strip("`") or "''") == field.default
    assert len(stated) == len(dataclasses.fields(TrainingConfig))


def test_the_help_states_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    stated = dict(re.findall(r"--([a-z-]+) (?:(?!--)[^;])*; default: (\w+)", text))
    stated |= dict(re.findall(r"--([a-z-]+) \S+ default: (\w+)", text))
    canvas = f"{TrainingConfig('x').height}x{TrainingConfig('x').width}"
    assert stated.pop("size") == canvas
    assert len(stated) >= 8
    for option, default in stated.items():
        assert default == str(getattr(TrainingConfig("x"), option.replace("-", "_")))


def test_a_run_is_finished_by_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(TrainingConfig("x").to_yaml())
    (tmp_path / "head.safetensors").write_bytes(b"")
    assert not is_finished(tmp_path)
    with pytest.raises(InputError, match=r"no manifest.json\); go on with .* --resume"):
        TrainedRun.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert is_finished(tmp_path)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a finished run \(no config.yaml"):
        TrainedRun.load(tmp_path)


def test_size() -> None:
    assert parse_size("512x384") == (512, 384)
    for wrong in ("512", "512x", "axb", "-32x32"):
        with pytest.raises(InputError, match="size must look like"):
            parse_size(wrong)
