"""A trained run → an exported model that has proved to be the same function.

::

    RUN/export/fp32/
    ├── model.onnx (+ model.onnx.data over 2 GB)
    ├── manifest.json               with the parity figures
    ├── config.json                 the backbone's own, for tools that want one
    └── preprocessor_config.json
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from vibematch.errors import InputError
from vibematch.photos import read_photos
from vibematch_export.fused import FusedEncoder
from vibematch_export.onnx_graph import OPSET, write_onnx
from vibematch_export.parity import measure_parity, require_parity
from vibematch_export.repository import WEIGHTS
from vibematch_training.dataset import load_dataset
from vibematch_training.run import TrainedRun, TrainingConfig

PARITY_PHOTOS: Final = 98
_COPIED: Final = ("config.json", "preprocessor_config.json")


def export(
    run_directory: Path, *, size: tuple[int, int] | None = None, photos: Path | None = None
) -> Path:
    """Export a run to ``RUN/export/fp32``, replacing an earlier export of it.

    Args:
        run_directory: a finished run.
        size: canvas height and width in pixels; the run's own if not given.
        photos: folder of photos to prove parity on; the run's validation photos if not given.

    Returns:
        The folder of the exported model.

    Raises:
        InputError: the run, its backbone or the photos cannot be used.
        ParityError: the graph is not the trained model; nothing was written.
    """
    run = TrainedRun.load(run_directory)
    manifest = run.manifest
    if size is not None:
        canvas = dataclasses.replace(manifest.preprocessing, height=size[0], width=size[1])
        manifest = dataclasses.replace(manifest, preprocessing=canvas)
    paths = _parity_photos(run.config, photos)
    backbone = run.load_backbone(torch.float32, "cpu")  # where the fused module is put together
    recipe = dataclasses.replace(run.recipe(backbone), preprocessing=manifest.preprocessing)

    target = run_directory / "export" / manifest.precision
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as name:
        partial = Path(name) / target.name
        partial.mkdir()
        graph = partial / WEIGHTS
        write_onnx(FusedEncoder(recipe, run.head).eval(), recipe.preprocessing, graph)
        parity = measure_parity(graph, paths, recipe, run.head)
        require_parity(parity, manifest.precision)
        dataclasses.replace(
            manifest,
            parity=parity,
            library_versions={
                **manifest.library_versions,
                "onnx_opset": str(OPSET),
                "onnxruntime": version("onnxruntime"),
            },
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ).save(partial)
        for filename in _COPIED:
            shutil.copy(backbone.folder / filename, partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    return target


def _parity_photos(config: TrainingConfig, photos: Path | None) -> list[Path]:
    if photos is not None:
        return [photo.path for photo in read_photos(photos)][:PARITY_PHOTOS]
    folder = Path(config.photos)
    if not folder.is_dir():
        raise InputError(
            f"the run's photos are no longer at {folder}; name a folder to prove parity on with "
            "--photos"
        )
    dataset = load_dataset(folder, config.label, config.seed, undersample=config.undersample)
    return [photo.path for photo in dataset.validation][:PARITY_PHOTOS]
