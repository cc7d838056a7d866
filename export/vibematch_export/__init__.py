"""A trained run → one fused graph → a Triton model repository → a running server."""

import os

# ONNX Runtime reports models and runs to its maker from 1.29 on, unless told not to before it
# is imported. What people look like is nobody else's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
