"""Whether ``safetensors`` files are whole, told from their headers: no weights are read, and no large library is needed.

The format: 8 bytes with the length of the header (little-endian), the header (JSON, with the places of the tensors behind
it), and the tensors; https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000
"""Bytes; the library takes no longer one either."""


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


def _what_is_wrong(path: Path) -> str | None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, _LONGEST_HEADER):
                return "is no safetensors file, or is cut within its header"
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return "is no safetensors file: its header cannot be read"
    return None if size == whole else f"has {size:,} bytes where its header asks for {whole:,}"
