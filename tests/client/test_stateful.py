"""The engine does what a dict and a loop over all users do, whatever is done in whatever order."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.client.reference import (
    QUICK_DISK,
    Array,
    People,
    check_answer,
    check_ties,
    manifest_of,
    meets,
    qualifies,
    stored,
    unit,
)

from vibematch import index, live, planner
from vibematch.engine import MatchingEngine
from vibematch.errors import InputError, UnknownUserError
from vibematch.filters import Columns, Filter, accepts
from vibematch.records import Profile, StoredPhoto

DIM = 4

# --- what attributes and conditions can be

# True, 1 and 1.0 are the same; 2**53 and 2**53 + 1 are not, though they are as floats.
VALUES: list[Any] = [
    True, False, 0, 1, 1.0, 0.0, -0.0, 2, 0.5, -3, 1e300, 2**53, 2**53 + 1, 2**63 - 1, -(2**63),
    "", "1", "True", "F", "M", "é", "None",
]  # fmt: skip
# Numbers beyond these are compared as floats.
BOUNDS: list[float] = [-np.inf, -(2**53), -3, -0.0, False, 0.5, 1, True, 1.5, 2, 2**53 - 1, np.inf]
values = st.sampled_from(VALUES)
names = st.sampled_from(["age", "city", "gender"])
attribute_sets = st.dictionaries(names, values, max_size=3)


bounds = st.sampled_from(BOUNDS)
ranges = st.tuples(bounds, bounds).map(sorted).map(tuple)
choices = st.lists(values | st.none(), max_size=6)
conditions = values | st.none() | ranges | choices | choices.map(set) | choices.map(frozenset)
wheres = st.dictionaries(names, conditions, max_size=2)


@given(condition=conditions, value=values | st.none())
def test_a_condition_means_what_python_says(condition: Any, value: Any) -> None:
    assert accepts(condition, value) == meets(condition, value)


@given(
    written=st.lists(
        st.tuples(st.integers(0, 12), attribute_sets, wheres), min_size=1, max_size=30
    ),
    where=wheres,
    accepted_by=st.none() | attribute_sets,
    data=st.data(),
)
def test_columns_select_whom_a_loop_selects(
    written: list[tuple[int, dict[str, Any], dict[str, Any]]],
    where: dict[str, Any],
    accepted_by: dict[str, Any] | None,
    data: st.DataObject,
) -> None:
    wanted = Filter(list(where.items()), accepted_by)
    columns = Columns()
    rows: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for place, attributes, preferences in written:
        row = min(place, len(rows))  # rows are taken one after the other, and again
        columns.put(row, attributes, preferences)
        rows[row] = attributes, preferences
    some = data.draw(st.lists(st.sampled_from(sorted(rows)), max_size=20))
    expected = {
        row: qualifies(where, attributes)
        and (accepted_by is None or qualifies(preferences, accepted_by))
        for row, (attributes, preferences) in rows.items()
    }
    qualifying = [place for place, row in enumerate(sorted(rows)) if expected[row]]
    alive = np.ones(len(rows), bool)
    alive[data.draw(st.sampled_from(sorted(rows)))] = data.draw(st.booleans())
    assert columns.selector(wanted).places(np.arange(len(rows))).tolist() == qualifying
    living = [row for row in qualifying if alive[row]]
    assert columns.selector(wanted, alive).places(np.arange(len(rows))).tolist() == living
    chosen = columns.selector(wanted).places(np.array(some, np.intp))
    assert chosen.tolist() == [place for place, row in enumerate(some) if expected[row]]
    taken = columns.take(np.array(some, np.intp)).selector(wanted)
    assert taken.places(np.arange(len(some))).tolist() == chosen.tolist()


def test_columns_grow_past_their_first_size() -> None:
    columns = Columns()
    for row in range(5_000):
        columns.put(row, {"number": row, "even": row % 2 == 0}, {"number": (row, row + 1)})
    selector = columns.selector(Filter([("even", True)], {"number": 4_000}))
    assert selector.places(np.arange(5_000)).tolist() == [4_000]


# --- the whole engine

users = st.sampled_from([f"user_{number:02d}" for number in range(12)])
photo_ids = st.sampled_from(["front", "side", "back"])
# Few directions, so that users share them, and photos cancel out.
vectors = st.lists(st.integers(-1, 1), min_size=DIM, max_size=DIM).filter(any)
some_vectors = st.lists(vectors, min_size=1, max_size=3)
few_wheres: st.SearchStrategy[dict[str, Any]] = st.just({}) | wheres


class VectorEncoder:
    """Takes a photo's bytes for its vector."""

    manifest = manifest_of(DIM)

    def encode_each(
        self, photos: Iterable[Any], *, fingerprint: str | None = None
    ) -> Iterator[Array]:
        for photo in photos:
            yield np.frombuffer(photo, np.float32)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    named = draw(st.dictionaries(photo_ids, vectors, max_size=2))
    unnamed = draw(st.lists(vectors, min_size=0 if named else 1, max_size=2))
    photos = [*(stored(vector) for vector in unnamed)]
    photos += (stored(vector, photo_id) for photo_id, vector in named.items())
    attributes, preferences = draw(st.tuples(*[st.none() | attribute_sets, st.none() | few_wheres]))
    return Profile(draw(users), photos, attributes, preferences)


searches = st.fixed_dictionaries(
    {"top_k": st.integers(1, 15)},
    optional={
        "where": few_wheres,
        "exclude": st.lists(users | st.just("nobody"), max_size=4),
        "min_score": st.sampled_from([-1.0, -0.3, 0.1, 0.85]),
        "aggregate": st.sampled_from(["mean", "best_pair"]),
    },
)


class EngineMachine(RuleBasedStateMachine):
    """An engine beside its reference."""

    exact: ClassVar = True
    crowd: ClassVar = 20
    strategies: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory(dir=QUICK_DISK)
        self.path = Path(self.scratch.name) / "index"
        self.people = People()
        self.engine = self.open(self.path)
        self.follower: MatchingEngine | None = None

    def open(self, path: Path, *, read_only: bool = False) -> MatchingEngine:
        return MatchingEngine.open(path, encoder=VectorEncoder(), read_only=read_only)

    def teardown(self) -> None:
        if self.follower is not None:
            self.follower.close()
        self.engine.close()
        self.scratch.cleanup()

    # --- writing

    @initialize(seed=st.integers(0, 9), some=st.booleans())
    def fill(self, seed: int, some: bool) -> None:
        crowd = self.crowd if some or not self.exact else 0
        rng = np.random.default_rng(seed)
        rows = rng.integers(-1, 2, size=(crowd, DIM)) + np.eye(DIM)[0] / 2
        everyone = [
            Profile(f"crowd_{number:02d}", [stored(row)], {"age": number % 3}, {})
            for number, row in enumerate(rows)
        ]
        self.add_many(everyone)

    @rule(user=users, given=some_vectors, attributes=st.none() | attribute_sets)
    def add_vectors(self, user: str, given: list[Any], attributes: dict[str, Any] | None) -> None:
        added = self.engine.add(user, vectors=given, attributes=attributes)
        expected = self.people.write(Profile(user, [*map(stored, given)], attributes))
        assert (added.added, added.known) == (expected, len(given) - expected)

    @rule(user=users, given=st.dictionaries(photo_ids, vectors, min_size=1, max_size=3))
    def add_or_replace_photos(self, user: str, given: dict[str, Any]) -> None:
        contents = {photo_id: unit(vector).tobytes() for photo_id, vector in given.items()}
        photos = [
            StoredPhoto(hashlib.sha256(content).hexdigest(), unit(given[name]), photo_id=name)
            for name, content in contents.items()
        ]
        assert self.engine.add(user, contents).added == self.people.write(Profile(user, photos))

    @rule(everyone=st.lists(profiles(), max_size=8))
    def add_many(self, everyone: list[Profile]) -> None:
        expected = sum(map(self.people.write, everyone))
        assert self.engine.add_many(iter(everyone)) == expected

    @rule(user=users, attributes=st.none() | attribute_sets, preferences=st.none() | few_wheres)
    def describe(
        self, user: str, attributes: dict[str, Any] | None, preferences: dict[str, Any] | None
    ) -> None:
        if user not in self.people:
            with pytest.raises(InputError):
                self.engine.add(user, attributes=attributes, preferences=preferences)
            return
        self.engine.add(user, attributes=attributes, preferences=preferences)
        self.people.write(Profile(user, (), attributes, preferences))

    @rule(user=users)
    def remove(self, user: str) -> None:
        if user in self.people:
            self.engine.remove(user)
            del self.people[user]
        else:
            with pytest.raises(UnknownUserError):
                self.engine.remove(user)

    @rule(user=users, photo_id=photo_ids, data=st.data())
    def remove_photo(self, user: str, photo_id: str, data: st.DataObject) -> None:
        person = self.people.get(user)
        if person is not None:
            photo_id = data.draw(st.sampled_from([photo_id, *person.photos]))
        if person is None or photo_id not in person.photos or len(person.photos) == 1:
            with pytest.raises(InputError):
                self.engine.remove_photo(user, photo_id)
        else:
            self.engine.remove_photo(user, photo_id)
            del person.photos[photo_id]

    @rule()
    def save(self) -> None:
        self.engine.save()

    @rule()
    def compact(self) -> None:
        self.engine.compact()

    @rule(with_snapshot=st.booleans())
    def reopen(self, with_snapshot: bool) -> None:
        self.engine.close()
        if not with_snapshot:
            for snapshot in self.path.glob("*/snapshot*"):
                shutil.rmtree(snapshot) if snapshot.is_dir() else snapshot.unlink()
        self.engine = self.open(self.path)

    # --- asking

    @rule(search=searches, mutual=st.booleans(), follow=st.booleans(), data=st.data())
    @precondition(lambda self: self.people)
    def search_by_user(
        self, search: dict[str, Any], mutual: bool, follow: bool, data: st.DataObject
    ) -> None:
        user = data.draw(st.sampled_from(sorted(self.people)))
        found = self.ask(follow, user, mutual=mutual, **search)
        self.check(found, search, user_id=user, mutual=mutual)

    @rule(search=searches, given=some_vectors, single=st.booleans(), follow=st.booleans())
    def search_by_vectors(
        self, search: dict[str, Any], given: list[Any], single: bool, follow: bool
    ) -> None:
        given = given[:1] if single else given
        found = self.ask(follow, vector=given[0] if single else given, **search)
        self.check(found, search, vectors=unit(given))

    @rule(search=searches, mutual=st.booleans(), data=st.data())
    @precondition(lambda self: self.people)
    def search_many(self, search: dict[str, Any], mutual: bool, data: st.DataObject) -> None:
        asking = data.draw(st.lists(st.sampled_from(sorted(self.people)), max_size=4))
        search = {name: search[name] for name in ("top_k", "where", "min_score") if name in search}
        answers = self.engine.search_many(asking, mutual=mutual, **search)
        assert len(answers) == len(asking)
        for user, found in zip(asking, answers, strict=True):
            self.check(found, search, user_id=user, mutual=mutual)

    @rule(given=vectors)
    def a_killed_engine_comes_back(self, given: list[int]) -> None:
        copy = self.path.with_name("copy")
        shutil.copytree(self.path, copy, copy_function=_copy_what_is_there)
        with self.open(copy) as engine:
            self.check(engine.search(vector=given), {"top_k": 5}, vectors=unit([given]))
        shutil.rmtree(copy)

    @rule(data=st.data())
    @precondition(lambda self: self.people)
    def ask_about_a_user(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(sorted(self.people)))
        person = self.people[user]
        assert self.engine.attributes(user) == person.attributes
        assert self.engine.preferences(user) == person.preferences
        photos = self.engine.photos(user)
        assert [photo.photo_id for photo in photos] == list(person.photos)
        assert np.array_equal([photo.vector for photo in photos], person.vectors)

    @invariant()
    def knows_everyone(self) -> None:
        assert len(self.engine) == len(self.people)
        assert self.engine.info().photos == sum(len(one.photos) for one in self.people.values())
        for number in range(12):
            user = f"user_{number:02d}"
            assert (user in self.engine) == (user in self.people)

    # --- inside

    def ask(self, follow: bool, *args: Any, **search: Any) -> list[Any]:
        """Search with the engine, or with one that only reads, once it has caught up."""
        engine = self.engine
        if follow:
            if self.follower is None:
                self.follower = self.open(self.path, read_only=True)
            engine = self.follower
            engine.refresh()
        found, plan = engine.search(*args, explain=True, **search)
        self.strategies[plan.strategy] += 1
        return found

    def check(self, found: list[Any], search: dict[str, Any], **query: Any) -> None:
        wanted = {
            name: search[name] for name in ("where", "exclude", "aggregate") if name in search
        }
        scores = self.people.search(**query, **wanted)
        note(f"found {found}, scores {scores}")
        check_answer(found, scores, search["top_k"], min_score=search.get("min_score"))
        if self.exact:
            check_ties(found, scores, self.people)


def _copy_what_is_there(source: str, target: str) -> None:
    with suppress(FileNotFoundError):  # a snapshot's temporary file, which just got its name
        shutil.copy2(source, target)


class GraphMachine(EngineMachine):
    """The same, but with the graph asked, which real engines do with thousands of users."""

    exact = False  # which of several equals comes last is left to the graph
    crowd = 120
    strategies: ClassVar[Counter[str]] = Counter()


def sequences(machine: type[EngineMachine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def graph_from_the_first_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all that happens by itself with many users."""
    monkeypatch.setattr(planner, "EXACT_UP_TO", 0)
    monkeypatch.setattr(planner, "FIRST_LOOK", 20)  # some are found in lists,
    monkeypatch.setattr(planner, "scan_us", lambda *_: math.inf)
    monkeypatch.setattr("vibematch.vectors._ROWS_PER_LIST", 10)
    unsettled = np.full(9, 2, np.float32)  # but others might always be nearer
    monkeypatch.setattr("vibematch.vectors._limits", lambda *_: unsettled)
    monkeypatch.setattr(index, "_PARTITIONED_FROM", 50)
    monkeypatch.setattr(index, "_FEW_FREE", 5)
    monkeypatch.setattr(index, "_MOST_FREE", 0.05)
    monkeypatch.setattr(live, "_FEW_UNSAVED", 5)


@pytest.mark.usefixtures("graph_from_the_first_user")
def test_many_with_the_very_same_vector_do_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like those of a default picture: hnswlib alone links them to nobody but each other."""
    monkeypatch.setattr(planner, "FIRST_LOOK", 0)  # lists would find them
    rng = np.random.default_rng(7)
    others = unit(rng.normal(size=(600, DIM)))
    same = [stored([1, 0, 0, 0])]
    with MatchingEngine.open(tmp_path, manifest=manifest_of(DIM)) as engine:
        engine.search(vector=others[0])  # from here on, users are put into the graph one by one
        engine.add_many(Profile(f"same_{number:03d}", same) for number in range(600))
        everyone = {f"other_{number:03d}": stored(row) for number, row in enumerate(others)}
        engine.add_many(Profile(name, [photo]) for name, photo in everyone.items())
        lost = []
        for name, photo in everyone.items():
            (found,), plan = engine.search(vector=photo.vector, top_k=1, explain=True)
            assert plan.strategy == "graph"
            if found.user_id != name:
                lost.append(name)
    assert len(lost) < 6, f"{len(lost)} of {len(everyone)} cannot be found"


def test_any_sequence_of_calls() -> None:
    sequences(EngineMachine, examples=8, steps=25)


@pytest.mark.usefixtures("graph_from_the_first_user")
def test_any_sequence_of_calls_with_the_graph() -> None:
    sequences(GraphMachine, examples=8, steps=25)
    assert GraphMachine.strategies["graph"] > 0


@pytest.mark.slow
def test_many_sequences_of_calls() -> None:
    sequences(EngineMachine, examples=500, steps=60)


@pytest.mark.slow
@pytest.mark.usefixtures("graph_from_the_first_user")
def test_many_sequences_of_calls_with_the_graph() -> None:
    sequences(GraphMachine, examples=500, steps=60)
    assert GraphMachine.strategies["graph"] > 500
