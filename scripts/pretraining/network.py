"""The CLIP that is pretrained: its form, its start, and a forward pass that sees only some patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

PATCH = 8
GRID = 7


def build(tokenizer: CLIPTokenizer, *, width: int = 128, depth: int = 8, heads: int = 4) -> CLIPModel:
    """A :class:`transformers.CLIPModel` with random weights for 56-pixel images."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": tokenizer.model_max_length,
            "projection_dim": 128,
            "hidden_act": "gelu",
            **special,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "projection_dim": 128,
            "image_size": PATCH * GRID,
            "patch_size": PATCH,
            "hidden_act": "gelu",
        },
        projection_dim=128,
    )
    # Full attention matrices of 50 tokens are faster in bfloat16 on a CPU than the fused kernel is.
    config._attn_implementation = "eager"
    return CLIPModel(config)


def patches_of(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 3, 56, 56) to (n, 49, 192), each row what the patch convolution sees."""
    cut = pixels.view(len(pixels), 3, GRID, PATCH, GRID, PATCH)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(pixels), GRID * GRID, 3 * PATCH * PATCH)


@torch.no_grad()
def initialise(model: CLIPModel, sample: torch.Tensor, generator: torch.Generator) -> None:
    """Start values that shorten the way: whitened patches, a grid of sines, attention to the like.

    Patch filters are the principal components of ``sample`` (n, 3, 56, 56), positions are sines in two
    directions, and the attention blocks follow the mimetic initialisation of Trockman and Kolter
    (2023, arXiv:2305.09828): query times key near a multiple of the identity, value times output near
    a negative one.
    """
    vision = model.vision_model
    width = vision.config.hidden_size
    rows = patches_of(sample).reshape(-1, 3 * PATCH * PATCH)
    rows = rows - rows.mean(dim=0)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    filters = (vectors / (values + 0.01 * values[0]).sqrt()).T
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    filters = turn[:, : len(filters)] @ filters
    vision.embeddings.patch_embedding.weight.copy_(filters.view(width, 3, PATCH, PATCH))

    frequencies = 10 ** (-torch.arange(width // 4) * 4 / width)
    line = torch.arange(GRID)[:, None] * frequencies
    waves = torch.cat([line.sin(), line.cos()], dim=1)
    grid = torch.cat([waves[:, None].expand(GRID, GRID, -1), waves[None].expand(GRID, GRID, -1)], dim=-1).reshape(
        GRID * GRID, -1
    )
    vision.embeddings.position_embedding.weight[1:].copy_(0.5 * grid)

    for layer in vision.encoder.layers:
        attention = layer.self_attn
        each = width // attention.num_heads
        for head in range(attention.num_heads):
            target = 0.7 * torch.randn(width, width, generator=generator) / width**0.5 + 0.7 * torch.eye(width)
            left, strength, right = torch.linalg.svd(target)
            root = strength[:each].sqrt()[:, None]
            span = slice(head * each, (head + 1) * each)
            attention.q_proj.weight[span].copy_(root * left[:, :each].T)
            attention.k_proj.weight[span].copy_(root * right[:each])
        target = 0.4 * torch.randn(width, width, generator=generator) / width**0.5 - 0.4 * torch.eye(width)
        left, strength, right = torch.linalg.svd(target)
        attention.out_proj.weight.copy_(left * strength.sqrt())
        attention.v_proj.weight.copy_(strength.sqrt()[:, None] * right)


def embed_images(
    model: CLIPModel, pixels: torch.Tensor, *, keep: int | None = None, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Unit image embeddings (n, 128); with ``keep``, from that many random patches (Li et al. 2023, FLIP)."""
    vision = model.vision_model
    embeddings = vision.embeddings
    filters = embeddings.patch_embedding.weight
    rows = patches_of(pixels).to(filters.dtype)
    positions = embeddings.position_embedding.weight
    count, total = rows.shape[:2]
    if keep is None or keep >= total:
        hidden = F.linear(rows, filters.flatten(1)) + positions[1:]
    else:
        chosen = torch.rand(count, total, generator=generator).topk(keep, dim=1).indices
        rows = rows.gather(1, chosen[:, :, None].expand(-1, -1, rows.shape[2]))
        hidden = F.linear(rows, filters.flatten(1)) + F.embedding(chosen + 1, positions)
    first = (embeddings.class_embedding + positions[0]).expand(count, 1, -1)
    hidden = vision.pre_layrnorm(torch.cat([first, hidden], dim=1))
    for layer in vision.encoder.layers:
        hidden = layer(hidden, None)
    pooled = vision.post_layernorm(hidden[:, 0])
    return F.normalize(model.visual_projection(pooled).float(), dim=-1)


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Unit text embeddings (n, 128)."""
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    # Padding follows the end token, which alone is read, so the causal mask is all that is needed.
    output = model.text_model(input_ids=tokens["input_ids"])
    return F.normalize(model.text_projection(output.pooler_output).float(), dim=-1)


def parameters_of(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters, in the order that checkpoints keep."""
    return list(model.named_parameters())
