"""The frozen Qwen3-VL backbone, from a local checkpoint folder or a hub id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.utils import logging as transformers_logging

from vibematch.errors import InputError
from vibematch_training.fp8_checkpoint import dequantised_weights
from vibematch_training.tiny import tiny_backbone

PROMPT: Final = "Describe this person's appearance."
TINY: Final = "tiny"

_DIGESTED: Final = ("*.safetensors", "*.json", "*.jinja", "*.txt")
_CHUNK_BYTES: Final = 1 << 24


@dataclass(frozen=True)
class Backbone:
    """A frozen backbone with the tokenizer and image processor that belong to it.

    Attributes:
        name: what it was loaded by: ``tiny``, a folder or a hub id.
        folder: the checkpoint on disk.
        model: the Hugging Face model without its language-model head, in evaluation mode.
        tokenizer: carries the chat template.
        image_processor: carries normalisation and patch sizes.
        sha256: digest of the checkpoint's weights, configuration and tokenizer.
    """

    name: str
    folder: Path
    model: Qwen3VLModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: Qwen2VLImageProcessorPil
    sha256: str

    @property
    def feature_dim(self) -> int:
        """Width of the last hidden state."""
        width: int = self.model.language_model.embed_tokens.embedding_dim
        return width

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels that one image token stands for."""
        side: int = self.image_processor.patch_size * self.image_processor.merge_size
        return side

    def token_ids(self, prompt: str, height: int, width: int) -> torch.Tensor:
        """The chat-templated prompt with one photo, its placeholder repeated per image token.

        Args:
            prompt: the instruction beside the photo.
            height: canvas height in pixels.
            width: canvas width in pixels.

        Returns:
            int64, shape ``[tokens]``.

        Raises:
            InputError: the canvas is no whole number of this checkpoint's tokens, or its chat
                template does not place one photo.
        """
        side = self.pixels_per_token
        if height % side or width % side:
            raise InputError(
                f"backbone {self.name} sees a photo in squares of {side} pixels: height and width "
                f"must be multiples of {side}, got {height} x {width}"
            )
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        image_token_id = self.model.config.image_token_id
        if (ids == image_token_id).sum() != 1:
            raise InputError(
                f"the chat template of backbone {self.name} does not place exactly one image token"
            )
        image_tokens = (height // side) * (width // side)
        repeats = torch.where(ids == image_token_id, image_tokens, 1)
        return ids.repeat_interleave(repeats)


def load_backbone(
    source: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Backbone:
    """Load a dense Qwen3-VL checkpoint of any size: Instruct, Thinking, Embedding, FP8.

    Args:
        source: ``tiny`` (built here, untrained), a checkpoint folder, or a hub id such as
            ``Qwen/Qwen3-VL-2B-Instruct``.
        dtype: number format of the weights in memory; by default bfloat16, that of the published
            checkpoints, on a GPU that computes in it, and float32 elsewhere.
        device: where the model computes; by default the GPU, if there is one.

    Raises:
        InputError: the source cannot be found or is not a Qwen3-VL checkpoint.
    """
    transformers_logging.disable_progress_bar()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if device.type == "cuda" and in_hardware else torch.float32
    folder = _folder(source)
    if not any(folder.glob("*.safetensors")):  # the digest, and so the fingerprint, covers no other
        raise InputError(f"{source} is not a usable Qwen3-VL checkpoint: it has no *.safetensors")
    try:
        model = _load_model(folder, dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # Pillow's implementation: the same numbers without torchvision
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except InputError as error:
        raise InputError(f"{source} {error}") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{source} is not a usable Qwen3-VL checkpoint: {reason}") from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _processor_chat_template(folder)
    model.eval().requires_grad_(False)
    if device.type == "cpu":  # the same numbers from a memory layout that oneDNN is faster with
        model.visual.patch_embed.proj.to(memory_format=torch.channels_last_3d)
    model.to(device)  # type: ignore[arg-type]  # its wrapper lost the types
    return Backbone(source, folder, model, tokenizer, image_processor, _digest(folder))


def _load_model(folder: Path, dtype: torch.dtype) -> Qwen3VLModel:
    """The checkpoint's model, every weight of it read from the checkpoint.

    Raises:
        InputError: another kind of model, quantised in a way that is not known here, or incomplete;
            the message continues the sentence "<checkpoint> ...".
    """
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, Qwen3VLConfig):  # before tens of gigabytes are read
        raise InputError(
            f"holds a model of type {config.model_type!r}; give a dense Qwen3-VL checkpoint "
            f"({Qwen3VLConfig.model_type!r}) such as Qwen/Qwen3-VL-2B-Instruct"
        )
    quantization = config.__dict__.pop("quantization_config", None)
    weights = dequantised_weights(folder, quantization, dtype) if quantization else None
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report counts an unused lm_head as a finding
    try:
        loaded: Any = Qwen3VLModel.from_pretrained(
            None if weights else folder,
            config=config,
            state_dict=weights,
            dtype=dtype,
            attn_implementation="sdpa",  # attention in one kernel, as the served graph computes it
            ignore_mismatched_sizes=True,  # named below
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    model: Qwen3VLModel = loaded[0]
    missing, misfits = (sorted(loaded[1][f"{kind}_keys"]) for kind in ("missing", "mismatched"))
    if missing:  # transformers draws them at random
        raise InputError(
            f"lacks {len(missing)} of the model's weights, such as {missing[0]}: fetch it again"
        )
    if misfits:
        name, stored, expected = misfits[0]
        raise InputError(
            f"has {len(misfits)} weights that do not fit its config.json, such as {name}: "
            f"{list(stored)} instead of {list(expected)}"
        )
    return model


def _folder(source: str) -> Path:
    if source == TINY:
        return tiny_backbone()
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise InputError(
            f"no checkpoint folder {source}; give 'tiny', a folder, or a hub id such as "
            "Qwen/Qwen3-VL-2B-Instruct"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(_DIGESTED)))
    except Exception as error:  # the hub's client raises many kinds; all mean "not to be had"
        raise InputError(
            f"{source} is neither a folder nor a checkpoint the hub would give: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


def _processor_chat_template(folder: Path) -> str:
    """Older checkpoints keep the template beside the processor instead of in the tokenizer."""
    path = folder / "chat_template.json"
    if not path.is_file():
        raise InputError(f"{folder} has no chat template (chat_template.jinja or .json)")
    template: str = json.loads(path.read_text(encoding="utf-8"))["chat_template"]
    return template


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _DIGESTED for path in folder.glob(pattern)):
        digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
