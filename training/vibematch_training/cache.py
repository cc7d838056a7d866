"""Where downloads-to-be-avoided and results-to-be-kept live: ``$XDG_CACHE_HOME/vibematch``."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(name: str) -> Path:
    """The (existing) cache folder of that name, by default ``~/.cache/vibematch/<name>``."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "vibematch" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
