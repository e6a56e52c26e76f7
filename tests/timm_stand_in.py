"""A vision transformer with the names, the shapes and the interface of timm's, for tests without timm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

WIDTH, HEADS = 24, 3


class Attention(nn.Module):
    __module__ = "timm.layers.attention"

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        images, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, HEADS, self.head_dim).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(seen.transpose(1, 2).reshape(images, tokens, width))


class EvaAttention(nn.Module):
    """Rotary positions; where the bias stands apart, the weight of ``qkv`` is multiplied and the layer itself not called."""

    __module__ = "timm.models.eva"

    def __init__(self, bias: bool, half: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.rotate_half = HEADS, WIDTH // HEADS, half
        self.scale, self.qkv_bias_separate = self.head_dim**-0.5, False
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_bias = nn.Parameter(torch.randn(WIDTH)) if bias else None
        self.v_bias = nn.Parameter(torch.randn(WIDTH)) if bias else None
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()

    def rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        (sin, cos), patches = rope.chunk(2, -1), x[..., -len(rope) :, :]
        if self.rotate_half:
            turned = torch.cat([-patches.chunk(2, -1)[1], patches.chunk(2, -1)[0]], -1)
        else:
            turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], -1).reshape(patches.shape)
        return torch.cat([x[..., : -len(rope), :], patches * cos + turned * sin], -2)

    def forward(self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        images, tokens, width = x.shape
        bias = None if self.q_bias is None else torch.cat([self.q_bias, torch.zeros(WIDTH), self.v_bias])
        if bias is not None and not self.qkv_bias_separate:
            projected = linear(x, self.qkv.weight, bias)
        else:
            projected = self.qkv(x) if bias is None else self.qkv(x) + bias
        q, k, v = projected.reshape(images, tokens, 3, HEADS, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = self.rotated(q, rope), self.rotated(k, rope)
        self.map = torch.softmax(q * self.scale @ k.mT, -1)
        return self.proj((self.map @ v).transpose(1, 2).reshape(images, tokens, width))


class Block(nn.Module):
    def __init__(self, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(WIDTH), attention or Attention(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        x = x + self.attn(self.norm1(x), **options)
        return x + self.mlp(self.norm2(x))


class _Tower(nn.Module):
    """Images of 12 x 12 pixels in patches of 4; two blocks; ``num_classes=0`` has no classifier, as in timm."""

    def __init__(self, num_classes: int, distilled: bool = False) -> None:
        super().__init__()
        self.num_prefix_tokens = 2 if distilled else 1
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.dist_token = nn.Parameter(torch.randn(1, 1, WIDTH)) if distilled else None
        self.pos_embed = nn.Parameter(torch.randn(1, 9 + self.num_prefix_tokens, WIDTH))
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH)
        self.fc_norm = nn.Identity()
        self.head: nn.Module = nn.Linear(WIDTH, num_classes) if num_classes else nn.Identity()
        self.head_dist = nn.Linear(WIDTH, num_classes) if distilled else None

    def get_classifier(self) -> Any:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def forward_features(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        return self.norm(self.blocks(torch.cat([*prefix, patches], 1) + self.pos_embed))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.fc_norm(x[:, : self.num_prefix_tokens].mean(1))
        if pre_logits:
            return pooled
        return self.head(pooled) if self.head_dist is None else (self.head(pooled) + self.head_dist(pooled)) / 2

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class VisionTransformer(_Tower):
    """As timm has it."""

    __module__ = "timm.models.vision_transformer"


class Eva(_Tower):
    """The same tower with rotary positions, as timm has EVA-02, Perception Encoder and DINOv3. Its attention keeps its ``map``."""

    __module__ = "timm.models.eva"

    def __init__(self, num_classes: int, bias: bool = False, half: bool = False) -> None:
        super().__init__(num_classes)
        self.blocks = nn.Sequential(*(Block(EvaAttention(bias, half)) for _ in range(2)))
        self.register_buffer("rope", torch.randn(9, 2 * WIDTH // HEADS))

    def forward_features(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x, rope=self.rope)
        return self.norm(x)
