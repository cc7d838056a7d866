"""Files that are complete or not there, and folders that one process works in at a time."""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from tqdm import tqdm

from vibematch.errors import InputError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file, complete or not at all, and have it on disk when this returns.

    A reader, or a kill, meets the old content or the new. Text is written as UTF-8.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class FolderLock(AbstractContextManager["FolderLock"]):
    """Keeps other processes out of a folder; it goes with the process, however that ends.

    Args:
        folder: an existing folder.
        waiting: what to say while waiting for another process; ``None`` does not wait.

    Raises:
        InputError: on construction, if another process is there and ``waiting`` is ``None``.
    """

    def __init__(self, folder: Path, *, waiting: str | None = None) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if waiting is None:
                self.close()
                raise InputError(
                    f"another vibematch is working in {folder}; wait until it is done"
                ) from error
            tqdm.write(waiting, file=sys.stderr)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others in."""
        os.close(self._descriptor)
