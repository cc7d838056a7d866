"""How many cores one torch operation may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_core_per_operation() -> Iterator[int]:
    """Run each torch operation on one core, and yield how many cores torch would have used.

    Small operations cut into pieces cost more than they save, and where another program holds a
    core, every operation waits for its slowest piece: training took several times as long.
    """
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield cores
    finally:
        torch.set_num_threads(cores)
