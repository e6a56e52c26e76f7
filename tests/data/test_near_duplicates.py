"""Copies of photographs are found whatever was done to their files, and flat or unlike images are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from attndrift.data import load_dataset
from attndrift.data.dataset import ImageDataset
from attndrift.data.near_duplicates import comparable, hashes_of, near_duplicates


def photograph(seed: int, side: int = 48) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def folder_of(root: Path, images: list[Image.Image]) -> ImageDataset:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number, image in enumerate(images):
                image.save(root / split / name / f"{number:03d}.png")
    return load_dataset({"name": root.name, "path": str(root)})


def _jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=40)
    return Image.open(stream)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": _jpeg,
    "resized": lambda image: image.resize((31, 31)).resize((200, 200)),
    "stretched": lambda image: image.resize((60, 45)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "mirrored": ImageOps.mirror,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "noisy": lambda image: Image.fromarray(
        (np.asarray(image) + np.random.default_rng(0).normal(0, 8, (48, 48, 3))).clip(0, 255).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found(change: str, tmp_path: Path) -> None:
    ours = folder_of(tmp_path / "ours", [photograph(seed) for seed in range(20)])
    theirs = folder_of(tmp_path / "theirs", [photograph(99), CHANGES[change](photograph(7)), photograph(98)])
    every = np.arange(40), np.arange(6)
    found = near_duplicates((ours.train, every[0]), (theirs.test, every[1]), tmp_path / "cache")
    assert [(ours.train.ids[a][2:], theirs.test.ids[b]) for a, b in found] == [
        ("007.png", "a/001.png"), ("007.png", "b/001.png")
    ]  # fmt: skip


def test_flat_and_unlike_images_are_no_copies(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    flat = [Image.fromarray(random.normal(100, 1, (48, 48, 3)).astype(np.uint8)) for _ in range(30)]
    ours = folder_of(tmp_path / "ours", [*flat[:15], *(photograph(seed) for seed in range(60))])
    theirs = folder_of(tmp_path / "theirs", [*flat[15:], *(photograph(seed) for seed in range(100, 160))])
    every = np.arange(150)
    assert near_duplicates((ours.train, every), (theirs.test, every), tmp_path / "cache") == []


def test_hashes_are_kept_and_generated_images_are_nobodys_copies(tmp_path: Path) -> None:
    root = tmp_path / "ours"
    ours = folder_of(root, [photograph(seed) for seed in range(4)])
    first = hashes_of(ours.train, np.array([0, 5]), tmp_path / "cache")
    assert len(set(first.tolist())) == 2
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"")
    again = hashes_of(ours.train, np.array([5, 0, 1]), tmp_path / "cache")
    assert again.tolist() == [first[1], first[0], 0], (
        "what was hashed is not decoded again; what cannot be read has none"
    )
    assert comparable(ours.train)
    assert not comparable(load_dataset("tiles").train)
