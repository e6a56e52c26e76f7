"""What was seen in the last forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from attndrift.attention.errors import ObservationError
from attndrift.attention.query_rows import QueryRows
from attndrift.attention.rows import FullMaps
from attndrift.metrics.attention import rollout


class Observation:
    """Attention of the class token, or of another query, in the last forward pass through the tower.

    Every forward overwrites the one before; the last one stays readable after the context has closed.
    Half-precision models are seen in float32, float64 ones in float64. Attention is that before
    attention dropout, which is what the softmax of the layer's queries and keys gives.

    Attributes:
        layers: names of the attention modules inside the observed model, from input to output. A query of
            its own head (``probe``) has that head's attention alone.
        blocks: names of the blocks whose hidden states are kept, from input to output.
        family: name of the tower's family.
        query: name of the query that is observed: ``cls``, ``probe`` (of an attention pooling head),
            ``patches`` (the mean of the attention of all patches), ... or ``token 3``.
        prefix_tokens: class and register tokens, which precede the patches; 0 in a text encoder.
        forwards: completed forward passes so far.
    """

    def __init__(
        self,
        *,
        layers: list[str],
        blocks: list[str],
        family: str,
        query: str,
        prefix_tokens: int,
        hidden: bool,
        full_maps: bool,
        check: bool = True,
    ) -> None:
        self.layers = layers
        self.blocks = blocks
        self.family = family
        self.query = query
        self.prefix_tokens = prefix_tokens
        self.forwards = 0
        self._hidden_asked = hidden
        self._maps_asked = full_maps
        self._state = (
            "nothing was observed yet: no forward pass has gone through the vision tower since observing "
            "began (a model compiled before that does not see the observation: observe, then compile)"
        )
        self._rows: QueryRows | None = None
        self._hidden: list[Tensor] = []
        self._maps: FullMaps | None = None
        self._check = check

    def _clear(self, state: str) -> None:
        self._state = state
        self._rows, self._hidden, self._maps = None, [], None

    def _fill(self, logits: list[Tensor], hidden: list[Tensor], maps: FullMaps | None, *, gradients: bool) -> None:
        self._rows = QueryRows(logits, self.layers, self.prefix_tokens, gradients=gradients, check=self._check)
        self._hidden, self._maps = hidden, maps
        self.forwards += 1

    def _read(self) -> QueryRows:
        if self._rows is None:
            raise ObservationError(self._state)
        return self._rows

    def forget(self) -> None:
        """Let go of what was seen in the last forward pass, with its part of the graph; the next one is seen as ever."""
        self._clear("what was seen has been let go of; no forward pass has gone through the vision tower since")

    def _held(self) -> QueryRows:
        """What was seen, for :meth:`_put_back`."""
        return self._read()

    def _put_back(self, held: QueryRows) -> None:
        """Look at an earlier forward pass again, where another one has come since."""
        if self._rows is not held:
            self._clear("")
            self._rows = held

    @property
    def attention(self) -> list[Tensor]:
        """Per layer (images, heads, N): attention of the query to the patches, summing to 1.

        The softmax over the patch logits alone; of a text encoder, over all tokens. What a mask hides gets 0. The first reading after a forward checks that every row
        sums to 1 (one synchronisation on an accelerator), unless ``observe(..., check=False)`` was asked for.

        Raises ObservationError before the first forward, after one that did not finish, or for rows that
        do not sum to 1 (NaN or infinite queries or keys); the message names the layer.
        """
        return self._read().read("attention")

    @property
    def log_attention(self) -> list[Tensor]:
        """Per layer (images, heads, N): logarithm of :attr:`attention` in nats, from log-softmax.

        Finite where the attention itself is rounded to 0, also where a mask hides a token (-1e30). Raises as :attr:`attention` does.
        """
        return self._read().read("log_attention")

    @property
    def cls_mass(self) -> list[Tensor]:
        """Per layer (images, heads), in [0, 1]: the attention that renormalising dropped.

        That is the attention of the class token to itself (and to registers); 0 for a family without tokens
        before its patches, where nothing is dropped. Raises as :attr:`attention` does.
        """
        return self._read().read("cls_mass")

    @property
    def cls_hidden(self) -> list[Tensor]:
        """Per block 1..L (images, width): the query token's hidden state after the block.

        For ``patches`` and ``probe``, which are no token of the blocks, the mean over the patches.

        Needs ``observe(..., hidden=True)``; raises ObservationError without, and before the first forward.
        """
        if not self._hidden_asked:
            raise ObservationError("hidden states were not observed; ask for them with observe(..., hidden=True)")
        self._read()
        return list(self._hidden)

    @property
    def full_maps(self) -> FullMaps:
        """Full maps, (images, heads, T, T) a layer, computed when a layer is indexed; without gradients.

        Of a pooling head: (images, heads, queries, T).

        Needs ``observe(..., full_maps=True)``, which keeps every layer's queries and keys, (images, T, width)
        each; raises ObservationError without, and before the first forward.
        """
        if not self._maps_asked:
            raise ObservationError("full maps were not observed; ask for them with observe(..., full_maps=True)")
        self._read()
        if self._maps is None:
            raise ObservationError("full maps are missing although they were asked for")
        return self._maps

    def rollout(self, *, residual: float = 0.5, images: int | None = None) -> Tensor:
        """Attention rollout to the patches, (images, N), a few images at a time.

        See :func:`attndrift.metrics.rollout`. Needs ``observe(..., full_maps=True)`` and a class token whose
        attention is followed, otherwise raises ObservationError. ``images`` is how many images are worked on
        at once; by default as many as keep one layer's maps near 64 MB.
        """
        if not self.prefix_tokens or self.query in ("probe", "patches"):
            raise ObservationError(f"rollout follows the class token; it is not there for the query `{self.query}`")
        parts = [
            rollout(maps, residual=residual, prefix_tokens=self.prefix_tokens, check=False)
            for maps in self.full_maps.chunks(images)
        ]
        return torch.cat(parts)

    def __repr__(self) -> str:
        return f"Observation({self.family}, {len(self.layers)} layers, {self.forwards} forwards)"
