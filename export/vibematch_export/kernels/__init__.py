"""Our own ONNX Runtime kernels for the operators of domain ``vibematch``, built where they run.

The exported graph calls operators such as ``vibematch.QuantizedLinear`` that also have bodies of
standard operators in the same file. On an x86-64 CPU with AVX-512 VNNI the kernels of
``kernels.cpp`` replace those bodies once :func:`register` has been called for the session;
everywhere else ONNX Runtime inlines the bodies, which give the same vectors, slower.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import onnxruntime

from vibematch_training.cache import cache_dir

_LOG: Final = logging.getLogger(__name__)
_SOURCE: Final = Path(__file__).with_name("kernels.cpp")
_HEADER: Final = Path(__file__).with_name("ort_abi.h")
_FLAGS: Final = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wl,-z,nodelete",  # sessions and threads may outlive the last handle to the library
)
_TIMEOUT_S: Final = 300


def register(options: onnxruntime.SessionOptions) -> bool:
    """Let sessions made with ``options`` use the kernels.

    Args:
        options: changed in place.

    Returns:
        Whether the library could be had. Even then it adds nothing on a CPU without AVX-512 VNNI,
        where the graph's own function bodies run.
    """
    path = library()
    if path is None:
        return False
    options.register_custom_ops_library(str(path))
    return True


@functools.cache
def library() -> Path | None:
    """The kernels as a shared library, compiled on first use with ``$CXX`` or ``c++``.

    Returns:
        The file in the cache folder, named by what it was made from; None, with one logged
        warning, where it cannot be made.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "AMD64"):
        _LOG.warning(
            "inference will be slower: the fast kernels are for Linux on x86-64, not %s on %s",
            sys.platform,
            machine,
        )
        return None
    command = [*shlex.split(os.environ.get("CXX") or "c++"), *_FLAGS]
    digest = hashlib.sha256(shlex.join(command).encode())
    for file in (_SOURCE, _HEADER):
        digest.update(file.read_bytes())
    try:
        path = cache_dir("kernels") / f"vibematch-{digest.hexdigest()[:16]}.so"
        if not path.exists():
            _build(command, path)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or "").strip() or str(error)
        _LOG.warning(
            "inference will be slower: the fast kernels could not be compiled (%s); install a "
            "C++ compiler such as g++ 12 or newer, or name one in $CXX",
            reason.splitlines()[0],
        )
        return None
    return path


def _build(command: list[str], path: Path) -> None:
    """Compile to ``path``, which appears complete or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        subprocess.run(
            [*command, str(_SOURCE), "-o", str(partial)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        partial.replace(path)
