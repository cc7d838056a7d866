"""The lab's export and serving commands; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vibematch_export.control import Control
    from vibematch_export.publish import Published

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_REPOSITORY: Final = Path("build/model_repository")

_ADMIN_KEY: Final = "VIBEMATCH_ADMIN_KEY"
_COMPILED: Final = ("bf16", "fp16")
_NOT_COMPILED: Final = "TensorRT compiles bf16 and fp16 graphs; choose with --precision"


def register(commands: Commands) -> None:
    """Add this package's commands to the command line."""
    _add_export(commands)
    _add_parity(commands)
    _add_serve(commands)
    _add_publish(commands)
    _add_demo(commands)


def _add_export(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="turn a trained run into proven graphs and a Triton repository",
        description="Fuse backbone, pooling, head and normalisation into one ONNX graph for each "
        "precision, prove on photos that it is the trained model, and build the Triton model "
        "repository from the first one. What is up to date is not made again.",
    )
    parser.add_argument(
        "run_directory",
        type=Path,
        metavar="RUN",
        help="a finished run folder; with --runtime tensorrt also an exported model",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=("fp32", "int8", "bf16", "fp16"),
        metavar="P",
        help="fp32, int8 (CPU), bf16, fp16 (GPU); default: fp32, or bf16 with tensorrt",
    )
    parser.add_argument(
        "--runtime",
        choices=("onnxruntime", "tensorrt"),
        default="onnxruntime",
        help="tensorrt compiles an engine beside the graph as well: for the GPU of this machine, "
        "or without one for compute capability 8.6 (A10G), to see that it compiles",
    )
    _add_repository(parser)
    parser.add_argument("--size", metavar="HxW", help="canvas in pixels; default: the run's")
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="photos to prove parity on; default: the run's validation photos",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="have the server that runs on the repository go over to the first one, instead of "
        "making the repository anew",
    )
    parser.set_defaults(run=_run_export)


def _run_export(args: argparse.Namespace) -> None:
    from vibematch.errors import InputError

    for_tensorrt = args.runtime == "tensorrt"
    if for_tensorrt:
        from vibematch_export.tensorrt import Target, default_library

        Target.here(default_library())  # missing? then say so before hours of other work
        if (args.run_directory / "model.onnx").is_file():
            if args.precision or args.size or args.photos:
                raise InputError(
                    f"{args.run_directory} is exported already: --precision, --size and --photos "
                    "are for runs"
                )
            _build_engine(args.run_directory)  # in NVIDIA's container, which has no PyTorch
            return
    from vibematch_export.control import require_nobody_serves
    from vibematch_export.export import export_all, print_exports
    from vibematch_export.parity import ParityError
    from vibematch_export.repository import require_replaceable
    from vibematch_training.run import parse_size

    precisions = list(dict.fromkeys(args.precision or ["bf16" if for_tensorrt else "fp32"]))
    if for_tensorrt and not set(_COMPILED).issuperset(precisions):
        raise InputError(_NOT_COMPILED)
    if args.publish:
        _running_server(args.repository)
    else:
        require_replaceable(args.repository)
        require_nobody_serves(args.repository)
    size = parse_size(args.size) if args.size else None
    exports = export_all(args.run_directory, precisions, size=size, photos=args.photos)
    print_exports(exports)
    if for_tensorrt:
        for made in exports:
            if not made.problem:
                _build_engine(made.model)
    # The first one, or none: a server must not turn to another precision's vectors by itself.
    if exports[0].problem:
        pass
    elif args.publish:  # asked again: hours may have passed
        _publish(exports[0].model, args.repository, _running_server(args.repository))
    else:
        require_nobody_serves(args.repository)
        _write_repository(args.repository, exports[0].model)
    if refused := [made.manifest.precision for made in exports if made.problem]:
        raise ParityError(f"not published: {', '.join(refused)}; the reasons are above")


def _write_repository(repository: Path, model: Path) -> None:
    from vibematch_export.repository import CPU, PROFILES, read_manifest, write_repository

    write_repository(repository, model)
    manifest = read_manifest(repository)
    profile = next(name for name, able in PROFILES.items() if manifest.precision in able.precisions)
    option = "" if profile == CPU else f" --profile {profile}"
    print(
        f"repository: {repository} ({manifest.precision}, fingerprint "
        f"{manifest.fingerprint[:12]})\n"
        f"next: vibematch serve --repository {repository}{option}"
    )


def _build_engine(model: Path) -> None:
    from vibematch.errors import InputError
    from vibematch.manifest import Manifest
    from vibematch_export.tensorrt import Target, build_engine, default_library, is_up_to_date

    if Manifest.load(model).precision not in _COMPILED:
        raise InputError(_NOT_COMPILED)
    graph, library = model / "model.onnx", default_library()
    there = model / Target.here(library).filename
    if is_up_to_date(there, graph):
        print(f"engine:     {there} (up to date)")
        return
    plan = build_engine(graph, model, library=library)
    products = ", ".join(
        f"{count} products in {kind}" for kind, count in plan.matrix_products.items()
    )
    size = plan.path.stat().st_size / 1e6
    print(f"engine:     {plan.path} ({size:.0f} MB, for {plan.target}; {products})")


def _add_parity(commands: Commands) -> None:
    parser = commands.add_parser(
        "parity",
        help="prove exported models again: are they the trained model?",
        description="Compare exported models with Hugging Face's own forward + the trained head "
        "on photos, and exit with status 1 if one of them strays.",
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="MODEL_DIR",
        help="an exported model (RUN/export/int8), or RUN for all its exports",
    )
    parser.add_argument(
        "--run",
        type=Path,
        dest="run_directory",
        metavar="RUN",
        help="the run of models that no longer lie in it",
    )
    parser.add_argument(
        "--photos",
        type=Path,
        metavar="DIR",
        help="photos to compare on; default: the run's validation photos, then its others",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=_run_parity)


def _run_parity(args: argparse.Namespace) -> None:
    from vibematch_export.parity import ParityError
    from vibematch_export.proof_report import print_proofs, prove

    proofs = prove(args.folders, run=args.run_directory, photos=args.photos)
    if args.json:
        print(json.dumps([proof.to_json() for proof in proofs], ensure_ascii=False))
    else:
        print_proofs(proofs)
    if failed := sum(bool(proof.problem) for proof in proofs):
        raise ParityError(f"{failed} of {len(proofs)} exported models are not the trained model")


def _add_serve(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="start the Triton server on this machine",
        description="Start the real tritonserver, this machine's or the container's own, and stop "
        "it cleanly on Ctrl-C or SIGTERM.",
        epilog="Exit status: 0 stopped when told to, 1 could not start, 2 wrong usage, 3 the "
        "server ended by itself.",
    )
    _add_repository(parser)
    parser.add_argument(
        "--profile",
        default="cpu",
        metavar="NAME",
        help="cpu, or in NVIDIA's container onnxruntime, onnxruntime_tensorrt or tensorrt; "
        "default: %(default)s",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s (loopback only)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port", type=int, default=port, metavar="PORT", help="default: %(default)s"
        )
    parser.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="certificate to encrypt gRPC with"
    )
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    parser.add_argument(
        "--otlp-url",
        metavar="URL",
        help="post OpenTelemetry traces there, e.g. http://127.0.0.1:4318/v1/traces",
    )
    parser.add_argument(
        "--log",
        metavar="FILE",
        help="Triton's log; - is standard output; default: the repository's name with .log",
    )
    parser.add_argument(
        "--log-level",
        choices=("error", "warning", "info", "verbose"),
        default="info",
        help="default: %(default)s",
    )
    parser.set_defaults(run=_run_serve)


def _run_serve(args: argparse.Namespace) -> int:
    import os

    from vibematch.errors import InputError
    from vibematch_export.serve import ServerEndedError, default_log, serve
    from vibematch_export.triton import TritonServer

    if (args.tls_cert is None) != (args.tls_key is None):
        raise InputError("--tls-cert and --tls-key go together")
    repository = args.repository.resolve()
    log_path = Path(args.log) if args.log else default_log(repository)
    server = TritonServer(
        repository,
        profile=args.profile,
        host=args.host,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
        tls=(args.tls_cert.resolve(), args.tls_key.resolve()) if args.tls_cert else None,
        otlp_url=args.otlp_url,
        log_path=log_path,
        log_level=args.log_level,
        admin_key=os.environ.get(_ADMIN_KEY) or None,
    )
    try:
        serve(repository, server, log_path)
    except ServerEndedError as error:
        print(f"vibematch: error: {error}", file=sys.stderr)
        return 3
    return 0


def _add_publish(commands: Commands) -> None:
    parser = commands.add_parser(
        "publish",
        help="have a running server go over to another model, without a pause",
        description="Lay an exported model beside the one that a running server answers with, "
        "load it, warm it up, check it on a known photo, and only then go over to it. If any of "
        "that fails, the server goes on as it was. The model before stays loaded.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("model", type=Path, nargs="?", metavar="MODEL_DIR", help="an exported model")
    which.add_argument(
        "--rollback", action="store_true", help="go back to the model before instead"
    )
    _add_repository(parser)
    parser.add_argument(
        "--url",
        metavar="HOST:PORT",
        help="the server's HTTP endpoint, if `vibematch serve` does not run on this machine's "
        f"copy of the repository; its key is then in ${_ADMIN_KEY}",
    )
    parser.add_argument(
        "--profile", default="cpu", metavar="NAME", help="of the server at --url; default: cpu"
    )
    parser.set_defaults(run=_run_publish)


def _run_publish(args: argparse.Namespace) -> None:
    from vibematch_export.publish import roll_back

    server = _server_at(args.url, args.profile) if args.url else _running_server(args.repository)
    if args.rollback:
        _print_published(roll_back(args.repository, server), args.repository)
    else:
        _publish(args.model, args.repository, server)


def _publish(model: Path, repository: Path, server: Control) -> None:
    from vibematch_export.publish import publish

    print(f"loading {model} beside the model that answers …", flush=True)
    _print_published(publish(model, repository, server), repository)


def _print_published(done: Published, repository: Path) -> None:
    print(
        f"version {done.version} answers now (fingerprint {done.manifest.fingerprint[:12]}, "
        f"{done.manifest.precision}, canary cosine {done.cosine:.6f}); version {done.previous} "
        "stays loaded\n"
        f"back: vibematch publish --rollback --repository {repository}"
    )


def _server_at(url: str, profile: str) -> Control:
    import os

    from vibematch.errors import InputError
    from vibematch_export.control import Control
    from vibematch_export.repository import find_profile

    if not re.fullmatch(r"[^/:]+:\d+", url):
        raise InputError(f"the server's address must be HOST:PORT (its HTTP port), got {url!r}")
    find_profile(profile)
    if not (key := os.environ.get(_ADMIN_KEY)):
        raise InputError(f"--url needs the key that the server was started with in ${_ADMIN_KEY}")
    return Control(url, key, profile)


def _running_server(repository: Path) -> Control:
    from vibematch.errors import InputError
    from vibematch_export.control import find_server

    if (server := find_server(repository)) is None:
        raise InputError(
            f"no server runs on {repository}: start it with `vibematch serve`, or make the "
            "repository anew with `vibematch export`"
        )
    return server


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
