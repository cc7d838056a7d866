"""The lab's training commands, one module each; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vibematch_training.commands import (
    augment,
    compare,
    dataset,
    evaluate,
    label,
    sample_photos,
    train,
)

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def register(commands: Commands) -> None:
    """Add this package's commands to the command line, in the order of the work."""
    for command in (sample_photos, dataset, label, augment, train, compare, evaluate):
        command.register(commands)
