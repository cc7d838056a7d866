"""An exported folder in the hands of tools that know nothing of vibematch."""

from __future__ import annotations

import io
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import AutoConfig

from vibematch.encoder import Encoder
from vibematch.manifest import Manifest
from vibematch.preprocess import preprocess
from vibematch_export.export import export
from vibematch_export.onnx_graph import Precision
from vibematch_export.triton import TritonServer

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "export.md"
OPTIMUM_PYTHON = os.environ.get("OPTIMUM_PYTHON", "")
ORIENTATION_TAG = 0x0112


def _documented() -> tuple[str, str, str]:
    """The guide's code: plain ONNX Runtime, with our preprocessing, and optimum."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = re.search(r"^## Use it anywhere$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"{DOCUMENT} has no such section"
    plain, ours, optimum = re.findall(
        r"^```python\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE
    )
    return plain, ours, optimum


def _photo(mode: str, encoding: str, orientation: int = 1) -> bytes:
    """A real photograph of 640 x 427 pixels; with an alpha channel, half of it is transparent."""
    image = Image.fromarray(load_sample_image("china.jpg")).convert(mode)
    if "A" in mode:
        image.paste((0, 0, 0, 0), (0, 0, image.width // 2, image.height))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    file = io.BytesIO()
    image.save(file, encoding, exif=exif)
    return file.getvalue()


TURNED = _photo("RGB", "JPEG", orientation=6)
PHOTOS = {
    "of a camera": _photo("RGB", "JPEG"),
    "of a turned phone": TURNED,
    "grey": _photo("L", "JPEG"),
}
TRANSPARENT = _photo("RGBA", "PNG")


@pytest.fixture
def place(
    trained_run: Path, exported_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory where the guide's paths lead to the exported model."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "style").symlink_to(trained_run)
    assert (tmp_path / "runs/style/export/fp32").resolve() == exported_model.resolve()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _embedding(code: str, photo: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Run the guide's code here; its pixels and its vector."""
    Path("photo.jpg").write_bytes(photo)
    Path("guide.py").write_text(code, encoding="utf-8")
    variables = runpy.run_path("guide.py")
    (vector,) = variables["embedding"]
    return variables["pixels"], vector


def _cosine(vector: np.ndarray, other: np.ndarray) -> float:
    return float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other))


@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS.keys())
def test_plain_onnx_runtime_gives_the_servers_vector(
    place: Path, exported_model: Path, style_server: TritonServer, photo: bytes
) -> None:
    code = _documented()[0]
    assert "vibematch" not in code
    pixels, vector = _embedding(code, photo)
    expected = preprocess(photo, Manifest.load(exported_model).preprocessing)
    # A turned photo is scaled before it is turned, which rounds otherwise.
    np.testing.assert_allclose(pixels, expected.astype(int), atol=4 * (photo == TURNED))
    with Encoder(style_server.grpc_url) as encoder:
        (served,) = encoder.encode([photo])
    assert _cosine(vector, served) > 0.99999


def test_our_preprocessing_gives_it_for_any_photo(place: Path, style_server: TritonServer) -> None:
    plain, ours, _ = _documented()
    with Encoder(style_server.grpc_url) as encoder:
        (served,) = encoder.encode([TRANSPARENT])
    pixels, vector = _embedding(ours, TRANSPARENT)
    assert _cosine(vector, served) > 0.99999
    # ... as Pillow alone does not: it shows what lies under the transparency
    assert (pixels != _embedding(plain, TRANSPARENT)[0]).mean() > 0.3


def test_the_graph_passes_onnxs_full_check_and_says_what_it_is(exported_model: Path) -> None:
    graph = exported_model / "model.onnx"
    onnx.checker.check_model(graph, full_check=True)  # with strict shape inference
    properties = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
    inside = Manifest.from_json(properties["vibematch.manifest"])
    assert inside.fingerprint == Manifest.load(exported_model).fingerprint


def test_viewers_find_a_shape_at_every_edge(exported_model: Path) -> None:
    graph = onnx.load(exported_model / "model.onnx").graph
    shaped = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    assert {name for node in graph.node for name in node.output} <= shaped


def test_transformers_reads_the_configuration(exported_model: Path) -> None:
    config = AutoConfig.from_pretrained(exported_model)
    assert config.model_type == "qwen3_vl"
    assert getattr(config, "quantization_config", None) is None


@pytest.mark.slow
@pytest.mark.skipif(not OPTIMUM_PYTHON, reason="`make test-optimum` makes its environment")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_optimum_opens_the_folder(trained_run: Path, tmp_path: Path, precision: Precision) -> None:
    run = tmp_path / "runs" / "style"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("export"))
    export(run, precision)
    (tmp_path / "photo.jpg").write_bytes(PHOTOS["of a camera"])
    plain, _, optimum = _documented()
    guide = f"{plain}\nplain = embedding\n{optimum}".replace("export/fp32", f"export/{precision}")
    script = tmp_path / "guide.py"
    script.write_text(f"{guide}\nnp.testing.assert_array_equal(embedding, plain)\nprint('equal')\n")
    done = subprocess.run(
        [OPTIMUM_PYTHON, script],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "equal"), done.stderr
