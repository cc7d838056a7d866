"""infinity-emb over a CLIP of random weights: another model, of about the same work for a photo.

infinity 0.0.77 serves what has CLIP's ``get_image_features`` and ``get_text_features``; the latter
Qwen3-VL has not. It needs a transformers before 5, so it runs in an environment of its own
(``requirements-infinity.txt``), and nothing of ours is imported here. On a CPU it loads float32 and
nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Final

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

PATCH: Final = 16
DIM: Final = 256
END: Final = "<|endoftext|>"


def main() -> None:
    """Make the checkpoint if it is not there, and become the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--canvas", type=int, required=True, help="side of the square")
    parser.add_argument("--width", type=int, required=True, help="of the vision tower")
    parser.add_argument("--layers", type=int, required=True, help="of the vision tower")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder to keep it in")
    args = parser.parse_args()
    if not (args.checkpoint / "preprocessor_config.json").is_file():
        write_checkpoint(args.checkpoint, args.canvas, args.width, args.layers)
    os.environ |= {"HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    options = {"model-id": args.checkpoint, "served-model-name": "default", "engine": "torch"}
    options |= {"device": "cpu", "dtype": "float32", "batch-size": 8, "port": args.port}
    options |= {"host": "127.0.0.1", "log-level": "warning"}
    flags = [f"--{name}={value}" for name, value in options.items()]
    os.execlp("infinity_emb", "infinity_emb", "v2", *flags, "--no-model-warmup")  # noqa: S606, S607 (its own environment is first on PATH)


def write_checkpoint(folder: Path, canvas: int, width: int, layers: int) -> None:
    """A CLIP with random weights, a small text tower and a vocabulary of nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {"vocab_size": 2, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    vision |= {"num_attention_heads": width // 64, "image_size": canvas, "patch_size": PATCH}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)
    CLIPModel(config).eval().save_pretrained(folder)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({"<|startoftext|>": 0, END: 1}))
    merges.write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges), unk_token=END, pad_token=END)
    size = {"size": {"shortest_edge": canvas}, "crop_size": {"height": canvas, "width": canvas}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    main()
