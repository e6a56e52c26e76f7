"""Write a checkpoint as a model folder that ``from_pretrained`` reads."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from pretraining import network, pictures
from pretraining.captions import load_tokenizer


def read_checkpoint(work: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The newest checkpoint's tensors and its record."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        raise SystemExit(f"no checkpoint in {work}; --work names the folder of a run")
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["record"])
        return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118


def load(work: Path) -> tuple[CLIPModel, Any, dict[str, Any]]:
    """The running mean of the newest checkpoint as a float32 model, its tokenizer and its record."""
    state, record = read_checkpoint(work)
    tokenizer = load_tokenizer(work / "tokenizer", [])
    model = network.build(tokenizer, width=int(record["settings"]["width"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[f"mean/{name}"])
    return model, tokenizer, record


def processor_of(tokenizer: Any) -> CLIPProcessor:
    """What turns pictures into 56-pixel tensors as in the pretraining: bilinear, CLIP's own mean and deviation."""
    images = CLIPImageProcessorPil(
        do_resize=True,
        size={"shortest_edge": pictures.SIDE},
        resample=2,
        do_center_crop=True,
        crop_size={"height": pictures.SIDE, "width": pictures.SIDE},
        do_rescale=True,
        do_normalize=True,
        image_mean=list(pictures.MEAN),
        image_std=list(pictures.DEVIATION),
        do_convert_rgb=True,
    )
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def export(work: Path, folder: Path) -> None:
    """Write ``config.json``, float16 ``model.safetensors``, tokenizer and preprocessor; keep README.md."""
    model, tokenizer, record = load(work)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # The attention that training used is no property of the weights.
    model.config._attn_implementation = "sdpa"
    model.half().save_pretrained(partial)
    processor = processor_of(tokenizer)
    processor.save_pretrained(partial)
    processor.image_processor.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(partial.iterdir()):
        file.chmod(0o644)
        file.replace(folder / file.name)
    partial.rmdir()
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    print(
        f"{folder}: step {record['step']}, {record['seconds'] / 60:.1f} minutes, {size / 1e6:.2f} MB", file=sys.stderr
    )
