"""A CLIP vision tower that computes, in its last block, nothing that nobody reads.

The image embedding is made of the class token alone. Behind the keys and values of the last block the other
tokens lead nowhere: not into the embedding, and not into any gradient. Leaving out their queries, output projection
and multilayer perceptron, five sixths of the block, is the same function with the same gradients.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer


class _ClassTokenAttention(CLIPAttention):
    """The attention of the class token to all tokens: (images, 1, width)."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        def heads(states: Tensor) -> Tensor:
            return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

        # Contiguous: otherwise torch rounds by whether the weights are trained, and an untouched copy would differ.
        own = hidden_states[:, :1].contiguous()
        mixed = nn.functional.scaled_dot_product_attention(
            heads(self.q_proj(own)),
            heads(self.k_proj(hidden_states)),
            heads(self.v_proj(hidden_states)),
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class _ClassTokenBlock(CLIPEncoderLayer):
    """A block whose output is the class token's: (images, 1, width)."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        mixed, _weights = self.self_attn(self.layer_norm1(hidden_states))
        own = hidden_states[:, :1] + mixed
        return own + self.mlp(self.layer_norm2(own))


def prune_last_block_to_cls(clip: CLIPModel) -> CLIPModel:
    """Let the last block of the vision tower compute the class token alone, in place; returns ``clip``.

    Embeddings, their gradients and the class token's attention stay what they are, up to rounding; parameters keep
    their names, and copies, adapters and checkpoints know no difference. The tower's ``last_hidden_state`` then
    holds the class token only, and the attention of other queries cannot be observed in the last block.
    """
    block: Any = clip.vision_model.encoder.layers[-1]
    block.__class__ = _ClassTokenBlock
    block.self_attn.__class__ = _ClassTokenAttention
    return clip
