"""What the headers of ``safetensors`` files say: whether the files are whole, and whether they fit a ``config.json``.

No weights are read, and no large library is needed.

The format: 8 bytes with the length of the header (little-endian), the header (JSON, with the places of the tensors behind
it), and the tensors; https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000
"""Bytes; the library takes no longer one either."""
_MARKS = (
    (("dinov3_vit",), ("embeddings.register_tokens", ".attention.o_proj.")),
    (("dinov2_with_registers",), ("embeddings.register_tokens", ".layer_scale1.")),
    (("dinov2",), ("embeddings.mask_token", ".layer_scale1.")),
    (("siglip",), ("vision_model.head.probe",)),
    (("clip", "metaclip_2"), ("vision_model.embeddings.class_embedding", "text_model.")),
    (("vit",), ("embeddings.cls_token", ".layernorm_before.")),
)
"""Values of ``model_type``, and parts of names that all their files have; the first whose parts are all there."""
_OF_WIDTH = ("embeddings.cls_token", "vision_model.embeddings.class_embedding", "vision_model.head.probe")
"""Tensors whose last dimension is the width of the image tower."""


def damaged_weights(folder: Path) -> dict[str, str]:
    """What is wrong with the weights in ``folder``, by file; empty where all of them are whole.

    Looks at ``model.safetensors``, else at every file that the index of shards names. A folder without either has
    nothing that is damaged.
    """
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {INDEX: "is not an index of weights (no weight_map)"}
    else:
        return {}
    return {name: wrong for name in names if (wrong := _what_is_wrong(folder / str(name))) is not None}


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in ``folder``, by name; files that cannot be read are left out."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("*.safetensors")):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            header = _header(path)[0]
            shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def looks_like(names: Collection[str]) -> tuple[str, ...]:
    """The values of ``model_type`` whose files have tensors of such names; empty for names of no known type.

    >>> looks_like(["vit.embeddings.cls_token", "vit.encoder.layer.0.layernorm_before.weight"])
    ('vit',)
    """
    found = (kinds for kinds, marks in _MARKS if all(any(mark in name for name in names) for mark in marks))
    return next(found, ())


def of_another_type(names: Collection[str], kind: object) -> str | None:
    """What is wrong where tensors of these names are of another ``model_type`` than ``kind``; None where they may be of it."""
    kinds = looks_like(names)
    if not kinds or kind in kinds:
        return None
    return (
        f"its weights look like those of model_type {' or '.join(map(repr, kinds))}, and its config.json is of {kind!r}"
    )


def unlike_config(folder: Path, config: Mapping[str, Any]) -> str | None:
    """What is wrong where the weights in ``folder`` are of another type or width than ``config``; None where nothing is."""
    shapes = stored_shapes(folder)
    wrong = of_another_type(shapes, config.get("model_type"))
    if wrong is not None:
        return wrong
    own = isinstance(config.get("vision_config"), Mapping)
    width = (config["vision_config"] if own else config).get("hidden_size")
    name = next((name for name in shapes if name.endswith(_OF_WIDTH)), None)
    if name is None or not isinstance(width, int) or shapes[name][-1:] == (width,):
        return None
    setting = "vision_config.hidden_size" if own else "hidden_size"
    return f"its tensor {name!r} has shape {shapes[name]}, and its config.json has {setting} {width}"


def _header(path: Path) -> tuple[Any, int]:
    """The header of a file, and how many bytes the file has by it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, _LONGEST_HEADER):
            raise _NoHeader
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return header, 8 + length + max(ends, default=0)


class _NoHeader(ValueError):
    """The length of a header that cannot be its own."""


def _what_is_wrong(path: Path) -> str | None:
    try:
        size = path.stat().st_size
        _, whole = _header(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except _NoHeader:
        return "is no safetensors file, or is cut within its header"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return "is no safetensors file: its header cannot be read"
    return None if size == whole else f"has {size:,} bytes where its header asks for {whole:,}"
