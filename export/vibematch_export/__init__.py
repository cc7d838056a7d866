"""A trained run → one fused graph → a Triton model repository → a running server."""
