"""Asks every contender of ``search.py`` the same questions in turn, in each way it can be asked."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import search_data
from harness import take_turns
from search_data import Case, People, Rows
from search_databases import Vibematch
from search_peers import Peer, Setting

TOP_K: Final = 10
TURNS: Final = 10
TURN_S: Final = 0.1
"""A contender asks fewer queries in a turn where all of them would take longer."""
_TRIED: Final = 100
_TOO_LONG_S: Final = 0.2
_EXPLAINED: Final = 100


class Point(NamedTuple):
    """One contender, asked in one way.

    Attributes:
        name: the contender's.
        setting: the way.
        recall: the share of the true answers that was found.
        seconds: of a query, the mean in each turn.
        p99_ms: milliseconds that one query in a hundred took longer.
        queries: how many were asked.
    """

    name: str
    setting: Setting
    recall: float
    seconds: list[float]
    p99_ms: float
    queries: int


class Curves(NamedTuple):
    """What became of one kind of question.

    Attributes:
        case: the kind.
        users: how many there are.
        qualifying: how many of them qualify, on average.
        plan: how ours was answered.
        points: of all contenders.
    """

    case: str
    users: int
    qualifying: float
    plan: str
    points: list[Point]


class _Asking:
    """A contender with one setting, and what it found; a call is a turn."""

    def __init__(self, peer: Peer, setting: Setting, case: Case, queries: int) -> None:
        self.peer, self.setting, self.case = peer, setting, case
        self.asked: list[int] = []
        self._answers: list[Any] = []
        self._seconds: list[float] = []
        self._slices = np.array_split(np.arange(queries), TURNS)
        self._turn = 0
        self.at_once = len(self._slices[-1])

    def try_out(self, truth: Sequence[Rows]) -> tuple[float, float]:
        """Recall and seconds of a query; what was found is forgotten."""
        self.peer.ask(self.case, 0, TOP_K, self.setting)  # the first may have to load an index
        began = time.perf_counter()
        for query in range(min(_TRIED, len(truth))):
            self._ask(query)
            if time.perf_counter() - began > TURN_S:
                break
        recall, taken = self.recall(truth), float(np.median(self._seconds))
        self.asked, self._answers, self._seconds = [], [], []
        self.at_once = max(1, min(self.at_once, round(TURN_S / taken)))
        return recall, taken

    def __call__(self) -> None:
        for query in self._slices[self._turn][: self.at_once].tolist():
            self._ask(query)
        self._turn += 1

    def _ask(self, query: int) -> None:
        began = time.perf_counter()
        answer = self.peer.ask(self.case, query, TOP_K, self.setting)
        self._seconds.append(time.perf_counter() - began)
        self.asked.append(query)
        self._answers.append(answer)

    def recall(self, truth: Sequence[Rows]) -> float:
        found = [self.peer.rows(answer) for answer in self._answers]
        return search_data.recall(found, [truth[query] for query in self.asked])

    def point(self, truth: Sequence[Rows], seconds: Sequence[float]) -> Point:
        return Point(
            self.peer.name,
            self.setting,
            self.recall(truth),
            [turn / self.at_once for turn in seconds],
            1e3 * float(np.quantile(self._seconds, 0.99)),
            len(self.asked),
        )


def measure(people: People, case: Case, ours: Vibematch, peers: Iterable[Peer]) -> Curves:
    """Ask everybody; ours comes first in the answer."""
    truth = search_data.exact(people, case, TOP_K)
    everybody: list[Peer] = [ours, *peers]
    contenders = {
        (asking.peer.name, asking.setting): asking
        for peer in everybody
        for asking in _worth_asking(peer, case, truth)
    }
    gc.collect()
    gc.freeze()  # answers are kept: Python would go through all that there is, in anybody's turn
    title = f"{len(people):,} users, {case.name}"
    try:
        seconds = take_turns(contenders, TURNS, title)
    finally:
        gc.unfreeze()
    points = [asking.point(truth, seconds[name]) for name, asking in contenders.items()]
    explained = range(min(len(truth), _EXPLAINED))
    qualifying = [
        len(people) if case.mask is None else case.mask(query).sum() for query in explained
    ]
    plan = _plan(ours, case, explained)
    return Curves(case.name, len(people), float(np.mean(qualifying)), plan, points)


def _worth_asking(peer: Peer, case: Case, truth: Sequence[Rows]) -> list[_Asking]:
    """A peer in its ways, up to the second that finds all, or one that takes far too long."""
    worth: list[_Asking] = []
    complete = 0
    for setting in peer.settings(case):
        asking = _Asking(peer, setting, case, len(truth))
        recall, seconds = asking.try_out(truth)
        worth.append(asking)
        complete += recall == 1
        if isinstance(setting, int) and (complete == 2 or seconds > _TOO_LONG_S):
            break
    return worth


def _plan(ours: Vibematch, case: Case, queries: Sequence[int]) -> str:
    """By what means ours answered, and how many users were fetched and compared, usually."""
    search = ours.engine.search
    plans = [search(top_k=TOP_K, explain=True, **case.arguments(query)).plan for query in queries]
    strategies = "/".join(
        name for name, _ in Counter(plan.strategy for plan in plans).most_common()
    )
    numbers = [
        f"{number:,.0f} {what}"
        for what in ("fetched", "scanned")
        if (number := np.median([getattr(plan, what) or 0 for plan in plans]))
    ]
    return f"{strategies}: {', '.join(numbers)}"
