"""Draws what people wear, one module per family of clothes."""
