"""The manifest: what a model is, so that no two vectors of different models are ever mixed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vibematch.errors import InputError, ManifestError
from vibematch.preprocess import REVISION, Preprocessing

SCHEMA_VERSION: Final = 2
FILENAME: Final = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """Everything a user of the vectors has to know about the model that makes them.

    Attributes:
        embedding_dim: length of a vector.
        preprocessing: how a photo becomes pixels.
        prompt: the instruction the backbone sees beside the photo.
        pooling: how token states become one vector, e.g. ``mean``.
        backbone: the name or path the backbone was loaded from (for people; not fingerprinted).
        backbone_sha256: digest of the checkpoint's weights, configuration and tokenizer.
        head: kind of projection head, e.g. ``paper``.
        head_sha256: digest of the head's weights.
        precision: number format of the graph: ``fp32``, ``int8``, ``bf16`` or ``fp16``.
        wide_layers: names of the layers that a narrower ``precision`` leaves in float32.
        calibration_sha256: digest of what calibration chose: those layers, and how the head was
            adjusted to the others; empty without calibration.
        graph_bytes: size of graph and weights, by which a truncated export is noticed; 0 before
            export.
        labels: label column → its classes, in the order of their integer codes; empty where the
            classes are people.
        parity: figures of the comparison with the reference model; empty before export.
        library_versions: package → version that made the artefact.
        created_at: ISO 8601 time in UTC.
        preprocessing_revision: the :data:`vibematch.preprocess.REVISION` it was made with.
        schema_version: version of this file format.

    Raises:
        InputError: on construction, if ``embedding_dim`` is no length.
    """

    embedding_dim: int
    preprocessing: Preprocessing
    prompt: str
    pooling: str
    backbone: str
    backbone_sha256: str
    head: str
    head_sha256: str
    precision: str
    wide_layers: Sequence[str] = ()
    calibration_sha256: str = ""
    graph_bytes: int = 0
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    parity: Mapping[str, float] = field(default_factory=dict)
    library_versions: Mapping[str, str] = field(default_factory=dict)
    created_at: str = ""
    preprocessing_revision: int = REVISION
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.embedding_dim, int) or self.embedding_dim < 1:
            raise InputError(
                f"embedding_dim must be a positive integer, got {self.embedding_dim!r}"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all that changes a vector; equal fingerprints, equal vectors.

        Equal up to rounding: that of ``int8`` differs a little between kinds of CPU, within what
        the proof allows.
        """
        canvas = self.preprocessing
        decisive: list[object] = [
            self.backbone_sha256,
            self.head_sha256,
            self.prompt,
            self.pooling,
            self.precision,
            [canvas.height, canvas.width, canvas.fit, self.preprocessing_revision],
        ]
        if self.calibration_sha256:
            decisive.append(self.calibration_sha256)
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as JSON text, fingerprint included."""
        content = {"fingerprint": self.fingerprint, **dataclasses.asdict(self)}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what :meth:`to_json` wrote.

        Raises:
            ManifestError: the text is no manifest, comes from a newer version, or its
                fingerprint does not match its content.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            version = int(content["schema_version"])
        except (ValueError, TypeError, KeyError) as error:
            raise ManifestError(f"this is not a vibematch manifest ({error})") from error
        if version > SCHEMA_VERSION:
            raise ManifestError(
                f"the manifest has format {version}; this version of vibematch reads up to "
                f"{SCHEMA_VERSION}: upgrade vibematch"
            )
        try:
            stated = content.pop("fingerprint")
            content["preprocessing"] = Preprocessing(**content["preprocessing"])
            manifest = cls(**content)
        except (KeyError, TypeError, InputError) as error:
            raise ManifestError(f"the manifest is incomplete or damaged ({error})") from error
        if manifest.fingerprint != stated:
            raise ManifestError(
                f"the manifest says fingerprint {str(stated)[:12]} but its content gives "
                f"{manifest.fingerprint[:12]}: it was edited or damaged; export the model again"
            )
        return manifest

    def save(self, directory: Path) -> None:
        """Write ``manifest.json`` into ``directory``."""
        (directory / FILENAME).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read ``manifest.json`` from ``directory``.

        Raises:
            ManifestError: there is none, or it cannot be used.
        """
        path = directory / FILENAME
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path} cannot be read ({error})") from error
        return cls.from_json(text)
