"""What was asked of a paid endpoint and what became of it, on disk before anything else happens.

A ledger is an append-only JSONL file. Each line is one event of one *item* (one thing to ask for):

============= ==================================================== ==============================
event         meaning                                              the item is then
============= ==================================================== ==============================
planned       it will be asked for; carries what was decided       waiting
sent          written and synced *before* the request leaves       open: outcome unknown
lost          no answer came, but it may have been paid for; asked   open: outcome unknown
              again only while the run lasts
failed        nothing was done for it (429, 5xx, refused ...)      waiting
invalid       an answer came that cannot be used; ask once more    waiting
answered      the answer, ready to use                             done
quarantined   given up, with the reason and the raw answer         done, until asked for again
============= ==================================================== ==============================

An item that is still open when a ledger is read was on its way, or lost, when its process died. It
may have been paid for, so :meth:`Ledger.settle` quarantines it: only a person decides to ask again.
It stays open if it is lost and then fails. Then, as after a quarantine with ``perhaps_paid``, the
request is a repetition of the lost one, which an endpoint may recognise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args

from vibematch.errors import InputError
from vibematch_training.files import FolderLock, write_atomically

FORMAT: Final = 1
LOST: Final = "the run ended before the outcome was known; it may have been paid for"

_IN_QUARANTINE: Final = ("at", "reason", "answer")

Event = Literal["planned", "sent", "lost", "failed", "invalid", "answered", "quarantined"]


@dataclass
class Entry:
    """What the ledger knows of one item.

    Attributes:
        event: the last one.
        record: its line.
        plan: what was decided when it was planned.
        answers: how many unusable answers came in the present round of asking.
        lost: whether a request of the present round may have been paid for, without an answer.
        rounds: how often it was deliberately asked anew; tells a new request from a repeated one.
    """

    event: Event = "planned"
    record: Mapping[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    answers: int = 0
    lost: bool = False
    rounds: int = 0


class Ledger:
    """A ledger file, locked for this process while open.

    Only one process works in a folder at a time: the lock is on the folder, so that two commands
    do not rewrite the same ``metadata.csv`` either. It ends with the process, however that ends.

    Attributes:
        path: the JSONL file; made with the first event.
        entries: the state of every item, in the order of first mention.

    Raises:
        InputError: another process holds the folder, or the file is damaged or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._lock = FolderLock(path.parent)
        try:
            self._replay()
            self._file = path.open("ab")
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._lock.close()

    def append(self, event: Event, item: str, **details: Any) -> None:
        """Record one event; it is on disk when this returns."""
        self._append([{"event": event, "item": item, **details}])

    def plan(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """Record what was decided for items, all in one write."""
        self._append(
            {"event": "planned", "item": item, "plan": plan} for item, plan in plans.items()
        )

    def settle(self) -> None:
        """Quarantine the items whose request was sent and whose outcome nobody saw."""
        lost = [i for i, entry in self.entries.items() if entry.event == "sent" or entry.lost]
        self._append(
            {"event": "quarantined", "item": item, "reason": LOST, "perhaps_paid": True}
            for item in lost
        )

    def finished(self, item: str, *, retry_quarantined: bool) -> bool:
        """Whether there is nothing to ask about an item."""
        event = self.entries[item].event if item in self.entries else "planned"
        return event == "answered" or (event == "quarantined" and not retry_quarantined)

    def _append(self, records: Iterable[dict[str, Any]]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        stamped = [{"at": now, **record} for record in records]
        if not stamped:
            return
        if self._file.tell() == 0:
            self._file.write(_json_line({"ledger": FORMAT}))
        self._file.write(b"".join(map(_json_line, stamped)))
        self._file.flush()
        os.fsync(self._file.fileno())
        for record in stamped:
            self._apply(record)

    def _replay(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole, newline, torn = content.rpartition(b"\n")
        if torn:  # the process died while writing this line: what it would have told never was
            os.truncate(self.path, len(whole) + len(newline))
        for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
            try:
                record = json.loads(line)
                if number == 1 and record["ledger"] != FORMAT:
                    raise InputError(f"{self.path} was written by another version of vibematch")
                if number > 1:
                    self._apply(record)
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"{self.path} is damaged on line {number}. Restore it from a copy; if you "
                    "remove it, everything it remembers will be asked (and paid) for again"
                ) from error

    def _apply(self, record: Mapping[str, Any]) -> None:
        event, item = record["event"], record["item"]
        if event not in get_args(Event):
            raise ValueError(event)
        entry = self.entries.setdefault(item, Entry())
        if event == "planned":
            entry.plan.update(record["plan"])
            return
        entry.event, entry.record = event, record
        if event not in ("sent", "failed"):
            entry.lost = event == "lost"
        if event in ("invalid", "quarantined"):
            entry.rounds += not record.get("perhaps_paid", False)
            entry.answers = entry.answers + 1 if event == "invalid" else 0


def save_quarantine(path: Path, given_up: Iterable[tuple[Mapping[str, str], Entry]]) -> int:
    """List what was given up, with the reason and the raw answer; without any, there is no file.

    Args:
        path: the JSONL file.
        given_up: what to say of each, and what the ledger knows of it.

    Returns:
        How many there are.
    """
    lines = [
        _json_line({**about, **{name: entry.record.get(name) for name in _IN_QUARANTINE}})
        for about, entry in given_up
    ]
    if lines:
        write_atomically(path, b"".join(lines))
    else:
        path.unlink(missing_ok=True)
    return len(lines)


def _json_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSONL; a lone surrogate, which UTF-8 cannot hold, stays a JSON escape."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
