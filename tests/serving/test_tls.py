"""Encrypted gRPC with a certificate made by hand, and what is said where it cannot work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

from vibematch import Encoder
from vibematch.errors import InputError, ServerError, ServerUnavailableError
from vibematch_export.triton import TritonServer

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
UNUSABLE = """
openssl req -new -key server.key -subj "/CN=localhost" -addext subjectAltName=IP:127.0.0.1 |
  openssl x509 -req -CA authority.pem -CAkey authority.key -days -1 \
    -copy_extensions copy -out expired.pem
openssl ec -in server.key -aes128 -passout pass:secret -out locked.key
printf -- '-----BEGIN CERTIFICATE-----\\nnonsense\\n-----END CERTIFICATE-----\\n' > damaged.pem
"""


def _documented() -> str:
    """The page's commands, for this machine: an authority, and a certificate that it signs."""
    block = re.search(r"```bash\n(openssl .*?\n)vibematch serve", PAGE.read_text(), re.DOTALL)
    assert block, f"{PAGE} shows no such commands"
    name = "DNS:match.internal"
    assert name in block[1]
    return block[1].replace(name, "DNS:localhost,IP:127.0.0.1")


def _run(commands: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["bash", "-euc", commands], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page's commands make, and an authority that signed nothing in it."""
    folder = tmp_path_factory.mktemp("certificates")
    _run(_documented() + UNUSABLE, folder)
    _run(_documented(), folder / "stranger")
    return folder


@pytest.fixture(scope="module")
def encrypted(repository: Path, made: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, tls=(made / "server.pem", made / "server.key")) as running:
        yield running


def _port(server: TritonServer) -> str:
    return server.grpc_url.rpartition(":")[2]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_photos_travel_encrypted(
    host: str,
    encrypted: TritonServer,
    made: Path,
    server: TritonServer,
    photos: list[bytes],
) -> None:
    url = f"{host}:{_port(encrypted)}"
    with Encoder(url, root_certificates=made / "authority.pem") as encoder:
        vectors = encoder.encode(photos)
    with Encoder(server.grpc_url) as plain:
        np.testing.assert_allclose(vectors, plain.encode(photos), atol=1e-6)


def test_a_client_that_does_not_encrypt_is_told_so(encrypted: TritonServer) -> None:
    with (
        Encoder(encrypted.grpc_url) as encoder,
        pytest.raises(ServerUnavailableError, match="not in plain gRPC: give root_certificates"),
    ):
        encoder.encode([b"photo"])


def test_a_certificate_of_another_authority_is_not_trusted(
    encrypted: TritonServer, made: Path
) -> None:
    with (
        Encoder(
            encrypted.grpc_url, root_certificates=made / "stranger" / "authority.pem"
        ) as encoder,
        pytest.raises(ServerError, match=r"not trusted \(.*\): it has to be .* signed by") as no,
    ):
        encoder.encode([b"photo"])
    assert not isinstance(no.value, ServerUnavailableError), "asking again cannot help"


def test_a_certificate_for_another_host_is_refused(encrypted: TritonServer, made: Path) -> None:
    elsewhere = f"0.0.0.0:{_port(encrypted)}"  # Linux connects to this machine
    with (
        Encoder(elsewhere, root_certificates=made / "authority.pem") as encoder,
        pytest.raises(ServerError, match=r"0\.0\.0\.0:\d+ is for another host"),
    ):
        encoder.encode([b"photo"])


@pytest.mark.slow  # starts a server of its own
def test_an_expired_certificate_is_named(repository: Path, made: Path) -> None:
    with (
        TritonServer(repository, tls=(made / "expired.pem", made / "server.key")) as server,
        Encoder(server.grpc_url, root_certificates=made / "authority.pem") as encoder,
        pytest.raises(ServerError, match=r"not trusted \(certificate has expired\)"),
    ):
        encoder.encode([b"photo"])


def test_a_server_that_does_not_encrypt_is_named(server: TritonServer, made: Path) -> None:
    for url in (server.grpc_url, server.http_url):
        with (
            Encoder(url, root_certificates=made / "authority.pem") as encoder,
            pytest.raises(ServerUnavailableError, match=r"not in TLS: .* its gRPC port \(8001"),
        ):
            encoder.encode([b"photo"])


def test_nobody_there_is_no_matter_of_certificates(made: Path) -> None:
    with (
        Encoder("127.0.0.1:1", root_certificates=made / "authority.pem") as encoder,
        pytest.raises(ServerUnavailableError, match="no vibematch server answers"),
    ):
        encoder.encode([b"photo"])


def test_http_stays_on_this_machine(made: Path, repository: Path) -> None:
    pair = (made / "server.pem", made / "server.key")
    server = TritonServer(repository, host="0.0.0.0", tls=pair)  # noqa: S104 - not started
    assert server.http_url.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        ("none.pem", "server.key", r"none\.pem cannot be read \(No such file"),
        ("server.pem", "none.key", r"none\.key cannot be read \(No such file"),
        ("model.onnx", "server.key", r"model\.onnx is no PEM file: docs/security\.md"),
        (
            "server.pem",
            "authority.key",
            r"authority\.key is not the private key, .* \(KEY_VALUES_MISMATCH\)",
        ),
        ("server.key", "server.pem", r"server\.pem is not the private key, .* \(damaged\)"),
        ("damaged.pem", "server.key", r"of the certificate .*damaged\.pem \(damaged\)"),
        ("server.pem", "locked.key", r"locked\.key is not the private key, without a password,"),
    ],
)
def test_an_unusable_pair_is_named(
    certificate: str, key: str, reason: str, repository: Path, exported: Path, made: Path
) -> None:
    folder = exported if certificate == "model.onnx" else made
    server = TritonServer(repository, tls=(folder / certificate, made / key))
    with pytest.raises(InputError, match=reason):
        server.start()


def test_a_certificate_needs_its_key(made: Path, repository: Path) -> None:
    serve = _vibematch("serve", "--repository", repository, "--tls-cert", made / "server.pem")
    assert (serve.returncode, serve.stdout) == (1, "")
    assert serve.stderr == "vibematch: error: --tls-cert and --tls-key go together\n"


@pytest.mark.slow
def test_the_command_line_encrypts(
    made: Path, repository: Path, photos: list[bytes], tmp_path: Path
) -> None:
    own_repository = shutil.copytree(repository, tmp_path / "repository")
    (tmp_path / "photo.jpg").write_bytes(photos[0])
    command = [sys.executable, "-m", "vibematch", "serve", "--repository", str(own_repository)]
    command += [f"--tls-cert={made}/server.pem", f"--tls-key={made}/server.key"]
    command += [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            report = takewhile(lambda line: not line.startswith("Ctrl-C"), serving.stdout)
            address = re.search(r"gRPC +(\S+) \(TLS\)", "".join(report))
            assert address
            _ask_by_command_line(address[1], made, tmp_path)
        finally:
            serving.terminate()


def _ask_by_command_line(url: str, made: Path, folder: Path) -> None:
    photo, vectors = folder / "photo.jpg", folder / "vectors.npy"
    trusted = ("--root-certificates", made / "authority.pem")
    assert f" at {url}\n" in _vibematch("info", url, *trusted).stdout
    _vibematch("encode", photo, "--out", vectors, "--url", url, *trusted)
    assert np.linalg.norm(np.load(vectors)) == pytest.approx(1, abs=1e-5)
    stranger = ("--root-certificates", made / "stranger" / "authority.pem")
    refused = _vibematch("info", url, *stranger)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"vibematch: error: .* is not trusted .*\n", refused.stderr)


def _vibematch(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vibematch", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
