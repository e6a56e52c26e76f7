"""Observing: temporary hooks on a vision transformer that leave the model as it was.

The queries and keys are read at the outputs of the layers' own projections (the outermost ones, so
adapters count), and one row q_cls K^T is computed beside the model's attention, which stays what it is:
eager, sdpa or flash. Nothing global is registered and no setting is switched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attndrift.observing.errors import ObservationError
from attndrift.observing.families import VisionTower, find_vision_tower
from attndrift.observing.observation import Observation
from attndrift.observing.rows import FullMaps, row_logits


def observe(
    model: nn.Module,
    *,
    gradients: bool = False,
    hidden: bool = False,
    full_maps: bool = False,
    query: str | None = None,
) -> AbstractContextManager[Observation]:
    """See the class token's attention in every forward pass inside the context.

    ::

        with observe(model) as observation:
            model(pixel_values=pixels)
        observation.attention[-1]          # (images, heads, patches), rows sum to 1

    The model keeps its own (fused) attention and computes the same numbers, bit for bit. Beyond the
    model's own memory only (images, heads, tokens) a layer are kept. Works in training and evaluation,
    any precision, autocast and non-reentrant gradient checkpointing, where the backward pass may also
    come after the context has closed (each checkpointed layer's keys then stay in memory until it has).
    Contexts may be nested. Leaving, also by an exception, removes every hook.

    Args:
        model: a model that holds one vision transformer (see :func:`find_vision_tower`).
        gradients: make the values part of the autograd graph; otherwise they are detached and no graph is
            kept. A forward under ``torch.no_grad`` still gives values without gradients.
        hidden: also keep the class token's hidden state after every block.
        full_maps: also keep every layer's queries and keys, for full maps and rollout; without gradients.
        query: whose attention; None for the family's default (``cls``).

    Returns:
        A context manager that gives an :class:`Observation`.

    Raises:
        ObservationError: at once, for a model that cannot be observed or an unknown query; in a forward,
            where a layer was not seen exactly once, the model was changed since the context was
            entered, or reentrant checkpointing cuts the gradients that were asked for.
    """
    tower = find_vision_tower(model)
    if query is not None and query not in tower.family.queries:
        known = ", ".join(tower.family.queries)
        raise ObservationError(f"query: the family `{tower.family.name}` has no `{query}`; it has {known}")
    token = next(iter(tower.family.queries)) if query is None else query
    return _observing(tower, token, gradients=gradients, hidden=hidden, full_maps=full_maps)


@contextmanager
def _observing(
    tower: VisionTower, query: str, *, gradients: bool, hidden: bool, full_maps: bool
) -> Iterator[Observation]:
    recorder = _Recorder(tower, query, gradients=gradients, hidden=hidden, full_maps=full_maps)
    try:
        recorder.attach()
        yield recorder.observation
    finally:
        recorder.detach()


def _in_backward() -> bool:
    # A forward that runs inside a backward pass is the recomputation of a checkpoint.
    return bool(torch._C._current_graph_task_id() != -1)


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


class _Recorder:
    """The hooks of one context, and what they have collected of the forward that is under way."""

    def __init__(self, tower: VisionTower, query: str, *, gradients: bool, hidden: bool, full_maps: bool) -> None:
        self._family = tower.family
        self._tower = tower.module
        self._gradients, self._hidden_asked, self._maps_asked = gradients, hidden, full_maps
        self._token = tower.family.queries[query]
        self._prefix = tower.family.prefix_tokens(tower.module)
        self._blocks = tower.family.blocks(tower.module)
        within = f"{tower.name}." if tower.name else ""
        self.observation = Observation(
            layers=[within + block.attention_path for block in self._blocks],
            family=tower.family.name,
            query=query,
            prefix_tokens=self._prefix,
            hidden=hidden,
            full_maps=full_maps,
        )
        self._handles: list[RemovableHandle] = []
        self._tapped: list[tuple[str, nn.Module, str, nn.Module]] = []
        self._recording = False
        self._grad_enabled = False
        self._reset()

    def _reset(self) -> None:
        count = len(self._blocks)
        self._parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
        self._logits: list[Tensor | None] = [None] * count
        self._hidden: list[Tensor | None] = [None] * count
        self._queries: list[Tensor | None] = [None] * count
        self._keys: list[Tensor | None] = [None] * count

    def attach(self) -> None:
        tower = self._tower
        add = self._handles.append
        add(tower.register_forward_pre_hook(self._start))
        for layer, block in enumerate(self._blocks):
            attention = tower.get_submodule(block.attention_path)
            for tap in self._family.taps:
                module = attention.get_submodule(tap.path)
                add(module.register_forward_hook(partial(self._tap, layer, attention, tap.read)))
                self._tapped.append((self.observation.layers[layer], attention, tap.path, module))
            if self._hidden_asked:
                add(tower.get_submodule(block.path).register_forward_hook(partial(self._block, layer)))
        add(tower.register_forward_hook(self._end, always_call=True))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._tapped = [], []
        self._recording = False
        self._reset()

    def _start(self, tower: nn.Module, _: Any) -> None:
        if not self._handles or _in_backward():
            return
        if tower is not self._tower:
            raise ObservationError(
                "the vision tower runs as a replica (torch.nn.DataParallel), whose threads cannot be told "
                "apart; use DistributedDataParallel or one device"
            )
        self._reset()
        self._recording = True
        self._grad_enabled = torch.is_grad_enabled()
        self.observation._clear("the last forward pass did not finish, so there is no attention to read")
        for name, attention, path, module in self._tapped:
            if _submodule(attention, path) is not module:
                raise ObservationError(
                    f"{name}.{path}: was replaced after observing began (adapters added or removed?); "
                    "leave the context, change the model, and observe it again"
                )

    def _tap(self, layer: int, attention: nn.Module, read: Any, module: nn.Module, args: Any, output: Any) -> None:
        if not self._recording or _in_backward():
            return
        name = self.observation.layers[layer]
        if self._gradients and self._grad_enabled and not torch.is_grad_enabled():
            raise ObservationError(
                f"{name}: runs without gradients inside a forward that has them, as under reentrant gradient "
                "checkpointing, so attention cannot carry gradients; pass "
                "gradient_checkpointing_kwargs={'use_reentrant': False}, or observe with gradients=False"
            )
        parts = self._parts[layer]
        parts.update(read(attention, args, output))
        if "query" not in parts or "key" not in parts:
            return
        query, keys = parts["query"], parts["key"]
        parts.clear()
        if self._logits[layer] is not None:
            raise ObservationError(f"{name}: ran twice in one forward pass; which run is meant cannot be told")
        if keys.shape[-2] <= self._prefix:
            raise ObservationError(
                f"{name}: saw {keys.shape[-2]} tokens, {self._prefix} of them no patches; no patch is left"
            )
        scale = self._family.scale(attention)
        self._logits[layer] = row_logits(query[:, :, self._token], keys, scale, gradients=self._gradients)
        if self._maps_asked:
            self._queries[layer], self._keys[layer] = query.detach(), keys.detach()

    def _block(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        if not self._recording or _in_backward():
            return
        states: Tensor = output if isinstance(output, Tensor) else output[0]
        row = states[:, self._token]
        if not self._gradients:
            row = row.detach()
        precision = torch.float64 if row.dtype == torch.float64 else torch.float32
        # A copy, as a view would keep the states of all tokens alive.
        self._hidden[layer] = row.to(precision, copy=True)

    def _end(self, tower: nn.Module, args: Any, output: Any) -> None:
        if not self._recording or _in_backward():
            return
        self._recording = False
        # The hook is also called when the forward raised; its own error then must not replace that one.
        if output is None:
            self._reset()
            return
        wanted = [("attention", self._logits)]
        if self._hidden_asked:
            wanted.append(("hidden state", self._hidden))
        for what, values in wanted:
            missing = [n for n, value in zip(self.observation.layers, values, strict=True) if value is None]
            if missing:
                self._reset()
                message = (
                    f"saw the {what} of {len(values) - len(missing)} of {len(values)} layers in the forward "
                    f"pass; the first unseen one is `{missing[0]}`. Its forward did not go through the "
                    "module calls that are observed (a compiled, replaced or skipped layer)"
                )
                self.observation._clear(message)
                raise ObservationError(message)
        maps = None
        if self._maps_asked:
            attentions = [self._tower.get_submodule(block.attention_path) for block in self._blocks]
            maps = FullMaps(
                [query for query in self._queries if query is not None],
                [keys for keys in self._keys if keys is not None],
                [self._family.scale(attention) for attention in attentions],
            )
        self.observation._fill(
            [logits for logits in self._logits if logits is not None],
            [state for state in self._hidden if state is not None],
            maps,
            gradients=self._gradients,
        )
        self._reset()
