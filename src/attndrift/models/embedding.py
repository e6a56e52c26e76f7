"""Image embeddings of the models that can be observed, by what the model offers; never its logits."""

from __future__ import annotations

import inspect
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attndrift.models.backbone import find_backbone
from attndrift.models.evaluation import unwrapped
from attndrift.models.module_utils import is_a

_CLASSIFIERS = ("classifier", "cls_classifier", "distillation_classifier")


def image_embeddings(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Image embeddings of ``model``: (images, dimensions), not normalised.

    Asked in this order, whichever the model has:

    - ``embed`` of a classifier of ours or yours;
    - ``get_image_features`` (CLIP, SigLIP of transformers; through CLIP's projection), ``encode_image``
      (open_clip), ``forward_head(forward_features(...), pre_logits=True)`` (timm);
    - an image classifier of transformers: the input of its classifier (DeiT's with a teacher has two,
      side by side);
    - any other vision transformer of transformers: ``image_embeds``, ``pooler_output``, or without a pooler
      the class token behind the final norm; without class token the mean of the patches;
    - a wrapper whose forward takes more than images (``labels``, a batch), or puts out logits or a loss: the one image
      encoder inside. What the wrapper adds behind that encoder is not part of the embedding.

    Args:
        model: the model, with or without peft adapters.
        pixel_values: normalised images (images, 3, height, width). For SigLIP 2's models of flexible size they
            are cut into patches, so both sides must be multiples of the patch size.

    Raises:
        TypeError: the model offers none of these, so that what it puts out could be anything, or holds two encoders.
        ValueError: images that SigLIP 2 cannot cut into patches.
    """
    module: Any = unwrapped(model)
    if hasattr(module, "embed"):
        return as_embedding(module.embed(pixel_values), f"{type(module).__name__}.embed")
    if hasattr(module, "get_image_features"):
        return pooled(module, module.get_image_features(**_inputs(module, pixel_values)))
    registered = find_backbone(module)
    if registered is not None:
        return registered.embed(pixel_values)
    if hasattr(module, "encode_image"):
        return _first(module.encode_image(pixel_values))
    if hasattr(module, "forward_features") and hasattr(module, "forward_head"):
        return before_logits(_base(module), pixel_values)
    # These two are towers without classifier: what they put out is the embedding.
    if is_a(_base(module), "open_clip.VisionTransformer", "open_clip.TimmModel"):
        return _first(module(pixel_values))
    if module not in _ENCODERS:
        try:
            return _from_forward(module, pixel_values)
        except RuntimeError:  # an observation's, or the device's
            raise
        # Without labels, a forward of somebody's own may raise almost anything.
        except Exception as error:
            inside = _image_encoders(module)
            if not inside:
                raise
            if len(inside) > 1:
                raise _no_embedding(module) from error
            # Known from now on, so that the wrapper is not tried at every measurement.
            _ENCODERS[module] = inside[0]
    return image_embeddings(module.get_submodule(_ENCODERS[module]), pixel_values)


_ENCODERS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Wrappers that yield no embedding, and the path of the one image encoder inside."""


def _from_forward(module: Any, pixel_values: Tensor) -> Tensor:
    """What the forward of a model that offers nothing else makes of images alone."""
    if not _takes_images_alone(module):
        raise _no_embedding(module)
    if not is_a(_base(module), "transformers.PreTrainedModel"):
        output = module(pixel_values=pixel_values)
        # A bare tensor could be anything, logits among them.
        if isinstance(output, Tensor):
            raise _no_embedding(module)
        return pooled(module, output)
    heads = [getattr(_base(module), name) for name in _CLASSIFIERS if hasattr(_base(module), name)]
    if heads:
        return _classified(module, heads, pixel_values)
    return pooled(module, module(**_inputs(module, pixel_values)))


def _image_encoders(module: nn.Module) -> list[str]:
    """Paths of the outermost image encoders inside ``module``."""
    found: list[str] = []
    for name, part in module.named_modules():
        if name and _is_encoder(part) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def _base(module: Any) -> Any:
    """The model under peft and torch.compile."""
    while hasattr(module, "_orig_mod") or hasattr(module, "get_base_model"):
        module = module._orig_mod if hasattr(module, "_orig_mod") else module.get_base_model()
    return module


def _first(output: Any) -> Tensor:
    # Towers that also put out their tokens put the embedding first.
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def before_logits(module: Any, pixel_values: Tensor) -> Tensor:
    """``forward_head(forward_features(...), pre_logits=True)``, as one call of the module, which an observation sees."""
    own = vars(module).get("forward")
    module.forward = lambda pixels: module.forward_head(module.forward_features(pixels), pre_logits=True)
    try:
        return cast(Tensor, module(pixel_values))
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def as_embedding(output: Any, source: str) -> Tensor:
    """What a function of somebody's own puts out as embeddings: a tensor, or what transformers returns, which holds one.

    ``source``: the function, for messages. Raises TypeError for anything but numbers (images, dimensions).
    """
    found = output
    if not isinstance(found, Tensor) and getattr(output, "logits", None) is None:
        named = (getattr(output, name, None) for name in ("image_embeds", "pooler_output"))
        found = next((value for value in named if isinstance(value, Tensor)), output)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"{source}: returned a {type(found).__name__}; expected the image embeddings, a tensor (images, dimensions)"
        )
    if found.dim() != 2 or not found.is_floating_point():
        raise TypeError(
            f"{source}: returned {str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}; expected the image embeddings, "
            "floating-point (images, dimensions): of the tokens of an image, take the class token or their mean"
        )
    return found


def pooled(module: nn.Module, output: Any) -> Tensor:
    """The embedding in what ``module`` put out, (images, dimensions). Raises TypeError where there is none."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        raise _no_embedding(module)
    for name in ("image_embeds", "pooler_output"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    states = getattr(output, "last_hidden_state", None)
    if not isinstance(states, Tensor):
        raise _no_embedding(module)
    without_class_token = is_a(_base(module), "SiglipVisionModel", "Siglip2VisionModel", "SiglipModel", "Siglip2Model")
    return states.mean(1) if without_class_token else states[:, 0]


def _classified(module: Any, heads: list[nn.Module], pixel_values: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    handles = [head.register_forward_pre_hook(keep) for head in heads]
    try:
        module(**_inputs(module, pixel_values))
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != len(heads) or any(states.dim() != 2 for states in seen):
        raise _no_embedding(module)
    return seen[0] if len(seen) == 1 else torch.cat(seen, -1)


def _inputs(module: Any, pixel_values: Tensor) -> dict[str, Tensor]:
    """The keyword arguments of the model's forward."""
    config = getattr(_base(module), "config", None)
    config = getattr(config, "vision_config", config)
    if not str(getattr(config, "model_type", "")).startswith("siglip2") or pixel_values.dim() != 4:
        return {"pixel_values": pixel_values}
    images, channels, height, width = pixel_values.shape
    side = int(config.patch_size)  # type: ignore[union-attr]
    if height % side or width % side:
        raise ValueError(f"images of {height} x {width} pixels cannot be cut into patches of {side} x {side}")
    rows, columns = height // side, width // side
    # The order of Siglip2ImageProcessor: patches row by row, in a patch row by row, channels last.
    patches = pixel_values.view(images, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
    device = pixel_values.device
    return {
        "pixel_values": patches.reshape(images, rows * columns, -1),
        "pixel_attention_mask": torch.ones(images, rows * columns, dtype=torch.long, device=device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=device).expand(images, 2),
    }


def _takes_images_alone(module: nn.Module) -> bool:
    try:
        inspect.signature(module.forward).bind(pixel_values=None)
    except TypeError:
        return False
    return True


def _no_embedding(module: nn.Module) -> TypeError:
    parts = _image_encoders(module)
    held = "" if len(parts) < 2 else f" and holds {len(parts)} image encoders, {', '.join(parts)}"
    watch = f"watch the part that is meant, DriftMonitor(model.{parts[0]}, ...), " if parts else ""
    return TypeError(
        f"{type(module).__name__} yields no image embedding{held}: {watch}give the model an `embed(pixel_values)` method, "
        "or pass `embed=` to DriftMonitor"
    )


def _is_encoder(part: nn.Module) -> bool:
    if is_a(part, "transformers.PreTrainedModel") and getattr(part, "main_input_name", "") == "pixel_values":
        return True
    return any(hasattr(part, name) for name in ("get_image_features", "encode_image", "forward_features"))
