"""The audit by the real pip-audit, with a vulnerability service of our own and with none."""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parents[1] / "constraints.txt"

pytestmark = pytest.mark.slow  # pip fetches pip-audit


def _advisory(package: str, advisory: str, alias: str, *events: dict[str, str]) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, *events]}]
    affected = [{"package": {"name": package, "ecosystem": "PyPI"}, "ranges": ranges}]
    return {"id": advisory, "aliases": [alias], "summary": "Double free", "affected": affected}


ADVISORIES = {
    "sound": [],
    "hnswlib": [_advisory("hnswlib", "GHSA-xwc8-rf6m-xr86", "CVE-2023-37365")],
    "leaky": [_advisory("leaky", "GHSA-0000-0000-0000", "CVE-0000-0000", {"fixed": "1.1"})],
}


class Service(BaseHTTPRequestHandler):
    """Answers as api.osv.dev does."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = ADVISORIES[query["package"]["name"]]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"vulns": found} if found else {}).encode())

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that `make audit` makes."""
    folder = tmp_path_factory.mktemp("audit")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"]
    subprocess.run(install, check=True, capture_output=True)
    return python


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def _audit(
    python: Path, service: str, constraints: Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    options = ["--osv-url", service, "--cache-dir", str(folder / "cache")]
    return subprocess.run(
        [python, HERE / "audit.py", constraints, *options],
        capture_output=True,
        text=True,
        check=False,
    )


def _pinned(folder: Path, *packages: str) -> Path:
    path = folder / "constraints.txt"
    path.write_text("".join(f"{package}\n" for package in packages))
    return path


def test_without_findings_it_succeeds(python: Path, service: str, tmp_path: Path) -> None:
    done = _audit(python, service, _pinned(tmp_path, "sound==1.0"), tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 packages, 0 findings\n")


def test_findings_are_named_and_fail_it(python: Path, service: str, tmp_path: Path) -> None:
    done = _audit(python, service, _pinned(tmp_path, "sound==1.0", "leaky==1.0"), tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "VULNERABLE: leaky 1.0: CVE-0000-0000, fixed in: 1.1: Double free",
        "2 packages, 1 findings",
    ]


def test_what_is_accepted_is_shown_with_its_reason(
    python: Path, service: str, tmp_path: Path
) -> None:
    done = _audit(python, service, _pinned(tmp_path, "hnswlib==0.8.0"), tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("accepted: hnswlib 0.8.0: CVE-2023-37365: hnswlib 0.8.0 has the")


def test_without_a_service_it_says_that_nothing_was_audited(python: Path, tmp_path: Path) -> None:
    for nowhere in ("http://127.0.0.1:1/v1/query", "https://nowhere.invalid/v1/query"):
        done = _audit(python, nowhere, CONSTRAINTS, tmp_path)
        assert (done.returncode, done.stdout) == (
            0,
            "NOT AUDITED: the vulnerability service cannot be reached from here\n",
        )


def test_what_is_not_pinned_is_a_failure(python: Path, service: str, tmp_path: Path) -> None:
    done = _audit(python, service, _pinned(tmp_path, "sound>=1.0"), tmp_path)
    assert done.returncode == 2
    assert "sound" in done.stderr
