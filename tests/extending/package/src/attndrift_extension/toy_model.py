"""A small vision-language model of this package's own: what a user's library would hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention whose queries, keys and values come from one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """(images, tokens, width) to the same."""
        query, key, value = self.qkv(states).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a layer behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width), nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """(images, tokens, width) to the same."""
        states = states + self.attention(self.layer_norm1(states))
        return states + self.mlp(self.layer_norm2(states)).relu()


class ToyTower(nn.Module):
    """A vision transformer of 28 x 28 pixels in patches of 7."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 7, 7)
        self.class_token, self.positions = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(17, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(images, 3, 28, 28) to the class token, (images, width)."""
        states = self.patches(pixels).flatten(2).transpose(1, 2)
        states = torch.cat([self.class_token.expand(len(pixels), -1, -1), states], 1) + self.positions
        for block in self.blocks:
            states = block(states)
        return self.norm(states)[:, 0]


class ToyModel(nn.Module):
    """Two towers and a projection."""

    def __init__(self, width: int = 32, depth: int = 2, dimensions: int = 16) -> None:
        super().__init__()
        self.tower = ToyTower(width, depth)
        self.projection = nn.Linear(width, dimensions, bias=False)
        self.words = nn.EmbeddingBag(1000, dimensions)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(texts, tokens) to (texts, dimensions)."""
        return self.words(input_ids)


def seeded_model(depth: int) -> ToyModel:
    """A model with random weights, the same ones every time; the global generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ToyModel(depth=depth)
