"""Looking at a model in the middle of its training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn

from attndrift.models.module_utils import is_a, named_modules

_WRAPPERS = (
    "DistributedDataParallel", "DataParallel", "DeepSpeedEngine",
    "torch.AveragedModel", "timm.ModelEmaV2", "timm.ModelEmaV3",
)  # fmt: skip
"""Classes that hold the user's module as ``module``, by name: most are of libraries that need not be installed."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside wrappers for several processes, for an average of its weights, and ``torch.compile``."""
    inner: Any = model
    while True:
        if is_a(inner, *_WRAPPERS) and isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod
        else:
            return inner


@contextmanager
def evaluation_mode(model: nn.Module, modules: list[nn.Module] | None = None) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule's training flag is put back afterwards.

    ``modules``: the model's own, where somebody has them.
    """
    modules = list(model.modules()) if modules is None else modules
    flags = [(module, module.training) for module in modules]
    if any(flag for _, flag in flags):
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            # A layer of its own kind may do more than set the flag: loralib's adds its adapters to the weight.
            if type(module).train is not nn.Module.train and module.training != flag:
                module.train(flag)
        # To set an attribute of a module takes far longer than to look at it.
        for module, flag in flags:
            if module.training != flag:
                module.training = flag


@contextmanager
def same_random_state(model: nn.Module) -> Iterator[None]:
    """Put the generators of torch (the CPU's and the model's devices'), numpy and Python back afterwards."""
    with _same_random_state({parameter.device for parameter in model.parameters()}):
        yield


@contextmanager
def _same_random_state(devices: set[torch.device]) -> Iterator[None]:
    # Evaluation draws nothing, but iterating a DataLoader does, and so may an image's decoding.
    state = random_state(devices)
    try:
        yield
    finally:
        restore_random_state(state)


def random_state(devices: Iterable[torch.device]) -> dict[str, Any]:
    """What Python, numpy and torch (on the CPU and on ``devices``) would draw next, as plain values and tensors."""
    legacy: Any = np.random.get_state()  # noqa: NPY002 (a user may draw from it)
    name, words, *rest = legacy
    accelerators = sorted({str(device) for device in devices} - {"cpu", "meta"})
    return {
        "python": random.getstate(),
        "numpy": (name, words.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "accelerators": {device: _generator(device, "get_rng_state") for device in accelerators},
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Draw from here on what would have been drawn when :func:`random_state` was called."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, own in state["accelerators"].items():
        _generator(device, "set_rng_state", own)


def _generator(device: str, function: str, *values: Any) -> Any:
    module = torch.get_device_module(torch.device(device))
    return getattr(module, function)(*values, *([] if device == "mps" else [device]))


_is_measuring: ContextVar[bool] = ContextVar("is_measuring", default=False)


def is_measuring() -> bool:
    """Whether this is inside :func:`preserve_state` or :func:`outside_training`: a forward pass now is none to watch."""
    return _is_measuring.get()


@contextmanager
def outside_training() -> Iterator[None]:
    """Forward passes inside are none that a monitor or a loss watches, though they may have gradients."""
    token = _is_measuring.set(True)
    try:
        yield
    finally:
        _is_measuring.reset(token)


@contextmanager
def preserve_state(model: nn.Module, named: Mapping[nn.Module, str] | None = None) -> Iterator[None]:
    """Everything inside runs in evaluation mode, without gradients, in the model's own precision, uncompiled.

    The precision is that of the weights whatever ``autocast`` surrounds the call: a measurement must not
    depend on where in a training loop it is made. Random states and training flags are put back.
    ``named``: the model's modules, where somebody has them (:func:`~attndrift.models.module_utils.named_modules`).
    """
    with ExitStack() as stack:
        stack.callback(_is_measuring.reset, _is_measuring.set(True))
        # Asked once: going through a model takes a millisecond, which on an accelerator is a tenth of a forward pass.
        modules = list(named_modules(model) if named is None else named)
        devices = {
            parameter.device for module in modules for parameter in module._parameters.values() if parameter is not None
        }
        stack.enter_context(_same_random_state(devices))
        stack.enter_context(evaluation_mode(model, modules))
        for kind in sorted({device.type for device in devices} - {"meta"}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if any(_is_compiled(module) for module in modules):
            # Compiled code was traced without the hooks that observing needs.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_own_forward(modules))
        yield


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


@contextmanager
def _own_forward(modules: list[nn.Module]) -> Iterator[None]:
    """Without the forward that ``accelerate`` puts over a model's own for mixed precision."""
    replaced = []
    for module in modules:
        if "_original_forward" in module.__dict__ and "forward" in module.__dict__:
            replaced.append((module, module.__dict__.pop("forward")))
            module.__dict__["forward"] = module.__dict__["_original_forward"]
    try:
        yield
    finally:
        for module, forward in replaced:
            module.__dict__["forward"] = forward
