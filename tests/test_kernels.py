"""The kernels compute what the plain operations do: on a CUDA device, or without one in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not here: it comes with torch's CUDA builds", allow_module_level=True)
ON = "cuda" if torch.cuda.is_available() else "cpu"
if ON == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

# The switch is read where a kernel is defined.
# ruff: noqa: E402
from attndrift.attention import observe, rows
from attndrift.metrics import StructureAccumulator, entropy, erf, gini, kernels, structure_metrics
from attndrift.metrics.attention import TIE
from attndrift.metrics.kernels import row_structure as structure
from attndrift.metrics.kernels.row_structure import structure_of_rows
from attndrift.metrics.kernels.rows import read_rows, row_gradients, row_logits
from attndrift.models import load_model

HALF = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 3, 5, 4), (1, 2, 70, 16), (3, 2, 130, 24)]
"""Images, heads, tokens, width of a head; not all powers of 2, and more tokens than a program takes."""


def states(shape, dtype, layout):
    images, heads, tokens, width = shape
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, images, tokens, heads, width, generator=generator).to(dtype).to(ON)
    query, keys = values[0].transpose(1, 2), values[1].transpose(1, 2)
    if layout == "heads first":
        keys = keys.contiguous()
    if layout == "fused":  # one projection for queries, keys and values
        together = values.permute(1, 2, 0, 3, 4).contiguous()
        query, keys = together[:, :, 0].transpose(1, 2), together[:, :, 1].transpose(1, 2)
    return query[:, :, 0], keys


@pytest.mark.parametrize("layout", ["tokens first", "heads first", "fused"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_and_their_gradients(shape, dtype, layout) -> None:
    query, keys = states(shape, dtype, layout)
    wide = [tensor.double().requires_grad_() for tensor in (query, keys)]
    expected = 0.3 * (wide[1] @ wide[0].unsqueeze(-1)).squeeze(-1)
    got = row_logits(query, keys, 0.3)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)

    grad = torch.sin(torch.arange(got.numel(), device=ON).float()).view_as(got)
    for slope in (grad, grad.transpose(1, 2).contiguous().transpose(1, 2)):
        wanted = torch.autograd.grad(expected, wide, slope.double(), retain_graph=True)
        found = row_gradients(query, keys, slope, 0.3, of_query=True, of_keys=True)
        for own, other in zip(found, wanted, strict=True):
            assert own is not None
            assert own.dtype == dtype
            tolerance = 1e-5 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(own.double(), other, rtol=tolerance, atol=tolerance)
    assert row_gradients(query, keys, grad, 0.3, of_query=False, of_keys=True)[0] is None
    alone, none = row_gradients(query, keys, grad, 0.3, of_query=True, of_keys=False)
    assert none is None
    torch.testing.assert_close(alone, found[0])


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("tokens", [6, 50, 64, 129])
def test_what_is_read_from_rows(tokens, prefix) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(2, 3, 2, tokens, generator=generator)).to(ON)
    logits[0, 0, 0, prefix + (prefix + 1 < tokens) :] = -1e30  # what a mask hides
    logits[1, 1] *= 40
    logs, attention, mass = read_rows(logits, prefix)
    wide = logits.double()
    torch.testing.assert_close(logs.double(), wide[..., prefix:].log_softmax(-1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(attention.double(), wide[..., prefix:].softmax(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mass.double(), wide.softmax(-1)[..., :prefix].sum(-1), rtol=1e-4, atol=1e-6)
    for bad in (float("nan"), float("inf")):
        logits[1, 0, 0, -1] = bad
        logs, attention, _ = read_rows(logits, prefix)
        assert not bool(torch.isfinite(attention[1, 0, 0]).all())
        assert bool(torch.isfinite(attention[0]).all())


def some_attention(patches):
    generator = torch.Generator().manual_seed(patches)
    rows = [
        torch.ones(patches),
        torch.nn.functional.one_hot(torch.tensor(patches - 1), patches).float(),
        torch.nn.functional.one_hot(torch.tensor(0), patches).float() * 3.0,
        torch.randint(0, 3, (patches,), generator=generator).float() + torch.eye(patches)[0],  # ties, and zeros
        *torch.randn(6, patches, generator=generator).mul(3).softmax(-1),
    ]
    return torch.stack(rows).view(2, 5, patches)


@pytest.mark.parametrize("sorts", [True, False], ids=["sorted there", "sorted before"])
@pytest.mark.parametrize("patches", [1, 2, 20, 49, 64, 130])
def test_structure(patches, sorts, monkeypatch) -> None:
    monkeypatch.setattr(structure, "SORTED_HERE", 1024 if sorts else 0)
    attention = some_attention(patches)
    normalised, values = structure_of_rows(attention.to(ON), 0.95 - TIE)
    wide = attention.double()
    torch.testing.assert_close(normalised.double().cpu(), wide / wide.sum(-1, keepdim=True), rtol=1e-6, atol=0)
    torch.testing.assert_close(values[0].double().cpu(), entropy(wide), rtol=1e-5, atol=2e-6)
    # Of the very numbers that the kernel has summed: where p falls on a sum, rounding decides. A device may divide k by N
    # with another last digit.
    torch.testing.assert_close(values[1].cpu(), erf(normalised.cpu()), rtol=0, atol=1e-6)
    torch.testing.assert_close(values[2].double().cpu(), gini(wide), rtol=1e-5, atol=2e-6)


def test_rows_that_are_not_finite_have_no_entropy() -> None:
    attention = some_attention(20)
    attention[0, 1, 3], attention[1, 2, 0] = float("nan"), float("inf")
    _, values = structure_of_rows(attention.to(ON), 0.95 - TIE)
    finite = torch.isfinite(values[0]).cpu()
    assert finite.sum() == finite.numel() - 2
    assert not finite[0, 1]
    assert not finite[1, 2]


def test_an_observed_pass_and_its_gradients(monkeypatch) -> None:
    """Through the public faces, as on a CUDA device."""
    model = load_model("config:tiny").to(ON).eval()
    vision = model.config.vision_config
    pixels = torch.randn(3, 3, vision.image_size, vision.image_size, generator=torch.Generator().manual_seed(0)).to(ON)
    used: list[int] = []
    found = []
    for with_kernels in (True, False):
        monkeypatch.setattr(kernels, "usable", lambda *tensors, answer=with_kernels: used.append(1) or answer)
        accumulator = StructureAccumulator()
        with torch.no_grad(), observe(model) as seen:
            model.vision_model(pixel_values=pixels)
            accumulator.update(seen.attention, seen.cls_mass)
            values = [torch.stack(seen.log_attention), torch.stack(seen.cls_mass)]
        with observe(model, gradients=True) as seen:
            model.vision_model(pixel_values=pixels)
            loss = sum((layer * torch.cos(layer)).sum() for layer in seen.log_attention)
        model.zero_grad()
        loss.backward()
        gradients = {name: p.grad for name, p in model.vision_model.named_parameters() if p.grad is not None}
        summary = accumulator.compute()
        found.append((values, gradients, {n: summary.heads(n) for n in (*structure_metrics(), "cls_mass")}))
    assert used
    (values, gradients, heads), (other_values, other_gradients, other_heads) = found
    for one, other in zip(values, other_values, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, other_gradients[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, value in heads.items():
        torch.testing.assert_close(value, other_heads[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_of_gradients_are_the_plain_ones(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "usable", lambda *tensors: True)
    query, keys = (tensor.detach().requires_grad_() for tensor in states((2, 2, 5, 4), torch.float32, "tokens first"))
    row = rows.row_logits(query, keys, 0.5, gradients=True)
    (first,) = torch.autograd.grad(row.square().sum(), query, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), keys)
    wide = [tensor.detach().double().requires_grad_() for tensor in (query, keys)]
    expected = 0.5 * (wide[1] @ wide[0].unsqueeze(-1)).squeeze(-1)
    (first,) = torch.autograd.grad(expected.square().sum(), wide[0], create_graph=True)
    torch.testing.assert_close(second.double(), torch.autograd.grad(first.sum(), wide[1])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(ON == "cpu", reason="needs a CUDA device")
def test_they_are_used_there_and_can_be_left_out(monkeypatch) -> None:
    on = torch.ones(2, device="cuda")
    assert kernels.usable(on)
    assert not kernels.usable(on, torch.ones(2))
    monkeypatch.setattr(kernels, "_working", {})
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert not kernels.usable(on)


def test_nowhere_else() -> None:
    assert not kernels.usable(torch.ones(2))
    assert not kernels.usable(torch.ones(2, device="meta"))
