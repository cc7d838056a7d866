"""The projection head: the only part of the model that is trained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, Literal, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import nn
from torch.nn import functional as F

from vibematch.errors import InputError
from vibematch_training.files import write_atomically

HeadKind = Literal["paper", "plan"]

_KIND_KEY: Final = "head"
"""The one entry of the file's metadata: with several, safetensors does not keep their order."""


class ProjectionHead(nn.Module):
    """Pooled features → unit vector, behind a standardisation.

    - ``paper``: Linear(h → hidden) → LayerNorm → GELU → Dropout → Linear(hidden → dim)
    - ``plan``: Linear(h → hidden) → BatchNorm → ReLU → Linear(hidden → dim)

    and an L2 normalisation. Features are first standardised with the training set's mean and
    standard deviation, which are part of the weights: without it the large common component of a
    backbone's features drowns what tells photos apart.

    Args:
        feature_dim: width h of the pooled features.
        embedding_dim: length of the resulting vector.
        hidden_dim: width of the hidden layer.
        dropout: dropout probability while training; the plan's head has none.
        kind: which of the two.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(
        self,
        feature_dim: int,
        embedding_dim: int,
        hidden_dim: int = 512,
        dropout: float = 0.5,
        kind: HeadKind = "paper",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))
        between: list[nn.Module]
        if kind == "paper":
            between = [nn.LayerNorm(hidden_dim), nn.GELU(), nn.Dropout(dropout)]
        else:
            between = [nn.BatchNorm1d(hidden_dim), nn.ReLU()]
        self.layers = nn.Sequential(
            nn.Linear(feature_dim, hidden_dim), *between, nn.Linear(hidden_dim, embedding_dim)
        )

    def standardise(self, features: torch.Tensor) -> None:
        """Take mean and standard deviation from the training features, ``[n, feature_dim]``."""
        self.feature_mean.copy_(features.mean(dim=0))
        # a channel that never changes carries nothing; the floor keeps it from becoming noise
        self.feature_std.copy_(features.std(dim=0, correction=0).clamp_min(1e-6))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project ``[batch, feature_dim]`` to unit vectors ``[batch, embedding_dim]``."""
        standard = (features - self.feature_mean) / self.feature_std
        return F.normalize(self.layers(standard), dim=-1)

    def save(self, path: Path) -> str:
        """Write weights and kind as safetensors and return the file's SHA-256 (hex)."""
        content = serialise(self.state_dict(), metadata={_KIND_KEY: self.kind})
        write_atomically(path, content)
        return hashlib.sha256(content).hexdigest()

    @classmethod
    def load(cls, path: Path) -> ProjectionHead:
        """Read what :meth:`save` wrote, in evaluation mode; sizes come from the weights.

        Raises:
            InputError: the file is no head.
        """
        try:
            with safe_open(path, framework="pt") as file:
                kind = (file.metadata() or {}).get(_KIND_KEY)
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read as a head ({error})") from error
        if kind not in get_args(HeadKind):
            raise InputError(f"{path} is not a head that vibematch trained")
        hidden_dim, feature_dim = state["layers.0.weight"].shape
        # the last Linear's bias is as long as the vector
        embedding_dim = len(state[max(name for name in state if name.endswith(".bias"))])
        head = cls(feature_dim, embedding_dim, hidden_dim, kind=cast(HeadKind, kind))
        head.load_state_dict(state)
        return head.eval()
