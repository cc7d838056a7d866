"""The folder of an index: one lock for writers, and numbered generations of what it holds.

``1/`` at first, ``2/`` and so on once the photos were encoded anew for another model; the highest
number answers. A generation is filled under the name ``1.new`` and gets its own by renaming, so it
is there as a whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import IO, Final

from vibematch.errors import StoreError, StoreLockedError

FILENAME: Final = "store.sqlite3"
LOCK_FILENAME: Final = "lock"


def newest_generation(path: Path) -> int | None:
    """The highest numbered folder of an index, ``None`` where there is no index."""
    return max(generations(path), default=None)


def generations(path: Path) -> list[int]:
    """The numbered folders of an index."""
    try:
        names = [entry.name for entry in path.iterdir() if entry.is_dir()]
    except OSError:
        return []
    return [int(name) for name in names if re.fullmatch("[1-9][0-9]{0,17}", name)]


def discard_next(path: Path) -> None:
    """Delete the generation that :meth:`ProfileStore.open_next` was filling.

    Raises:
        StoreLockedError: another process is filling it.
        StoreError: it cannot be deleted.
    """
    folder = next_folder(path)
    with lock_next(path, folder):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise StoreError(f"{folder} cannot be deleted ({error})") from error


def next_folder(path: Path) -> Path:
    """Where the generation is filled that is to come next."""
    return path / f"{(newest_generation(path) or 0) + 1}.new"


def lock_next(path: Path, folder: Path) -> IO[str]:
    """Become the only process that fills the next generation, until the file returned is closed.

    Raises:
        StoreLockedError: another process is, or has just done so.
        StoreError: the folder cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"the index at {path} cannot be written ({error.strerror})") from error
    lock = _lock(folder, path, "is reindexing", "wait for it")
    if not (folder / LOCK_FILENAME).exists():  # it was published or deleted just now
        lock.close()
        raise StoreLockedError(f"another process has just reindexed the index at {path}; try again")
    return lock


def publish_generation(unfinished: Path, folder: Path) -> None:
    """Give a generation its name, on the disk too."""
    sync_folder(unfinished)
    unfinished.rename(folder)
    sync_folder(folder.parent)


def lock_index(path: Path) -> IO[str]:
    """Become the only process that writes to an index, until the file returned is closed.

    Raises:
        StoreLockedError: another process is.
        StoreError: the folder cannot be written.
    """
    return _lock(path, path, "is writing to", "wait for it, or open the index read-only")


def _lock(folder: Path, path: Path, what: str, remedy: str) -> IO[str]:
    try:
        file = (folder / LOCK_FILENAME).open("a+", encoding="ascii", errors="replace")
    except OSError as error:
        raise StoreError(
            f"the index at {path} cannot be written ({error.strerror}); open it read-only"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read(20).strip() or "unknown"
        file.close()
        who = f"another process (pid {holder})"
        if holder == str(os.getpid()):
            who = f"this process (pid {holder})"
        raise StoreLockedError(f"{who} {what} the index at {path}; {remedy}") from error
    try:
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    except OSError:  # a full disk: the lock is held, only nobody learns by whom
        pass
    return file


def require_empty(path: Path) -> None:
    """Make sure that a new index can be made somewhere.

    Raises:
        StoreError: something else is there.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise StoreError(f"{path} is a file; an index is a folder: name a new one")
    if generations(path):
        raise StoreError(f"there is an index at {path} already: open it, or name a new folder")
    refuse_first_format(path)
    left_by_us = re.compile(r"lock|1\.new")
    if any(not left_by_us.fullmatch(entry.name) for entry in path.iterdir()):
        raise StoreError(f"{path} holds other files and no index; name a new folder")


def refuse_first_format(path: Path) -> None:
    """Say so where an index lies that has no generations.

    Raises:
        StoreError: it does.
    """
    if (path / FILENAME).exists():
        raise StoreError(
            f"the index at {path} was made by an older version of vibematch: make it again, in "
            "a new folder, with `vibematch add`"
        )


def sync_folder(folder: Path) -> None:
    """Have the disk know the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
