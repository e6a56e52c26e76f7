"""Files: written so that each appears whole or not at all, read with limits, and never through a link that leads out."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attndrift.sanitize import printable

MAX_JSON_BYTES = 64 << 20
"""A larger JSON file is not read: those that are kept here have kilobytes."""
MAX_JSON_DEPTH = 64
_LONGEST_INTEGER = 20


def sync_folder(folder: Path) -> None:
    """Make the renames in ``folder`` survive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    """A free, hidden name in the folder of ``path``, by which a killed process's leftovers are known."""
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}")


def apply_umask(folder: Path) -> None:
    """Give every file below ``folder`` the permissions of a new file: safetensors makes its files private."""
    probe = _beside(folder / "permissions")
    probe.touch(exist_ok=False)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield an empty file that takes the place of ``path``, synced to disk, when the block ends without an error.

    Its permissions are what the umask says, whatever the block makes of them. ``sync=False``: it may be lost in a power
    cut, as what can be made again from other files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        if sync:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace ``path`` by ``data`` in one step; ``sync``: see :func:`replacing`."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace ``path`` by ``text`` (UTF-8) in one step; ``sync``: see :func:`replacing`.

    Bytes of a file name that are no text become escapes, which JSON reads back as they were.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"), sync=sync)


def plain(value: Any) -> Any:
    """``value`` for JSON: tuples as lists, NaN and infinities as null (JSON has neither)."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, (str, bytes, int, float)):
        return plain(value.item())
    return value


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Replace ``path`` by ``value`` as JSON in one step; ``sync``: see :func:`replacing`."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n", sync=sync)


class LeftOutWarning(UserWarning):
    """A file that cannot be used, and what was left out for it; the message names the file."""


def warn_left_out(message: str) -> None:
    """Say that something was left out. A command prints it in one line and goes on."""
    warnings.warn(message, LeftOutWarning, stacklevel=3)


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> Any:
    """The JSON value in ``path``. Raises ``ValueError`` naming the file as :func:`parse_json` does."""
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{path}: {size:,} bytes; at most {most:,} are read")
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, where: object) -> Any:
    """The JSON value in ``content``, which was read from ``where``.

    Raises ``ValueError`` naming ``where`` for content that is not JSON, for integers of more than 64 bits and for
    more than :data:`MAX_JSON_DEPTH` levels: what was written here holds neither, and readers would fail on them.
    """
    try:
        value = json.loads(content.decode("utf-8"), parse_int=_integer)
        too_deep = not _is_flat(value)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where}: not valid JSON ({error}); the file was cut short or changed by hand") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}; the file was changed by hand") from error
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"{where}: nested more than {MAX_JSON_DEPTH} levels deep; the file was changed by hand")
    return value


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"the number {text[:_LONGEST_INTEGER]}... has {len(text)} digits")
    return int(text)


def _is_flat(value: Any) -> bool:
    """Whether ``value`` has at most :data:`MAX_JSON_DEPTH` levels."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            item
            for container in level
            if isinstance(container, (dict, list))
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return True
    return False


def without_surrogates(value: Any) -> Any:
    """``value`` (dicts, lists, texts, numbers) with halves of surrogate pairs, which no file takes, as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    return value


def is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path``, with all links followed, lies in ``folder``, which may itself be a link."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


class LinkError(ValueError):
    """A link that leads out of a folder of results."""


def refuse_links(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise :class:`LinkError` for a link in ``folder`` that leads out of it: nothing is read or written through it.

    The folder itself may be a link. ``names``: look at these entries of the folder alone, which are read or written;
    by default at everything.
    """
    root = Path(os.path.realpath(folder))
    starts = [root] if names is None else [root / name for name in names]
    for start in starts:
        if not is_inside(start, root):  # by a link on the way to it, too
            raise _leads_out(start)
        for where, folders, files in os.walk(start):
            for name in (*folders, *files):
                _refuse_link(Path(where) / name, root)


def _refuse_link(path: Path, root: Path) -> None:
    if path.is_symlink() and not is_inside(path, root):
        raise _leads_out(path)


def _leads_out(path: Path) -> LinkError:
    return LinkError(
        f"{printable(path)}: a link that leads out of its folder, to {printable(os.path.realpath(path))}; nothing is "
        "read or written through it. Put the files themselves there, or link the whole folder"
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        apply_umask(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def link_or_copy(source: str, target: str) -> None:
    """Give a file that nobody will change a second name; where the file system has no such names, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def replace_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; an older ``target`` steps aside first and is then removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}-replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.replace(target, aside)
    os.replace(source, target)
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
