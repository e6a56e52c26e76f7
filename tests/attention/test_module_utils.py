"""Going through the modules of a model is what torch does, in its order and by its names."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from attndrift.attention import FAMILIES
from attndrift.models import load_model
from attndrift.models.module_utils import named_modules


class Part(nn.Module):
    """Children that are shared, missing, and in a circle."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, 2), shared)
        self.none = None
        self.register_module("absent", None)
        self.again = shared
        self.last = nn.ModuleDict({"a": nn.Linear(2, 2), "b": self.first[0]})


def same(model: nn.Module) -> bool:
    return list(named_modules(model).items()) == [(module, name) for name, module in model.named_modules()]


def test_the_modules_are_those_of_torch_in_its_order() -> None:
    shared = nn.Sequential(nn.GELU(), nn.Linear(2, 2))
    part = Part(shared)
    whole = nn.ModuleList([nn.Sequential(nn.Sequential(shared)), part, shared])
    assert same(whole)
    part.circle = whole
    assert same(whole)
    assert same(part)
    assert same(load_model("config:tiny"))
    assert same(nn.Linear(2, 2))


def test_a_family_of_one_class_is_no_family_of_letters() -> None:
    with pytest.raises(TypeError, match="give a tuple"):
        dataclasses.replace(FAMILIES["clip"], classes="CLIPVisionTransformer")
