"""Draws a deterministic sample of illustrated profile photos, for demos, tests and training."""

from vibematch_training.sample_photos.writer import write_sample_photos

__all__ = ["write_sample_photos"]
