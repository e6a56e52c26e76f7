"""Rollout against the product of matrices of the paper, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attndrift.metrics import rollout


def maps(seed=0, layers=4, images=3, heads=2, tokens=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (layers, images, heads, tokens, tokens)
    return list(torch.softmax(2 * torch.randn(shape, generator=generator, dtype=torch.float64), -1).to(dtype))


def reference(layers, residual=0.5, prefix=1):
    """B_L ... B_1 as whole matrices (Abnar and Zuidema 2020), then the class token's row."""
    tokens = layers[0].shape[-1]
    product = np.eye(tokens)[None]
    for layer in layers:
        mixed = residual * np.eye(tokens) + (1 - residual) * layer.double().numpy().mean(1)
        product = (mixed / mixed.sum(-1, keepdims=True)) @ product
    return product[:, 0, prefix:]


@pytest.mark.parametrize("residual", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("prefix", [1, 3])
def test_equals_the_matrix_product(residual, prefix) -> None:
    layers = maps()
    got = rollout(layers, residual=residual, prefix_tokens=prefix)
    assert got.shape == (3, 6 - prefix)
    np.testing.assert_allclose(got.numpy(), reference(layers, residual, prefix), atol=1e-13)


def test_every_way_of_giving_layers_is_the_same() -> None:
    layers = maps(1)
    expected = rollout(layers)
    torch.testing.assert_close(rollout(tuple(layers)), expected)
    torch.testing.assert_close(rollout(layer for layer in layers), expected)
    torch.testing.assert_close(rollout((layer for layer in reversed(layers)), last_first=True), expected)
    torch.testing.assert_close(rollout(torch.stack(layers)), expected)
    assert not torch.allclose(rollout(layers[::-1]), expected)


def test_closed_forms() -> None:
    tokens = 5
    identity = torch.eye(tokens).expand(2, 3, tokens, tokens)
    assert rollout([identity] * 4).abs().max() == 0
    uniform = torch.full((2, 3, tokens, tokens), 1 / tokens)
    # One layer: half stays on the class token, the other half is spread over all tokens.
    torch.testing.assert_close(rollout([uniform]), torch.full((2, 4), 0.5 / tokens))


def test_half_precision_rows_are_normalised() -> None:
    layers = maps(2, dtype=torch.bfloat16)
    got = rollout(layers)
    assert got.dtype == torch.float32
    normal = [layer.double() for layer in layers]
    normal = [layer.mean(1, keepdim=True) for layer in normal]
    normal = [layer / layer.sum(-1, keepdim=True) for layer in normal]
    np.testing.assert_allclose(got.numpy(), reference(normal), atol=1e-6)


def test_autocast_does_not_lower_the_precision() -> None:
    layers = maps(3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = rollout(layers)
    np.testing.assert_allclose(got.numpy(), reference(layers), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], {}, "layers: no layer was given"),
        (maps()[0:1], {"residual": 1.0}, "residual: expected a weight"),
        (maps()[0:1], {"residual": -0.1}, "residual: expected a weight"),
        (maps()[0:1], {"prefix_tokens": 6}, "prefix_tokens: 6 of 6 tokens leave no patch"),
        (maps()[0:1], {"prefix_tokens": 0}, "prefix_tokens: rollout starts at the class token"),
        ([torch.ones(2, 5, 5)], {}, "layers: expected shape .*in every layer"),
        ([torch.ones(2, 2, 5, 4)], {}, "layers: expected shape .*tokens, tokens"),
        ([-torch.ones(2, 2, 5, 5)], {}, "layers: contains negative values"),
        (
            [torch.ones(2, 2, 5, 5), torch.ones(3, 2, 5, 5)],
            {},
            "layers: every layer must have the same images",
        ),
    ],
)
def test_errors(arguments, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(arguments, **options)
