"""A run's curves in TensorBoard, while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vibematch.errors import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

DIRECTORY = "tensorboard"


class TensorBoard:
    """Writes one scalar for each figure of an epoch.

    Args:
        directory: where the event files go; made on the first epoch.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "curves need a package that is not installed: pip install -e '.[tensorboard]'"
            ) from error
        self._open = SummaryWriter
        self._directory = directory
        self._writer: SummaryWriter | None = None

    def log(self, entry: Mapping[str, float | None]) -> None:
        """Add an epoch, a line of ``metrics.jsonl``."""
        epoch = int(entry["epoch"] or 0)
        if self._writer is None:
            # a resumed run repeats the epochs after its checkpoint: the old points are hidden
            self._writer = self._open(str(self._directory), purge_step=epoch)
        for name, value in entry.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
