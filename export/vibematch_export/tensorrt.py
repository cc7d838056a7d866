"""An ONNX graph → a TensorRT engine in a plan file.

One module drives two libraries whose Python interfaces mirror each other:

- ``tensorrt`` measures kernels on the GPU it runs on and builds for that one. Its plans are what
  Triton's tensorrt backend loads: build them in NVIDIA's container of the same release.
- ``tensorrt-rtx`` needs no GPU and compiles for compute capability 8.6, the A10G's. It shows on
  any machine that a graph compiles; Triton does not load its plans.

A plan's name says what it runs with::

    RUN/export/bf16/
    ├── model.onnx (+ model.onnx.data)
    ├── model.tensorrt-11.4.1.10.nvidia-a10g.plan
    └── model.tensorrt-11.4.1.10.nvidia-a10g.timing   measured kernels: the next build is faster

Nothing here needs torch, which NVIDIA's container does not have.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, Self, get_args

from tqdm import tqdm

from vibematch.errors import InputError, VibematchError
from vibematch_training.files import write_atomically

Library = Literal["tensorrt", "tensorrt-rtx"]

BATCHES: Final = (1, 8, 32)
"""Batch sizes of the one optimisation profile: least, the one it is tuned for, most."""

_OUTPUT: Final = "embedding"
_RTX_GPU: Final = "sm86"
_SHOWN: Final = 3
"""Of many refused nodes, so many are named: the rest is refused for the same reasons."""
_PRECISIONS: Final = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
_NAME: Final = re.compile(
    rf"model\.(?P<library>{'|'.join(get_args(Library))})-(?P<version>\d[\w.]*)"
    r"\.(?P<gpu>[a-z0-9-]+)\.plan"
)
_INSTALL: Final = {
    "tensorrt": "on the GPU machine run this in NVIDIA's container nvcr.io/nvidia/tensorrt of the "
    "release that Triton has, or `pip install tensorrt` in its version",
    "tensorrt-rtx": "`pip install tensorrt-rtx-cu12`, which needs no GPU",
}
_LOG: Final = logging.getLogger(__name__)


class EngineError(VibematchError):
    """TensorRT cannot make an engine of the graph; nothing was written."""


@dataclass(frozen=True)
class Target:
    """What a plan was built with and for; nothing else can run it.

    Attributes:
        library: the library that built it.
        version: that library's version.
        gpu: the GPU's model, e.g. ``nvidia-a10g``; for ``tensorrt-rtx`` a compute capability.
    """

    library: Library
    version: str
    gpu: str

    def __str__(self) -> str:
        return f"{self.library} {self.version} on {self.gpu}"

    @property
    def filename(self) -> str:
        """Name of a plan with this target."""
        return f"model.{self.library}-{self.version}.{self.gpu}.plan"

    @classmethod
    def of_plan(cls, plan: Path) -> Self:
        """Read the target from a plan's name.

        Raises:
            InputError: the name does not say it.
        """
        match = _NAME.fullmatch(plan.name)
        if match is None:
            raise InputError(
                f"{plan} does not say what it was built for: a plan has a name like "
                f"{Target('tensorrt', '11.4.1.10', 'nvidia-a10g').filename}"
            )
        return cls(**match.groupdict())  # type: ignore[arg-type]  # the pattern gives the literals

    @classmethod
    def here(cls, library: Library) -> Self:
        """What ``library`` builds for on this machine.

        Raises:
            InputError: the library is not installed, or needs a GPU and there is none.
        """
        version = str(_load_library(library).__version__)
        if library == "tensorrt-rtx":
            return cls(library, version, _RTX_GPU)
        gpu = _gpu_model()
        if gpu is None:
            raise InputError(
                "tensorrt builds and runs plans on a GPU, and there is none here: use the machine "
                "that will serve, or tensorrt-rtx to see whether the graph compiles"
            )
        return cls(library, version, re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-"))


@dataclass(frozen=True)
class Plan:
    """An engine that was built.

    Attributes:
        path: its file.
        target: what it runs with.
        matrix_products: precision → how many matrix products compute in it. The network is
            strongly typed, so the engine keeps to these.
    """

    path: Path
    target: Target
    matrix_products: Mapping[str, int]


def default_library() -> Library:
    """``tensorrt`` where there is a GPU, otherwise ``tensorrt-rtx``."""
    return "tensorrt-rtx" if _gpu_model() is None else "tensorrt"


def is_up_to_date(plan: Path, graph: Path) -> bool:
    """Whether a plan is there and was made after its graph."""
    return plan.is_file() and plan.stat().st_mtime > graph.stat().st_mtime


def build_engine(graph: Path, folder: Path, *, library: Library, progress: bool = True) -> Plan:
    """Compile a graph for batches of 1 to 32, best at 8.

    ``pixels``, uint8 ``[batch, 3, H, W]`` → ``embedding``, float32 ``[batch, dim]``; the graph's
    other outputs are left out, with what only they need. Number formats are the graph's: the
    network is strongly typed, and float32 is not rounded to TF32. With ``tensorrt``, measured
    kernels are kept in ``folder`` for the next build.

    Args:
        graph: the ``.onnx`` file, its external data beside it. ``pixels`` may go nowhere but into
            a Cast to float32 or float16: that is all TensorRT does with uint8.
        folder: where the plan goes; its name is ``target.filename``.
        library: which TensorRT to build with, see :func:`default_library`.
        progress: show a bar.

    Returns:
        The plan.

    Raises:
        InputError: there is no such graph, the library is not installed, or it needs a GPU and
            there is none.
        EngineError: TensorRT refuses the graph; the message names the node if it knows it.
    """
    if not graph.is_file():
        raise InputError(f"there is no graph {graph}: make it with `vibematch export` first")
    target = Target.here(library)
    trt = _load_library(library)
    log = _fresh_log(trt)
    plan = folder / target.filename
    with tqdm(desc="TensorRT", unit="step", disable=not progress) as bar:
        monitor = _make_monitor(trt, bar)
        with _cancelled_by_ctrl_c(monitor):
            builder = _create(trt.Builder, log)
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            network = builder.create_network(flags)
            parser = trt.OnnxParser(network, log)
            if not parser.parse_from_file(str(graph)):
                raise EngineError(f"TensorRT cannot read {graph}: {_parser_errors(parser)}")
            _keep_one_output(network)
            config = _configure(trt, builder, network)
            config.progress_monitor = monitor
            if library == "tensorrt":
                _load_timings(config, plan.with_suffix(".timing"))
            else:  # it measures nothing, and has to be told what to compile for
                config.num_compute_capabilities = 1
                config.set_compute_capability(trt.ComputeCapability.SM86, 0)
            engine = builder.build_serialized_network(network, config)
    if monitor.cancelled:
        raise KeyboardInterrupt
    if engine is None:
        raise EngineError(f"TensorRT cannot build an engine of {graph}: {_errors(log)}")
    if library == "tensorrt":
        write_atomically(plan.with_suffix(".timing"), config.get_timing_cache().serialize())
    write_atomically(plan, engine)
    return Plan(plan, target, _matrix_products(trt, network))


def require_target(plan: Path, here: Target, *, rebuild: str) -> None:
    """Make sure that a plan is for a machine, by its name alone; needs neither GPU nor TensorRT.

    Args:
        plan: the plan file.
        here: what the machine runs.
        rebuild: the command that builds the plan anew, for the message.

    Raises:
        InputError: it is for another library, version or GPU, or its name does not say.
    """
    target = Target.of_plan(plan)
    if target != here:
        raise InputError(
            f"{plan} runs with {target} only, and this is {here}: build it here with `{rebuild}`"
        )


def load_engine(plan: Path, *, rebuild: str) -> Any:
    """Load a plan onto this machine's GPU.

    Args:
        plan: the plan file; only one of your own, for a plan holds code.
        rebuild: the command that builds the plan anew, for the message.

    Returns:
        The library's ``ICudaEngine``.

    Raises:
        InputError: the plan is for another machine, the library refuses it, it cannot be read, or
            the library is not installed.
        EngineError: the library does not start here.
    """
    library = Target.of_plan(plan).library
    require_target(plan, Target.here(library), rebuild=rebuild)
    trt = _load_library(library)
    try:
        content = plan.read_bytes()
    except OSError as error:
        raise InputError(f"{plan} cannot be read ({error.strerror})") from error
    log = _fresh_log(trt)
    engine = _create(trt.Runtime, log).deserialize_cuda_engine(content)
    if engine is None and _gpu_model() is None:
        raise InputError(f"{plan} runs on a GPU, and there is none here ({_errors(log)})")
    if engine is None:
        raise InputError(
            f"{library} refuses {plan} ({_errors(log)}): build it here with `{rebuild}`"
        )
    return engine


def _load_library(library: Library) -> ModuleType:
    try:
        return importlib.import_module(library.replace("-", "_"))
    except ImportError as error:
        raise InputError(f"{library} is not installed: {_INSTALL[library]} ({error})") from error


def _create(factory: Any, log: Any) -> Any:
    """A builder or runtime; without a usable driver the constructor itself fails."""
    try:
        return factory(log)
    except (RuntimeError, TypeError) as error:
        raise EngineError(f"TensorRT does not start: {_errors(log) or error}") from error


def _gpu_model() -> str | None:
    """The first visible GPU's name as the driver has it, or ``None`` without driver or GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
    )
    return None if failed else name.value.decode()


def _configure(trt: ModuleType, builder: Any, network: Any) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    pixels = network.get_input(0)
    photo = tuple(pixels.shape)[1:]
    profile.set_shape(pixels.name, *((batch, *photo) for batch in BATCHES))
    config.add_optimization_profile(profile)
    return config


def _keep_one_output(network: Any) -> None:
    for tensor in [network.get_output(number) for number in range(network.num_outputs)]:
        if tensor.name != _OUTPUT:
            network.unmark_output(tensor)


def _load_timings(config: Any, path: Path) -> None:
    """Give the builder what an earlier build measured with this library on this GPU."""
    known = path.read_bytes() if path.exists() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        _LOG.warning("%s is damaged or foreign: measuring anew", path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _matrix_products(trt: ModuleType, network: Any) -> dict[str, int]:
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    types = [
        layer.get_output(0).dtype.name
        for layer in layers
        if layer.type == trt.LayerType.MATRIX_MULTIPLY
    ]
    return dict(Counter(_PRECISIONS.get(name, name.lower()) for name in types))


def _parser_errors(parser: Any) -> str:
    count: int = parser.num_errors
    shown = [_parser_error(parser.get_error(number)) for number in range(min(count, _SHOWN))]
    more = [f"and {count - _SHOWN} more"] if count > _SHOWN else []
    return "; ".join(shown + more)


def _parser_error(error: Any) -> str:
    described = _first_cause(error.desc())
    if error.node() < 0:  # about the file, not about a node
        return described
    inside = "".join(f" in {function}" for function in error.local_function_stack())
    name = error.node_name() or f"number {error.node()}"
    return f"node {name} ({error.node_operator()}){inside}: {described}"


def _errors(log: Any) -> str:
    return _first_cause("\n".join(log.errors))


def _first_cause(text: str) -> str:
    """The lines that say what is wrong: a machine without a GPU adds that, and nodes repeat."""
    lines = [
        line
        for line in text.splitlines()
        if "catchCudaError" not in line and not line.startswith("Invalid Node")
    ]
    return " ".join(lines) or text


def _fresh_log(trt: ModuleType) -> Any:
    log = _log(trt)
    log.errors.clear()
    return log


@functools.cache
def _log(trt: ModuleType) -> Any:
    """TensorRT's log: into Python's, and errors into a list for the exception.

    One for all builders. A failed one lives on in its exception's traceback, and TensorRT would
    go on using its log; worse, it would say so to that log with a lock held that the end of a
    builder waits for: the process stands still if Python collects the old one right there.
    """
    severity = trt.ILogger.Severity
    levels = {severity.WARNING: logging.WARNING, severity.INFO: logging.INFO}

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]  # the library is found at run time
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.errors.append(message)
            _LOG.log(levels.get(level, logging.DEBUG), "%s", message)

    return Log()


def _make_monitor(trt: ModuleType, bar: tqdm[Any]) -> Any:
    """Shows the builder's nested phases as one bar that grows, and can stop the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]  # as for Log
        def __init__(self) -> None:
            super().__init__()
            self.cancelled = False
            self._left: Counter[str] = Counter()
            self._lock = threading.Lock()  # the builder calls from threads of its own
            self._steps = 0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._steps += steps
                bar.total = self._steps
                self._left[phase] += steps
                bar.set_postfix_str(phase, refresh=False)

        def step_complete(self, phase: str, step: int) -> bool:
            with self._lock:
                bar.update()
                self._left[phase] -= 1
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            with self._lock:  # a phase may end before its last step
                bar.update(self._left.pop(phase, 0))

    return Monitor()


@contextmanager
def _cancelled_by_ctrl_c(monitor: Any) -> Iterator[None]:
    """Have Ctrl-C stop the build at its next step.

    A KeyboardInterrupt in one of the library's callbacks would be printed and forgotten.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def cancel(*_: object) -> None:
        monitor.cancelled = True

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
