"""Everything vibematch raises on purpose.

::

    VibematchError
    ├── InputError(ValueError)            an argument, file or folder is not usable as given
    │   ├── PhotoError                    one photo cannot become pixels; carries the reason
    │   └── UnknownUserError(KeyError)    the index holds no such user
    ├── ManifestError                     manifest.json is missing, damaged, or of a newer version
    ├── ServerError                       the embedding server did not do what was asked
    │   ├── ServerUnavailableError        no server, not ready, or overloaded: try again later
    │   ├── ServerTimeoutError            the deadline passed first
    │   ├── ModelChangedError             the server went over to another model meanwhile
    │   └── BadVectorError                the answer was not finite, unit-norm, or the right size
    └── StoreError                        the index on disk cannot be used
        ├── StoreLockedError              another process is writing to it
        └── ModelMismatchError            its vectors come from another model

The command line prints any of them as one line and exits with status 1.
"""

from __future__ import annotations

from typing import Literal


class VibematchError(Exception):
    """Base of every error raised on purpose."""


class InputError(VibematchError, ValueError):
    """An argument, file or folder is not usable as given."""


PhotoErrorCode = Literal[
    "empty",
    "too_many_bytes",
    "too_many_pixels",
    "not_a_photo",
    "damaged",
    "too_narrow",
    "unreadable",
]
"""Why a photo cannot become pixels, for counting; ``unreadable``: there are no bytes to judge."""


class PhotoError(InputError):
    """One photo cannot become pixels; the message is the reason.

    Attributes:
        code: the kind of reason, for counting; ``unreadable`` where nobody here looked at the
            photo: its file cannot be read, or a server refused it.
    """

    def __init__(self, message: str = "", *, code: PhotoErrorCode = "unreadable") -> None:
        super().__init__(message)
        self.code: PhotoErrorCode = code


class UnknownUserError(InputError, KeyError):
    """The index holds no such user."""

    # KeyError shows the repr of its argument; people should see the sentence.
    __str__ = Exception.__str__


class ManifestError(VibematchError):
    """``manifest.json`` is missing, damaged, or written by a newer version."""


class ServerError(VibematchError):
    """The embedding server did not do what was asked."""


class ServerUnavailableError(ServerError):
    """No server answers there, it is not ready, or it is overloaded."""


class ServerTimeoutError(ServerError):
    """The deadline passed before the server answered."""


class ModelChangedError(ServerError):
    """The server went over to another model while it was asked: ask it again."""


class BadVectorError(ServerError):
    """The server's vector is not finite, not unit-norm, or not of the promised size."""


class StoreError(VibematchError):
    """The index on disk cannot be used."""


class StoreLockedError(StoreError):
    """Another process is writing to this index."""


class ModelMismatchError(StoreError):
    """The index holds vectors of another model than the one offered."""
