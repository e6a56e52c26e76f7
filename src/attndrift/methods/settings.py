"""Which parameters of a model are trained, as settings: nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ValidationError

from attndrift.methods.registry import DEFAULT_HEAD, DEFAULT_METHOD, FROZEN, METHODS, Method
from attndrift.own_settings import Owner, OwnSettings, problem_in, validated


@dataclass(frozen=True, init=False)
class AdaptationSettings:
    """Which parameters are trained, and from where.

    ``AdaptationSettings("lora", lora_rank=4)``: the method, and settings of its own or of the head by name. What is
    wrong with them is said by :func:`adapt`.

    Attributes:
        method: a name of :data:`~attndrift.methods.registry.METHODS`.
        head: a name of :data:`~attndrift.methods.registry.HEADS`.
        train_projection: None is the method's default.
        freeze_layers: blocks frozen from the input on, for methods that can; the embeddings stay trainable.
        freeze_blocks: further frozen blocks, ``first:2``, ``last:3``, ``1,5-8``: :mod:`attndrift.methods.frozen_blocks`.
        text_tower: the method that trains the text tower; ``frozen`` for none. It needs a head that is ``live``.
        train_text_projection: None is the default of the text tower's method.
        text_freeze_blocks: as ``freeze_blocks``, of the text tower.
        train_temperature: whether the logit scale is trained.
        own: settings of the methods and of the head, as given. Two towers with one method have its settings together.
    """

    method: str = DEFAULT_METHOD
    head: str = DEFAULT_HEAD
    train_projection: bool | None = None
    freeze_layers: int = 0
    freeze_blocks: str | None = None
    text_tower: str = FROZEN
    train_text_projection: bool | None = None
    text_freeze_blocks: str | None = None
    train_temperature: bool = False
    own: dict[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        method: str = DEFAULT_METHOD,
        *,
        head: str = DEFAULT_HEAD,
        train_projection: bool | None = None,
        freeze_layers: int = 0,
        freeze_blocks: str | None = None,
        text_tower: str = FROZEN,
        train_text_projection: bool | None = None,
        text_freeze_blocks: str | None = None,
        train_temperature: bool = False,
        **own: Any,
    ) -> None:
        for name, value in locals().items():
            if name != "self":
                object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Plain values by name, as the constructor takes them."""
        values = asdict(self)
        own = values.pop("own")
        return {**values, **own}

    @property
    def facts(self) -> Method:
        """The method itself. Raises :class:`~attndrift.registry.UnknownNameError`."""
        return METHODS[self.method]

    @property
    def projects(self) -> bool:
        """Whether the projection is trained."""
        return bool(self.facts.projection) if self.train_projection is None else self.train_projection

    @property
    def text_facts(self) -> Method:
        """The method of the text tower. Raises :class:`~attndrift.registry.UnknownNameError`."""
        return METHODS[self.text_tower]

    @property
    def projects_text(self) -> bool:
        """Whether the text projection is trained."""
        given = self.train_text_projection
        return bool(self.text_facts.projection) if given is None else given

    @property
    def trains_text(self) -> bool:
        """Whether text features or the temperature change: the text tower, its projection or the logit scale is trained."""
        return self.text_tower != FROZEN or self.projects_text or self.train_temperature

    @property
    def with_adapters(self) -> Method:
        """The method that saves, loads and merges adapters, of whichever tower; the image tower's where there are none."""
        return self.text_facts if self.text_facts.adapter_parameters else self.facts

    def settings_of(self, owner: Owner) -> OwnSettings:
        """The own settings of the method or the head. Raises ``ValueError`` naming the one that is impossible."""
        try:
            return validated(owner, self.own)
        except ValidationError as error:
            raise ValueError(problem_in(error)) from error
