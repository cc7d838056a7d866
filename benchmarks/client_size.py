"""What the client costs whoever installs it: bytes on the disk by package, and time to import.

    python benchmarks/client_size.py

Installs ``client/`` from this checkout into an empty environment, without the lab. Sizes are those
of the files that pip installed (``du`` would round each up to a block), compiled ``.pyc`` included.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

CLIENT = Path(__file__).resolve().parents[1] / "client"
NOT_OURS = {"pip", "setuptools"}
IMPORTS = ("vibematch", "vibematch.engine", "vibematch.encoder")
SIZES = """
import importlib.metadata as metadata, json
def size(package):
    files = (file.locate() for file in package.files or ())
    return sum(file.stat().st_size for file in files if file.is_file())
print(json.dumps({p.name: [p.version, size(p)] for p in metadata.distributions()}))
"""


def main() -> None:
    """Install, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=15, help="of each import")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as workshop:
        python = _install(Path(workshop))
        results = _measure(python, args.times)
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        _print(results)


def _install(workshop: Path) -> Path:
    """The interpreter of an environment that holds the client alone."""
    venv.create(workshop / "venv", with_pip=True)
    python = workshop / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", CLIENT], check=True)
    return python


def _measure(python: Path, times: int) -> dict[str, Any]:
    packages = json.loads(_output(python, "-c", SIZES))
    packages = {name: found for name, found in packages.items() if name not in NOT_OURS}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": {
            name: {"version": version, "bytes": size}
            for name, (version, size) in sorted(packages.items(), key=lambda item: -item[1][1])
        },
        "bytes": sum(size for _, size in packages.values()),
        "import_ms": {
            name: statistics.median(_import_ms(python, name) for _ in range(times))
            for name in IMPORTS
        },
    }


def _import_ms(python: Path, module: str) -> float:
    """Milliseconds of an import in a new process, by ``-X importtime``, which counts itself too."""
    report = _output(python, "-X", "importtime", "-c", f"import {module}", stream="stderr")
    lines = re.findall(r"^import time: +\d+ \| +(\d+) \| (\s*)(\S+)$", report, re.MULTILINE)
    return (
        sum(int(us) for us, indent, what in lines if not indent and what in {"vibematch", module})
        / 1e3
    )


def _output(*command: object, stream: str = "stdout") -> str:
    done = subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True
    )
    text: str = getattr(done, stream)
    return text


def _print(results: dict[str, Any]) -> None:
    print(f"{results['date']}, Python {results['python']}, {results['machine']}")
    for name, package in results["packages"].items():
        print(f"{package['bytes'] / 1e6:8.1f} MB  {name} {package['version']}")
    print(f"{results['bytes'] / 1e6:8.1f} MB  in all")
    for name, ms in results["import_ms"].items():
        print(f"{ms:8.1f} ms  import {name}")


if __name__ == "__main__":
    main()
