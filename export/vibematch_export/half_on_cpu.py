"""A graph for GPUs in a half precision, made to run on a CPU with the same rounding.

ONNX Runtime's CPU provider multiplies neither bfloat16 nor float16. Here each operator computes in
float32 and its result is rounded to the graph's format, as tensor cores do, which multiply halves
and sum in float32. So a half-precision export can be proven on a machine without a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import onnx_ir as ir

_HALVES: Final = {ir.DataType.BFLOAT16, ir.DataType.FLOAT16}


@contextmanager
def emulated(graph: Path) -> Iterator[Path]:
    """A temporary graph for the CPU that computes what a half-precision graph does.

    Args:
        graph: the ``.onnx`` file; weights beside it are shared, not copied, and its folder must be
            writable.
    """
    model = ir.load(graph)
    halves = {
        value: value.dtype
        for value in [
            *model.graph.initializers.values(),
            *(output for node in model.graph for output in node.outputs),
        ]
        if value.dtype in _HALVES
    }
    for value, number_format in halves.items():
        _round(model.graph, value, number_format)
    with tempfile.NamedTemporaryFile(dir=graph.parent, prefix=".", suffix=graph.name) as file:
        ir.save(model, file.name)
        yield Path(file.name)


def _round(graph: ir.Graph, value: ir.Value, number_format: ir.DataType) -> None:
    """Let the users of a value see it in float32, rounded to ``number_format``."""
    node = value.producer()
    steps = [ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})]
    if node is not None and node.op_type != "Cast":  # which computes in float32 from here on
        value.dtype = ir.DataType.FLOAT
        steps.insert(0, ir.node("Cast", [value], {"to": int(number_format)}))
        steps[1].replace_input_with(0, steps[0].outputs[0])
        steps[0].outputs[0].dtype = number_format
    widened = steps[-1].outputs[0]
    widened.dtype = ir.DataType.FLOAT
    for user, position in list(value.uses()):
        if user not in steps:
            user.replace_input_with(position, widened)
    if node is None:
        graph.insert_before(graph[0], steps)
    else:
        graph.insert_after(node, steps)
