"""Bad images and bad names through the dataset loader: decoded or named, in time, and nothing written elsewhere."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_bad import bad_image, bomb_png, good_images, surroundings, within
from PIL import Image

from attndrift.data import (
    DataError,
    ImageDataset,
    PixelStore,
    Splits,
    UnreadableImageError,
    load_dataset,
    make_splits,
)
from attndrift.data.decoding import decode_image
from attndrift.models import load_processor

TIME_LIMIT = 20.0


def _decode_all(seeds: range) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        name, content = bad_image(seed)
        with within(TIME_LIMIT, f"image {seed} ({name})"):
            try:
                image = decode_image(content, name)
            except UnreadableImageError as error:
                outcomes["named" if error.reason and error.image_id == name else "said badly"] += 1
            else:
                assert image.mode == "RGB"
                assert min(image.size) >= 1
                outcomes["decoded"] += 1
    assert not outcomes["said badly"]
    return outcomes


@pytest.mark.slow
def test_bad_images_are_decoded_or_named() -> None:
    outcomes = _decode_all(range(300))
    assert outcomes["named"] > 30
    assert outcomes["decoded"] > 30


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_bad_images_are_decoded_or_named() -> None:
    outcomes = _decode_all(range(300, 5300))
    print(f"\nbad images: {outcomes.total()} inputs, {dict(outcomes)}")
    assert outcomes.total() == 5000


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 1_000_000), (0, 5)])
def test_a_bomb_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    with within(2.0, "bomb"), pytest.raises(UnreadableImageError):
        decode_image(bomb_png(width, height), "bomb.png")


# -- names -----------------------------------------------------------------------------------------

NAMES = [
    b"plain.png",
    "Ünïcode 图像 🙂.png".encode(),
    b"two\nlines.png",
    b"carriage\rreturn.png",
    b"\x1b[31mred\x1b[0m\x1b]0;title\x07.png",
    b"bytes \xff\xfe\x80.png",
    "\u202egnp.exe\u202c.png".encode(),
    b"-rf.png",
    b"...png",
    b"'; DROP TABLE runs; --.png",
    b'<script>alert(1)</script>"&amp;.png'.replace(b"/", b"%2F"),
    b"=cmd|' 'C0.png",
    b"$(touch owned).png",
    b"%s%n{0}{class}.png",
    b"a" * 250 + b".png",
    b" .png",
]


OUTCOMES = ("loaded without its bad images", "too few are readable", "refused as a dataset")
"""What a folder of bad images can come to."""


def folder_of_names(root: Path, images: list[bytes]) -> Path:
    """Two classes with hostile names, whose files have hostile names, in two splits."""
    random = np.random.default_rng(3)
    for split in ("train", "test"):
        for folder in (b"\xff\x1b[2Jclass\n", "kl<b>\u202ease".encode()):
            where = os.path.join(os.fsencode(root), split.encode(), folder)
            os.makedirs(where)
            for place, name in enumerate(NAMES):
                content = images[place % len(images)]
                if not images[place % len(images)]:
                    picture = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    with open(os.path.join(where, name), "wb") as file:
                        Image.fromarray(picture).save(file, "PNG")
                    continue
                with open(os.path.join(where, name), "wb") as file:
                    file.write(content)
    return root


def test_hostile_file_names_are_read_like_any_other(tmp_path: Path, tiny_clip: Path) -> None:
    folder = folder_of_names(tmp_path / "images", [good_images()["rgb.png"]])
    before = surroundings(tmp_path)
    dataset = load_dataset({"name": "names", "path": str(folder)})
    splits = make_splits(dataset, selection="validation", data_seed=0, validation_per_class=2, probe_size=4)
    assert len(splits.train) + len(splits.validation) + len(splits.probe) >= 2 * len(NAMES) - 4
    _, processor = load_processor(tiny_clip)
    cache = tmp_path / "cache"
    store = PixelStore.open(dataset.split("train"), processor, indices=splits.train.indices, cache_dir=cache)
    assert store.fetch([0, 1]).shape == (2, 3, 28, 28)
    assert surroundings(tmp_path, leave_out=cache) == before


@pytest.mark.parametrize("seed", range(3))
def test_a_folder_of_bad_images_is_a_dataset_without_them_or_an_error(
    tmp_path: Path, tiny_clip: Path, seed: int
) -> None:
    assert _bad_folder(tmp_path, tiny_clip, seed) in OUTCOMES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hundreds_of_folders_of_bad_images(tmp_path: Path, tiny_clip: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(100, 300):
        outcomes[_bad_folder(tmp_path / str(seed), tiny_clip, seed)] += 1
        shutil.rmtree(tmp_path / str(seed))
    assert outcomes.total() == 200
    assert set(outcomes) <= set(OUTCOMES)
    print(f"\nfolders of {2 * 2 * len(NAMES)} bad images: {outcomes.total()}, {dict(outcomes)}")


def _bad_folder(root: Path, model: Path, seed: int) -> str:
    images = [bad_image(1000 * seed + place)[1] or b"\0" for place in range(len(NAMES))]
    folder = folder_of_names(root / "images", images)
    before = surroundings(root)
    options: dict[str, Any] = {"selection": "validation", "data_seed": seed, "validation_per_class": 1, "probe_size": 2}
    outcome, too_few, refused_whole = OUTCOMES
    with within(120.0, f"folder {seed}"):
        try:
            dataset = load_dataset({"name": "bad", "path": str(folder)})
        except DataError as error:
            assert str(error)  # noqa: PT017
            outcome = refused_whole
        else:
            unreadable = dataset.split("train").unreadable()
            assert unreadable, "at least one of sixteen"
            try:
                splits = make_splits(dataset, unreadable="skip", **options)
            except DataError as error:
                assert "readable images" in str(error)  # noqa: PT017
                outcome = too_few
            else:
                assert len(splits.skipped["train"]) == len(unreadable)
                _pixels(dataset, splits, model, root / "cache")
            # Where they are not to be skipped, an error names them when pixels are first prepared.
            with pytest.raises(DataError, match="cannot be read") as refused:
                _pixels(dataset, make_splits(dataset, **options), model, root / "cache")
            assert "Replace them, or leave them out with `unreadable: skip`" in str(refused.value)
            names = [
                split.ids[index] for split in map(dataset.split, ("train", "test")) for index in split.unreadable()
            ]
            assert any(name in str(refused.value) for name in names)
    assert surroundings(root, leave_out=root / "cache") == before
    return outcome


def _pixels(dataset: ImageDataset, splits: Splits, model: Path, cache: Path) -> None:
    """All parts, as a run prepares them before it trains."""
    _, processor = load_processor(model)
    for part in splits.parts.values():
        PixelStore.open(dataset.split(part.split), processor, indices=part.indices, cache_dir=cache)
