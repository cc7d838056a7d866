"""The fused graph: uint8 pixels in, unit vector out.

Built from the checkpoint's own sub-modules for one fixed canvas and prompt, so that everything
that does not depend on the photo is a constant: prompt embeddings, rotary tables, interpolated
position embeddings, normalisation (folded into the patch projection). Compared with Hugging Face's
packed implementation, the vision tower keeps a true batch axis, and DeepStack features are added
by position instead of through a boolean mask.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from vibematch_training.backbone import Backbone
from vibematch_training.features import FeatureRecipe, pool_tokens
from vibematch_training.head import ProjectionHead


class FusedEncoder(nn.Module):
    """Backbone, pooling, head and L2 normalisation in one module of fixed resolution.

    Args:
        recipe: backbone, canvas, prompt and pooling.
        head: the trained projection head.
    """

    def __init__(self, recipe: FeatureRecipe, head: ProjectionHead) -> None:
        super().__init__()
        canvas = recipe.preprocessing
        self.vision = FusedVision(recipe.backbone, canvas.height, canvas.width)
        self.decoder = FusedDecoder(recipe)
        self.pooling = recipe.pooling
        self.image_tokens = recipe.image_tokens
        self.head = head

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map photos to embeddings and to the pooled features they come from.

        Args:
            pixels: uint8 RGB, shape ``[batch, 3, height, width]``.

        Returns:
            Unit vectors, float32 ``[batch, embedding_dim]``, and features, float32
            ``[batch, feature_dim]``.
        """
        image, deepstack = self.vision(pixels)
        states = self.decoder(image, deepstack)
        features = pool_tokens(states.float(), self.pooling, self.image_tokens)
        return self.head(features), features


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
        self.patch_projection = _fold_patch_projection(backbone)
        self.blocks = tower.blocks
        self.taps = list(tower.deepstack_visual_indexes)
        self.deepstack_mergers = tower.deepstack_merger_list
        self.merger = tower.merger

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
        dtype = self.patch_projection.weight.dtype
        self.register_buffer("position_embeddings", positions.detach().to(dtype))
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Map ``[batch, 3, height, width]`` to ``[batch, tokens, width]`` and one more per tap."""
        states = self.patch_projection(self._patches(pixels)) + self.position_embeddings
        deepstack = []
        for number, block in enumerate(self.blocks):
            states = states + self._attention(block.attn, block.norm1(states))
            states = states + block.mlp(block.norm2(states))
            if number in self.taps:
                merger = self.deepstack_mergers[self.taps.index(number)]
                deepstack.append(self._merge(merger, states))
        return self._merge(self.merger, states), deepstack

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Cut patches in the processor's order: each 2x2 neighbourhood is consecutive."""
        batch, channels, height, width = pixels.shape
        side, merge = self.patch_side, self.merge
        rows, columns = height // (side * merge), width // (side * merge)
        split = pixels.reshape(batch, channels, rows, merge, side, columns, merge, side)
        ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7)
        tokens = rows * columns * merge * merge
        patches = ordered.reshape(batch, tokens, channels * side * side)
        return patches.to(self.patch_projection.weight.dtype)

    def _attention(self, layer: qwen.Qwen3VLVisionAttention, states: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = states.shape
        qkv = layer.qkv(states).reshape(batch, tokens, 3, layer.num_heads, layer.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = _rotate(query, self.cos, self.sin), _rotate(key, self.cos, self.sin)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = layer.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return projected

    def _merge(self, merger: qwen.Qwen3VLVisionPatchMerger, states: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = states.shape
        grouped = (batch, tokens // self.merge**2, width * self.merge**2)
        if merger.use_postshuffle_norm:
            states = merger.norm(states.reshape(grouped))
        else:
            states = merger.norm(states).reshape(grouped)
        merged: torch.Tensor = merger.linear_fc2(merger.act_fn(merger.linear_fc1(states)))
        return merged


class FusedDecoder(nn.Module):
    """Image token embeddings → last hidden states of the whole prompt."""

    prefix: torch.Tensor
    suffix: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, recipe: FeatureRecipe) -> None:
        super().__init__()
        model, canvas = recipe.backbone.model, recipe.preprocessing
        text = model.language_model
        self.layers = text.layers
        self.norm = text.norm

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
        self.register_buffer("prefix", embedded[None, : image.start].clone())
        self.register_buffer("suffix", embedded[None, image.stop :].clone())
        self.register_buffer("cos", cos[0])
        self.register_buffer("sin", sin[0])

    def forward(self, image: torch.Tensor, deepstack: list[torch.Tensor]) -> torch.Tensor:
        """Map ``[batch, image tokens, width]`` to ``[batch, tokens, width]``."""
        batch = image.shape[0]
        before, after = self.prefix.shape[1], self.suffix.shape[1]
        states = torch.cat(
            [self.prefix.expand(batch, -1, -1), image, self.suffix.expand(batch, -1, -1)], dim=1
        )
        for number, layer in enumerate(self.layers):
            states = states + self._attention(layer.self_attn, layer.input_layernorm(states))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
            if number < len(deepstack):  # taken in the vision tower, added after decoder layer i
                states = states + F.pad(deepstack[number], (0, 0, before, after))
        normalised: torch.Tensor = self.norm(states)
        return normalised

    def _attention(self, layer: qwen.Qwen3VLTextAttention, states: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = states.shape
        split = (batch, tokens, -1, layer.head_dim)
        query = layer.q_norm(layer.q_proj(states).reshape(split)).transpose(1, 2)
        key = layer.k_norm(layer.k_proj(states).reshape(split)).transpose(1, 2)
        value = layer.v_proj(states).reshape(split).transpose(1, 2)
        query, key = _rotate(query, self.cos, self.sin), _rotate(key, self.cos, self.sin)
        groups = layer.num_key_value_groups
        mixed = F.scaled_dot_product_attention(
            query, qwen.repeat_kv(key, groups), qwen.repeat_kv(value, groups), is_causal=True
        )
        projected: torch.Tensor = layer.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return projected


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary tables ``[tokens, head_dim]`` to ``[batch, heads, tokens, head_dim]``."""
    rotated: torch.Tensor = states * cos + qwen.rotate_half(states) * sin
    return rotated.to(states.dtype)  # the vision tower's tables are float32 in any case


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
