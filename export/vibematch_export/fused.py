"""The fused model: uint8 pixels in, unit vector out.

Built from the checkpoint's own sub-modules for one fixed canvas and prompt, so that everything
that does not depend on the photo is a constant: prompt embeddings, rotary tables, interpolated
position embeddings, normalisation (folded into the patch projection). Compared with Hugging Face's
packed implementation, the vision tower keeps a true batch axis, and DeepStack features are added
by position instead of through a boolean mask.

It computes in PyTorch, and it is what :mod:`vibematch_export.onnx_graph` exports: while
``torch.onnx`` traces it, linear layers, attention and RMS norms become single nodes of the domain
``vibematch`` (:mod:`vibematch_export.operators`), to which weights of any precision are attached
later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Final, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from vibematch.errors import InputError
from vibematch_training.backbone import Backbone
from vibematch_training.features import FeatureRecipe, Pooling, pool_tokens
from vibematch_training.head import ProjectionHead

DOMAIN: Final = "vibematch"

Epilogue = Literal["", "Gelu", "GeluTanh", "SwiGLU", "Add"]
"""What follows a linear layer inside the same operator; ``Add`` is the residual connection."""

_ACTIVATIONS: Final[dict[Epilogue, Callable[[torch.Tensor], torch.Tensor]]] = {
    "GeluTanh": partial(F.gelu, approximate="tanh"),
    "Gelu": F.gelu,
    "SwiGLU": F.silu,  # of the gate
}


class FusedEncoder(nn.Module):
    """Backbone, pooling, head and L2 normalisation in one module of fixed resolution.

    Its linear layers share their weights with the backbone.

    Args:
        recipe: backbone, canvas, prompt and pooling.
        head: the trained projection head.

    Raises:
        InputError: the backbone uses an activation function that Qwen3-VL models do not have.
    """

    def __init__(self, recipe: FeatureRecipe, head: ProjectionHead) -> None:
        super().__init__()
        canvas = recipe.preprocessing
        self.vision = FusedVision(recipe.backbone, canvas.height, canvas.width)
        self.decoder = FusedDecoder(recipe)
        self.pool = _Pool(recipe.pooling, recipe.image_tokens)
        self.head = head
        for path, layer in self.linears().items():
            layer.path = path

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map photos to embeddings and to the pooled features they come from.

        Args:
            pixels: uint8 RGB, shape ``[batch, 3, height, width]``.

        Returns:
            Unit vectors, float32 ``[batch, embedding_dim]``, and features, float32
            ``[batch, feature_dim]``.
        """
        image, deepstack = self.vision(pixels)
        features = self.pool(self.decoder(image, deepstack))
        return self.head(features), features

    def prepare_export(self, dtype: torch.dtype, wide: Collection[str], *, operators: bool) -> None:
        """Say what the graph shall be like that ``torch.onnx.export`` makes of this module.

        Args:
            dtype: in which linear layers and attention compute; all else is float32.
            wide: names of linear layers that compute in float32 all the same.
            operators: whether attention and RMS norms become single operators.
        """
        for path, layer in self.linears().items():
            layer.export_dtype = torch.float32 if path in wide else dtype
        for module in self.modules():
            if isinstance(module, _Operator):
                module.as_operator = operators

    def linears(self) -> dict[str, Linear]:
        """The backbone's linear layers by name, in the order in which they compute.

        Names count blocks with two digits, ``vision.block_07.attn.qkv``.
        """
        return {
            readable(path): module
            for path, module in self.named_modules()
            if isinstance(module, Linear)
        }


def readable(path: str) -> str:
    """A module path as people read it: ``vision.block.7.mlp`` → ``vision.block_07.mlp``."""
    parts: list[str] = []
    for part in path.split("."):
        if part.isdecimal() and parts:
            parts[-1] += f"_{int(part):02d}"
        else:
            parts.append(part)
    return ".".join(parts)


class Linear(nn.Module):
    """Linear layers side by side and what follows them: one operator of the exported graph.

    Args:
        parts: layers of one input; their outputs are concatenated.
        epilogue: what follows. ``SwiGLU`` takes a gate and an up projection.

    Attributes:
        path: the layer's name in the graph.
        shape: inputs and outputs; both halves of the outputs for SwiGLU.
        export_dtype: number format of its output in the exported graph, unless a residual is
            added: those sums stay float32.
    """

    def __init__(self, *parts: nn.Linear, epilogue: Epilogue = "") -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.shape = (parts[0].in_features, sum(part.out_features for part in parts))
        self.epilogue = epilogue
        self.path = ""
        self.export_dtype = torch.float32

    def forward(self, states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Map ``[batch, tokens, inputs]`` to ``[batch, tokens, outputs]``; may add a residual."""
        if torch.onnx.is_in_onnx_export():
            return self._symbolic(states, residual)
        output = torch.cat([part(states) for part in self._layers()], dim=-1)
        if residual is not None:
            return residual + output
        if self.epilogue not in _ACTIVATIONS:
            return output
        activation = _ACTIVATIONS[self.epilogue]
        if self.epilogue == "SwiGLU":
            gate, up = output.chunk(2, dim=-1)
            return activation(gate) * up
        return activation(output)

    def weight(self) -> torch.Tensor:
        """All weights, ``[inputs, outputs]``."""
        return torch.cat([part.weight.detach() for part in self._layers()]).T

    def bias(self) -> torch.Tensor:
        """All biases, ``[outputs]``; zeros where a layer has none."""
        biases = [
            part.weight.new_zeros(part.out_features) if part.bias is None else part.bias.detach()
            for part in self._layers()
        ]
        return torch.cat(biases)

    def _layers(self) -> list[nn.Linear]:
        return cast(list[nn.Linear], list(self.parts))

    def _symbolic(self, states: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        width = self.shape[1] // (2 if self.epilogue == "SwiGLU" else 1)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Linear{self.epilogue}",
            [states] if residual is None else [states, residual],
            {"path": self.path},
            dtype=self.export_dtype if residual is None else torch.float32,
            shape=[*states.shape[:-1], width],
            version=1,
        )


class _Operator(nn.Module):
    """Becomes one node of the exported graph, or several if not ``as_operator``."""

    as_operator = True

    def exports(self) -> bool:
        return self.as_operator and torch.onnx.is_in_onnx_export()


class FusedVision(nn.Module):
    """Pixels → image token embeddings and the DeepStack features of the tapped blocks."""

    position_embeddings: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, backbone: Backbone, height: int, width: int) -> None:
        super().__init__()
        tower = backbone.model.visual
        self.patch_side = tower.patch_size
        self.merge = tower.spatial_merge_size
        self.patches = Linear(_fold_patch_projection(backbone))
        self.block = nn.ModuleList(_VisionBlock(block) for block in tower.blocks)
        self.taps = list(tower.deepstack_visual_indexes)
        self.deepstack = nn.ModuleList(_Merger(merger) for merger in tower.deepstack_merger_list)
        self.merger = _Merger(tower.merger)

        grid = torch.tensor([[1, height // self.patch_side, width // self.patch_side]])
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=self.merge,
        )
        positions = (tower.pos_embed(indices) * weights[:, :, None]).sum(dim=1)
        cos, sin = tower.rotary_pos_emb(positions, get_vision_position_ids(grid, self.merge))
        dtype = tower.patch_embed.proj.weight.dtype
        self.register_buffer("position_embeddings", positions.detach().to(dtype))
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Map ``[batch, 3, height, width]`` to ``[batch, tokens, width]`` and one more per tap."""
        states = self.patches(self._cut(pixels)) + self.position_embeddings
        deepstack = []
        for number, block in enumerate(self.block):
            states = block(states, self.cos, self.sin)
            if number in self.taps:
                deepstack.append(self.deepstack[self.taps.index(number)](states))
        return self.merger(states), deepstack

    def _cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """Cut patches in the processor's order: each 2x2 neighbourhood is consecutive."""
        pixels = pixels.to(self.position_embeddings.dtype)  # TensorRT can only cast uint8
        batch, channels, height, width = pixels.shape
        side, merge = self.patch_side, self.merge
        rows, columns = height // (side * merge), width // (side * merge)
        split = pixels.reshape(batch, channels, rows, merge, side, columns, merge, side)
        ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7)
        tokens = rows * columns * merge * merge
        return ordered.reshape(batch, tokens, channels * side * side)


class _VisionBlock(nn.Module):
    def __init__(self, block: qwen.Qwen3VLVisionBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attn = _VisionAttention(block.attn)
        self.mlp = _Mlp(block.mlp.linear_fc1, _activation(block.mlp.act_fn), block.mlp.linear_fc2)

    def forward(self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        states = self.attn(self.norm1(states), cos, sin, states)
        fed: torch.Tensor = self.mlp(self.norm2(states), states)
        return fed


class _VisionAttention(_Operator):
    def __init__(self, layer: qwen.Qwen3VLVisionAttention) -> None:
        super().__init__()
        self.heads = layer.num_heads
        self.qkv = Linear(layer.qkv)
        self.proj = Linear(layer.proj, epilogue="Add")

    def forward(
        self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        projected: torch.Tensor = self.proj(self._mix(self.qkv(states), cos, sin), residual)
        return projected

    def _mix(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        if self.exports():
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::VisionAttention",
                [qkv, cos, sin],
                {"num_heads": self.heads},
                dtype=qkv.dtype,
                shape=[batch, tokens, width],
                version=1,
            )
        split = qkv.reshape(batch, tokens, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = _rotate(query, cos, sin).to(qkv.dtype), _rotate(key, cos, sin).to(qkv.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).reshape(batch, tokens, width)


class _Mlp(nn.Module):
    def __init__(self, fc1: nn.Linear, epilogue: Epilogue, fc2: nn.Linear) -> None:
        super().__init__()
        self.fc1 = Linear(fc1, epilogue=epilogue)
        self.fc2 = Linear(fc2, epilogue="Add")

    def forward(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        fed: torch.Tensor = self.fc2(self.fc1(states), residual)
        return fed


class _Merger(nn.Module):
    """Four neighbouring patches → one token of the decoder's width."""

    def __init__(self, merger: qwen.Qwen3VLVisionPatchMerger) -> None:
        super().__init__()
        self.norm = merger.norm
        self.normalise_grouped = merger.use_postshuffle_norm
        self.fc1 = Linear(merger.linear_fc1, epilogue=_activation(merger.act_fn))
        self.fc2 = Linear(merger.linear_fc2)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = states.shape
        together = self.fc1.shape[0]
        grouped = (batch, tokens * width // together, together)
        if self.normalise_grouped:
            states = self.norm(states.reshape(grouped))
        else:
            states = self.norm(states).reshape(grouped)
        merged: torch.Tensor = self.fc2(self.fc1(states))
        return merged.to(states.dtype)


class FusedDecoder(nn.Module):
    """Image token embeddings → last hidden states of the prompt.

    With pooling ``image``, what follows the image is left out: attention is causal, so the image's
    states do not depend on it.
    """

    prefix: torch.Tensor
    suffix: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, recipe: FeatureRecipe) -> None:
        super().__init__()
        model, canvas = recipe.backbone.model, recipe.preprocessing
        text = model.language_model
        self.layer = nn.ModuleList(_DecoderLayer(layer) for layer in text.layers)
        self.norm = _RMSNorm(text.norm)

        ids, image = recipe.token_ids, recipe.image_tokens
        is_image = ids == model.config.image_token_id
        embedded = text.embed_tokens(ids).detach()
        side = recipe.backbone.image_processor.patch_size
        positions, _ = model.get_rope_index(
            ids[None],  # type: ignore[arg-type]  # annotated with legacy tensor types
            mm_token_type_ids=is_image[None].int(),  # type: ignore[arg-type]
            image_grid_thw=torch.tensor([[1, canvas.height // side, canvas.width // side]]),  # type: ignore[arg-type]
        )
        cos, sin = text.rotary_emb(embedded[None], positions)
        end = image.stop if recipe.pooling == "image" else len(ids)
        self.register_buffer("prefix", embedded[None, : image.start].clone())
        self.register_buffer("suffix", embedded[None, image.stop : end].clone())
        self.register_buffer("cos", cos[0, :end].clone())
        self.register_buffer("sin", sin[0, :end].clone())

    def forward(self, image: torch.Tensor, deepstack: list[torch.Tensor]) -> torch.Tensor:
        """Map ``[batch, image tokens, width]`` to ``[batch, tokens, width]``."""
        batch = image.shape[0]
        before, after = self.prefix.shape[1], self.suffix.shape[1]
        states = torch.cat(
            [self.prefix.expand(batch, -1, -1), image, self.suffix.expand(batch, -1, -1)], dim=1
        )
        for number, layer in enumerate(self.layer):
            states = layer(states, self.cos, self.sin)
            if number < len(deepstack):  # taken in the vision tower, added after decoder layer i
                states = states + F.pad(deepstack[number], (0, 0, before, after))
        normalised: torch.Tensor = self.norm(states)
        return normalised


class _DecoderLayer(nn.Module):
    def __init__(self, layer: qwen.Qwen3VLTextDecoderLayer) -> None:
        super().__init__()
        self.norm1, self.norm2 = (
            _RMSNorm(layer.input_layernorm),
            _RMSNorm(layer.post_attention_layernorm),
        )
        self.attn = _DecoderAttention(layer.self_attn)
        self.mlp = _GatedMlp(layer.mlp)

    def forward(self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        states = self.attn(self.norm1(states), cos, sin, states)
        fed: torch.Tensor = self.mlp(self.norm2(states), states)
        return fed


class _DecoderAttention(_Operator):
    def __init__(self, layer: qwen.Qwen3VLTextAttention) -> None:
        super().__init__()
        self.head_dim = layer.head_dim
        self.heads = layer.q_proj.out_features // layer.head_dim
        self.kv_heads = layer.k_proj.out_features // layer.head_dim
        self.q_norm, self.k_norm = layer.q_norm, layer.k_norm
        self.qkv = Linear(layer.q_proj, layer.k_proj, layer.v_proj)
        self.out = Linear(layer.o_proj, epilogue="Add")

    def forward(
        self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        projected: torch.Tensor = self.out(self._mix(self.qkv(states), cos, sin), residual)
        return projected

    def _mix(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = qkv.shape
        width = self.heads * self.head_dim
        if self.exports():
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::DecoderAttention",
                [qkv, cos, sin, self.q_norm.weight, self.k_norm.weight],
                {
                    "num_heads": self.heads,
                    "num_kv_heads": self.kv_heads,
                    "epsilon": self.q_norm.variance_epsilon,
                },
                dtype=qkv.dtype,
                shape=[batch, tokens, width],
                version=1,
            )
        split = qkv.reshape(batch, tokens, -1, self.head_dim).transpose(1, 2)
        keys_end = self.heads + self.kv_heads
        query = _rotate(self.q_norm(split[:, : self.heads]), cos, sin).to(qkv.dtype)
        key = _rotate(self.k_norm(split[:, self.heads : keys_end]), cos, sin).to(qkv.dtype)
        value = split[:, keys_end:]
        groups = self.heads // self.kv_heads
        mixed = F.scaled_dot_product_attention(
            query, qwen.repeat_kv(key, groups), qwen.repeat_kv(value, groups), is_causal=True
        )
        return mixed.transpose(1, 2).reshape(batch, tokens, width)


class _GatedMlp(nn.Module):
    def __init__(self, mlp: qwen.Qwen3VLTextMLP) -> None:
        super().__init__()
        self.gate_up = Linear(
            mlp.gate_proj, mlp.up_proj, epilogue=_activation(mlp.act_fn, gated=True)
        )
        self.down = Linear(mlp.down_proj, epilogue="Add")

    def forward(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        fed: torch.Tensor = self.down(self.gate_up(states), residual)
        return fed


class _RMSNorm(_Operator):
    def __init__(self, norm: qwen.Qwen3VLTextRMSNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.exports():
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::RMSNorm",
                [states, self.norm.weight],
                {"epsilon": self.norm.variance_epsilon},
                dtype=states.dtype,
                shape=states.shape,
                version=1,
            )
        normalised: torch.Tensor = self.norm(states)
        return normalised


class _Pool(nn.Module):
    def __init__(self, pooling: Pooling, image_tokens: slice) -> None:
        super().__init__()
        self.pooling = pooling
        self.image_tokens = image_tokens

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return pool_tokens(states.float(), self.pooling, self.image_tokens)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary tables ``[tokens, head_dim]`` to ``[batch, heads, tokens, head_dim]``."""
    rotated: torch.Tensor = states * cos + qwen.rotate_half(states) * sin
    return rotated


def _activation(function: nn.Module, *, gated: bool = False) -> Epilogue:
    """The epilogue that computes an activation module (transformers has several for one function).

    Raises:
        InputError: there is none.
    """
    probe = torch.linspace(-6, 6, 193)
    for epilogue, known in _ACTIVATIONS.items():
        same = torch.allclose(function(probe), known(probe), atol=1e-6, rtol=0)
        if same and gated == (epilogue == "SwiGLU"):
            return epilogue
    raise InputError(f"the backbone's activation {function} is none that Qwen3-VL models have")


def _fold_patch_projection(backbone: Backbone) -> nn.Linear:
    """The Conv3d patch embedding as a Linear over raw 0..255 pixels of one frame.

    A photo is shown to the model as two equal frames, so the two temporal slices add up; the
    processor's ``(pixel * rescale - mean) / std`` is affine and folds into weight and bias.
    """
    conv = backbone.model.visual.patch_embed.proj
    processor = backbone.image_processor
    mean = torch.tensor(processor.image_mean)[None, :, None, None]
    std = torch.tensor(processor.image_std)[None, :, None, None]
    weight = conv.weight.detach().float().sum(dim=2) / std
    bias = conv.bias.detach().float() - (weight * mean).sum(dim=(1, 2, 3))
    weight = (weight * processor.rescale_factor).flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear.to(conv.weight.dtype)
