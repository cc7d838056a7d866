"""Features on disk: one append-only file for each recipe, read without holding it in memory.

::

    FEATURES/
    └── <first 32 digits of the key>/
        ├── recipe.json     what the key stands for, field by field
        └── rows.bin        one record per photo: CRC-32, SHA-256 of the photo file, float32 vector

A record is only ever appended, and counts if its checksum agrees: a process killed while writing
costs the records of that write, and nothing before them. The checksum starts from the recipe's key,
so a record that strayed into another recipe's folder does not count there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch

from vibematch.errors import InputError
from vibematch_training.files import FolderLock, write_atomically

RECIPE_FILENAME: Final = "recipe.json"
ROWS_FILENAME: Final = "rows.bin"

_CHUNK_BYTES: Final = 1 << 24
"""So much of the file is in memory at a time."""


def recipe_key(recipe: Mapping[str, str | int]) -> str:
    """SHA-256 (hex) over all fields of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


class FeatureCache:
    """The features of one recipe; open it with ``with``.

    Opening reads the whole file once to verify it; what stays in memory is each photo's digest and
    row number, some 200 bytes. One process at a time has a recipe open: the next one waits, and
    then finds what the first one computed.

    Args:
        root: an existing folder that holds the caches of all recipes.
        recipe: everything besides the photo that decides its features.
        feature_dim: length of a vector.

    Raises:
        InputError: the folder of this recipe belongs to another one, or is damaged.
    """

    def __init__(self, root: Path, recipe: Mapping[str, str | int], feature_dim: int) -> None:
        key = recipe_key(recipe)
        self._record = np.dtype(
            [("crc32", "<u4"), ("photo", "V32"), ("vector", "<f4", (feature_dim,))]
        )
        self._seed = zlib.crc32(key.encode())
        self._folder = root / key[:32]
        self._folder.mkdir(exist_ok=True)
        with ExitStack() as opened:
            waiting = "another process computes these features: waiting for it"
            opened.enter_context(FolderLock(self._folder, waiting=waiting))
            self._require_recipe(recipe)
            rows = (self._folder / ROWS_FILENAME).open("a+b", buffering=0)
            self._file = opened.enter_context(rows)
            self._cut_torn_tail()
            self._rows = self._verified_rows()
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, photo: bytes) -> bool:
        return photo in self._rows

    def add(self, photos: Sequence[bytes], vectors: npt.NDArray[np.float32]) -> None:
        """Append features, all in one write.

        Args:
            photos: SHA-256 of each photo file.
            vectors: float32, shape ``[photos, feature_dim]``.

        Raises:
            OSError: the disk is full; what was there before is untouched.
        """
        records = np.zeros(len(photos), self._record)
        records["photo"] = np.frombuffer(b"".join(photos), "V32")
        records["vector"] = vectors
        for record in records:
            record["crc32"] = self._checksum(memoryview(record.tobytes()))
        end = self._file.seek(0, os.SEEK_END)
        if self._file.write(records.tobytes()) != records.nbytes:
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        first = end // self._record.itemsize
        self._rows.update((photo, first + number) for number, photo in enumerate(photos))

    def gather(self, photos: Sequence[bytes]) -> torch.Tensor:
        """The features of known photos, in the given order.

        They are copied into a nameless file that lives as long as the tensor, and mapped from
        there: the operating system holds in memory what is used, and drops it when memory is short.

        Args:
            photos: SHA-256 of each photo file; all of them are in the cache.

        Returns:
            float32, shape ``[photos, feature_dim]``.
        """
        feature_dim = self._record["vector"].shape[0]
        if not photos:
            return torch.empty(0, feature_dim)
        stored = np.memmap(self._file, self._record, mode="r")
        with tempfile.TemporaryFile(dir=self._folder) as file:
            gathered = np.memmap(file, np.float32, "w+", shape=(len(photos), feature_dim))
        step = self._records_per_chunk
        for start in range(0, len(photos), step):
            rows = [self._rows[photo] for photo in photos[start : start + step]]
            gathered[start : start + step] = stored["vector"][rows]
        return torch.from_numpy(gathered)

    @property
    def _records_per_chunk(self) -> int:
        return max(1, _CHUNK_BYTES // self._record.itemsize)

    def _require_recipe(self, recipe: Mapping[str, str | int]) -> None:
        path = self._folder / RECIPE_FILENAME
        if not path.exists():
            write_atomically(path, json.dumps(recipe, indent=2, ensure_ascii=False) + "\n")
            return
        try:
            found = dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({error}); delete {self._folder}: its features will be "
                "computed again"
            ) from error
        differing = sorted(
            name for name in recipe.keys() | found.keys() if recipe.get(name) != found.get(name)
        )
        if differing:
            raise InputError(
                f"{self._folder} holds features of another recipe (it differs in "
                f"{', '.join(differing)}): it was copied, renamed or edited; delete it and its "
                "features will be computed again"
            )

    def _cut_torn_tail(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        self._file.truncate(size - size % self._record.itemsize)

    def _verified_rows(self) -> dict[bytes, int]:
        """Photo → its row, for every record whose checksum agrees."""
        size = self._record.itemsize
        rows: dict[bytes, int] = {}
        number = 0
        with (self._folder / ROWS_FILENAME).open("rb") as file:
            while chunk := file.read(size * self._records_per_chunk):
                for start in range(0, len(chunk), size):
                    record = memoryview(chunk)[start : start + size]
                    if int.from_bytes(record[:4], "little") == self._checksum(record):
                        rows[bytes(record[4:36])] = number
                    number += 1
        return rows

    def _checksum(self, record: memoryview) -> int:
        return zlib.crc32(record[4:], self._seed)
