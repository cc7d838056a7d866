from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vibematch.errors import InputError
from vibematch_training.files import FolderLock, write_atomically


class _Killed(BaseException):
    pass


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "사진")
    assert path.read_text(encoding="utf-8") == "사진"
    write_atomically(path, b"photo")
    assert path.read_bytes() == b"photo"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_it_is_written_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(descriptor: int) -> None:
        os.ftruncate(descriptor, 2)
        raise _Killed

    path = tmp_path / "a.txt"
    write_atomically(path, "before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        with pytest.raises(_Killed):
            write_atomically(path, "after")
    assert path.read_text() == "before"
    write_atomically(path, "after")
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    for _ in range(2):  # the second time, it was let go
        with (
            FolderLock(tmp_path),
            pytest.raises(InputError, match=f"another vibematch is working in {tmp_path}"),
        ):
            FolderLock(tmp_path)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; "
        "from vibematch_training.files import FolderLock; "
        f"lock = FolderLock(Path({str(tmp_path)!r})); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(InputError):
            FolderLock(tmp_path)
        other.send_signal(signal.SIGKILL)
    FolderLock(tmp_path).close()
