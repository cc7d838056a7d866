"""The projection head: the only part of the model that is trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F


class ProjectionHead(nn.Module):
    """Pooled features → unit vector: the paper's head behind a standardisation.

    Linear(h → hidden) → LayerNorm → GELU → Dropout → Linear(hidden → dim) → L2 normalisation.
    Features are first standardised with the training set's mean and standard deviation, which are
    part of the weights: without it the large common component of a backbone's features drowns
    what tells photos apart.

    Args:
        feature_dim: width h of the pooled features.
        embedding_dim: length of the resulting vector.
        hidden_dim: width of the hidden layer.
        dropout: dropout probability while training.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(
        self, feature_dim: int, embedding_dim: int, hidden_dim: int = 2048, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(feature_dim))
        self.register_buffer("feature_std", torch.ones(feature_dim))
        self.layers = nn.Sequential(
            nn.Linear(feature_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, embedding_dim),
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
        """Write the weights as safetensors and return the file's SHA-256 (hex)."""
        save_file(self.state_dict(), path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> ProjectionHead:
        """Read what :meth:`save` wrote, in evaluation mode; sizes come from the weights."""
        state = load_file(path)
        hidden_dim, feature_dim = state["layers.0.weight"].shape
        head = cls(feature_dim, state["layers.4.weight"].shape[0], hidden_dim)
        head.load_state_dict(state)
        return head.eval()
