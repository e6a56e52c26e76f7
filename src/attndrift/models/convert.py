"""Pickled weights to ``safetensors``: the only code that reads a pickle, in a process of its own.

Reading a pickle can run code. The process that reads one uses ``torch.load(weights_only=True)``, which takes tensors
and refuses everything else; it has limits of memory, of time and of what it may write; and it is told no secrets.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from attndrift.files import apply_umask, read_json, write_json
from attndrift.models.errors import ModelError
from attndrift.models.hub import CONFIG, PICKLES, ModelLocation, find_files
from attndrift.models.reference import is_on_hub
from attndrift.models.weight_files import INDEX, WEIGHTS

PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
SECONDS = 1800.0
"""A conversion that takes longer is ended."""
MEMORY_FACTOR = 4
"""Times the size of the pickled files, beside what Python and torch take: the tensors, their copies, the check."""
_SPARE = 1 << 30
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth")
_KEPT = re.compile(
    r"[^/]*\.(json|txt|model|jinja)|(licen[cs]e|copying|notice|use[_-]policy|readme)([._ -][^/]*)?", re.IGNORECASE
)
"""Config, tokenizer, processor and terms of use; in a folder of its own lies the same model in another form."""
_NEVER_KEPT = (*PICKLES, ".safetensors", ".py")
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "LANG")


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        source: as it was asked for.
        commit: of the hub's repository; None for a folder.
        folder: the new model folder.
        tensors, bytes: of the weights.
        kept: files that were taken along.
    """

    source: str
    commit: str | None
    folder: str
    tensors: int
    bytes: int
    kept: list[str]


def convert(source: str, folder: Path, *, seconds: float = SECONDS) -> Conversion:
    """Write the model ``source`` with ``safetensors`` weights into ``folder``, which must not be there yet.

    Every tensor is read back and compared, bit for bit. Config, tokenizer, processor and licence are taken along.
    Links in the source are not followed; where the folder ``source`` is itself a link, the folder that it leads to is
    read.

    Args:
        source: ``NAME``, ``NAME@REVISION`` or a folder.
        folder: it appears when it is whole.
        seconds: that the reading process may take.

    Raises :class:`ModelError` where there is nothing to convert, where a file holds more than tensors, and where a
    limit is reached; ``folder`` is then not made.
    """
    if os.path.lexists(folder):
        raise ModelError(f"{folder}: is there already; nothing is overwritten, so give a folder that is not there")
    found = find_files(source) if is_on_hub(source) else _in_folder(source)
    if found.weights:
        raise ModelError(f"{source}: holds {found.weights[0]} already; there is nothing to convert")
    if CONFIG not in found.files:
        raise ModelError(f"{source}: holds no {CONFIG}; it is no model that transformers loads")
    parts = _pickled_parts(found)
    kept = [name for name in found.files if _is_kept(name) and name != PICKLE_INDEX]
    where = found.fetch([*parts, *kept])
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    staged.mkdir()
    try:
        told = _in_a_process(where, parts, staged, seconds=seconds, of_hub=found.commit is not None, source=source)
        for name in kept:
            with _opened(where / name, of_hub=found.commit is not None) as file, (staged / name).open("xb") as copy:
                shutil.copyfileobj(file, copy)
        write_json(staged / "conversion.json", {"source": source, "revision": found.commit, "sha256": told["sha256"]})
        apply_umask(staged)
        _put(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Conversion(source, found.commit, str(folder), told["tensors"], told["bytes"], kept)


def _is_kept(name: str) -> bool:
    return _KEPT.fullmatch(name) is not None and not name.lower().endswith(_NEVER_KEPT)


def _put(staged: Path, folder: Path) -> None:
    """Give ``staged`` the name ``folder``, unless something has it by now."""
    try:
        folder.mkdir()
        # A folder takes the place of an empty one alone.
        os.replace(staged, folder)
    except OSError as error:
        raise ModelError(f"{folder}: appeared meanwhile; nothing is overwritten ({error.strerror})") from error


def _in_folder(source: str) -> ModelLocation:
    folder = Path(source)
    if not folder.is_dir():
        raise ModelError(f"{folder}: not a folder; give the one that holds {CONFIG} and the pickled weights")
    # The person named this folder, so its own name may be a link. Resolved once, it cannot lead elsewhere later.
    folder = folder.resolve()
    files: dict[str, int | None] = {}
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        wanted = _is_kept(entry.name) or entry.name.endswith((*PICKLES, ".safetensors"))
        if entry.is_symlink() and wanted:
            raise ModelError(
                f"{folder / entry.name}: a link, which is not followed. Put the file itself there; for a model in the "
                "hub's cache give its NAME@REVISION"
            )
        if entry.is_file(follow_symlinks=False):
            files[entry.name] = entry.stat(follow_symlinks=False).st_size
    return ModelLocation(source, str(folder), None, "folder", files)


def _pickled_parts(found: ModelLocation) -> dict[str, list[str] | None]:
    """The pickled files, each with the tensors that the index says it holds; None where there is no index."""
    if PICKLE in found.files:
        return {PICKLE: None}
    if PICKLE_INDEX in found.files:
        path = found.fetch([PICKLE_INDEX]) / PICKLE_INDEX
        content = read_json(path)
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{found.source}: {PICKLE_INDEX} is not an index of weights (no weight_map)")
        parts: dict[str, list[str] | None] = {}
        for tensor, name in places.items():
            if name not in found.files or not str(name).endswith(PICKLES):
                raise ModelError(f"{found.source}: {PICKLE_INDEX} names {name!r}, which is no file of weights there")
            parts.setdefault(name, [])
            parts[name].append(tensor)  # type: ignore[union-attr]
        return parts
    others = [name for name in found.files if name.endswith(PICKLES) and name not in _NO_WEIGHTS and "/" not in name]
    if len(others) != 1:
        raise ModelError(
            f"{found.source}: holds {' and '.join(others) or 'no pickled weights'}; what is converted is {PICKLE}, "
            f"the files of {PICKLE_INDEX}, or one file that ends in {', '.join(PICKLES)}"
        )
    return {others[0]: None}


@contextmanager
def _opened(path: Path, *, of_hub: bool) -> Iterator[BufferedReader]:
    """A regular file, which is no link; those of the hub's cache are links into it, made by its own library."""
    path = path.resolve() if of_hub else path
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read, or is a link ({error.strerror})") from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ModelError(f"{path}: not a regular file")
        yield file


# -- this process's side of the one that reads ---------------------------------------------------


def _in_a_process(
    where: Path, parts: Mapping[str, list[str] | None], staged: Path, *, seconds: float, of_hub: bool, source: str
) -> dict[str, Any]:
    order = {
        "where": str(where.absolute()),
        "parts": dict(parts),
        "staged": str(staged.absolute()),
        "of_hub": of_hub,
        "seconds": seconds,
    }
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # Another folder than the user's, so that nothing there is imported in place of a library.
    command = [sys.executable, "-P", "-m", "attndrift.models.convert"]
    try:
        done = subprocess.run(
            command, input=json.dumps(order), capture_output=True, text=True, timeout=seconds, check=False,
            env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, cwd=staged,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{source}: reading its pickled weights took more than {seconds:g} s and was ended") from error
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        told = {"problem": f"the process that read it ended with {done.returncode}: {done.stderr.strip()[-300:]}"}
    if "problem" in told:
        raise ModelError(f"{source}: not converted: {told['problem']}")
    return dict(told)


# -- the process that reads ----------------------------------------------------------------------


def _limit(size: int, seconds: float) -> None:
    """Limit memory, time and what may be written, where the system can."""
    try:
        # Here: Windows has none.
        import resource
    except ImportError:
        return
    taken = 0
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    limits = [
        (resource.RLIMIT_AS, taken + MEMORY_FACTOR * size + _SPARE),
        (resource.RLIMIT_CPU, max(1, int(seconds))),
        (resource.RLIMIT_FSIZE, 2 * size + (64 << 20)),
        (resource.RLIMIT_CORE, 0),
    ]
    for what, wanted in limits:
        most = resource.getrlimit(what)[1]
        value = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(what, (value, value))


def _tensors(path: Path, *, of_hub: bool) -> tuple[dict[str, Tensor], str]:
    """The tensors of one pickled file, and its SHA-256. Raises :class:`ModelError` for anything else in it."""
    with _opened(path, of_hub=of_hub) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise ModelError(f"{path.name} holds no tensors by name, but {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(f"{path.name}: {name!r} is no tensor, but {type(value).__name__}")
        unfit = _why_unfit(name, value)
        if unfit is not None:
            raise ModelError(
                f"{path.name}: {name!r} {unfit}, and safetensors cannot hold it; save the model without it"
            )
    return content, digest


def _why_unfit(name: str, value: Tensor) -> str | None:
    """Why ``safetensors`` cannot hold a tensor; None where it can."""
    if name == "__metadata__":
        return "has the name that the format keeps for its own notes"
    if value.is_meta:
        return "has no values (a meta tensor)"
    if value.is_quantized:
        return f"is quantized ({value.dtype})"
    if value.layout != torch.strided:
        return f"is not dense ({value.layout})"
    try:
        save({"value": torch.empty(0, dtype=value.dtype)})
    except Exception:
        return f"is of {value.dtype}"
    return None


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory: safetensors keeps each for itself."""
    seen: set[int] = set()
    found = {}
    for name, value in tensors.items():
        storage = value.detach().untyped_storage()
        whole = storage.nbytes() == value.nbytes and value.is_contiguous() and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        found[name] = value.detach() if whole else value.detach().clone(memory_format=torch.contiguous_format)
    return found


def _check_equal(path: Path, expected: Mapping[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        if set(file.keys()) != set(expected):
            raise ModelError(f"{path.name} was written with other tensors")
        for name, before in expected.items():
            after = file.get_tensor(name)
            same = after.dtype == before.dtype and after.shape == before.shape
            # As bytes: a NaN equals no NaN.
            if not (same and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (before.contiguous(), after)))):
                raise ModelError(f"{path.name}: {name} is not equal after reading it back")


def _convert_here(order: Mapping[str, Any]) -> dict[str, Any]:
    where, staged = Path(order["where"]), Path(order["staged"])
    parts: dict[str, list[str] | None] = order["parts"]
    size = sum((where / name).stat().st_size for name in parts)
    _limit(size, order["seconds"])
    places: dict[str, str] = {}
    digests: dict[str, str] = {}
    total = 0
    for number, (name, promised) in enumerate(parts.items(), 1):
        tensors, digests[name] = _tensors(where / name, of_hub=order["of_hub"])
        if promised is not None and set(promised) != set(tensors):
            raise ModelError(f"{name} holds other tensors than {PICKLE_INDEX} says")
        file = WEIGHTS if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(_apart(tensors), staged / file, metadata={"format": "pt"})
        _check_equal(staged / file, tensors)
        places |= dict.fromkeys(tensors, file)
        total += sum(value.nbytes for value in tensors.values())
    if len(parts) > 1:
        write_json(staged / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    return {"tensors": len(places), "bytes": total, "sha256": digests}


def main() -> None:
    """Read the order from standard input and convert; the last line of standard output says how it went."""
    try:
        told = _convert_here(json.load(sys.stdin))
    except MemoryError:
        told = {"problem": "its weights need more memory than their size allows for; the file is not what it seems"}
    except Exception as error:
        told = {"problem": _why(error)}
    print(json.dumps(told))


def _why(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ModelError):
        return text
    wanted = re.search(r"(?:Unsupported global: GLOBAL|GLOBAL) ([\w.]+)", text)
    if wanted:
        return (
            f"the file asks for {wanted[1]}, which is no tensor: reading it could run code, so it was refused, and "
            "nothing of it ran"
        )
    if isinstance(error, pickle.UnpicklingError):
        # The library's own message advises to read the file without protection.
        reason = re.search(r"WeightsUnpickler error:\s*(\S.*)", text)
        told = f" ({reason[1][:200]})" if reason else ""
        return f"the file holds more than tensors, or is damaged{told}; it was refused, and nothing of it ran"
    if "can't allocate memory" in text or "Cannot allocate memory" in text:
        return "its weights need more memory than their size allows for; the file is not what it seems"
    return f"{type(error).__name__}: {(text.strip().splitlines() or ['no reason given'])[0][:300]}"


if __name__ == "__main__":
    main()
