"""The rows of a store: what is written about users and photos, and how damage is noticed.

Every row carries a checksum of its content. A user's row also has the sum of the photos'
checksums, and the row in ``meta`` that of all users', so rows that a damaged file alters, loses or
doubles are noticed when they are read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from vibematch.attributes import (
    Condition,
    Value,
    Where,
    check_attributes,
    check_where,
    is_unicode,
    to_json,
    where_from_json,
    where_to_json,
)
from vibematch.errors import InputError
from vibematch.vectors import Vector

SCHEMA: Final = """
CREATE TABLE meta (
    manifest TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    last_user INTEGER NOT NULL,
    last_photo INTEGER NOT NULL,
    users INTEGER NOT NULL,
    users_sum INTEGER NOT NULL,
    photos INTEGER NOT NULL,
    removals INTEGER NOT NULL,
    removals_forgotten INTEGER NOT NULL,
    removals_since INTEGER NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL UNIQUE,
    attributes TEXT NOT NULL,
    preferences TEXT NOT NULL,
    revision INTEGER NOT NULL,
    vector_revision INTEGER NOT NULL,
    photos INTEGER NOT NULL,
    photos_sum INTEGER NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE INDEX users_by_revision ON users (revision);
CREATE TABLE photos (
    id INTEGER PRIMARY KEY,
    user INTEGER NOT NULL,
    photo_id TEXT NOT NULL,
    content_sha256 BLOB NOT NULL,
    path TEXT,
    vector BLOB NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE INDEX photos_by_user ON photos (user);
CREATE TABLE removals (
    number INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL,
    user INTEGER NOT NULL,
    checksum INTEGER NOT NULL
);
"""
PUT_USER: Final = """
INSERT INTO users VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    attributes = excluded.attributes, preferences = excluded.preferences,
    revision = excluded.revision, vector_revision = excluded.vector_revision,
    photos = excluded.photos, photos_sum = excluded.photos_sum, checksum = excluded.checksum
"""
PUT_PHOTO: Final = "INSERT OR REPLACE INTO photos VALUES (?, ?, ?, ?, ?, ?, ?)"
AMONG: Final = "IN (SELECT value FROM json_each(?))"
_NORM_TOLERANCE: Final = 1e-2
_LONGEST_NAME: Final = 1_000


@dataclass(frozen=True)
class StoredPhoto:
    """One photo as the store keeps it.

    Attributes:
        content_sha256: hex digest of the photo file, which recognises it when it comes again.
        vector: its unit vector, float32, ``[embedding_dim]``.
        path: the file, where there is one.
        photo_id: the name of the photo among its user's; empty: ``content_sha256``.
    """

    content_sha256: str
    vector: Vector
    path: str | None = None
    photo_id: str = ""


@dataclass(frozen=True)
class Profile:
    """What to write about one user.

    Attributes:
        user_id: whom it is about.
        photos: photos to add to those already there.
        attributes: replace the stored ones; ``None`` leaves them as they are.
        preferences: what this user wants the others to be; replace the stored ones, ``None``
            leaves them as they are.
    """

    user_id: str
    photos: Sequence[StoredPhoto] = ()
    attributes: Mapping[str, Value] | None = None
    preferences: Where | None = None


class UserRow(NamedTuple):
    """A user as followers of the store see one: all but the photos.

    Attributes:
        id: never given to another user.
        user_id: the name.
        revision: sequence number of the last change.
        vector_revision: sequence number of the last change of the photos.
        attributes: what the user is.
        preferences: what the user wants the others to be.
    """

    id: int
    user_id: str
    revision: int
    vector_revision: int
    attributes: dict[str, Value]
    preferences: dict[str, Condition]


class Changes(NamedTuple):
    """What became different after a sequence number.

    Attributes:
        sequence: up to where this tells.
        users: those new or changed, in the order of their ids.
        removed: ids of users removed; ``None`` where that is not known (any more): ``users`` is
            then everybody, so whoever is not among them is gone.
    """

    sequence: int
    users: list[UserRow]
    removed: list[int] | None


@dataclass
class Meta:
    """The one row about the whole."""

    manifest: str
    sequence: int
    last_user: int  # ids are counted up, so that none comes a second time
    last_photo: int
    users: int
    users_sum: int
    photos: int
    removals: int  # number of the last
    removals_forgotten: int  # number of the last that is not in the log any more
    removals_since: int  # sequence number up to which they are forgotten

    def put(self, database: sqlite3.Connection) -> None:
        """Write it in place of the present one."""
        fields = astuple(self)
        database.execute("DELETE FROM meta")
        places = f"?{', ?' * len(fields)}"
        database.execute(f"INSERT INTO meta VALUES ({places})", sealed(fields))  # noqa: S608 (marks)


class User(NamedTuple):
    """A user's row, but for its checksum."""

    id: int
    user_id: str
    attributes: str
    preferences: str
    revision: int
    vector_revision: int
    photos: int
    photos_sum: int

    def as_row(self) -> UserRow:
        """As followers see it."""
        return UserRow(
            self.id,
            self.user_id,
            self.revision,
            self.vector_revision,
            json.loads(self.attributes),
            where_from_json(self.preferences),
        )


class Photo(NamedTuple):
    """A photo's row."""

    id: int
    user: int
    photo_id: str  # empty: the digest of the content
    content: bytes
    path: str | None
    vector: bytes
    checksum: int

    def as_stored(self) -> StoredPhoto:
        """As readers see it."""
        content = self.content.hex()
        vector = np.frombuffer(self.vector, "<f4").astype(np.float32, copy=False)
        return StoredPhoto(content, vector, self.path, self.photo_id or content)


def check_user_id(user_id: object) -> None:
    """Refuse what can be no user id.

    Raises:
        InputError: naming it.
    """
    _check_name("user id", user_id)


def check_photo_id(photo_id: object) -> None:
    """Refuse what can be no photo id.

    Raises:
        InputError: naming it.
    """
    _check_name("photo id", photo_id)


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InputError(f"a {what} must be printable text, got {name!r}")
    if len(name) > _LONGEST_NAME:
        raise InputError(f"a {what} must have at most {_LONGEST_NAME:,} characters")


def check_profile(profile: Profile, dim: int) -> None:
    """Refuse what could not be stored and found again.

    Raises:
        InputError: naming the user and what is wrong.
    """
    if not isinstance(profile, Profile):
        raise InputError(f"what is written has to be a Profile, got {type(profile).__name__}")
    user_id = profile.user_id
    check_user_id(user_id)
    if profile.attributes is not None:
        check_attributes(profile.attributes)
    if profile.preferences is not None:
        check_where(profile.preferences)
    if not isinstance(profile.photos, Sequence):
        raise InputError(f"the photos of user {user_id!r} must be a list of StoredPhoto")
    for photo in profile.photos:
        try:
            _check_photo(photo, dim)
        except InputError as error:
            raise InputError(f"a photo of user {user_id!r} cannot be stored: {error}") from error


def _check_photo(photo: StoredPhoto, dim: int) -> None:
    for name in ("content_sha256", "photo_id", "path"):
        text = getattr(photo, name, None)
        if not isinstance(text, str) and not (text is None and name == "path"):
            raise InputError(f"its {name} must be text, got {text!r}")
    if not isinstance(photo.vector, np.ndarray) or photo.vector.dtype.kind != "f":
        raise InputError("its vector must be an array of floats")
    if re.fullmatch("[0-9a-f]{64}", photo.content_sha256) is None:
        raise InputError(
            f"its content_sha256 must be 64 hex digits in lower case, got {photo.content_sha256!r}"
        )
    if photo.photo_id:
        check_photo_id(photo.photo_id)
    if photo.path is not None and not is_unicode(photo.path):
        raise InputError(f"its path is broken text: {photo.path!r}")
    if photo.vector.shape != (dim,):
        raise InputError(f"its vector must have shape [{dim}], got {list(photo.vector.shape)}")
    norm = math.sqrt(float(np.vdot(photo.vector, photo.vector)))
    if not abs(norm - 1) < _NORM_TOLERANCE:  # nor is "not a number" below it
        raise InputError(f"its vector must have unit length, got {norm:.4g}")


def checksum_of(fields: Sequence[object], content: bytes = b"") -> int:
    """64 bits of BLAKE2b over a row, as SQLite's signed integer."""
    digest = hashlib.blake2b(ascii(tuple(fields)).encode(), digest_size=8)
    digest.update(content)
    return int.from_bytes(digest.digest(), "little", signed=True)


def wrapped(number: int) -> int:
    """A sum as the signed 64-bit integer that it is modulo 2**64."""
    return (number + 2**63) % 2**64 - 2**63


def sealed(fields: Sequence[object]) -> tuple[Any, ...]:
    """A row with its checksum."""
    return (*fields, checksum_of(fields))


def photo_checksum(
    number: int, user: int, photo_id: str, content: bytes, path: str | None, vector: bytes
) -> int:
    """The checksum of a photo's row."""
    return checksum_of((number, user, photo_id, path), content + vector)


def name_of(photo: Photo) -> str:
    """The ``photo_id`` of a photo."""
    return photo.photo_id or photo.content.hex()


def updated(user: User, profile: Profile) -> User:
    """A user with the attributes and preferences that a profile gives."""
    if profile.attributes is not None:
        user = user._replace(attributes=to_json(dict(profile.attributes)))
    if profile.preferences is not None:
        user = user._replace(preferences=where_to_json(profile.preferences))
    return user


def with_photos(user: User, photos: Sequence[Photo]) -> User:
    """A user who has these photos and no others."""
    total = sum(photo.checksum for photo in photos)
    return user._replace(photos=len(photos), photos_sum=wrapped(total))


def damaged(what: str) -> sqlite3.DatabaseError:
    """What SQLite itself would raise; :func:`_readable_errors` says the rest."""
    return sqlite3.DatabaseError(f"{what} damaged")


def read_meta(database: sqlite3.Connection) -> Meta:
    """The one row about the whole, as it was written."""
    rows = database.execute("SELECT * FROM meta").fetchall()
    if len(rows) != 1 or _seal_is_broken(rows[0]):
        raise damaged("its summary is")
    return Meta(*rows[0][:-1])


def _seal_is_broken(row: Sequence[Any]) -> bool:
    return bool(checksum_of(row[:-1]) != row[-1])


def _user_from(row: Sequence[Any]) -> User:
    if _seal_is_broken(row):
        raise damaged("the row of a user is")
    return User(*row[:-1])


def users_where(database: sqlite3.Connection, condition: str, value: object) -> list[User]:
    """The users whom a condition finds, as they were written."""
    sql = f"SELECT * FROM users WHERE {condition}"  # noqa: S608 (fixed text)
    return [_user_from(row) for row in database.execute(sql, (value,)).fetchall()]


def all_users(database: sqlite3.Connection) -> Iterator[User]:
    """Every user, by id; in the end an error if one is missing or there twice."""
    meta = read_meta(database)
    count = total = 0
    for row in database.execute("SELECT * FROM users NOT INDEXED ORDER BY id"):
        user = _user_from(row)
        count += 1
        total += row[-1]
        yield user
    if (count, wrapped(total)) != (meta.users, meta.users_sum):
        raise damaged("the table of users is")


def photos_of(database: sqlite3.Connection, users: Sequence[User]) -> dict[int, list[Photo]]:
    """User → photos, in the order they were added, all of them as they were written."""
    photos: dict[int, list[Photo]] = {user.id: [] for user in users}
    sums = dict.fromkeys(photos, 0)
    rows = database.execute(
        f"SELECT * FROM photos WHERE user {AMONG} ORDER BY user, id",  # noqa: S608 (fixed text)
        (json.dumps(list(photos)),),
    )
    for photo in map(Photo._make, rows):
        if photo.user not in photos or _photo_is_broken(photo):
            raise damaged("the row of a photo is")
        photos[photo.user].append(photo)
        sums[photo.user] += photo.checksum
    for user in users:
        if (len(photos[user.id]), wrapped(sums[user.id])) != (user.photos, user.photos_sum):
            raise damaged("the table of photos is")
    return photos


def _photo_is_broken(photo: Photo) -> bool:
    try:
        return photo_checksum(*photo[:-1]) != photo.checksum
    except TypeError:  # text where there were bytes, or the other way round
        return True


def removed_after(database: sqlite3.Connection, meta: Meta, after: int) -> list[int]:
    """Ids of users removed after a sequence number, which has to be within the log."""
    removed: list[int] = []
    expected = meta.removals
    for row in database.execute("SELECT * FROM removals ORDER BY number DESC"):
        if _seal_is_broken(row) or row[0] != expected:
            break
        if row[1] <= after:
            return removed
        removed.append(row[2])
        expected -= 1
    if expected != meta.removals_forgotten:
        raise damaged("the log of removals is")
    return removed


def check_indexes(database: sqlite3.Connection) -> None:
    """Make sure that the indexes of users find all that is there."""
    if database.execute("PRAGMA integrity_check(users)").fetchall() != [("ok",)]:
        raise damaged("the table of users is")
