"""Weight drift: full and low-rank updates on one scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from attndrift.metrics import LowRankUpdate, squared_norm, weight_drift


def parameters(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"patch.weight": (6, 3, 4, 4), "q.weight": (6, 6), "v.weight": (6, 5), "v.bias": (6,)}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def adapter(seed, out, inner, rank=2, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return LowRankUpdate(
        a=torch.randn(rank, inner, generator=generator),
        b=torch.randn(out, rank, generator=generator),
        scale=scale,
    )


def test_full_weights() -> None:
    before, change = parameters(0), parameters(1, 0.01)
    after = {name: before[name] + change[name] for name in before}
    flat = lambda tensors: np.concatenate([t.double().numpy().ravel() for t in tensors])  # noqa: E731
    moved = flat([after[n].double() - before[n].double() for n in before])
    expected = np.linalg.norm(moved) / np.linalg.norm(flat(before.values()))
    assert weight_drift(before, after) == pytest.approx(expected, rel=1e-12)
    assert weight_drift(before, before) == 0
    assert weight_drift(before, {name: 2 * value for name, value in before.items()}) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_any_layout_and_precision_and_nothing_given_is_changed(kind) -> None:
    whole = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(3)).to(kind)
    before = {"turned": whole[0].T, "every second": whole[1][:, ::2], "repeated": whole[2, :1].expand(3, 4)}
    before |= {"one number": whole[3, 0, 0], "whole": whole[4]}
    after = {name: (value.double() + 0.125).to(kind) for name, value in before.items()}
    kept = [[value.clone() for value in side.values()] for side in (before, after)]
    moved = sum(float((after[n].double() - before[n].double()).square().sum()) for n in before)
    norm = sum(float(value.double().square().sum()) for value in before.values())
    assert weight_drift(before, after) == pytest.approx(math.sqrt(moved / norm), rel=1e-12)
    for side, values in zip((before, after), kept, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(side.values(), values, strict=True))


def test_a_norm_that_is_known_changes_nothing() -> None:
    before, after = parameters(0), parameters(1)
    norm = squared_norm(before)
    assert norm == pytest.approx(sum(float(value.double().square().sum()) for value in before.values()), rel=1e-12)
    for adapted in (after, {"q.weight": adapter(1, 6, 6)}):
        known = weight_drift(before, adapted, missing="unchanged", pretrained_squared_norm=norm)
        assert known == weight_drift(before, adapted, missing="unchanged") > 0
    assert weight_drift(before, {}, missing="unchanged", pretrained_squared_norm=norm) == 0
    with pytest.raises(ValueError, match=r"pretrained: `q\.weight` contains NaN"):
        squared_norm({**before, "q.weight": torch.tensor([math.inf])})


@pytest.mark.parametrize("scale", [2.0, -0.5, 0.0])
def test_low_rank_equals_merged(scale) -> None:
    before = {name: value.double() for name, value in parameters(0).items()}
    q, v = adapter(1, 6, 6, scale=scale), adapter(2, 6, 5, rank=4, scale=scale)
    merged = dict(before)
    merged["q.weight"] = before["q.weight"] + scale * q.b.double() @ q.a.double()
    merged["v.weight"] = before["v.weight"] + scale * v.b.double() @ v.a.double()
    adapted = {**before, "q.weight": q, "v.weight": v}
    assert weight_drift(before, adapted) == pytest.approx(weight_drift(before, merged), rel=1e-10)
    only = {"q.weight": q, "v.weight": v}
    assert weight_drift(before, only, missing="unchanged") == pytest.approx(weight_drift(before, merged), rel=1e-10)


def test_low_rank_beside_moved_full_weights() -> None:
    before = {name: value.double() for name, value in parameters(0).items()}
    q = adapter(1, 6, 6)
    moved = before["patch.weight"] + 0.1
    merged = {**before, "patch.weight": moved, "q.weight": before["q.weight"] + 2 * (q.b @ q.a).double()}
    adapted = {**before, "patch.weight": moved, "q.weight": q}
    assert weight_drift(before, adapted) == pytest.approx(weight_drift(before, merged), rel=1e-6)


def test_squared_norm_never_forms_the_matrix() -> None:
    update = LowRankUpdate(torch.ones(1, 200_000), torch.ones(200_000, 1), 0.5)
    # B A would take 160 GB.
    assert update.squared_norm() == pytest.approx(0.25 * 200_000**2)
    assert update.shape == (200_000, 200_000)


def test_sums_in_float64() -> None:
    # In float32 the sum of squares stops growing at 2^24 and the second term is lost in the first.
    before = {"large": torch.full((4096,), 1e4), "small": torch.full((10,), 1e-3)}
    after = {"large": before["large"], "small": before["small"] + 1e-3}
    norm = math.sqrt(4096 * 1e8 + 10 * 1e-6)
    assert weight_drift(before, after) == pytest.approx(math.sqrt(10) * 1e-3 / norm, rel=1e-4)
    half = {"w": torch.full((300, 300), 300.0, dtype=torch.float16)}
    assert weight_drift(half, {"w": torch.zeros(300, 300, dtype=torch.float16)}) == pytest.approx(1)


def test_errors() -> None:
    before = parameters(0)
    after = dict(before)
    with pytest.raises(ValueError, match="pretrained: holds no parameters"):
        weight_drift({}, {})
    with pytest.raises(ValueError, match=r"adapted: 1 parameters of pretrained are missing, the first is `q\.weight`"):
        weight_drift(before, {name: value for name, value in after.items() if name != "q.weight"})
    for missing in ("error", "unchanged"):
        with pytest.raises(ValueError, match=r"adapted: 1 names are not in pretrained, the first is `base\.q`"):
            weight_drift(before, {**after, "base.q": torch.ones(2)}, missing=missing)
    with pytest.raises(ValueError, match=r"adapted: `v\.bias` has shape \(1,\), in pretrained \(6,\)"):
        weight_drift(before, {**after, "v.bias": torch.ones(1)})
    with pytest.raises(ValueError, match=r"adapted: `q\.weight` has shape \(5, 6\)"):
        weight_drift(before, {**after, "q.weight": adapter(0, 5, 6)})
    with pytest.raises(ValueError, match=r"adapted: `v\.bias` contains NaN"):
        weight_drift(before, {**after, "v.bias": torch.full((6,), float("nan"))})
    rows, columns = before["q.weight"].shape
    update = LowRankUpdate(torch.full((2, columns), float("nan")), torch.ones(rows, 2), 1.0)
    with pytest.raises(ValueError, match=r"adapted: `q\.weight` contains NaN"):
        weight_drift(before, {**after, "q.weight": update})
    with pytest.raises(ValueError, match=r"pretrained: `v\.bias` contains NaN"):
        weight_drift({**before, "v.bias": torch.full((6,), float("inf"))}, after)
    with pytest.raises(ValueError, match="pretrained: all parameters are 0"):
        weight_drift({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    with pytest.raises(ValueError, match="LowRankUpdate: expected a of shape"):
        LowRankUpdate(torch.ones(3, 4), torch.ones(5, 2), 1.0)


@pytest.mark.parametrize(
    "name",
    [
        "parametrizations.weight.original0", "blocks.0.fc1.parametrizations.weight.0.b", "q_proj.lora_A.default.weight",
        "q_proj.lora_B.default.weight", "fc1.weight_g",
    ],
)  # fmt: skip
def test_parts_of_a_weight_are_refused(name: str) -> None:
    parts = {name: torch.ones(2, 3), "fc1.weight_v": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=r"is a part of a weight.*live_parameters"):
        weight_drift(parts, parts)
