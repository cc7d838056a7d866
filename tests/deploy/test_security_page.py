"""The commands of docs/security.md, as they stand there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.deploy.conftest import ROOT

from vibematch.encoder import Encoder
from vibematch_export.triton import TritonServer


@pytest.mark.slow
def test_certificates_made_by_the_pages_commands_encrypt_grpc(
    repository: Path, server: TritonServer, photos: list[bytes], tmp_path: Path
) -> None:
    page = (ROOT / "docs/security.md").read_text()
    commands, serve = re.search(  # type: ignore[union-attr]
        r"```bash\n(openssl .*)\n(vibematch serve .*)\n```", page, re.DOTALL
    ).groups()
    assert "--tls-cert server.pem --tls-key server.key" in serve
    commands = commands.replace("match.internal", "localhost")
    subprocess.run(["bash", "-euc", commands], cwd=tmp_path, check=True, capture_output=True)
    with Encoder(server.grpc_url) as encoder:
        expected = encoder.encode(photos[:1])
    certificate = (tmp_path / "server.pem", tmp_path / "server.key")
    with TritonServer(repository, tls=certificate) as encrypted:
        port = encrypted.grpc_url.rpartition(":")[2]
        authority = tmp_path / "authority.pem"
        with Encoder(f"localhost:{port}", root_certificates=authority) as encoder:
            np.testing.assert_array_equal(encoder.encode(photos[:1]), expected)
