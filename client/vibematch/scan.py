"""The loops of ``_scan.c``, or advice where they were not compiled."""

try:
    from vibematch._scan import compare, dots, encode, look, rank, scale, select, span
except ModuleNotFoundError as error:
    raise ImportError(
        "this vibematch was installed without a C compiler or Python's headers: it encodes photos "
        "and has no index. Install them, then vibematch again"
    ) from error

__all__ = ["compare", "dots", "encode", "look", "rank", "scale", "select", "span"]
