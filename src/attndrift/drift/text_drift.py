"""How far the text side of a model has moved: its embeddings of some texts, its weights, and the temperature."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from attndrift.losses.pretrained_weights import encoder_of
from attndrift.methods.parameter_drift import TextWeights
from attndrift.metrics.compared import compare_texts
from attndrift.models.backbone import Backbone, backbone_of
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.parameters import bare


class TextState(NamedTuple):
    """What is known of a text side: its metrics by name, and embeddings of the texts (texts, dimensions), then and now."""

    numbers: dict[str, float | None]
    before: Tensor
    now: Tensor


class FixedTexts:
    """Embeddings of texts by a text side that nothing trains, for metrics of images and texts together.

    Args:
        embeddings: (texts, dimensions), of any positive length a row.
    """

    def __init__(self, embeddings: Tensor) -> None:
        self._embeddings = embeddings.detach().float().cpu()

    def measure(self) -> TextState:
        """Nothing has moved."""
        return TextState({}, self._embeddings, self._embeddings)

    def parameters(self) -> dict[str, nn.Parameter]:
        """None is trained."""
        return {}


class TextDrift:
    """Measures the text side of a model against what it was, for a :class:`~attndrift.DriftMonitor`.

    ::

        tokens = tokenizer(["a photo of a cat.", "a photo of a dog."], padding=True, return_tensors="pt").input_ids
        monitor = DriftMonitor(model, probe_images, text=TextDrift(model, tokens))     # before the first step

    Args:
        model: the model in training, or a wrapper of it, with a registered backbone inside that has a text tower.
        tokens: token ids of the probe texts, int64 (texts, tokens).
        reference: the pretrained model; by default ``model`` as it is now, without its ``peft`` adapters.

    Raises:
        ValueError: a model without such a text tower, or tokens of another shape.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, *, reference: nn.Module | None = None) -> None:
        if tokens.ndim != 2 or len(tokens) == 0 or tokens.is_floating_point():
            raise ValueError(f"tokens are {tokens.dtype} {tuple(tokens.shape)}; expected token ids (texts, tokens)")
        self._model = unwrapped(model)
        self.tokens = tokens
        origin = _backbone(self._model if reference is None else unwrapped(reference))
        self._before = TextWeights.of(origin, copied=reference is None)
        with bare(origin.model):
            self._embeddings = self._embed(origin)

    def __call__(self) -> dict[str, float | None]:
        """Every registered metric of texts and of the text side's weights, by name."""
        return self.measure().numbers

    def measure(self) -> TextState:
        """The same, with the embeddings of the texts."""
        backbone = _backbone(self._model)
        now = self._embed(backbone)
        return TextState(
            {**compare_texts(self._embeddings, now), **self._before.drift(backbone)}, self._embeddings, now
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the text side, by their names in the model: text tower, projection, temperature."""
        backbone = _backbone(self._model)
        assert backbone.text is not None
        parts = [part for part in (backbone.text.tower, backbone.text.projection) if part is not None]
        inside = {parameter for part in parts for parameter in part.parameters()} | {backbone.temperature}
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad and p in inside}

    def _embed(self, backbone: Backbone) -> Tensor:
        assert backbone.text is not None
        with preserve_state(backbone.model):
            device = next(backbone.text.tower.parameters()).device
            return backbone.text.embed(self.tokens.to(device)).float().cpu()


def _backbone(model: nn.Module) -> Backbone:
    return backbone_of(encoder_of(model))
