from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from vibematch.errors import InputError, ManifestError
from vibematch.manifest import Manifest
from vibematch.preprocess import REVISION, Preprocessing
from vibematch_export import kernels
from vibematch_export.repository import (
    CANARY,
    CPU_BATCH_SIZE,
    EMBED,
    ENCODER,
    PREPROCESS,
    PROFILES,
    SOURCES,
    add_version,
    model_configs,
    next_version,
    point_to,
    read_config,
    read_manifest,
    read_version,
    versions,
    write_config,
    write_default_configs,
    write_repository,
)

CANVAS = Preprocessing(height=448, width=448)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_committed_configs_are_the_generated_ones(tmp_path: Path) -> None:
    write_default_configs(tmp_path)
    committed = {
        str(path.relative_to(SOURCES)): path.read_text() for path in SOURCES.rglob("*.pbtxt")
    }
    generated = {name: (tmp_path / name).read_text() for name in _files(tmp_path)}
    assert committed == generated, "run: make configs"


@pytest.mark.parametrize("profile", PROFILES)
def test_configs_read_back_as_the_messages_they_came_from(profile: str, tmp_path: Path) -> None:
    for name, config in model_configs(CANVAS, 256, profile=profile).items():
        write_config(tmp_path / name, config)
        assert text_format.Parse((tmp_path / name).read_text(), pb.ModelConfig()) == config


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_bounded_explicit_and_warm(profile: str) -> None:
    configs = model_configs(CANVAS, 256, version=7, profile=profile)
    for config in configs.values():
        for tensor in (*config.input, *config.output):
            assert all(side > 0 for side in tensor.dims), "explicit shapes"
    for step in (PREPROCESS, EMBED):
        assert configs[step].max_batch_size >= configs[ENCODER].max_batch_size == 8
        assert configs[step].dynamic_batching.default_queue_policy.max_queue_size > 0
        assert configs[step].version_policy.latest.num_versions == 2
    embed = configs[EMBED]
    if profile == "cpu":  # there model.py warms up
        assert embed.dynamic_batching.preferred_batch_size == [CPU_BATCH_SIZE]
    else:
        warm = [sample.batch_size for sample in embed.model_warmup]
        assert warm == list(range(1, embed.max_batch_size + 1))
    pinned = {step.model_version for step in configs[ENCODER].ensemble_scheduling.step}
    assert pinned == set(configs[ENCODER].version_policy.specific.versions) == {7}


def test_gpu_profiles_run_the_graph_they_are_named_after() -> None:
    embed = {name: model_configs(CANVAS, 256, profile=name)[EMBED] for name in PROFILES}
    assert embed["cpu"].backend == "python"
    assert {
        group.kind for name in PROFILES if name != "cpu" for group in embed[name].instance_group
    } == {pb.ModelInstanceGroup.KIND_GPU}
    assert embed["onnxruntime"].backend == "onnxruntime"
    assert not embed["onnxruntime"].HasField("optimization")
    assert embed["tensorrt"].backend == "tensorrt"
    assert embed["tensorrt"].default_model_filename == "model.plan"
    (accelerator,) = embed[
        "onnxruntime_tensorrt"
    ].optimization.execution_accelerators.gpu_execution_accelerator
    shapes = {
        kind: [
            int(side)
            for side in accelerator.parameters[f"trt_profile_{kind}_shapes"]
            .removeprefix("pixels:")
            .split("x")
        ]
        for kind in ("min", "opt", "max")
    }
    assert shapes["min"] == [1, 3, 448, 448]
    assert shapes["max"] == [32, 3, 448, 448]
    assert math.prod(shapes["min"]) < math.prod(shapes["opt"]) < math.prod(shapes["max"])


def test_repository_is_complete(exported: Path, tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repository", exported)
    written = {
        f"{PREPROCESS}/1/model.py",
        f"{PREPROCESS}/1/manifest.json",
        f"{EMBED}/1/model.py",
        f"{EMBED}/1/model.onnx",
        f"{CANARY}/1/model.py",
        f"{CANARY}/1/canary.png",
        f"{CANARY}/1/canary.npy",
    } | ({f"{EMBED}/1/kernels.so"} if kernels.library() else set())
    configs = {f"{name}/config.pbtxt" for name in (PREPROCESS, EMBED, CANARY, ENCODER)}
    for name in PROFILES.keys() - {"cpu"}:
        configs |= {f"{step}/configs/{name}.pbtxt" for step in (PREPROCESS, EMBED)}
    assert _files(repository) == written | configs
    assert (repository / ENCODER / "1").is_dir()
    assert read_manifest(repository) == Manifest.load(exported)
    assert read_version(repository) == 1


def test_a_plan_travels_along_as_the_tensorrt_backend_expects_it(
    exported: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(exported, tmp_path / "model")
    (model / "model.tensorrt-rtx-1.7.1.cc8.6.plan").write_bytes(b"for trying")
    repository = write_repository(tmp_path / "without", model)
    assert not (repository / EMBED / "1" / "model.plan").exists()
    (model / "model.tensorrt-11.4.1.10.nvidia-a10g.plan").write_bytes(b"a plan")
    repository = write_repository(tmp_path / "with", model)
    assert (repository / EMBED / "1" / "model.plan").read_bytes() == b"a plan"


def test_versions_lie_side_by_side(exported: Path, tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repository", exported)
    manifest = dataclasses.replace(Manifest.load(exported), prompt="another")
    other = shutil.copytree(exported, tmp_path / "other")
    manifest.save(other)
    assert next_version(repository) == 2
    steps_before = (repository / EMBED / "config.pbtxt").read_text()
    add_version(repository, other, 2)
    assert read_version(repository) == 1
    assert versions(repository) == [1, 2]
    point_to(repository, 2, manifest)
    assert (read_version(repository), read_manifest(repository)) == (2, manifest)
    assert list(read_config(repository).version_policy.specific.versions) == [2]
    assert (repository / EMBED / "config.pbtxt").read_text() == steps_before


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
    assert versions(repository) == [2], "a number never stands for two models"
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


def test_incomplete_model_is_refused(exported: Path, tmp_path: Path) -> None:
    for missing in ("model.onnx", "canary.png", "canary.npy"):
        model = shutil.copytree(exported, tmp_path / missing)
        (model / missing).unlink()
        with pytest.raises(InputError, match=f"has no {missing}: export"):
            write_repository(tmp_path / "repository", model)
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
