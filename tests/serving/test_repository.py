from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from vibematch.errors import InputError, ManifestError
from vibematch.manifest import Manifest
from vibematch.preprocess import REVISION
from vibematch_export import kernels
from vibematch_export.repository import (
    EMBED,
    ENCODER,
    PREPROCESS,
    SOURCES,
    default_configs,
    read_manifest,
    write_configs,
    write_repository,
)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_committed_configs_are_the_generated_ones(tmp_path: Path) -> None:
    for name in default_configs():
        (tmp_path / name).mkdir()
    write_configs(tmp_path, default_configs())
    for name in default_configs():
        committed = (SOURCES / name / "config.pbtxt").read_text()
        assert committed == (tmp_path / name / "config.pbtxt").read_text(), (
            "run: python -c 'from vibematch_export.repository import *; "
            "write_configs(SOURCES, default_configs())'"
        )


def test_configs_read_back_as_the_messages_they_came_from(tmp_path: Path) -> None:
    for name, config in default_configs().items():
        (tmp_path / name).mkdir()
        write_configs(tmp_path, {name: config})
        text = (tmp_path / name / "config.pbtxt").read_text()
        assert text_format.Parse(text, pb.ModelConfig()) == config


def test_queues_are_bounded_and_every_batch_fits() -> None:
    configs = default_configs()
    assert {config.max_batch_size for config in configs.values()} == {8}
    for step in (PREPROCESS, EMBED):
        assert configs[step].dynamic_batching.default_queue_policy.max_queue_size > 0
    assert [sample.batch_size for sample in configs[EMBED].model_warmup] == [1, 8]


def test_repository_is_complete(exported: Path, tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repository", exported)
    assert _files(repository) == {
        f"{PREPROCESS}/config.pbtxt",
        f"{PREPROCESS}/1/model.py",
        f"{EMBED}/config.pbtxt",
        f"{EMBED}/1/model.py",
        f"{EMBED}/1/model.onnx",
        f"{ENCODER}/config.pbtxt",
    } | ({f"{EMBED}/1/kernels.so"} if kernels.library() else set())
    assert (repository / ENCODER / "1").is_dir()
    assert read_manifest(repository) == Manifest.load(exported)


def test_external_weights_travel_along(exported: Path, tmp_path: Path) -> None:
    model = shutil.copytree(exported, tmp_path / "model")
    (model / "model.onnx.data").write_bytes(b"weights")
    repository = write_repository(tmp_path / "repository", model)
    assert (repository / EMBED / "1" / "model.onnx.data").read_bytes() == b"weights"


def test_own_repository_is_replaced_and_nothing_else_is_left(
    exported: Path, tmp_path: Path
) -> None:
    repository = write_repository(tmp_path / "repository", exported)
    changed = shutil.copytree(exported, tmp_path / "changed")
    manifest = dataclasses.replace(Manifest.load(exported), prompt="설명해 주세요")
    manifest.save(changed)
    assert write_repository(repository, changed) == repository
    assert read_manifest(repository) == manifest
    assert {entry.name for entry in tmp_path.iterdir()} == {"repository", "changed"}


def test_empty_folder_is_used(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    write_repository(tmp_path / "repository", exported)
    assert read_manifest(tmp_path / "repository") == Manifest.load(exported)


@pytest.mark.parametrize("kind", ["file", "folder", "extended", "sources"])
def test_foreign_places_are_left_alone(kind: str, exported: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    match kind:
        case "file":
            place.write_text("mine")
        case "folder":
            place.mkdir()
            (place / "letter.txt").write_text("mine")
        case "extended":
            write_repository(place, exported)
            (place / "another_model").mkdir()
        case "sources":
            place = SOURCES
    before = _files(place)
    with pytest.raises(InputError, match="left alone"):
        write_repository(place, exported)
    assert _files(place) == before


def test_model_without_weights_is_refused(exported: Path, tmp_path: Path) -> None:
    Manifest.load(exported).save(tmp_path)
    with pytest.raises(InputError, match=r"has no model\.onnx: export"):
        write_repository(tmp_path / "repository", tmp_path)
    assert not (tmp_path / "repository").exists()


def test_model_of_another_preprocessing_is_refused(exported: Path, tmp_path: Path) -> None:
    model = shutil.copytree(exported, tmp_path / "model")
    manifest = dataclasses.replace(Manifest.load(exported), preprocessing_revision=REVISION + 1)
    manifest.save(model)
    with pytest.raises(InputError, match=f"preprocessing revision {REVISION + 1}"):
        write_repository(tmp_path / "repository", model)


def test_repository_without_manifest_says_so() -> None:
    with pytest.raises(ManifestError, match="carries no manifest"):
        read_manifest(SOURCES)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(SOURCES / "nowhere")
