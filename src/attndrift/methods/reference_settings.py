"""Settings that methods and losses have in common: a run that has two of these has one value for both."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from attndrift.own_settings import OwnSettings, setting


class ReferenceSettings(OwnSettings):
    """Of a method or a loss that needs reference images."""

    reference: str | None = setting(
        None, "dataset of the reference images and of their class names; its training split", label="reference "
    )
    reference_images: Annotated[int, Field(ge=1)] = setting(
        200, "reference images, spread evenly over the classes", label="reference images "
    )

    @model_validator(mode="after")
    def _named(self) -> ReferenceSettings:
        if self.reference is None:
            raise ValueError("`reference` must name a dataset, for the reference images (attndrift list datasets)")
        return self
