"""Observing: temporary hooks on a transformer that leave the model as it was.

The queries and keys are read at the outputs of the layers' own projections (the outermost ones, so
adapters count), and one row q_cls K^T is computed beside the model's attention, which stays what it is:
eager, sdpa or flash. Nothing global is registered and no setting is switched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.attention.errors import ObservationError
from attndrift.attention.families import VisionTower, find_tower
from attndrift.attention.families.family import Found, MeanOfPatches, Pool, Query, Tap
from attndrift.attention.observation import Observation
from attndrift.attention.rows import FullMaps, Mask, masked_row, mean_logits, pick, row_logits, without_checkpoint
from attndrift.models.hooks import TemporaryHooks


def observe(
    model: nn.Module,
    *,
    gradients: bool = False,
    hidden: bool = False,
    full_maps: bool = False,
    query: str | int | None = None,
    check: bool = True,
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

    A model without class token is seen through another query: the probe of its attention pooling head
    (SigLIP), whose one layer is then observed, or the mean over all patches in every block. A text encoder
    (CLIP's and SigLIP's text towers, BERT) is observed where the query is named, its masks honoured::

        with observe(clip.text_model, query="end_of_text") as observation: ...

    Args:
        model: a model that holds one vision transformer (see :func:`find_vision_tower`), or with a named
            query one text encoder and no vision transformer.
        gradients: make the values part of the autograd graph; otherwise they are detached and no graph is
            kept. A forward under ``torch.no_grad`` still gives values without gradients.
        hidden: also keep the class token's hidden state after every block.
        full_maps: also keep every layer's queries and keys, for full maps and rollout; without gradients.
        query: whose attention; None for the default: ``probe`` where a pooling head makes the image
            embedding, else ``cls`` where there is a class token, else ``patches``, the mean of the attention
            of all patches. A number is the index of a token, from the end where negative.
            :attr:`Observation.query` says which it is.
        check: look at the rows when they are first read, and raise where the model has left the finite numbers.
            That makes an accelerator wait. Without, nothing here waits: rows that are not finite come out as
            they are, and :meth:`attndrift.metrics.StructureAccumulator.compute` refuses them.

    Returns:
        A context manager that gives an :class:`Observation`.

    Raises:
        ObservationError: at once, for a model that cannot be observed or an unknown query; in a forward,
            where a layer was not seen exactly once, the model was changed since the context was
            entered, or reentrant checkpointing cuts the gradients that were asked for.
    """
    tower = find_tower(model, query)
    return observe_tower(tower, gradients=gradients, hidden=hidden, full_maps=full_maps, query=query, check=check)


def observe_tower(
    tower: VisionTower,
    *,
    gradients: bool = False,
    hidden: bool = False,
    full_maps: bool = False,
    query: str | int | None = None,
    check: bool = True,
) -> AbstractContextManager[Observation]:
    """:func:`observe` where the tower has been found already: looking for it takes as long as a few layers."""
    queries = tower.family.queries_of(tower.module)
    if isinstance(query, int) and not isinstance(query, bool):
        name = f"token {query}"
        wanted: Query = query
    elif query is None or query in queries:
        name = next(iter(queries)) if query is None else str(query)
        wanted = queries[name]
    else:
        known = ", ".join(queries)
        raise ObservationError(
            f"query: the family `{tower.family.name}` has no `{query}`; it has {known}, or the index of a token"
        )
    return _observing(tower, name, wanted, gradients=gradients, hidden=hidden, full_maps=full_maps, check=check)


@contextmanager
def _observing(
    tower: VisionTower, name: str, query: Query, *, gradients: bool, hidden: bool, full_maps: bool, check: bool
) -> Iterator[Observation]:
    recorder = Recorder(tower, name, query, gradients=gradients, hidden=hidden, full_maps=full_maps, check=check)
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


@dataclass
class _Layer:
    """One attention module that is observed."""

    path: str
    attention: nn.Module
    taps: tuple[Tap, ...]


class Recorder:
    """The hooks of one context, and what they have collected of the forward that is under way."""

    HOOKS = ("_start", "_input", "_output", "_block", "_end")
    """Names of the methods that run inside a forward, for a benchmark that times them."""

    def __init__(
        self,
        tower: VisionTower,
        name: str,
        query: Query,
        *,
        gradients: bool,
        hidden: bool,
        full_maps: bool,
        check: bool,
    ) -> None:
        family = self._family = tower.family
        module = self._tower = tower.module
        self._gradients, self._hidden_asked, self._maps_asked = gradients, hidden, full_maps
        self._query = query
        # Where the query's row is: the same token of every image, one for each image, or the mean (None).
        self._token: int | Tensor | None = query if isinstance(query, int) else None
        self._weights: Tensor | None = None
        self._skipped = self._prefix = family.prefix_tokens(module)
        self._blocks = family.blocks(module)
        self._batch_first = family.batch_first(module)
        self._rotate = family.rotate
        self._scale = family.scale
        if isinstance(query, Pool):
            attention = module.get_submodule(query.attention_path)
            self._layers = [_Layer(query.attention_path, attention, query.taps)]
            self._token, self._skipped = query.token, query.prefix_tokens
            self._rotate, self._scale = None, query.scale
        else:
            self._layers = []
            for block in self._blocks:
                attention = module.get_submodule(block.attention_path)
                self._layers.append(_Layer(block.attention_path, attention, family.taps_of(attention)))
        within = f"{tower.name}." if tower.name else ""
        self.observation = Observation(
            layers=[within + layer.path for layer in self._layers],
            blocks=[within + block.path for block in self._blocks],
            family=family.name,
            query=name,
            prefix_tokens=self._skipped,
            hidden=hidden,
            full_maps=full_maps,
            check=check,
        )
        self._hooks = TemporaryHooks()
        self._tapped: list[tuple[str, nn.Module, str, nn.Module]] = []
        self._recording = False
        self._grad_enabled = False
        self._reset()

    def _reset(self) -> None:
        count = len(self._layers)
        self._parts: list[dict[str, Any]] = [{} for _ in range(count)]
        self._logits: list[Tensor | None] = [None] * count
        self._hidden: list[Tensor | None] = [None] * len(self._blocks)
        self._queries: list[Tensor | None] = [None] * count
        self._keys: list[Tensor | None] = [None] * count
        self._masks: list[Mask] = [Mask()] * count
        self._weights = None

    def attach(self) -> None:
        tower = self._tower
        add = self._hooks.add
        if isinstance(self._query, Found) or self._family.valid is not None:
            add(tower.register_forward_pre_hook(self._start, with_kwargs=True))
        else:
            add(tower.register_forward_pre_hook(self._start))
        for index, layer in enumerate(self._layers):
            name, attention = self.observation.layers[index], layer.attention
            for tap in layer.taps:
                module = attention.get_submodule(tap.path)
                if tap.at == "output":
                    add(module.register_forward_hook(partial(self._output, index, attention, tap.read)))
                else:
                    add(
                        module.register_forward_pre_hook(
                            partial(self._input, index, attention, tap.read), with_kwargs=True
                        )
                    )
                if tap.path:
                    self._tapped.append((f"{name}.{tap.path}", attention, tap.path, module))
                else:
                    self._tapped.append((name, tower, layer.path, module))
        if self._hidden_asked:
            for index, block in enumerate(self._blocks):
                add(tower.get_submodule(block.path).register_forward_hook(partial(self._block, index)))
        add(tower.register_forward_hook(self._end, always_call=True))

    def detach(self) -> None:
        self._hooks.remove()
        self._tapped = []
        self._recording = False
        self._reset()

    def _start(self, tower: nn.Module, args: Any, kwargs: Any = None) -> None:
        if not self._hooks or _in_backward():
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
        for name, parent, path, module in self._tapped:
            if _submodule(parent, path) is not module:
                raise ObservationError(
                    f"{name}: was replaced after observing began (adapters added or removed?); "
                    "leave the context, change the model, and observe it again"
                )
        if isinstance(self._query, Found):
            self._token = self._query.index(tower, args, kwargs)
        elif isinstance(self._query, MeanOfPatches | Pool) and self._family.valid is not None:
            valid = self._family.valid(tower, args, kwargs)
            if valid is not None:
                self._weights = valid / valid.sum(-1, keepdim=True)

    def _aside(self) -> AbstractContextManager[Any]:
        """What is computed inside belongs to the observation, and to its graph only where gradients are asked for."""
        return without_checkpoint() if self._gradients else torch.no_grad()

    def _check_gradients(self, layer: int) -> None:
        if self._gradients and self._grad_enabled and not torch.is_grad_enabled():
            raise ObservationError(
                f"{self.observation.layers[layer]}: runs without gradients inside a forward that has them, as under "
                "reentrant gradient checkpointing, so attention cannot carry gradients; pass "
                "gradient_checkpointing_kwargs={'use_reentrant': False}, or observe with gradients=False"
            )

    def _input(self, layer: int, attention: nn.Module, read: Any, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._recording or _in_backward():
            return
        self._check_gradients(layer)
        with self._aside():
            parts = read(attention, args, kwargs)
        self._parts[layer].update(parts)
        self._see(layer, attention)

    def _output(self, layer: int, attention: nn.Module, read: Any, module: nn.Module, args: Any, output: Any) -> None:
        if not self._recording or _in_backward():
            return
        self._check_gradients(layer)
        self._parts[layer].update(read(attention, args, output))
        self._see(layer, attention)

    def _see(self, layer: int, attention: nn.Module) -> None:
        """Compute the layer's row once its query and key are there."""
        parts = self._parts[layer]
        if "query" not in parts or "key" not in parts:
            return
        self._parts[layer] = {}
        name = self.observation.layers[layer]
        query, keys = parts["query"], parts["key"]
        if self._logits[layer] is not None:
            raise ObservationError(f"{name}: ran twice in one forward pass; which run is meant cannot be told")
        tokens = keys.shape[-2]
        if tokens <= self._skipped:
            raise ObservationError(f"{name}: saw {tokens} tokens, {self._skipped} of them no patches; no patch is left")
        if isinstance(self._token, int) and not -query.shape[-2] <= self._token < query.shape[-2]:
            raise ObservationError(f"query: {name} has {query.shape[-2]} tokens, so there is no token {self._token}")
        mask = Mask(parts.get("bias"), bool(parts.get("causal")))
        scale = self._scale(attention)
        project = parts.get("project")
        if self._rotate is not None:
            with self._aside():
                keys = self._rotate(keys, parts.get("position"))
                # A token of the prefix is not turned.
                if self._maps_asked or not (isinstance(self._token, int) and 0 <= self._token < self._prefix):
                    query = self._rotate(query, parts.get("position"))
        if project is not None and (self._maps_asked or self._token is None):
            with self._aside():
                query, project = project(query), None
        if self._token is None:
            weights = None if self._weights is None else self._weights[:, self._skipped :]
            patches = slice(self._skipped, None)
            self._logits[layer] = mean_logits(
                query[:, :, patches], keys, scale, mask.tokens(patches), weights, gradients=self._gradients
            )
        else:
            row = pick(query, self._token)
            if project is not None:
                with self._aside():
                    row = project(row.unsqueeze(2)).squeeze(2)
            logits = row_logits(row, keys, scale, gradients=self._gradients)
            if mask.bias is not None or mask.causal:
                with self._aside():
                    logits = masked_row(logits, mask, self._token)
            self._logits[layer] = logits
        if self._maps_asked:
            self._queries[layer], self._keys[layer] = query.detach(), keys.detach()
            self._masks[layer] = mask if mask.bias is None else mask._replace(bias=mask.bias.detach())

    def _block(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        if not self._recording or _in_backward():
            return
        states: Tensor = output if isinstance(output, Tensor) else output[0]
        if not self._batch_first:
            states = states.transpose(0, 1)
        precision = torch.float64 if states.dtype == torch.float64 else torch.float32
        with self._aside():
            if self._token is None or isinstance(self._query, Pool):
                patches = states[:, self._prefix :]
                if self._weights is None:
                    row = patches.mean(1, dtype=precision)
                else:
                    weights = self._weights[:, self._prefix :, None].to(precision)
                    row = (patches.to(precision) * weights).sum(1)
            else:
                # A copy, as a view would keep the states of all tokens alive.
                row = pick(states.unsqueeze(1), self._token).squeeze(1).to(precision, copy=True)
        self._hidden[index] = row

    def _end(self, tower: nn.Module, args: Any, output: Any) -> None:
        if not self._recording or _in_backward():
            return
        self._recording = False
        # The hook is also called when the forward raised; its own error then must not replace that one.
        if output is None:
            self._reset()
            return
        wanted = [("attention", self.observation.layers, self._logits)]
        if self._hidden_asked:
            wanted.append(("hidden state", self.observation.blocks, self._hidden))
        for what, names, values in wanted:
            missing = [n for n, value in zip(names, values, strict=True) if value is None]
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
            maps = FullMaps(
                [query for query in self._queries if query is not None],
                [keys for keys in self._keys if keys is not None],
                [self._scale(layer.attention) for layer in self._layers],
                self._masks,
            )
        self.observation._fill(
            [logits for logits in self._logits if logits is not None],
            [state for state in self._hidden if state is not None],
            maps,
            gradients=self._gradients,
        )
        self._reset()
