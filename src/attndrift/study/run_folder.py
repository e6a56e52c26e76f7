"""The files of one run: what is written into its folder before the record, each whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import Tensor

from attndrift.files import link_or_copy, new_folder, sha256, write_bytes, write_json, write_text
from attndrift.methods.adapters import read_tensors
from attndrift.methods.checkpoint import load_adapted, save_adapted
from attndrift.methods.classifier import ImageClassifier
from attndrift.models.errors import CheckpointError, FingerprintError
from attndrift.process_group import Processes
from attndrift.study.leftovers import CHECKPOINTS, LAST_GOOD, RESUME
from attndrift.study.pretrained_results import attention_maps
from attndrift.study.record import SETTINGS, read_settings
from attndrift.study.run_images import TransferSet
from attndrift.study.run_inputs import RunInputs
from attndrift.study.steps import epoch_count
from attndrift.study.training import states as resume
from attndrift.study.training.plan import FitResult


class RunFolder:
    """The folder of a run. Of several processes the first alone writes; the others' calls do nothing."""

    def __init__(self, folder: Path, inputs: RunInputs, say: Callable[[str], object]) -> None:
        self.folder, self.inputs, self.say = folder, inputs, say
        self.processes = Processes.current()

    def study_name(self) -> str:
        """The study that the run is of; empty where it is executed by itself."""
        return str(read_settings(self.folder)["study"]) if (self.folder / SETTINGS).is_file() else ""

    def write_splits(self) -> None:
        """Which images train, validate, test and probe."""
        if self.processes.first:
            write_json(self.folder / "splits.json", self.inputs.target.splits.to_json())

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """The whole history."""
        if self.processes.first:
            write_text(self.folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def write_transfer(self, item: TransferSet, measure: str, before: Any, after: Any) -> None:
        """Which images of a transfer set are classified correctly, before and after, as bits."""
        suffix = "" if measure == "zero_shot" else f"_{measure}"
        self._write_arrays(
            f"transfer_{item.name}{suffix}.npz",
            n=np.int64(after.n),
            adapted=np.packbits(after.correct),
            pretrained=np.packbits(before.correct),
        )

    def write_maps(self, model: ImageClassifier | None) -> None:
        """Attention maps of a few probe images before and after, for figures and report."""
        inputs, target = self.inputs, self.inputs.target
        count = min(inputs.settings.map_images, len(target.splits.probe))
        if count == 0 or not self.processes.first:
            return
        before = inputs.results.maps()
        pixels = target.probe.fetch(range(count))
        after = before if model is None else attention_maps(model, model.embed, pixels)
        side = math.isqrt(before.shape[-1])
        grid = (side, side) if side * side == before.shape[-1] else (1, before.shape[-1])
        part = target.splits.probe
        self._write_arrays(
            "maps.npz",
            images=target.probe.fetch_uint8(range(count)).permute(0, 2, 3, 1).numpy(),
            before=before,
            after=after,
            labels=part.labels[:count],
            class_names=np.asarray(target.class_names),
            grid=np.asarray(grid, dtype=np.int64),
            ids=np.asarray(part.ids[:count]),
        )

    def _write_arrays(self, name: str, **arrays: Any) -> None:
        if self.processes.first:
            content = io.BytesIO()
            np.savez_compressed(content, **arrays)
            write_bytes(self.folder / name, content.getvalue())

    def read_start(self) -> dict[str, Tensor] | None:
        """What an earlier attempt decomposed of the pretrained weights; None where there is nothing whole."""
        for path in sorted((self.folder / RESUME).glob("start-*.safetensors")):
            if path.stem == f"start-{sha256(path)[:32]}":
                return read_tensors(path)
            self.say(f"{path.name} is damaged; the pretrained weights are decomposed again")
        return None

    def write_start(self, start: Mapping[str, Tensor]) -> None:
        """Keep what was decomposed of the pretrained weights, so that no later attempt decomposes them again."""
        if start and self.processes.first:
            content = save({name: value.cpu().contiguous() for name, value in start.items()})
            (self.folder / RESUME).mkdir(parents=True, exist_ok=True)
            write_bytes(self.folder / RESUME / f"start-{hashlib.sha256(content).hexdigest()[:32]}.safetensors", content)

    def save_checkpoint(self, model: ImageClassifier, name: str) -> None:
        """Save the trained weights as the checkpoint ``name``."""
        if not self.processes.first:
            return
        pretrained, target = self.inputs.pretrained, self.inputs.target
        fingerprint = self.inputs.results.fingerprint()
        save_adapted(
            model,
            self.folder / CHECKPOINTS / name,
            base_source=pretrained.source,
            probe_pixels=fingerprint.pixels,
            pretrained=pretrained.model,
            pretrained_embeddings=fingerprint.embeddings,
            pretrained_sha256=pretrained.sha256,
            class_names=target.class_names,
        )

    def save_final(self, model: ImageClassifier, result: FitResult, *, guarded: bool) -> None:
        """Save the last epoch's weights; where they are the selected ones, as a copy of that checkpoint."""
        best, final = (self.folder / CHECKPOINTS / name for name in ("best", "final"))
        # A guard may have changed the weights since; and what somebody has removed cannot be copied.
        last = epoch_count(self.inputs.settings, len(self.inputs.target.splits.train))
        if result.selected_epoch != last or guarded or not best.is_dir():
            self.save_checkpoint(model, "final")
        elif self.processes.first:
            with new_folder(final) as target:
                # Nothing changes a checkpoint's files, so one may have two names.
                shutil.copytree(best, target, dirs_exist_ok=True, copy_function=link_or_copy)

    def save_last_good(self) -> None:
        """Save the trained weights of the last state before a divergence."""
        if not self.processes.first:
            return
        state = resume.newest(self.folder / RESUME, self.inputs.settings, self.say)
        if state is not None:
            with new_folder(self.folder / CHECKPOINTS / LAST_GOOD) as target:
                for name in (resume.WEIGHTS, resume.PROGRESS):
                    shutil.copy2(state / name, target / name)

    def load_selected(self, *, merged: bool = False) -> ImageClassifier:
        """The checkpoint of the selected epoch, proved to be what was saved; ``merged``: adapters in the weights.

        Raises :class:`CheckpointError`.
        """
        self.processes.wait()  # until the first one has written it
        pretrained = self.inputs.pretrained
        try:
            best = self.folder / CHECKPOINTS / "best"
            loaded = load_adapted(best, base=pretrained.copy(), base_sha256=pretrained.sha256, merged=merged)
            return loaded.to(self.inputs.device)
        except FingerprintError:
            raise
        except CheckpointError as error:
            # Its epoch lies behind the resumable states, so that only training again can bring it back.
            if self.processes.first:
                resume.clear(self.folder / RESUME)
            raise CheckpointError(f"{error}. Run the study again: this run is then trained anew") from error
