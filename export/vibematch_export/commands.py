"""The lab's export and serving commands; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_REPOSITORY: Final = Path("build/model_repository")


def register(commands: Commands) -> None:
    """Add ``export``, ``serve`` and ``demo`` to the command line."""
    _add_export(commands)
    _add_serve(commands)
    _add_demo(commands)


def _add_export(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="turn a trained run into a proven graph and a Triton repository",
        description="Fuse backbone, pooling, head and normalisation into one ONNX graph, prove "
        "on photos that it is the trained model, and build the Triton model repository.",
    )
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="a finished run folder")
    _add_repository(parser)
    parser.add_argument("--size", metavar="HxW", help="canvas in pixels; default: the run's")
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="photos to prove parity on; default: the run's validation photos",
    )
    parser.set_defaults(run=_run_export)


def _run_export(args: argparse.Namespace) -> None:
    from vibematch.manifest import Manifest
    from vibematch_export.export import export
    from vibematch_export.repository import require_replaceable, write_repository
    from vibematch_training.run import parse_size

    require_replaceable(args.repository)
    size = parse_size(args.size) if args.size else None
    model = export(args.run_directory, size=size, photos=args.photos)
    write_repository(args.repository, model)
    manifest = Manifest.load(model)
    parity = manifest.parity
    print(
        f"model:      {model} (fingerprint {manifest.fingerprint[:12]})\n"
        f"parity:     least cosine {parity['min_cosine']:.10f}, mean {parity['mean_cosine']:.10f} "
        f"over {parity['photos']:.0f} photos\n"
        f"repository: {args.repository}\n"
        f"next: vibematch serve --repository {args.repository}"
    )


def _add_serve(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="start the Triton server on this machine",
        description="Start the real tritonserver on this machine's CPU, without Docker, and stop "
        "it cleanly on Ctrl-C.",
    )
    _add_repository(parser)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s (loopback only)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port", type=int, default=port, metavar="PORT", help="default: %(default)s"
        )
    parser.set_defaults(run=_run_serve)


def _run_serve(args: argparse.Namespace) -> None:
    from vibematch_export.serve import serve

    serve(
        args.repository,
        host=args.host,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
    )


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="run everything once: photos, training, export, server, matches",
        description="Draw photos, train, export, start the real server, index the photos, match "
        "them and write a gallery page.",
    )
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="match the photos of this folder instead"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), metavar="DIR", help="default: %(default)s"
    )
    parser.set_defaults(run=_run_demo)


def _run_demo(args: argparse.Namespace) -> None:
    from vibematch_export.demo import demo

    demo(args.out, photos=args.photos)


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository",
        type=Path,
        default=DEFAULT_REPOSITORY,
        metavar="DIR",
        help="Triton model repository; default: %(default)s",
    )
