"""The path a person takes, by the commands they type, on pictures nobody here drew."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from sklearn.datasets import load_sample_images

from vibematch.cli import main
from vibematch.photos import read_photos
from vibematch_export.triton import TritonServer

CLIENT_COMMANDS = ("add", "match", "remove", "info")
VIBEMATCH = [sys.executable, "-m", "vibematch"]


def _vibematch(*arguments: object, status: int = 0) -> str:
    done = subprocess.run(
        [*VIBEMATCH, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, done.stderr
    return _error_line(done.stderr) if status else done.stdout


def _error_line(stderr: str) -> str:
    (line,) = stderr.strip().splitlines()
    assert line.startswith("vibematch: error: "), line
    return line


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs, as they ship inside scikit-image and scikit-learn: PNG and JPEG."""
    folder = tmp_path_factory.mktemp("photographs")
    shipped = Path(skimage.__file__).parent / "data"
    for path in sorted([*shipped.glob("*.png"), *shipped.glob("*.jpg")]):
        shutil.copy(path, folder)
    samples = load_sample_images()
    for path, pixels in zip(samples.filenames, samples.images, strict=True):
        Image.fromarray(pixels).save(folder / Path(path).name, "JPEG", quality=90)
    return folder


def test_real_photographs_are_added_and_matched(
    photographs: Path, style_server: TritonServer, tmp_path: Path
) -> None:
    names = sorted(path.stem for path in photographs.iterdir())
    assert len(names) >= 10 and {"astronaut", "chelsea", "china", "flower"} <= set(names)
    sizes = {Image.open(path).size for path in photographs.iterdir()}
    assert len(sizes) >= 5  # odd sizes, all on one canvas in the end

    index = tmp_path / "index"
    added = json.loads(
        _vibematch("add", index, photographs, "--url", style_server.grpc_url, "--json")
    )
    assert added["users"] == len(names) and not added["rejected"]

    answer = json.loads(_vibematch("match", index, "astronaut", "-k", len(names) + 5, "--json"))
    found = [match["user_id"] for match in answer["matches"]]
    assert sorted([*found, "astronaut"]) == names
    scores = [match["score"] for match in answer["matches"]]
    assert scores == sorted(scores, reverse=True)

    # the photo itself finds its owner, whatever it went through on the way
    flower = photographs / "flower.jpg"
    answer = json.loads(
        _vibematch("match", index, flower, "-k", 1, "--url", style_server.grpc_url, "--json")
    )
    assert answer["matches"][0]["user_id"] == "flower"
    assert answer["matches"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_photos_may_travel_over_http_and_downscaled(
    photographs: Path,
    style_server: TritonServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ways = {
        "grpc": ["--url", style_server.grpc_url],
        "http": ["--url", f"http://{style_server.http_url}"],
        "small": ["--url", style_server.grpc_url, "--downscale"],
    }
    photos = [str(path) for path in sorted(photographs.iterdir())[::3]]
    vectors = {}
    for name, options in ways.items():
        out = tmp_path / f"{name}.npy"
        assert main(["encode", *photos, "--out", str(out), *options, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["shape"] == list(np.load(out).shape)
        vectors[name] = np.load(out)
    assert len(vectors["grpc"]) == len(photos)
    np.testing.assert_allclose(vectors["http"], vectors["grpc"], atol=1e-5)
    cosines = (vectors["small"] * vectors["grpc"]).sum(axis=1)
    assert 0.95 < cosines.min() <= cosines.max() < 1.0001
    assert main(["info", f"http://{style_server.http_url}", "--json"]) == 0
    by_http = json.loads(capsys.readouterr().out)
    assert main(["info", style_server.grpc_url, "--json"]) == 0
    by_grpc = json.loads(capsys.readouterr().out)
    assert {**by_http, "url": ""} == {**by_grpc, "url": ""}


def test_sample_people_match_by_style(
    sample_photos: Path, style_server: TritonServer, tmp_path: Path
) -> None:
    index, page = tmp_path / "index", tmp_path / "gallery.html"
    _vibematch("add", index, sample_photos, "--url", style_server.grpc_url)
    unseen = [p for p in read_photos(sample_photos) if p.labels["split"] == "validation"]
    style = {p.user_id: p.labels["fashion_style"] for p in read_photos(sample_photos)}
    agree = []
    for user in sorted({photo.user_id for photo in unseen})[:8]:
        answer = json.loads(_vibematch("match", index, user, "--json"))
        found = [match["user_id"] for match in answer["matches"]]
        assert len(found) == 5 and user not in found
        agree += [style[other] == style[user] for other in found]
    assert sum(agree) / len(agree) > 0.35  # chance is 0.2

    _vibematch("match", index, unseen[0].user_id, "--gallery", page)
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == 6
    assert "http" not in text.replace("http-equiv", "")


@pytest.fixture(scope="module")
def digit_server(
    digit_photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """Digits through train → export → serve, all by command; gives the gRPC address."""
    home = tmp_path_factory.mktemp("digits-by-command")
    run, repository = home / "run", home / "repository"
    results = json.loads(
        _vibematch(
            "train", digit_photos, "--out", run, "--label", "digit", "--size", "96x96",
            "--epochs", 15, "--json",
        )
    )  # fmt: skip
    assert results["trained_head"]["recall_at_1"] > results["raw_backbone"]["recall_at_1"]
    assert results["trained_head"]["recall_at_1"] >= 0.8
    _vibematch("export", run, "--repository", repository)
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    server = subprocess.Popen(
        [*VIBEMATCH, "serve", "--repository", str(repository), *ports],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = None
        for line in server.stdout:
            address = address or re.search(r"gRPC\s+(\S+)", line)
            if address and "Ctrl-C" in line:
                break
        assert address, "the server never reported its address"
        yield home, address[1]
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0


@pytest.mark.slow
def test_handwritten_digits_go_the_whole_way(
    digit_server: tuple[Path, str], digit_photos: Path
) -> None:
    home, address = digit_server
    _vibematch("add", home / "index", digit_photos, "--url", address)
    digit = {photo.user_id: photo.labels["digit"] for photo in read_photos(digit_photos)}
    users = sorted(digit)[::40]
    right = 0
    for user in users:
        answer = json.loads(_vibematch("match", home / "index", user, "-k", 1, "--json"))
        right += digit[answer["matches"][0]["user_id"]] == digit[user]
    assert right >= 0.8 * len(users)
    described = json.loads(_vibematch("info", address, "--json"))
    assert described["labels"] == {"digit": sorted(set(digit.values()))}


@pytest.mark.slow
def test_an_index_refuses_another_model(
    digit_server: tuple[Path, str], style_server: TritonServer, photographs: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    one = photographs / "chelsea.png"
    _vibematch("add", index, one, "--url", style_server.grpc_url)
    line = _vibematch("add", index, photographs, "--url", digit_server[1], status=1)
    assert "holds vectors of model" in line
    assert json.loads(_vibematch("info", index, "--json"))["users"] == 1

    _vibematch("reindex", index, "--url", digit_server[1], "--forget-old")
    _vibematch("add", index, photographs, "--url", digit_server[1])
    facts = json.loads(_vibematch("info", index, "--json"))
    assert (facts["users"], facts["generations"]) == (len(list(photographs.iterdir())), [2])


def test_wrong_input_gets_one_clear_line(
    trained_run: Path,
    sample_photos: Path,
    style_server: TritonServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty, index = tmp_path / "empty", tmp_path / "index"
    empty.mkdir()
    text = tmp_path / "notes.jpg"
    text.write_text("not a photo")
    photo = next(sample_photos.glob("*.jpg"))
    url = ("--url", style_server.grpc_url)
    _vibematch("add", index, photo, *url)
    port = style_server.grpc_url.rpartition(":")[2]
    wrong = {
        ("add", index, tmp_path / "none", *url): "no such photo or folder",
        ("add", index, empty, *url): "holds no photos",
        ("add", index, text, *url): "not a JPEG, PNG or WEBP photo",
        ("add", index, sample_photos, "--url", "localhost:1"): "vibematch serve",
        ("add", sample_photos, photo, *url): "holds other files and no index",
        ("match", tmp_path / "none", "user_0001"): "no index at",
        ("match", index, "nobody"): "no user 'nobody'",
        ("match", index, photo.stem.rpartition("_")[0], "-k", 0): "at least 1, got 0",
        ("match", index, photo, "--url", "localhost:1"): "vibematch serve",
        ("match", index, tmp_path / "none.jpg"): "no such photo",
        ("match", index, photo, "--mutual", *url): "mutual needs a user",
        ("remove", index, "nobody"): "no user 'nobody'",
        ("info", tmp_path / "none"): "no index at",
        ("encode", text, "--out", tmp_path / "x.npy", *url): "not a JPEG, PNG or WEBP photo",
        ("encode", photo, "--out", tmp_path / "x.npy", "--url", "http://localhost:1"): "serve",
        ("reindex", tmp_path / "none", *url): "no index at",
        ("recall", tmp_path / "none"): "no index at",
        ("recall", index): "at least two users",
        ("train", tmp_path / "none", "--out", tmp_path / "r"): "is not a folder",
        ("train", empty, "--out", tmp_path / "r"): "holds no photos",
        ("train", sample_photos, "--out", trained_run): "exists already",
        (
            "train",
            sample_photos,
            "--out",
            tmp_path / "r",
            "--label",
            "mood",
        ): "no photo has this label",
        ("train", sample_photos, "--out", tmp_path / "r", "--backbone", "/none"): "no checkpoint",
        ("train", sample_photos, "--out", tmp_path / "r", "--size", "100x100"): "multiple of 32",
        ("export", empty): "not a finished run",
        ("export", trained_run, "--repository", sample_photos): "not a repository written by",
        ("export", trained_run, "--size", "big"): "size must look like",
        ("serve", "--repository", empty): "vibematch export",
        ("sample-photos", sample_photos.parent): "not empty",
        ("sample-photos", tmp_path / "few", "--train-photos", 1): "at least",
        ("demo", "--out", sample_photos): "other than an earlier demo",
        ("demo", "--photos", empty, "--out", tmp_path / "d"): "holds no photos",
    }

    for arguments, message in wrong.items():
        if arguments[0] in CLIENT_COMMANDS:
            line = _vibematch(*arguments, status=1)
        else:  # in this process: the lab's commands take seconds to import
            assert main([*map(str, arguments)]) == 1, arguments
            line = _error_line(capsys.readouterr().err)
        assert message in line, arguments
    taken = _serve_failure(trained_run, tmp_path, port)
    assert f":{port} cannot be used" in taken and "--grpc-port" in taken
    # nothing was lost on the way
    assert json.loads(_vibematch("info", index, "--json"))["users"] == 1


def _serve_failure(run: Path, tmp_path: Path, port: str) -> str:
    from vibematch_export.repository import write_repository

    repository = write_repository(tmp_path / "repository", run / "export" / "fp32")
    ports = ["--http-port", "0", "--grpc-port", port, "--metrics-port", "0"]
    done = subprocess.run(
        [*VIBEMATCH, "serve", "--repository", str(repository), *ports],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    return done.stderr


@pytest.mark.slow
def test_interrupting_the_demo_leaves_no_server(tmp_path: Path) -> None:
    """Ctrl-C while Triton is being started or running: nothing of it stays."""
    demo = subprocess.Popen(
        [*VIBEMATCH, "demo", "--out", str(tmp_path / "demo")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "start Triton" in line or "index" in line:
            break
    time.sleep(1)
    os.kill(demo.pid, signal.SIGINT)
    assert demo.wait(timeout=60) == 130
    running = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert running.stdout == ""
