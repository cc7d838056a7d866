"""The run folder: what training leaves behind and everything later starts from.

::

    RUN/
    ├── config.yaml               every setting of the run; there from the start
    ├── inputs.json               digests of the photos and of how they become features
    ├── checkpoints/              what an interrupted run goes on from
    ├── metrics.jsonl             one line per epoch
    ├── evaluation_results.json   retrieval figures beside the backbone alone
    ├── report.html               the same for people
    ├── model_card.md             for whoever gets the model
    ├── head.safetensors          the trained head, standardisation included
    └── manifest.json             what the model is (vibematch.Manifest); written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args, get_type_hints

import torch
import yaml

from vibematch.errors import InputError, ManifestError
from vibematch.manifest import FILENAME as MANIFEST_FILENAME
from vibematch.manifest import Manifest
from vibematch.preprocess import Fit, Preprocessing
from vibematch_training.backbone import PROMPT, Backbone, load_backbone
from vibematch_training.features import FeatureRecipe, Pooling
from vibematch_training.head import HeadKind, ProjectionHead
from vibematch_training.objective import Loss, Mining

CONFIG_FILENAME: Final = "config.yaml"
HEAD_FILENAME: Final = "head.safetensors"
METRICS_FILENAME: Final = "metrics.jsonl"
RESULTS_FILENAME: Final = "evaluation_results.json"
INPUTS_FILENAME: Final = "inputs.json"

Keep = Literal["last", "best"]

_POSITIVE: Final = (
    "embedding_dim",
    "hidden_dim",
    "temperature",
    "learning_rate",
    "epochs",
    "checkpoint_every_epochs",
)
_NOT_NEGATIVE: Final = ("margin", "weight_decay", "patience_epochs", "seed")
_SHARES: Final = ("dropout", "warmup_share")

PAPER: Final[Mapping[str, float]] = {
    "hidden_dim": 2048,
    "dropout": 0.1,
    "photos_per_class": 4,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "epochs": 20,
}
"""The paper's numbers where the defaults differ; it leaves weight decay and epochs open."""


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a run.

    The recipe is the paper's; its numbers (:data:`PAPER`) gave way to better ones where a
    comparison said so (``docs/training.md``).

    Attributes:
        photos: folder with photos and ``metadata.csv``.
        backbone: ``tiny``, a checkpoint folder or a hub id.
        extractor: empty for Hugging Face's own forward, or the folder of an exported graph.
        label: the CSV column in which equal values make a positive pair; ``user_id`` works too.
        undersample: drop photos until all classes are as large as the smallest.
        height: canvas height in pixels, a multiple of 32.
        width: canvas width in pixels, a multiple of 32.
        fit: how a photo fills the canvas: ``cover`` or ``contain``.
        prompt: what the backbone is asked beside the photo.
        pooling: how token states become one vector: ``mean``, ``last`` or ``image``.
        head: kind of projection head: ``paper`` or ``plan``.
        embedding_dim: length of the resulting vector.
        hidden_dim: width of the head's hidden layer.
        dropout: of the ``paper`` head, while training.
        loss: ``triplet``, ``supcon``, ``multi_similarity`` or ``infonce``.
        mining: of the triplet loss: ``semihard`` or ``hard``.
        margin: of the triplet loss, on cosine distance.
        temperature: of the losses ``supcon`` and ``infonce``.
        classes_per_batch: P of the PK sampler.
        photos_per_class: K of the PK sampler.
        learning_rate: of AdamW, at its highest.
        weight_decay: of AdamW.
        warmup_share: part of all steps in which the learning rate rises from 0; after it, it
            falls along half a cosine.
        epochs: passes over the training photos.
        keep: the ``last`` epoch's head, or the ``best`` by MAP@R on people held out of training.
        patience_epochs: stop after so many epochs without a better MAP@R on those people; 0 never
            stops early.
        selection_share: part of the training people who are held out for ``keep: best`` and
            ``patience_epochs``; the validation people are never selected on.
        checkpoint_every_epochs: how often a checkpoint is written.
        seed: of initialisation, sampling, dropout and of who is held out.
    """

    photos: str
    backbone: str = "tiny"
    extractor: str = ""
    label: str = "fashion_style"
    undersample: bool = False
    height: int = 256
    width: int = 192
    fit: Fit = "cover"
    prompt: str = PROMPT
    pooling: Pooling = "mean"
    head: HeadKind = "paper"
    embedding_dim: int = 256
    hidden_dim: int = 512
    dropout: float = 0.5
    loss: Loss = "triplet"
    mining: Mining = "semihard"
    margin: float = 0.3
    temperature: float = 0.1
    classes_per_batch: int = 5
    photos_per_class: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.3
    warmup_share: float = 0.05
    epochs: int = 40
    keep: Keep = "last"
    patience_epochs: int = 0
    selection_share: float = 0.1
    checkpoint_every_epochs: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, wanted in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(wanted)
            if choices and value not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
            if wanted is float and type(value) is int:
                object.__setattr__(self, name, float(value))
            elif not choices and type(value) is not wanted:
                raise InputError(f"{name} must be of type {wanted.__name__}, got {value!r}")
            elif wanted is float and not math.isfinite(value):
                raise InputError(f"{name} must be a finite number, got {value!r}")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.selection_share <= 0.5:
            raise InputError(f"selection_share must be in (0, 0.5], got {self.selection_share}")
        if self.classes_per_batch < 2 or self.photos_per_class < 2:
            raise InputError("triplets need classes_per_batch and photos_per_class of at least 2")
        if self.loss != "triplet" and self.mining != "semihard":
            raise InputError(
                f"mining {self.mining!r} chooses triplets and loss {self.loss!r} has none: leave "
                "mining out, or train with loss 'triplet'"
            )
        _ = self.preprocessing  # refuses an impossible canvas before hours of work

    @property
    def selects(self) -> bool:
        """Whether epochs are compared on people held out of training."""
        return self.keep == "best" or self.patience_epochs > 0

    def differences(self, other: TrainingConfig) -> dict[str, tuple[object, object]]:
        """Setting → its value here and in ``other``, where they differ."""
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}

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
        needed = [directory / name for name in (CONFIG_FILENAME, HEAD_FILENAME, MANIFEST_FILENAME)]
        missing = [path.name for path in needed if not path.is_file()]
        if missing:
            what_to_do = (
                "make one with `vibematch train PHOTOS --out RUN`"
                if CONFIG_FILENAME in missing
                else "go on with `vibematch train PHOTOS --out RUN --resume`"
            )
            raise InputError(
                f"{directory} is not a finished run (no {', '.join(missing)}); {what_to_do}"
            )
        manifest = Manifest.load(directory)
        if hashlib.sha256(needed[1].read_bytes()).hexdigest() != manifest.head_sha256:
            raise InputError(
                f"{needed[1]} is not the head that {directory} was finished with: it was replaced "
                "or damaged; train again"
            )
        config = TrainingConfig.from_yaml(needed[0])
        return cls(directory, config, manifest, ProjectionHead.load(needed[1]))

    def load_backbone(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Backbone:
        """Load the backbone the head was trained on; arguments as for the function of that name.

        Raises:
            InputError: it is gone, or its files are no longer the same.
        """
        backbone = load_backbone(self.config.backbone, dtype, device)
        if backbone.sha256 != self.manifest.backbone_sha256:
            raise InputError(
                f"backbone {self.config.backbone} is not the one this head was trained on "
                f"(digest {backbone.sha256[:12]}, trained on "
                f"{self.manifest.backbone_sha256[:12]}): train again or restore the checkpoint"
            )
        return backbone

    def recipe(self, backbone: Backbone) -> FeatureRecipe:
        """The feature recipe of this run, as the manifest has it, on its loaded backbone.

        Raises:
            ManifestError: this version knows no such pooling.
        """
        pooling = self.manifest.pooling
        if pooling not in get_args(Pooling):
            raise ManifestError(
                f"{self.directory / MANIFEST_FILENAME} has pooling {pooling!r}; this version of "
                f"vibematch knows {', '.join(get_args(Pooling))}: upgrade vibematch"
            )
        return FeatureRecipe(
            backbone, self.manifest.preprocessing, self.manifest.prompt, cast(Pooling, pooling)
        )

    def results(self) -> dict[str, Any]:
        """What ``evaluation_results.json`` holds."""
        return read_json(self.directory / RESULTS_FILENAME)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run folder.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); train again") from error
    return content


def is_finished(directory: Path) -> bool:
    """Whether a folder holds a finished run: its head, and the manifest that is written last."""
    return all((directory / name).is_file() for name in (HEAD_FILENAME, MANIFEST_FILENAME))


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``HxW`` into height and width in pixels.

    Raises:
        InputError: it has another form.
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise InputError(f"size must look like 448x448 (height x width), got {text!r}")
    return int(height), int(width)
