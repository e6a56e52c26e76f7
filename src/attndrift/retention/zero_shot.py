"""Zero-shot transfer: always through the live, adapted image encoder and its projection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from attndrift.data.prompts import fill
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import evaluation_mode
from attndrift.models.input_images import checked_images, named_size
from attndrift.process_group import Processes
from attndrift.retention.prompts import PromptFaults, prompt_faults
from attndrift.retention.text_encoder import check_texts, encode_prompts, names_of, text_encoder, text_length

DEFAULT_TEMPLATES = ("a photo of a {class}.",)


class InertModelError(RuntimeError):
    """A model whose weights have drifted and which embeds images exactly as the pretrained one does."""


class Images(Protocol):
    """Normalised images by position, such as a :class:`~attndrift.data.PixelStore`."""

    def fetch(self, positions: Any) -> Tensor:
        """Images (len(positions), 3, height, width), float32."""


@dataclass(frozen=True)
class TextFeatures:
    """Features of class names through the frozen text encoder.

    Attributes:
        features: (classes, dimensions), normalised; the mean over templates, normalised again.
        class_names, templates: what was encoded. ``{class}`` in a template stands for the name.
        tokens: SHA-256 over the tokens of all prompts; empty where the features were not made here.
    """

    features: Tensor
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    tokens: str = ""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: Any,
        class_names: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> TextFeatures:
        """Encode every class name in every template, underscores in names as spaces, runs of spaces as one.

        Args:
            model: one with a text encoder inside, of transformers or open_clip.
            tokenizer: its tokenizer (or processor), of either library.

        Raises ``ValueError`` for a model without text encoder, a template without ``{class}``, an empty name, two classes
        of equal tokens, a prompt longer than the model takes, and a tokenizer that is not the model's.
        """
        check_texts(class_names, templates)
        encoder = text_encoder(model)
        per_template = []
        seen = hashlib.sha256()
        with evaluation_mode(encoder):
            for template in templates:
                tokens, embedded = encode_prompts(encoder, tokenizer, [fill(template, name) for name in class_names])
                seen.update(str(tokens.tolist()).encode())
                per_template.append(nn.functional.normalize(embedded, dim=-1))
        most = text_length(encoder)
        _refuse(prompt_faults(tokenizer, class_names, templates, most=most), most)
        mean = nn.functional.normalize(torch.stack(per_template).mean(0), dim=-1)
        return cls(mean.cpu(), tuple(class_names), tuple(templates), seen.hexdigest())

    def subset(self, class_names: Sequence[str]) -> TextFeatures:
        """The features of some of the classes, in the order given. Raises ``ValueError`` for a name that is not there."""
        rows = [self.class_names.index(name) for name in class_names]
        tokens = hashlib.sha256(f"{self.tokens}{rows}".encode()).hexdigest() if self.tokens else ""
        return TextFeatures(self.features[rows], tuple(class_names), self.templates, tokens)

    @classmethod
    def wrap(cls, features: TextFeatures | ArrayLike, class_names: Sequence[str] | None = None) -> TextFeatures:
        """Features that somebody has: these, or numbers (classes, dimensions), normalised or not; ``templates`` is empty then.

        ``class_names``: in their order; without them the classes are called by their numbers. Raises ``ValueError`` for
        numbers of another shape, and names that are not those of the features.
        """
        if not isinstance(features, TextFeatures):
            rows = torch.as_tensor(features).detach().float().cpu()
            names = None if class_names is None else names_of("class_names", class_names)
            if rows.ndim != 2 or len(rows) != (len(rows) if names is None else len(names)):
                turned = " turn them: text_features.T" if names is not None and rows.shape[1:] == (len(names),) else ""
                raise ValueError(
                    f"text_features: have the shape {tuple(rows.shape)}"
                    + ("" if names is None else f" for {len(names)} class names")
                    + f"; expected (classes, dimensions){turned and ';'}{turned}"
                )
            if not bool(torch.isfinite(rows).all()) or bool((rows == 0).all(1).any()):
                raise ValueError("text_features: a class has numbers that are not finite, or only zeros")
            names = names or tuple(f"class {number}" for number in range(len(rows)))
            return cls(nn.functional.normalize(rows, dim=-1), names, ())
        if class_names is not None and tuple(class_names) != features.class_names:
            raise ValueError("class_names: are not those of text_features; give one of the two")
        return features


def _refuse(faults: PromptFaults, most: int | None) -> None:
    """Raise ``ValueError`` for the first thing that is wrong with the prompts."""
    if faults.empty:
        raise ValueError(f"class_names: number {faults.empty[0]} is empty, or has no tokens; name it")
    if faults.long:
        prompt, count = max(faults.long, key=lambda one: one[1])
        raise ValueError(
            f"templates: the prompt {prompt!r} is too long: {count} tokens, and the text encoder takes {most}. Shorten the "
            "template or the class name"
        )
    if faults.equal:
        one, other = faults.equal[0]
        what = f"{one!r} is there twice" if one == other else f"{one!r} and {other!r} have equal tokens"
        raise ValueError(f"class_names: {what}; the two classes could not be told apart. Give one of them another name")


@dataclass(frozen=True)
class ZeroShotResult:
    """A zero-shot accuracy, and what it is an accuracy of.

    Attributes:
        accuracy: top-1, 0..1.
        predictions, correct: (images,).
        margins: (images,), cosine of the best class minus that of the second best.
        moved: how far the embeddings are from the pretrained ones, as the mean and the largest L2 distance
            over the mean pretrained norm; None where no pretrained embeddings were given.
        evidence: class names, templates, dataset, split and preprocessing.
    """

    accuracy: float
    predictions: NDArray[np.int64] = field(repr=False)
    correct: NDArray[np.bool_] = field(repr=False)
    margins: NDArray[np.float32] = field(repr=False)
    moved: tuple[float, float] | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.predictions)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record, without the per-image arrays."""
        mean, largest = self.moved if self.moved is not None else (None, None)
        return {
            "accuracy": self.accuracy,
            "n": self.n,
            "embeddings_moved_mean": mean,
            "embeddings_moved_max": largest,
            **self.evidence,
        }


def _batches(images: Images | Tensor | Iterable[Tensor], n: int, batch_size: int) -> Iterator[Tensor]:
    """Batches of ``n`` images in all. Raises ``ValueError`` where an iterable yields more or fewer."""
    if isinstance(images, Tensor) or not hasattr(images, "fetch"):
        batches: Iterable[Tensor] = images.split(batch_size) if isinstance(images, Tensor) else images
        seen = 0
        for batch in batches:
            seen += len(batch)
            if seen > n:
                break
            yield batch
        if seen != n:
            raise ValueError(f"images: {'more than ' if seen > n else ''}{min(seen, n)} images for {n} labels")
        return
    for start in range(0, n, batch_size):
        yield images.fetch(range(start, min(start + batch_size, n)))


def _check_request(pretrained: nn.Module | None, embeddings: Tensor | None, batch_size: int) -> None:
    if pretrained is not None and embeddings is not None:
        raise ValueError("give pretrained or pretrained_embeddings, not both")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")


def text_features_of(
    model: nn.Module | None,
    class_names: Sequence[str] | None,
    text_features: TextFeatures | ArrayLike | None,
    tokenizer: Any,
    templates: Sequence[str],
) -> TextFeatures | None:
    """The text features that the arguments of :func:`evaluate_zero_shot` mean.

    ``model``: None checks what can be checked without one, and returns features that are given.

    Raises ValueError for what is missing or does not go together.
    """
    if text_features is not None:
        return TextFeatures.wrap(text_features, class_names)
    if class_names is None:
        raise ValueError(
            "class_names and text_features are missing: give text_features, or class_names and a tokenizer"
        )
    check_texts(class_names, templates)
    if not callable(tokenizer):
        raise ValueError(
            "tokenizer: "
            + ("is missing" if tokenizer is None else f"a {type(tokenizer).__name__} is none")
            + ", and class_names need the model's: that of transformers, or open_clip.get_tokenizer(...); or give text_features"
        )
    return None if model is None else TextFeatures.of(model, tokenizer, class_names, templates)


def checked_labels(labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    """The labels as integers. Raises ValueError for anything but indices into ``classes`` class names, one an image."""
    given = np.asarray(labels)
    if given.size and given.dtype.kind not in "iu":
        raise ValueError(f"labels: expected indices into the class names, whole numbers; got {given.dtype}")
    wanted = given.astype(np.int64)
    if wanted.ndim != 1:
        raise ValueError(f"labels: expected one label an image, (images,), got shape {wanted.shape}")
    if len(wanted) == 0:
        raise ValueError("labels: there are no images to evaluate")
    if wanted.min() < 0 or wanted.max() >= classes:
        outside = wanted.min() if wanted.min() < 0 else wanted.max()
        raise ValueError(f"labels: {outside} is outside the {classes} class names")
    return wanted


def evaluate_zero_shot(
    model: nn.Module,
    images: Images | Tensor | Iterable[Tensor],
    labels: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    text_features: TextFeatures | ArrayLike | None = None,
    tokenizer: Any = None,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 200,
    pretrained: nn.Module | None = None,
    pretrained_embeddings: Tensor | None = None,
    weight_drift: float | None = None,
    dataset: str | None = None,
    split: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
    **evidence: Any,
) -> ZeroShotResult:
    """Top-1 accuracy of ``model`` on images that it was not fine-tuned on, by cosine with class names.

    Args:
        model: a :class:`~attndrift.methods.ImageClassifier`, or any CLIP model; it embeds the images.
        images: normalised images: something with ``fetch(positions)`` such as a
            :class:`~attndrift.data.PixelStore`, one tensor (images, 3, height, width), or an iterable of
            such batches. Image i belongs to ``labels[i]``.
        labels: (images,), indices into ``class_names``.
        text_features: cached features, or numbers (classes, dimensions); otherwise ``class_names`` are encoded with
            ``tokenizer`` (of transformers or open_clip) in ``templates``.
        batch_size: images a forward pass; an iterable's batches are taken as they come.
        pretrained: the pretrained model; embeds the first batch, to tell how far the embeddings moved.
        pretrained_embeddings: (images, dimensions) instead, made of the first images by the same
            preprocessing. They should be a first batch of the size that this evaluation makes it, on the same
            device: another size may round differently, which would hide that two models are equal.
        weight_drift: how far the weights have moved. With either of the two it guards against evaluating a
            model whose adapted weights do not take part.
        processes: those that share every batch, each with the same arguments; None: this one alone.
        dataset, split, preprocessing: recorded with the accuracy, None where not given; so is ``evidence``.

    Raises:
        InertModelError: weights have drifted, and the embeddings are bit for bit the pretrained ones.
        TypeError: images that are not normalised.
        ValueError: labels outside the class names, no images, more or fewer images than labels, text features
            of other class names or another width, or neither text features nor class names and a tokenizer.
        FloatingPointError: an embedding is not finite.
    """
    _check_request(pretrained, pretrained_embeddings, batch_size)
    text = text_features_of(model, class_names, text_features, tokenizer, templates)
    assert text is not None
    wanted = checked_labels(labels, len(text.class_names))
    features = text.features.to(next(model.parameters()).device, torch.float32)
    together = processes or Processes()
    nearest, compared, sizes = [], [], list[int]()
    anchors = torch.empty(0) if pretrained_embeddings is None else pretrained_embeddings
    anchored, done = len(anchors), 0
    with evaluation_mode(model), together.agreeing():
        # What is fetched by position may be read again and again: it is warned of by who gives it.
        batches = _batches(images, len(wanted), batch_size)
        for batch in checked_images(batches, "images", warn=not hasattr(images, "fetch")):
            part, _ = together.share(batch, done)
            with named_size(model, part, "images"):
                embedded = image_embeddings(model, part.to(features.device)).float()
            _check_embeddings(embedded, features, done)
            nearest.append(_nearest(embedded, features))
            if pretrained is not None and done == 0:
                anchors, anchored = _embed(pretrained, part), len(batch)
            if done < anchored:
                compared.append(embedded.cpu())
            sizes.append(len(batch))
            done += len(batch)
        if anchored > done:
            raise ValueError(f"pretrained_embeddings: of {anchored} images, of {done} evaluated")
    if pretrained is not None:
        anchors = together.join(anchors, sizes[:1])
    now = together.join(torch.cat(compared), sizes[: len(compared)])[:anchored] if anchored else None
    moved = None if now is None else _moved(now, anchors.float().cpu(), weight_drift)
    predicted, margins = (together.join(torch.cat(parts), sizes).numpy() for parts in zip(*nearest, strict=True))
    described = {"dataset": dataset, "split": split, **_described(text, preprocessing), **evidence}
    correct = predicted == wanted
    return ZeroShotResult(float(correct.mean()), predicted, correct, margins, moved, described)


def zero_shot_of_embeddings(
    embeddings: Tensor,
    labels: ArrayLike,
    text: TextFeatures,
    *,
    batch_size: int = 200,
    pretrained_embeddings: Tensor | None = None,
    weight_drift: float | None = None,
    dataset: str | None = None,
    split: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> ZeroShotResult:
    """:func:`evaluate_zero_shot` of images that are embedded already: ``embeddings`` (images, dimensions), on the CPU.

    ``pretrained_embeddings``: of the first images, made in the same batches. Raises as that function does.
    """
    wanted = checked_labels(labels, len(text.class_names))
    features = text.features.to(torch.float32)
    _check_embeddings(embeddings, features, 0)
    nearest = [_nearest(part, features) for part in embeddings.split(batch_size)]
    predicted, margins = (torch.cat(parts).numpy() for parts in zip(*nearest, strict=True))
    moved = None
    if pretrained_embeddings is not None:
        moved = _moved(embeddings[: len(pretrained_embeddings)], pretrained_embeddings, weight_drift)
    described = {"dataset": dataset, "split": split, **_described(text, preprocessing)}
    correct = predicted == wanted
    return ZeroShotResult(float(correct.mean()), predicted, correct, margins, moved, described)


def _nearest(embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """The class of each embedding, and by how much its cosine exceeds that of the next class; on the CPU."""
    best = (nn.functional.normalize(embedded, dim=-1) @ features.T).topk(min(2, len(features)), dim=-1)
    return best.indices[:, 0].cpu(), (best.values[:, 0] - best.values[:, -1]).cpu()


def _described(text: TextFeatures, preprocessing: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "class_names": list(text.class_names),
        "templates": list(text.templates),
        "preprocessing": None if preprocessing is None else dict(preprocessing),
    }


def _embed(model: nn.Module, batch: Tensor) -> Tensor:
    with evaluation_mode(model):
        return image_embeddings(model, batch.to(next(model.parameters()).device)).float().cpu()


def embed_together(model: nn.Module, batch: Tensor, processes: Processes) -> Tensor:
    """Embeddings of a batch as :func:`evaluate_zero_shot` makes them in these processes: float32, on the CPU."""
    return processes.join(_embed(model, processes.share(batch, 0)[0]), [len(batch)])


def _check_embeddings(embedded: Tensor, features: Tensor, first: int) -> None:
    if embedded.shape[1] != features.shape[1]:
        raise ValueError(
            f"text_features: have {features.shape[1]} dimensions, the image embeddings {embedded.shape[1]}; "
            + ("turn them: text_features.T" if embedded.shape[1] == len(features) else "they are of another model")
        )
    finite = torch.isfinite(embedded).all(dim=1)
    if not bool(finite.all()):
        raise FloatingPointError(f"the embedding of image {first + int((~finite).nonzero()[0])} is not finite")


def _moved(now: Tensor, before: Tensor, weight_drift: float | None) -> tuple[float, float]:
    # Less is the rounding of float32: an adapter that does nothing yet may round its weight.
    if weight_drift is not None and weight_drift > 1e-6 and torch.equal(now, before):
        raise InertModelError(
            f"the weights have drifted by {weight_drift:.3g}, yet the first {len(before)} embeddings are exactly those "
            "of the pretrained model: the adapted weights do not take part in the evaluation"
        )
    distance = (now - before).double().norm(dim=1) / before.double().norm(dim=1).mean()
    return float(distance.mean()), float(distance.max())


def refuse_same_source(target_origin: str, transfer_origin: str) -> None:
    """Raise ``ValueError`` where a target and a transfer set are drawn from one source.

    By name; :func:`attndrift.data.refuse_same_origin` compares the images too.
    """
    if target_origin.strip().casefold() == transfer_origin.strip().casefold():
        raise ValueError(
            f"the target and the transfer set are both drawn from {transfer_origin!r}: accuracy on classes that were "
            "trained is not zero-shot. Choose another transfer set"
        )
