from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from vibematch.cli import main
from vibematch.errors import InputError
from vibematch.manifest import Manifest
from vibematch.photos import Photo
from vibematch.preprocess import Preprocessing
from vibematch_export.parity import (
    Parity,
    ParityError,
    Reference,
    Run,
    measure_parity,
    proof_photos,
    reference,
    require_parity,
    shortfalls,
)
from vibematch_training import features
from vibematch_training.backbone import PROMPT, load_backbone
from vibematch_training.features import FeatureRecipe, load_pixels, pooled_features
from vibematch_training.head import ProjectionHead
from vibematch_training.run import TrainedRun
from vibematch_training.schema import SPLIT_COLUMN, STYLE_COLUMN, VALIDATION

PHOTOS = 42  # no multiple of 8


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def expected() -> Reference:
    """Random vectors that lean towards their class, two photos of each user."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, PHOTOS)
    leaning = 0.8 * rng.standard_normal((4, 16))[classes]
    return Reference(
        photos=[Path(f"user_{number // 2:02}_{number % 2}.jpg") for number in range(PHOTOS)],
        pixels=rng.integers(0, 256, (PHOTOS, 3, 4, 4), dtype=np.uint8),
        embeddings=_unit(leaning + rng.standard_normal((PHOTOS, 16))),
        users=[str(number // 2) for number in range(PHOTOS)],
        labels=[str(number) for number in classes],
    )


def _artefact(expected: Reference, alone: np.ndarray, together: np.ndarray | None = None) -> Run:
    """Gives each photo its row of one table at batch 1, and of another in larger batches."""
    rows = {pixels.tobytes(): row for row, pixels in enumerate(expected.pixels)}

    def run(pixels: np.ndarray) -> np.ndarray:
        table = alone if len(pixels) == 1 or together is None else together
        return table[[rows[photo.tobytes()] for photo in pixels]]

    return run


def _with_cosines(vectors: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Unit vectors at given cosines from given ones."""
    exact = vectors.astype(np.float64)
    aside = np.random.default_rng(1).standard_normal(exact.shape)
    aside -= (aside * exact).sum(axis=1, keepdims=True) * exact
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    turned = cosines[:, None] * exact + np.sqrt(1 - cosines**2)[:, None] * aside
    return turned.astype(np.float32)


def _recall_at_1(vectors: np.ndarray, expected: Reference) -> tuple[float, int]:
    found = []
    for query in range(PHOTOS):
        others = [n for n in range(PHOTOS) if expected.users[n] != expected.users[query]]
        if expected.labels[query] not in [expected.labels[n] for n in others]:
            continue
        nearest = max(others, key=lambda n: float(vectors[n] @ vectors[query]))
        found.append(expected.labels[nearest] == expected.labels[query])
    return float(np.mean(found)), len(found)


def _ten_nearest(vectors: np.ndarray) -> list[set[int]]:
    search = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(vectors)
    return [set(row) for row in search.kneighbors(return_distance=False).tolist()]


def test_figures_are_those_of_a_slow_computation_and_of_the_worse_batch(
    expected: Reference,
) -> None:
    rng = np.random.default_rng(2)
    right = expected.embeddings
    tables = [_unit(right + scale * rng.standard_normal(right.shape)) for scale in (0.05, 0.15)]
    parity = measure_parity(_artefact(expected, *tables), expected)

    cosines = np.min([np.diag(cosine_similarity(table, right)) for table in tables], axis=0)
    assert parity.photos == PHOTOS
    assert parity.min_cosine == pytest.approx(cosines.min(), abs=1e-6)
    assert parity.mean_cosine == pytest.approx(cosines.mean(), abs=1e-6)
    assert parity.max_abs_difference == max(float(abs(table - right).max()) for table in tables)
    between = np.diag(cosine_similarity(*tables)).min()
    assert parity.batch_cosine == pytest.approx(between, abs=1e-6)
    assert [photo for photo, _ in parity.worst] == [
        expected.photos[n] for n in np.argsort(cosines)[:5]
    ]
    agreements = [
        np.mean(
            [len(a & b) / 10 for a, b in zip(_ten_nearest(t), _ten_nearest(right), strict=True)]
        )
        for t in tables
    ]
    assert parity.top_10_agreement == pytest.approx(min(agreements))
    assert 0.5 < parity.top_10_agreement < 0.95
    before, queries = _recall_at_1(right, expected)
    changes = [_recall_at_1(table, expected)[0] - before for table in tables]
    assert parity.queries == queries
    assert parity.recall_at_1_change == pytest.approx(max(changes, key=abs))
    assert parity.recall_at_1_change != 0


def test_every_photo_is_seen_alone_and_among_eight(expected: Reference) -> None:
    seen: dict[int, set[bytes]] = {}
    right = _artefact(expected, expected.embeddings)

    def run(pixels: np.ndarray) -> np.ndarray:
        seen.setdefault(len(pixels), set()).update(photo.tobytes() for photo in pixels)
        return right(pixels)

    parity = measure_parity(run, expected)
    everyone = {photo.tobytes() for photo in expected.pixels}
    assert seen == {1: everyone, 8: everyone}
    assert parity.min_cosine == pytest.approx(1, abs=1e-12)
    assert parity.recall_at_1_change == parity.max_abs_difference == 0
    assert parity.top_10_agreement == 1
    require_parity(parity, "fp32")


def test_a_fault_in_larger_batches_only_is_found(expected: Reference) -> None:
    right = _artefact(expected, expected.embeddings)
    parity = measure_parity(lambda pixels: np.roll(right(pixels), 1, axis=0), expected)
    with pytest.raises(ParityError, match=r"between batch 1 and batch 8 -?0.* is required"):
        require_parity(parity, "int8")


def _with(row: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def spoil(vectors: np.ndarray) -> np.ndarray:
        spoilt = vectors.copy()
        spoilt[row] *= value
        return spoilt

    return spoil


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_with(5, np.nan), "at batch 8, gives vectors that are not finite for user_02_1.jpg"),
        (_with(5, np.inf), "not finite for user_02_1.jpg"),
        (_with(5, 0), "length 0 instead of 1 for user_02_1.jpg"),
        (_with(41, 1.01), "length 1.01 instead of 1 for user_20_1.jpg"),
        (lambda vectors: 2 * vectors, "length 2 instead of 1 for user_00_0.jpg, .* and 37 more"),
        (lambda vectors: vectors[:, :-1], r"shape \(8, 15\) instead of \(8, 16\)"),
    ],
)
def test_what_is_no_unit_vector_is_refused_with_its_photo(
    expected: Reference, spoil: Callable[[np.ndarray], np.ndarray], complaint: str
) -> None:
    right = expected.embeddings
    with pytest.raises(ParityError, match=complaint):
        measure_parity(_artefact(expected, right, spoil(right)), expected)


@pytest.mark.parametrize(
    ("precision", "usual", "worst", "complaint"),
    [
        ("fp32", 0.999995, 0.999992, None),
        ("fp32", 0.999995, 0.999985, "least cosine 0.99998.* at least 0.99999 "),
        ("bf16", 0.9995, 0.9991, None),
        ("bf16", 0.9995, 0.9989, "least cosine 0.9989.* at least 0.999 "),
        ("fp16", 0.9995, 0.9991, None),
        ("fp16", 0.9995, 0.9989, "least cosine 0.9989.* at least 0.999 "),
        ("int8", 0.9995, 0.9951, None),
        ("int8", 0.9995, 0.9949, "least cosine 0.9949.* at least 0.995 "),
        ("int8", 0.9989, 0.9988, "mean cosine 0.9988.* at least 0.999 "),
    ],
)
def test_each_precision_has_its_thresholds(
    expected: Reference, precision: str, usual: float, worst: float, complaint: str | None
) -> None:
    unlabelled = dataclasses.replace(expected, labels=None)
    cosines = np.full(PHOTOS, usual)
    cosines[[17, 30]] = [worst, worst + 1e-6]
    run = _artefact(expected, _with_cosines(expected.embeddings, cosines))
    parity = measure_parity(run, unlabelled)
    if complaint is None:
        require_parity(parity, precision)
        return
    with pytest.raises(ParityError, match=re.sub(" at least", r" \\(at least", complaint)) as error:
        require_parity(parity, precision)
    assert error.match(r"worst of 42 photos: user_08_1.jpg \(0\.9\d+\), user_15_0.jpg .*published")


@pytest.fixture
def faithful(expected: Reference) -> Parity:
    return measure_parity(_artefact(expected, expected.embeddings), expected)


@pytest.mark.parametrize(
    ("queries", "change", "passes"),
    [
        (98, 1, True),
        (98, -1, True),
        (98, -2, False),
        (60, 2, False),
        (150, -1, True),
        (150, 2, False),
        (300, -3, True),
        (300, -4, False),
    ],
)
def test_recall_may_change_by_a_hundredth_or_by_one_query(
    faithful: Parity, queries: int, change: int, passes: bool
) -> None:
    parity = dataclasses.replace(faithful, queries=queries, recall_at_1_change=change / queries)
    for precision in ("fp32", "bf16", "fp16", "int8"):
        found = shortfalls(parity, precision)
        assert found == [] if passes else f"{change:+d} of {queries} queries" in found[0]


@pytest.mark.parametrize("name", ["min_cosine", "mean_cosine", "batch_cosine"])
def test_a_figure_that_is_not_a_number_fails(faithful: Parity, name: str) -> None:
    assert shortfalls(faithful, "int8") == []
    assert len(shortfalls(dataclasses.replace(faithful, **{name: float("nan")}), "int8")) == 1


def test_what_cannot_be_measured_has_no_figure(expected: Reference) -> None:
    few = Reference(
        expected.photos[:11], expected.pixels[:11], expected.embeddings[:11], ["anna"] * 11, None
    )
    for labels in (None, ["Street_Hip"] * 11):  # without labels; with nobody to be found by
        parity = measure_parity(
            _artefact(expected, expected.embeddings), dataclasses.replace(few, labels=labels)
        )
        assert parity.top_10_agreement is parity.recall_at_1_change is None
        assert parity.queries == 0
        assert set(parity.figures) == {
            "photos",
            "min_cosine",
            "mean_cosine",
            "max_abs_difference",
            "batch_cosine",
        }
        require_parity(parity, "fp32")


def test_an_unknown_precision_is_refused(faithful: Parity) -> None:
    with pytest.raises(InputError, match="one of fp32, bf16, fp16, int8, got 'int4'"):
        require_parity(faithful, "int4")


# --- the reference


@pytest.fixture(scope="module")
def recipe() -> FeatureRecipe:
    return FeatureRecipe(load_backbone("tiny", torch.float32, "cpu"), Preprocessing(64, 96), PROMPT)


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    rng = np.random.default_rng(0)
    listed = []
    for number in range(20):
        path = tmp_path / f"user_{number:02}_0.png"
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((80, 100)).save(
            path
        )
        listed.append(Photo(path, f"user_{number:02}", 0, {STYLE_COLUMN: "ab"[number % 2]}))
    return listed


@pytest.fixture
def computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An empty cache of its own, four photos a batch; how many photos each forward pass was for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "_CPU_BATCH_PIXELS", 4 * 64 * 96)
    calls: list[int] = []

    def counted(pixels: np.ndarray, recipe: FeatureRecipe) -> torch.Tensor:
        calls.append(len(pixels))
        return pooled_features(pixels, recipe)

    monkeypatch.setattr(features, "pooled_features", counted)
    return calls


def _head(recipe: FeatureRecipe, seed: int = 0) -> ProjectionHead:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ProjectionHead(recipe.backbone.feature_dim, 32, 64).eval()


def _reference(
    photos: list[Photo], recipe: FeatureRecipe, head: ProjectionHead | None = None
) -> Reference:
    return reference(photos, recipe, head or _head(recipe), label=STYLE_COLUMN)


def test_the_reference_is_hugging_faces_forward_and_the_head(
    photos: list[Photo],
    recipe: FeatureRecipe,
    computed: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = _reference(photos, recipe)
    pixels = np.stack([load_pixels(photo.path, recipe.preprocessing) for photo in photos])
    with torch.inference_mode():
        right = _head(recipe)(pooled_features(pixels, recipe)).numpy()
    np.testing.assert_allclose(made.embeddings, right, atol=1e-5)
    np.testing.assert_array_equal(made.pixels, pixels)
    assert made.photos == [photo.path for photo in photos]
    assert made.users == [photo.user_id for photo in photos]
    assert made.labels == [photo.labels[STYLE_COLUMN] for photo in photos]
    assert "only 20 photos could be compared; 98 make a full proof" in capsys.readouterr().err


def test_an_interrupted_reference_goes_on_and_a_finished_one_is_kept(
    photos: list[Photo],
    recipe: FeatureRecipe,
    computed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = features.pooled_features

    def power_cut(pixels: np.ndarray, recipe: FeatureRecipe) -> torch.Tensor:
        if len(computed) == 2:
            raise RuntimeError("power cut")
        return counted(pixels, recipe)

    with monkeypatch.context() as failing, features.one_core_per_operation():
        torch.set_num_threads(1)  # one batch after the other
        failing.setattr(features, "pooled_features", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            _reference(photos, recipe)
    assert computed == [4, 4]
    made = _reference(photos, recipe)
    assert computed == [4] * 5
    again = _reference(photos, recipe, _head(recipe, seed=1))
    assert computed == [4] * 5  # another head on the same features
    assert not np.allclose(made.embeddings, again.embeddings, atol=1e-2)


def test_a_reference_is_computed_again_for_all_that_decides_it(
    photos: list[Photo], recipe: FeatureRecipe, computed: list[int], tmp_path: Path
) -> None:
    made = _reference(photos, recipe)
    computed.clear()
    for other in (
        dataclasses.replace(recipe, prompt="Describe the room."),
        dataclasses.replace(recipe, preprocessing=Preprocessing(96, 64)),
        dataclasses.replace(recipe, pooling="last"),
        dataclasses.replace(recipe, backbone=dataclasses.replace(recipe.backbone, sha256="0" * 64)),
    ):
        _reference(photos[:4], other)
    assert sum(computed) == 16
    computed.clear()
    shutil.copy(photos[1].path, photos[0].path)
    Image.effect_noise((80, 100), 50).convert("RGB").save(photos[1].path)
    changed = _reference(photos, recipe)
    assert computed == [1]
    np.testing.assert_array_equal(changed.embeddings[0], made.embeddings[1])
    assert not np.allclose(changed.embeddings[1], made.embeddings[1], atol=1e-3)


def test_a_damaged_reference_is_computed_again_where_it_is_damaged(
    photos: list[Photo], recipe: FeatureRecipe, computed: list[int], tmp_path: Path
) -> None:
    made = _reference(photos, recipe)
    computed.clear()
    (rows,) = tmp_path.glob("cache/vibematch/features/*/rows.bin")
    content = bytearray(rows.read_bytes())
    content[len(content) // 2] ^= 0xFF
    rows.write_bytes(content[:-7])
    again = _reference(photos, recipe)
    assert sum(computed) == 2
    np.testing.assert_allclose(again.embeddings, made.embeddings, atol=1e-5)


def test_photos_that_cannot_be_read_make_room_for_others(
    photos: list[Photo],
    recipe: FeatureRecipe,
    computed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vibematch_export.parity.PHOTOS", 10)
    photos[3].path.write_bytes(b"no photo")
    photos[7].path.unlink()
    made = _reference(photos, recipe)
    assert made.photos == [photo.path for n, photo in enumerate(photos[:12]) if n not in (3, 7)]
    err = capsys.readouterr().err
    assert f"left out: {photos[3].path}: " in err
    assert f"left out: {photos[7].path}: " in err
    assert "full proof" not in err
    with pytest.raises(InputError, match="none of the 1 photos"):
        _reference([photos[3]], recipe)


def test_without_all_labels_recall_is_left_out(
    photos: list[Photo],
    recipe: FeatureRecipe,
    computed: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = [dataclasses.replace(photos[0], labels={}), *photos[1:]]
    assert _reference(bare, recipe).labels is None
    assert f"not all photos have the label {STYLE_COLUMN}" in capsys.readouterr().err


def test_only_float32_is_a_reference(photos: list[Photo], recipe: FeatureRecipe) -> None:
    half = dataclasses.replace(recipe, backbone=load_backbone("tiny", torch.bfloat16, "cpu"))
    with pytest.raises(InputError, match="in float32"):
        _reference(photos, half)


def test_a_trained_model_that_is_broken_itself_is_named(
    photos: list[Photo], recipe: FeatureRecipe, computed: list[int]
) -> None:
    head = _head(recipe)
    with torch.no_grad():
        head.layers[0].weight[0, 0] = float("nan")
    with pytest.raises(ParityError, match="trained model itself gives vectors that are not finite"):
        _reference(photos, recipe, head)


def test_validation_photos_come_first_and_people_are_mixed(trained_run: Path) -> None:
    run = TrainedRun.load(trained_run)
    chosen = proof_photos(run)
    assert chosen == proof_photos(run)
    assert len(chosen) == len({photo.path for photo in chosen}) > 98
    validation = {photo.path for photo in chosen if photo.labels[SPLIT_COLUMN] == VALIDATION}
    assert {photo.path for photo in chosen[:60]} == validation
    by_class = sorted(run.manifest.labels[STYLE_COLUMN])
    assert sorted({photo.labels[STYLE_COLUMN] for photo in chosen[60:98]}) == by_class
    for part in (chosen[:60], chosen[60:]):
        turns = [
            photo.user_id for n, photo in enumerate(part) if photo.user_id != part[n - 1].user_id
        ]
        assert len(turns) == len(set(turns))  # each person's photos stay together


# --- the command


@pytest.fixture
def fewer_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibematch_export.parity.PHOTOS", 24)


@pytest.fixture
def run_copy(trained_run: Path, exported_model: Path, tmp_path: Path) -> Path:
    """The run with its fp32 export, free to be spoilt."""
    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns("checkpoints", "export"))
    shutil.copytree(exported_model, copy / "export" / "fp32")
    return copy


def _spoil(model: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the largest weights of a graph."""
    graph = onnx.load(model / "model.onnx")
    floats = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    largest = max(floats, key=lambda tensor: int(np.prod(tensor.dims)))
    changed = change(numpy_helper.to_array(largest).copy()).astype(np.float32)
    largest.CopyFrom(numpy_helper.from_array(changed, largest.name))
    onnx.save(graph, model / "model.onnx")


def test_the_export_was_proven_on_98_photos_and_carries_the_figures(exported_model: Path) -> None:
    figures = Manifest.load(exported_model).parity
    assert figures["photos"] == figures["recall_at_1_queries"] == 98
    assert figures["min_cosine"] >= 0.99999
    assert figures["batch_cosine"] >= 0.99999
    assert figures["top_10_agreement"] > 0.99
    assert abs(figures["recall_at_1_change"]) <= 1 / 98


@pytest.mark.usefixtures("fewer_photos")
def test_the_command_measures_what_an_outsider_measures(
    trained_run: Path, exported_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(exported_model), "--json"]) == 0
    captured = capsys.readouterr()
    assert "full proof" not in captured.err
    (proof,) = json.loads(captured.out)
    assert proof["passed"]
    assert (proof["model"], proof["precision"]) == (str(exported_model), "fp32")

    run = TrainedRun.load(trained_run)
    recipe = run.recipe(run.load_backbone(torch.float32, "cpu"))
    compared = proof_photos(run)[:24]
    pixels = np.stack([load_pixels(photo.path, recipe.preprocessing) for photo in compared])
    with torch.inference_mode():
        right = run.head(pooled_features(pixels, recipe)).numpy()
    session = onnxruntime.InferenceSession(exported_model / "model.onnx")
    (served,) = session.run(["embedding"], {"pixels": pixels})
    cosines = np.diag(cosine_similarity(served.astype(np.float64), right.astype(np.float64)))
    assert proof["photos"] == proof["recall_at_1_queries"] == 24
    assert proof["min_cosine"] == pytest.approx(cosines.min(), abs=1e-9)
    assert proof["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-9)
    assert proof["max_abs_difference"] == pytest.approx(float(abs(served - right).max()), abs=1e-5)
    assert proof["top_10_agreement"] > 0.99
    assert abs(proof["recall_at_1_change"]) <= 1 / 24


@pytest.mark.usefixtures("fewer_photos")
def test_a_graph_that_strays_is_refused_with_its_worst_photos(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = run_copy / "export" / "strayed"
    shutil.copytree(run_copy / "export" / "fp32", second)
    rng = np.random.default_rng(0)
    _spoil(second, lambda weights: weights * (1 + 0.05 * rng.standard_normal(weights.shape)))
    assert main(["parity", str(run_copy)]) == 1
    captured = capsys.readouterr()
    assert re.search(r"run/fp32 .* 24 .* ✓ holds", captured.out)
    assert re.search(r"run/strayed .* 24 .* ✗ fails", captured.out)
    assert re.search(r"strayed: least cosine 0.* worst of 24 photos: \S+\.jpg \(0", captured.out)
    assert "1 of 2 exported models are not the trained model" in captured.err

    assert main(["parity", str(second), "--json"]) == 1
    (proof,) = json.loads(capsys.readouterr().out)
    assert not proof["passed"]
    assert proof["min_cosine"] == proof["worst"][0]["cosine"] < 0.99999
    assert Path(proof["worst"][0]["photo"]).is_file()


@pytest.mark.usefixtures("fewer_photos")
def test_a_graph_with_a_weight_that_is_not_a_number_is_refused_wherever_it_lies(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = (run_copy / "export" / "fp32").rename(tmp_path / "moved")

    def spoil(weights: np.ndarray) -> np.ndarray:
        weights.flat[0] = np.nan
        return weights

    _spoil(moved, spoil)
    assert main(["parity", str(moved)]) == 1
    assert "name the run with --run RUN" in capsys.readouterr().err
    assert main(["parity", str(moved), "--run", str(run_copy), "--json"]) == 1
    (proof,) = json.loads(capsys.readouterr().out)
    assert re.search(r"batch 1, gives vectors that are not finite for \S+\.jpg", proof["problem"])
    (moved / "model.onnx").write_bytes(b"no graph")
    assert main(["parity", str(moved), "--run", str(run_copy)]) == 1
    assert "cannot be loaded" in capsys.readouterr().out


def test_unlabelled_photos_of_a_folder_prove_parity_without_recall(
    run_copy: Path, sample_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for photo in sorted(sample_photos.rglob("*.jpg"))[:14]:
        shutil.copy(photo, folder)
    (folder / "broken_0.jpg").write_bytes(b"no photo")
    assert main(["parity", str(run_copy), "--photos", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    (proof,) = json.loads(captured.out)
    assert proof["photos"] == 14
    assert "recall_at_1_change" not in proof
    assert "broken_0.jpg: " in captured.err
    assert "Recall@1 is not compared" in captured.err
    assert "only 14 photos" in captured.err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"head_sha256": "0" * 64}, "head '000000000000', not "),
        ({"backbone_sha256": "0" * 64}, "backbone '000000000000', not "),
        ({"prompt": "Describe the room."}, "prompt 'Describe the room.', not "),
    ],
)
def test_an_export_of_another_model_is_not_compared(
    run_copy: Path, change: dict[str, str], named: str
) -> None:
    from vibematch_export.proof_report import prove

    model = run_copy / "export" / "fp32"
    dataclasses.replace(Manifest.load(model), **change).save(model)
    with pytest.raises(InputError, match=re.escape(named)):
        prove([model])


def test_what_is_no_run_and_no_export_is_refused(run_copy: Path, tmp_path: Path) -> None:
    from vibematch_export.proof_report import prove

    shutil.rmtree(run_copy / "export")
    with pytest.raises(InputError, match="has no exports; make one with `vibematch export"):
        prove([run_copy])
    with pytest.raises(InputError, match="neither a run nor an exported model"):
        prove([tmp_path / "nowhere"])
