from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vibematch.errors import InputError
from vibematch_training.feature_cache import (
    RECIPE_FILENAME,
    ROWS_FILENAME,
    FeatureCache,
    recipe_key,
)

DIM = 5
RECIPE: dict[str, str | int] = {"backbone": "abc", "prompt": "성격은?", "height": 64}
RECORD_BYTES = 4 + 32 + 4 * DIM


def _photo(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def _vectors(numbers: list[int]) -> np.ndarray:
    return np.array([np.arange(DIM) + 10 * number for number in numbers], np.float32)


def _open(root: Path, recipe: dict[str, str | int] = RECIPE) -> FeatureCache:
    return FeatureCache(root, recipe, DIM)


def _fill(root: Path, count: int) -> Path:
    with _open(root) as cache:
        cache.add([_photo(n) for n in range(count)], _vectors(list(range(count))))
    return root / recipe_key(RECIPE)[:32]


def test_what_was_added_is_there_for_the_next_in_any_order(tmp_path: Path) -> None:
    _fill(tmp_path, 4)
    with _open(tmp_path) as cache:
        cache.add([_photo(9)], _vectors([9]))
        assert len(cache) == 5
        assert _photo(9) in cache and _photo(5) not in cache
        order = [9, 2, 0, 2]
        gathered = cache.gather([_photo(n) for n in order])
    assert gathered.dtype == torch.float32
    np.testing.assert_array_equal(gathered.numpy(), _vectors(order))  # outlives the cache


def test_nothing_gathered_has_the_width_too(tmp_path: Path) -> None:
    with _open(tmp_path) as cache:
        assert cache.gather([]).shape == (0, DIM)


def test_writing_to_what_was_gathered_changes_nothing_on_disk(tmp_path: Path) -> None:
    _fill(tmp_path, 2)
    with _open(tmp_path) as cache:
        cache.gather([_photo(0)]).zero_()
        np.testing.assert_array_equal(cache.gather([_photo(0)]).numpy(), _vectors([0]))


@given(length=st.integers(0, 6 * RECORD_BYTES))
def test_a_file_cut_anywhere_keeps_all_whole_records(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    root = tmp_path_factory.mktemp("cut")
    rows = _fill(root, 6) / ROWS_FILENAME
    os.truncate(rows, length)
    whole = length // RECORD_BYTES
    with _open(root) as cache:
        assert len(cache) == whole
        cache.add([_photo(7)], _vectors([7]))  # the torn tail does not shift what comes after
        numbers = [*range(whole), 7]
        gathered = cache.gather([_photo(n) for n in numbers])
        np.testing.assert_array_equal(gathered.numpy(), _vectors(numbers))
    with _open(root) as cache:
        assert len(cache) == whole + 1


@given(position=st.integers(0, 3 * RECORD_BYTES - 1), flip=st.integers(1, 255))
def test_a_changed_byte_costs_its_record_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    root = tmp_path_factory.mktemp("flip")
    rows = _fill(root, 3) / ROWS_FILENAME
    content = bytearray(rows.read_bytes())
    content[position] ^= flip
    rows.write_bytes(content)
    damaged = position // RECORD_BYTES
    with _open(root) as cache:
        assert [n for n in range(3) if _photo(n) not in cache] == [damaged]
        cache.add([_photo(damaged)], _vectors([damaged]))
    with _open(root) as cache:
        gathered = cache.gather([_photo(n) for n in range(3)])
    np.testing.assert_array_equal(gathered.numpy(), _vectors([0, 1, 2]))


def test_a_tail_of_zeros_as_power_cuts_leave_them_is_no_record(tmp_path: Path) -> None:
    rows = _fill(tmp_path, 2) / ROWS_FILENAME
    with rows.open("ab") as file:
        file.write(bytes(3 * RECORD_BYTES))
    with _open(tmp_path) as cache:
        assert len(cache) == 2


@pytest.mark.parametrize("field", RECIPE)
def test_another_recipe_finds_nothing(tmp_path: Path, field: str) -> None:
    _fill(tmp_path, 3)
    with _open(tmp_path, RECIPE | {field: "other"}) as cache:
        assert len(cache) == 0


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_a_folder_under_another_recipes_name_is_refused(tmp_path: Path, move: object) -> None:
    folder = _fill(tmp_path, 3)
    other = RECIPE | {"prompt": "other"}
    move(folder, tmp_path / recipe_key(other)[:32])  # type: ignore[operator]
    with pytest.raises(InputError, match=r"another recipe \(it differs in prompt\)"):
        _open(tmp_path, other)


def test_a_file_of_another_recipe_counts_for_nothing(tmp_path: Path) -> None:
    folder = _fill(tmp_path, 3)
    other = RECIPE | {"prompt": "other"}
    target = tmp_path / recipe_key(other)[:32]
    with _open(tmp_path, other):
        pass
    shutil.copy(folder / ROWS_FILENAME, target / ROWS_FILENAME)
    with _open(tmp_path, other) as cache:
        assert len(cache) == 0


def test_the_recipe_can_be_read_by_people(tmp_path: Path) -> None:
    assert "성격은?" in (_fill(tmp_path, 1) / RECIPE_FILENAME).read_text("utf-8")
    assert json.loads((_fill(tmp_path, 1) / RECIPE_FILENAME).read_text("utf-8")) == RECIPE


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"prompt"'])
def test_a_damaged_recipe_is_refused_and_the_rows_are_kept(tmp_path: Path, content: bytes) -> None:
    folder = _fill(tmp_path, 3)
    before = (folder / ROWS_FILENAME).read_bytes()
    (folder / RECIPE_FILENAME).write_bytes(content)
    with pytest.raises(InputError, match="delete"):
        _open(tmp_path)
    assert (folder / ROWS_FILENAME).read_bytes() == before


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A file size limit stands in for the disk's; the process that hits it is a real one."""
    _fill(tmp_path, 3)
    script = f"""
import resource, signal, sys
from pathlib import Path
import numpy as np
from vibematch_training.feature_cache import FeatureCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with FeatureCache(Path({str(tmp_path)!r}), {RECIPE!r}, {DIM}) as cache:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({int(4.5 * RECORD_BYTES)},) * 2)
    try:
        cache.add([bytes(32), bytes(31) + b"1"], np.ones((2, {DIM}), np.float32))
    except OSError as error:
        assert len(cache) == 3
        sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7
    rows = tmp_path / recipe_key(RECIPE)[:32] / ROWS_FILENAME
    assert rows.stat().st_size == 3 * RECORD_BYTES
    with _open(tmp_path) as cache:
        assert len(cache) == 3


def test_the_second_process_waits_and_finds_the_firsts_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = f"""
import sys
from pathlib import Path
import numpy as np
from vibematch_training.feature_cache import FeatureCache
with FeatureCache(Path({str(tmp_path)!r}), {RECIPE!r}, {DIM}) as cache:
    print("open", flush=True)
    sys.stdin.read()
    cache.add([bytes(32)], np.ones((1, {DIM}), np.float32))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == b"open\n"
        counts: list[int] = []

        def second() -> None:
            with _open(tmp_path) as cache:
                counts.append(len(cache))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.3)
        assert thread.is_alive() and not counts
        first.stdin.close()
        thread.join(timeout=60)
    assert counts == [1]
    assert "waiting for it" in capsys.readouterr().err


def test_a_killed_writer_costs_its_last_batch_at_most(tmp_path: Path) -> None:
    """kill -9 while records are written as fast as they can be, twice in a row."""
    script = f"""
import hashlib
from pathlib import Path
import numpy as np
from vibematch_training.feature_cache import FeatureCache
with FeatureCache(Path({str(tmp_path)!r}), {RECIPE!r}, {DIM}) as cache:
    number = len(cache)
    while True:
        numbers = range(number, number + 50)
        cache.add(
            [hashlib.sha256(str(n).encode()).digest() for n in numbers],
            np.array([np.arange({DIM}) + 10 * n for n in numbers], np.float32),
        )
        number += 50
        print(number, flush=True)
"""
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(20):
                reported = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                if line.endswith(b"\n"):
                    reported = int(line)
        with _open(tmp_path) as cache:
            assert len(cache) in range(reported, reported + 51)
            numbers = list(range(len(cache)))
            gathered = cache.gather([_photo(n) for n in numbers])
        np.testing.assert_array_equal(gathered.numpy(), _vectors(numbers))


def test_memory_stays_flat_at_a_hundred_thousand_photos(tmp_path: Path) -> None:
    """102 MB of features, written and read twice, within 64 MB of private memory.

    Maps of files are not counted: the system drops them when memory is short.
    """
    script = f"""
import hashlib
from pathlib import Path
import numpy as np
import torch
from vibematch_training.feature_cache import FeatureCache
DIM, PHOTOS = 256, 100_000
def anonymous():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])
before, peak = anonymous(), 0
photos = [hashlib.sha256(str(n).encode()).digest() for n in range(PHOTOS)]
block = np.random.default_rng(0).standard_normal((1000, DIM)).astype(np.float32)
for _ in range(2):
    with FeatureCache(Path({str(tmp_path)!r}), {{"recipe": "flat"}}, DIM) as cache:
        for start in range(len(cache), PHOTOS, 1000):
            block[:, 0] = np.arange(start, start + 1000)
            cache.add(photos[start : start + 1000], block)
            peak = max(peak, anonymous())
        features = cache.gather(photos[::-1])
        assert features[:, 0].long().tolist() == list(range(PHOTOS))[::-1]
assert features.shape == (PHOTOS, DIM)
assert bool(torch.isfinite(features.mean(dim=0)).all())
print((max(peak, anonymous()) - before) // 2**20)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 64
