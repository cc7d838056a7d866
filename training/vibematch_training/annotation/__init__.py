"""Adding to a photo folder: labels from a vision model, and augmented photos.

What is asked of a paid endpoint goes through ``endpoint`` and is remembered in a ``ledger``.
"""
