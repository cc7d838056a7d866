"""What the client costs whoever installs it: bytes on the disk by package, and time to import.

    python benchmarks/client_size.py

Installs ``client/`` from this checkout into an empty environment, without the lab. Sizes are those
of the files that pip installed (``du`` would round each up to a block), compiled ``.pyc`` included.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path

import harness
from harness import Column, Result, Row, Spread, Table

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
    """Install, measure, publish."""
    parser = harness.arguments(__doc__, "client_size")
    parser.add_argument("--times", type=int, default=15, help="of each import")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as workshop:
        python = _install(Path(workshop))
        sizes = _sizes(python)
        imports = _imports(python, args.times)
    harness.publish(_result(sizes, imports, args.times), args)


def _install(workshop: Path) -> Path:
    """The interpreter of an environment that holds the client alone."""
    venv.create(workshop / "venv", with_pip=True)
    python = workshop / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", CLIENT], check=True)
    return python


def _sizes(python: Path) -> dict[str, tuple[str, int]]:
    """Package → version and bytes, the largest first."""
    packages = json.loads(_output(python, "-c", SIZES))
    ours = [(name, tuple(found)) for name, found in packages.items() if name not in NOT_OURS]
    return dict(sorted(ours, key=lambda item: -item[1][1]))


def _imports(python: Path, times: int) -> dict[str, Spread]:
    """Module → milliseconds, the modules in turn."""
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(times):
        for name, found in taken.items():
            found.append(_import_ms(python, name))
    return {name: Spread.of(found) for name, found in taken.items()}


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


def _result(
    sizes: Mapping[str, tuple[str, int]], imports: Mapping[str, Spread], times: int
) -> Result:
    everything = sum(size for _, size in sizes.values())
    packages = [Row(f"{name} {version}", [size / 1e6]) for name, (version, size) in sizes.items()]
    return Result(
        name="client_size",
        question="What does the client cost whoever installs it?",
        setting={"installed from": "client/, in an empty environment", "imports": times},
        tables=[
            Table(
                "On the disk", [Column("size", "MB")], [*packages, Row("all", [everything / 1e6])]
            ),
            Table(
                "Importing, in a new process",
                [Column("time", "ms")],
                [Row(name, [taken]) for name, taken in imports.items()],
            ),
        ],
        figures={
            "packages": {name: {"version": v, "bytes": size} for name, (v, size) in sizes.items()},
            "bytes": everything,
            "import_ms": {name: taken.median for name, taken in imports.items()},
        },
    )


if __name__ == "__main__":
    main()
