"""The run folder: what training leaves behind and everything later starts from.

::

    RUN/
    ├── config.yaml               every setting of the run
    ├── manifest.json             what the model is (vibematch.Manifest)
    ├── head.safetensors          the trained head, standardisation included
    ├── metrics.jsonl             one line per epoch
    └── evaluation_results.json   retrieval figures beside the untrained backbone
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from vibematch.errors import InputError
from vibematch.manifest import Manifest
from vibematch.preprocess import Fit, Preprocessing
from vibematch_training.backbone import PROMPT, Backbone, load_backbone
from vibematch_training.features import FeatureRecipe
from vibematch_training.head import ProjectionHead

CONFIG_FILENAME: Final = "config.yaml"
HEAD_FILENAME: Final = "head.safetensors"
METRICS_FILENAME: Final = "metrics.jsonl"
RESULTS_FILENAME: Final = "evaluation_results.json"


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a run.

    Defaults are the paper's where it states a value.

    Attributes:
        photos: folder with photos and ``metadata.csv``.
        backbone: ``tiny``, a checkpoint folder or a hub id.
        label: the CSV column in which equal values make a positive pair.
        height: canvas height in pixels, a multiple of 32.
        width: canvas width in pixels, a multiple of 32.
        fit: how a photo fills the canvas: ``cover`` or ``contain``.
        prompt: what the backbone is asked beside the photo.
        embedding_dim: length of the resulting vector.
        hidden_dim: width of the head's hidden layer.
        dropout: of the head, while training.
        margin: triplet margin on cosine similarity.
        classes_per_batch: P of the PK sampler.
        photos_per_class: K of the PK sampler.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        epochs: passes over the training photos.
        seed: of initialisation, sampling, dropout and, without a split column, the split.
    """

    photos: str
    backbone: str = "tiny"
    label: str = "fashion_style"
    height: int = 256
    width: int = 192
    fit: Fit = "cover"
    prompt: str = PROMPT
    embedding_dim: int = 256
    hidden_dim: int = 2048
    dropout: float = 0.1
    margin: float = 0.3
    classes_per_batch: int = 5
    photos_per_class: int = 4
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    epochs: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), type(field.default)
            if wanted is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif wanted in (int, float, str) and type(value) is not wanted:
                raise InputError(f"{field.name} must be of type {wanted.__name__}, got {value!r}")
        positive = (
            "embedding_dim",
            "hidden_dim",
            "classes_per_batch",
            "photos_per_class",
            "learning_rate",
            "epochs",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1 or self.seed < 0 or self.weight_decay < 0 or self.margin < 0:
            raise InputError("dropout must be in [0, 1); seed, weight_decay and margin at least 0")
        if self.classes_per_batch < 2 or self.photos_per_class < 2:
            raise InputError("triplets need classes_per_batch and photos_per_class of at least 2")
        _ = self.preprocessing  # refuses an impossible canvas before hours of work

    @property
    def preprocessing(self) -> Preprocessing:
        """Canvas and fit rule, with the default caps."""
        return Preprocessing(self.height, self.width, self.fit)

    @classmethod
    def from_yaml(cls, path: Path, **overrides: object) -> TrainingConfig:
        """Read a configuration file; ``overrides`` win over it.

        Raises:
            InputError: unreadable, or naming every setting that does not exist.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read as YAML ({error})") from error
        if not isinstance(content, dict):
            raise InputError(f"{path} must hold settings, one `name: value` a line")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(content) - known)
        if unknown:
            raise InputError(
                f"{path} has unknown setting(s) {', '.join(unknown)}; known: "
                f"{', '.join(sorted(known))}"
            )
        try:
            return cls(**{**content, **overrides})
        except TypeError as error:  # a required setting is missing
            raise InputError(f"{path} is incomplete ({error})") from error

    def to_yaml(self) -> str:
        """The configuration as YAML text."""
        text: str = yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)
        return text


@dataclass(frozen=True)
class TrainedRun:
    """A finished run, loaded.

    Attributes:
        directory: the run folder.
        config: its settings.
        manifest: what the model is.
        head: the trained head, in evaluation mode.
    """

    directory: Path
    config: TrainingConfig
    manifest: Manifest
    head: ProjectionHead

    @classmethod
    def load(cls, directory: Path) -> TrainedRun:
        """Load a run folder.

        Raises:
            InputError: it holds no finished run.
            ManifestError: its manifest cannot be used.
        """
        needed = [directory / name for name in (CONFIG_FILENAME, HEAD_FILENAME)]
        missing = [path.name for path in needed if not path.is_file()]
        if missing:
            raise InputError(
                f"{directory} is not a finished run (no {', '.join(missing)}); make one with "
                "`vibematch train PHOTOS --out RUN`"
            )
        manifest = Manifest.load(directory)
        if hashlib.sha256(needed[1].read_bytes()).hexdigest() != manifest.head_sha256:
            raise InputError(
                f"{needed[1]} is not the head that {directory} was finished with: it was replaced "
                "or damaged; train again"
            )
        config = TrainingConfig.from_yaml(needed[0])
        return cls(directory, config, manifest, ProjectionHead.load(needed[1]))

    def load_backbone(self) -> Backbone:
        """Load the backbone the head was trained on.

        Raises:
            InputError: it is gone, or its files are no longer the same.
        """
        backbone = load_backbone(self.config.backbone)
        if backbone.sha256 != self.manifest.backbone_sha256:
            raise InputError(
                f"backbone {self.config.backbone} is not the one this head was trained on "
                f"(digest {backbone.sha256[:12]}, trained on "
                f"{self.manifest.backbone_sha256[:12]}): train again or restore the checkpoint"
            )
        return backbone

    def recipe(self, backbone: Backbone) -> FeatureRecipe:
        """The feature recipe of this run on its loaded backbone."""
        return FeatureRecipe(backbone, self.manifest.preprocessing, self.manifest.prompt)

    def results(self) -> dict[str, Any]:
        """What ``evaluation_results.json`` holds."""
        results: dict[str, Any] = json.loads((self.directory / RESULTS_FILENAME).read_text())
        return results


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``HxW`` into height and width in pixels.

    Raises:
        InputError: it has another form.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise InputError(f"size must look like 448x448 (height x width), got {text!r}")
    return int(height), int(width)
