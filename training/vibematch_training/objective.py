"""What training minimises: PyTorch Metric Learning's losses and miners on cosine similarity.

============== ============================================================ ==================
loss           from                                                         mining
============== ============================================================ ==================
triplet        Schroff et al., "FaceNet" (2015), with a margin on cosine    semihard or hard
supcon         Khosla et al., "Supervised Contrastive Learning" (2020)      all pairs
multi_similarity  Wang et al., "Multi-Similarity Loss" (2019)               its own
infonce        Chen et al., "SimCLR" (2020): NT-Xent over labelled pairs    all pairs
============== ============================================================ ==================
"""

from __future__ import annotations

from typing import Literal

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import (
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
    TripletMarginLoss,
)
from pytorch_metric_learning.miners import (
    BatchHardMiner,
    MultiSimilarityMiner,
    TripletMarginMiner,
)

Loss = Literal["triplet", "supcon", "multi_similarity", "infonce"]
Mining = Literal["semihard", "hard"]


class Objective:
    """A loss with the miner that chooses what it looks at in a batch.

    Args:
        loss: which loss.
        mining: how ``triplet`` chooses triplets. ``semihard``: the negative is farther from the
            anchor than the positive, by no more than the margin. ``hard``: for each anchor its
            farthest positive and its nearest negative.
        margin: of ``triplet``, in cosine distance.
        temperature: of ``supcon`` and ``infonce``.
    """

    def __init__(
        self,
        loss: Loss = "triplet",
        mining: Mining = "semihard",
        margin: float = 0.3,
        temperature: float = 0.1,
    ) -> None:
        cosine = CosineSimilarity()
        self._mine = None
        self._counts_triplets = loss == "triplet"
        if loss == "triplet":
            self._loss = TripletMarginLoss(margin, distance=cosine)
            if mining == "semihard":
                self._mine = TripletMarginMiner(margin, type_of_triplets=mining, distance=cosine)
            else:
                self._mine = BatchHardMiner(distance=cosine)
        elif loss == "multi_similarity":
            self._loss = MultiSimilarityLoss(distance=cosine)
            self._mine = MultiSimilarityMiner(distance=cosine)
        elif loss == "supcon":
            self._loss = SupConLoss(temperature, distance=cosine)
        else:
            self._loss = NTXentLoss(temperature, distance=cosine)

    def __call__(
        self, embeddings: torch.Tensor, codes: torch.Tensor
    ) -> tuple[torch.Tensor, int | None]:
        """The loss of one batch.

        Args:
            embeddings: unit vectors, shape ``[batch, dim]``.
            codes: integer class of each, int64, shape ``[batch]``.

        Returns:
            The loss (a scalar; for triplets the mean over those within the margin), and how many
            triplets were mined, or ``None`` where the loss knows no triplets.
        """
        mined = self._mine(embeddings, codes) if self._mine else None
        loss: torch.Tensor = self._loss(embeddings, codes, mined)
        return loss, len(mined[0]) if mined and self._counts_triplets else None
