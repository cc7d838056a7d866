"""All benchmarks of one size, one after the other, and the report.

    python benchmarks/run.py tiny                    # make bench: 10 minutes on 2 cores
    python benchmarks/run.py 2b                      # make bench-2b: three hours, 24 GB of memory
    python benchmarks/run.py 2b --only model search --again

What has a result of the same, clean commit is skipped, so a run that was interrupted goes on where
it was; ``--again`` measures it again. A script that fails does not hinder the others. Results, logs
and the report are in ``build/benchmarks/SIZE``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import harness
from report import write_report
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

SCRIPTS: Final = Path(__file__).resolve().parent
OUT: Final = Path("build/benchmarks")
FAILED: Final = 1
INTERRUPTED: Final = 130
_PATIENCE_S: Final = 30


class Job(NamedTuple):
    """A script, and its arguments in this size; ``{out}`` is the folder of its results.

    Its result is ``NAME.json``, where the name is the script's.
    """

    script: str
    arguments: tuple[str, ...] = ()


JOBS: Final = {
    "tiny": (
        Job("model"),
        Job("serving"),
        Job("search"),
        Job("end_to_end"),
        Job("growth"),
        Job("guard"),
        Job("a10g"),
        Job("capacity", ("--results", "{out}")),
    ),
    "2b": (
        Job("model", ("--backbone", "2b")),
        Job("serving", ("--backbone", "2b")),
        Job("serving_overhead", ("--backbone", "2b")),
        Job("end_to_end", ("--backbone", "2b")),
        Job("growth", ("--backbone", "2b")),  # before search, which fills the disk
        Job("search", ("--full", "--index", "build/benchmarks/search")),
        Job("client_size"),
        Job("a10g"),
        Job("capacity", ("--results", "{out}")),
    ),
}


def main() -> None:
    """Run what is missing; the exit code is 1 if a script failed."""
    names = sorted({job.script for jobs in JOBS.values() for job in jobs})
    parser = argparse.ArgumentParser(
        prog="python benchmarks/run.py", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("size", choices=JOBS)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--again", action="store_true", help="also what has a result")
    args = parser.parse_args()
    jobs = [job for job in JOBS[args.size] if not args.only or job.script in args.only]
    commit = "" if args.again else harness.commit()
    raise SystemExit(run(jobs, OUT / args.size, commit))


def run(jobs: Sequence[Job], out: Path, commit: str, scripts: Path = SCRIPTS) -> int:
    """Run jobs, and write the report of all results that are there.

    Args:
        jobs: in their order.
        out: folder for results, logs and the report.
        commit: whose results are good; a checkout that is not clean has none, nor has "".
        scripts: folder of the scripts.

    Returns:
        The exit code: 0, ``FAILED`` or ``INTERRUPTED``.
    """
    (out / "logs").mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False)
    wanted = [job for job in jobs if not _has_result(job, out, commit)]
    if len(wanted) < len(jobs):
        console.print(f"{len(jobs) - len(wanted)} of {len(jobs)} have a result: skipped")
    try:
        failed = _run_all(wanted, out, scripts, console)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on with what is missing")
        return INTERRUPTED
    for job in failed:
        console.print(f"[red]failed:[/] {job.script}, see {_log(job, out)}", soft_wrap=True)
    for path in write_report(out):
        console.print(f"written to {path}", soft_wrap=True)
    return FAILED if failed else 0


def _run_all(jobs: Sequence[Job], out: Path, scripts: Path, console: Console) -> list[Job]:
    """Those that failed."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    failed = []
    with Progress(*columns, console=console, transient=True) as progress:
        for number, job in enumerate(jobs, 1):
            title = f"{number} of {len(jobs)}: {job.script}"
            task = progress.add_task(title)
            began = time.perf_counter()
            code = _run(job, out, scripts)
            progress.remove_task(task)
            if code:
                failed.append(job)
            ending = f"failed with exit code {code}" if code else "done"
            console.print(f"{title} {ending}, {time.perf_counter() - began:.0f} s")
    return failed


def _run(job: Job, out: Path, scripts: Path) -> int:
    """The exit code; all a script prints goes to its log."""
    command = [sys.executable, str(scripts / f"{job.script}.py"), "--out", str(out)]
    command += [argument.format(out=out) for argument in job.arguments]
    with (
        _log(job, out).open("wb") as log,
        # a session of its own, to be stopped with all it started
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            _stop(process)
            raise


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop its servers and itself, then make it."""
    for wish in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, wish)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE_S)


def _has_result(job: Job, out: Path, commit: str) -> bool:
    path = out / f"{job.script}.json"
    if not commit or commit.endswith("+") or not path.is_file():
        return False
    try:
        return bool(json.loads(path.read_text())["commit"] == commit)
    except (ValueError, LookupError):  # not whole, or not a result
        return False


def _log(job: Job, out: Path) -> Path:
    return out / "logs" / f"{job.script}.log"


if __name__ == "__main__":
    main()
