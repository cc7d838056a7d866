from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WRITES = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
name = pathlib.Path(__file__).stem
with (out / "ran").open("a") as ran:
    print(name, *sys.argv[3:], file=ran)
machine = {"cpu": "a CPU", "cores": 2, "memory_gb": 1, "load": 0.1}
(out / f"{name}.json").write_text(json.dumps({
    "date": "2026-01-01", "commit": "abc", "seed": 0, "machine": machine, "versions": {},
    "name": name, "question": "?", "setting": {}, "tables": [], "plots": [], "bars": [],
    "notes": [], "computed": False, "figures": {},
}))
"""
WAITS = """
import pathlib, sys, time
pathlib.Path(sys.argv[2], "started").touch()
try:
    time.sleep(60)
finally:
    pathlib.Path(sys.argv[2], "stopped").touch()
"""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run

    return run


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text(WRITES)
    (folder / "broken.py").write_text("raise SystemExit('no disk')")
    (folder / "waits.py").write_text(WAITS)
    return folder


def test_a_failing_script_does_not_hinder_the_others(
    runner: ModuleType, scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [runner.Job("broken"), runner.Job("one", ("--results", "{out}")), runner.Job("absent")]
    out = tmp_path / "out"
    assert runner.run(jobs, out, "abc", scripts) == runner.FAILED
    assert (out / "ran").read_text() == f"one --results {out}\n"
    assert "no disk" in (out / "logs" / "broken.log").read_text()
    said = capsys.readouterr().err
    assert "failed: broken" in said and "failed: absent" in said and "failed: one" not in said
    assert "report.html" in said and (out / "report.md").is_file()


@pytest.mark.parametrize(
    ("commit", "ran"),
    [("abc", ["one", "two"]), ("abc+", ["one", "one", "two"]), ("", ["one", "one", "two"])],
)
def test_what_has_a_result_of_this_clean_commit_is_skipped(
    runner: ModuleType, scripts: Path, tmp_path: Path, commit: str, ran: list[str]
) -> None:
    assert runner.run([runner.Job("one")], tmp_path, commit, scripts) == 0
    assert runner.run([runner.Job("one"), runner.Job("two")], tmp_path, commit, scripts) == 0
    assert (tmp_path / "ran").read_text().split() == ran


def test_an_interrupt_stops_the_script_and_the_rest(scripts: Path, tmp_path: Path) -> None:
    program = f"""
import pathlib, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import run
jobs = [run.Job("waits"), run.Job("one")]
sys.exit(run.run(jobs, pathlib.Path({str(tmp_path)!r}), "abc", pathlib.Path({str(scripts)!r})))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on with what is missing" in said and "Traceback" not in said
    assert (tmp_path / "stopped").exists() and not (tmp_path / "ran").exists()


def test_every_script_of_the_two_sizes_is_there(runner: ModuleType) -> None:
    for jobs in runner.JOBS.values():
        assert len({job.script for job in jobs}) == len(jobs)
        for job in jobs:
            assert (BENCHMARKS / f"{job.script}.py").is_file(), job.script


def test_the_committed_results_have_a_report_of_their_own(runner: ModuleType) -> None:
    for folder in (BENCHMARKS / "results").glob("*/"):
        names = {json.loads(path.read_text())["name"] for path in folder.glob("*.json")}
        text = (folder / "report.md").read_text()
        assert all(f"## {name}\n" in text for name in names)
