"""vibematch: photos in, people who share the style out.

The names below are the whole public API; they load on first use, so that importing the package
costs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vibematch.encoder import AsyncEncoder as AsyncEncoder
    from vibematch.encoder import Encoder as Encoder
    from vibematch.engine import MatchingEngine as MatchingEngine
    from vibematch.errors import VibematchError as VibematchError
    from vibematch.index import Match as Match
    from vibematch.manifest import Manifest as Manifest
    from vibematch.preprocess import Preprocessing as Preprocessing
    from vibematch.preprocess import preprocess as preprocess
    from vibematch.records import Profile as Profile
    from vibematch.records import StoredPhoto as StoredPhoto

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the app listens

_HOME = {
    "AsyncEncoder": "encoder",
    "Encoder": "encoder",
    "Manifest": "manifest",
    "Match": "index",
    "MatchingEngine": "engine",
    "Preprocessing": "preprocess",
    "Profile": "records",
    "StoredPhoto": "records",
    "VibematchError": "errors",
    "preprocess": "preprocess",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vibematch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vibematch.{_HOME[name]}"), name)
