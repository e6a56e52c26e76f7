"""Where models of timm and open_clip come from: ``LIBRARY:REST`` in a study, and the weights behind it.

``REST`` is one of

- ``config:NAME`` or ``config:FILE.json``: random weights, the same ones every time;
- ``NAME@FILE.safetensors``: an architecture of the library, and its weights;
- a folder, in the form in which the library publishes models on a hub;
- ``REPOSITORY`` or ``REPOSITORY@REVISION`` on a hub, with or without ``hf-hub:``;
- ``NAME``, as the library calls weights that it knows a repository of.

Weights come as ``safetensors``; nothing is ever unpickled, and no library downloads anything by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attndrift.models.errors import ModelError
from attndrift.models.hub import PICKLES
from attndrift.models.reference import CONFIG_PREFIX
from attndrift.sanitize import printable

HUB_PREFIX = "hf-hub:"
_COMMIT = re.compile(r"(.*)@([0-9a-f]{40})")
_WEIGHTS = (".safetensors", *PICKLES, ".npz")


@dataclass(frozen=True)
class LibrarySource:
    """What a ``REST`` says.

    Attributes:
        text: the whole source, for messages.
        kind: where the model is.
        name: the config; the architecture; the folder; the repository; what the library calls it.
        detail: the file of weights; the revision; what follows the ``@`` of a name; None for nothing.
        commit: the commit that a study has recorded; None for none.
    """

    text: str
    kind: Literal["config", "file", "folder", "repository", "name"]
    name: str
    detail: str | None = None
    commit: str | None = None

    @classmethod
    def parse(cls, library: str, rest: str) -> LibrarySource:
        """Raises :class:`ModelError` for an empty rest, and for weights that are not ``safetensors``."""
        text = f"{library}:{rest}"
        if not rest.strip():
            raise ModelError(f"{text}: names no model; {forms(library)}")
        if rest.startswith(CONFIG_PREFIX):
            return cls(text, "config", rest.removeprefix(CONFIG_PREFIX))
        pinned = _COMMIT.fullmatch(rest)
        commit = None if pinned is None else pinned[2]
        rest = rest if pinned is None else pinned[1]
        if Path(rest).is_dir():
            return cls(text, "folder", rest)
        name, _, detail = rest.partition("@")
        if detail.endswith(_WEIGHTS) or Path(detail or ".").is_file():
            return cls(text, "file", name, _weights_file(text, Path(detail)))
        if rest.startswith(HUB_PREFIX) or "/" in name:
            return cls(text, "repository", name.removeprefix(HUB_PREFIX), detail or None, commit)
        return cls(text, "name", name, detail or None, commit)

    def on_hub(self, repository: str) -> str:
        """``REPOSITORY@REVISION``, where one is asked for."""
        revision = self.commit or (self.detail if self.kind == "repository" else None)
        return repository if revision is None else f"{repository}@{revision}"


def forms(library: str) -> str:
    """What can be given."""
    return (
        f"give {library}:NAME@FILE.safetensors, {library}:FOLDER, {library}:REPOSITORY@REVISION of a hub, or "
        f"{library}:config:NAME for random weights"
    )


def _weights_file(text: str, path: Path) -> str:
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{text}: {path.name} is not a .safetensors file. Pickled weights can run code when they are read, so they are "
            "refused: load them where you trust them, write them with safetensors.torch.save_file, and name that file"
        )
    if not path.is_file():
        raise ModelError(f"{text}: there is no file {path}")
    return str(path)


def read_config(text: str, path: Path, *needed: str) -> dict[str, Any]:
    """A JSON file with the fields ``needed``. Raises :class:`ModelError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{text}: {path.name} cannot be read as JSON: {error}") from error
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing:
        raise ModelError(f"{text}: {path.name} has no field `{missing[0]}`, so it describes no model of the library")
    found: dict[str, Any] = content
    return found


def find_weights(text: str, folder: Path, *names: str) -> Path:
    """The first of the files ``names`` that is in ``folder``. Raises :class:`ModelError`."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    held = f"; {pickled[0]} is pickled, which can run code when it is read" if pickled else ""
    raise ModelError(
        f"{text}: holds no {' or '.join(names)}{held}. Write the weights there with safetensors.torch.save_file"
    )


def read_weights(text: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises :class:`ModelError`."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{text}: {path.name} cannot be read: {error}") from error


def put_weights(text: str, model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Put the tensors into ``model``, every one of them. Raises :class:`ModelError` where one does not fit."""
    wanted = model.state_dict()
    wrong = _misfit(stored, wanted)
    if wrong is not None:
        raise ModelError(
            f"{text}: {wrong}. The weights are of another architecture; name the one that they were saved from"
        )
    model.load_state_dict(dict(stored))


def _misfit(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    for name in wanted:
        if name in stored and stored[name].shape != wanted[name].shape:
            shapes = f"{tuple(stored[name].shape)} in the file and {tuple(wanted[name].shape)} in the model"
            return f"`{printable(name)}` has shape {shapes}"
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted]
    said = (
        [f"{len(missing)} of the model's tensors are not in the file, for instance `{missing[0]}`"] if missing else []
    )
    if unexpected:
        said.append(f"{len(unexpected)} of the file's have no place, for instance `{printable(unexpected[0])}`")
    return "; ".join(said) or None


@contextmanager
def same_weights_every_time() -> Iterator[None]:
    """Random weights from a seed of their own; the global generator is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
