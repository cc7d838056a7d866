"""What the client's documentation shows is run as it stands, against the real server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from vibematch import MatchingEngine
from vibematch.cli import main
from vibematch.manifest import Manifest
from vibematch_export.repository import write_repository
from vibematch_export.triton import TritonServer

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/client.md", "client/README.md")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PRINTS = re.compile(r"^print\(.*\) +# (.+)$", re.MULTILINE)
"""What a page says that a line prints."""


class Block(NamedTuple):
    """A piece of code on a page, from a line on."""

    language: str
    line: int
    code: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        yield Block(found[1], text.count("\n", 0, found.start()) + 2, found[2])


@pytest.fixture(scope="module")
def next_server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The stand-in model under another fingerprint: what the app goes over to."""
    folder = tmp_path_factory.mktemp("next")
    model = Path(shutil.copytree(exported, folder / "model"))
    replace(Manifest.load(model), head_sha256="2" * 64).save(model)
    with TritonServer(write_repository(folder / "repository", model)) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, photos: list[bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader of the documentation stands: some photos, no index yet."""
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(photos[:6], start=1):
        (tmp_path / "photos" / f"user_{number:03d}_0.jpg").write_bytes(photo)
    for name, photo in zip(("me", "beach", "someone"), photos[6:], strict=True):
        (tmp_path / f"{name}.jpg").write_bytes(photo)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_code_runs(
    page: str,
    home: Path,
    server: TritonServer,
    next_server: TritonServer,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    addresses = {
        "localhost:8001": server.grpc_url,
        "localhost:9001": next_server.grpc_url,
        "localhost:8000": server.http_url,
    }
    names: dict[str, object] = {}
    ran = 0
    for language, line, code in blocks(ROOT / page):
        for written, real in addresses.items():
            code = code.replace(written, real)
        place = f"{page}, line {line}"
        if language == "csv":
            (home / "people.csv").write_text(code, encoding="utf-8")
        if language == "python":
            # as many lines in front as there are on the page: errors then name the page's line
            exec(compile("\n" * (line - 1) + code, str(ROOT / page), "exec"), names)  # noqa: S102
            printed = capsys.readouterr().out
            for promised in _PRINTS.findall(code):
                assert promised in printed.splitlines(), place
            ran += 1
        for command in re.findall("^vibematch (.*)$", code, re.MULTILINE):
            status = main(shlex.split(command))
            assert status == 0, f"{place}: vibematch {command}\n{capsys.readouterr().err}"
            ran += 1
    assert ran >= 3
    if page == "docs/client.md":
        capsys.readouterr()
        assert main(["info", "index/", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        # the documented change of models took place, and the old vectors were deleted
        assert facts["generations"] == [2]
        assert facts["fingerprint"] != Manifest.load(exported).fingerprint


def test_a_removed_users_vectors_are_gone_after_compaction_as_promised(
    exported: Path, tmp_path: Path
) -> None:
    manifest = Manifest.load(exported)
    rng = np.random.default_rng(0)
    with MatchingEngine.open(tmp_path / "index", manifest=manifest) as engine:
        for number in range(50):
            engine.add(f"user_{number}", vectors=rng.normal(size=(1, manifest.embedding_dim)))
        engine.save()
        (photo,) = engine.photos("user_7")
        assert _holding(tmp_path, photo.vector.tobytes())
        engine.remove("user_7")
        engine.compact()
        assert _holding(tmp_path, photo.vector.tobytes()) == []
    assert _holding(tmp_path, photo.vector.tobytes()) == []


def _holding(folder: Path, content: bytes) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return [file for file in files if content in file.read_bytes()]


@pytest.mark.parametrize("page", [*PAGES, "docs/api.md"])
def test_links_lead_somewhere(page: str) -> None:
    here = ROOT / page
    for target in re.findall(r"\]\(([^)]+)\)", here.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        linked = (here.parent / file).resolve() if file else here
        assert linked.exists(), target
        if anchor:
            headings = re.findall("^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings}
