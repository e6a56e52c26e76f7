"""Sets that are made of another one: class halves, corruptions, and the names by which they are asked for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attndrift.data import DataError, load_dataset, refuse_same_origin
from attndrift.data.corruptions import corrupt
from attndrift.data.derived import originals, shared_pixels
from attndrift.data.derived_names import CORRUPTIONS, SEVERITIES
from attndrift.data.registry import expand_suites
from attndrift.data.splits import evaluation_part

WITHOUT_PHOTOGRAPHS = [name for name in CORRUPTIONS if name != "frost"]


def photograph(side: int) -> Image.Image:
    """Smooth colours with edges, as photographs have them."""
    down, across = np.mgrid[:side, :side] / side
    waves = [np.sin(9 * down + k) * np.cos(7 * across - k) for k in range(3)]
    pixels = 127 + 80 * np.stack(waves, -1) + 40 * ((down - 0.5) ** 2 + (across - 0.5) ** 2 < 0.1)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_halves_are_the_classes_of_coop() -> None:
    whole, base, new = (load_dataset(name) for name in ("critters", "critters+base", "critters+new"))
    assert len(base.class_names) == 19, "of 37 the first half is rounded up"
    assert base.class_names + new.class_names == whole.class_names
    assert sorted(base.test.ids + new.test.ids) == sorted(whole.test.ids)
    row = new.test.ids.index(
        next(one for one, label in zip(whole.test.ids, whole.test.labels, strict=True) if label == 20)
    )
    assert new.test.labels[row] == 20 - 19
    assert np.array_equal(new.test[row], whole.test[whole.test.ids.index(new.test.ids[row])])
    assert new.source["derived"] == ["new"]
    assert new.origin == whole.origin
    assert len({one.fingerprint for one in (whole, base, new)}) == 3


def test_base_and_new_classes_may_be_target_and_transfer_set_and_no_others_of_one_set() -> None:
    sets = {name: load_dataset(f"digits{name}") for name in ("", "+base", "+new", "+fog-1", "+new+fog-1", "+base+new")}
    for name, other, allowed in (
        ("+base", "+new", True), ("+new", "+base", True), ("+base", "+new+fog-1", True), ("+base", "", False),
        ("+base", "+base+new", False), ("", "+fog-1", False), ("", "+new", False), ("+fog-1", "+new", False),
    ):  # fmt: skip
        if allowed:
            refuse_same_origin(sets[name], [sets[other]])
        else:
            with pytest.raises(DataError, match="drawn from one source"):
                refuse_same_origin(sets[name], [sets[other]])


@pytest.mark.parametrize("name", WITHOUT_PHOTOGRAPHS)
def test_a_corruption_changes_more_with_its_severity_and_the_same_image_alike(name: str) -> None:
    for side in (32, 96):
        image = photograph(side)
        pixels = np.asarray(image, dtype=np.float64)
        changes = []
        for severity in SEVERITIES:
            found = corrupt(image, name, severity, "a")
            assert found.shape == pixels.shape
            assert found.dtype == np.uint8
            assert np.array_equal(found, corrupt(image, name, severity, "a"))
            changes.append(np.abs(found - pixels).mean())
        assert min(changes) > 0
        # The published constants of the elastic transform go from one large turn to many small ones.
        assert changes[4] > changes[0] or name == "elastic_transform", (name, side, changes)
    random = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert random != np.array_equal(corrupt(image, name, 3, "a"), corrupt(image, name, 3, "b"))


def test_corruptions_with_closed_forms() -> None:
    image = photograph(96)
    pixels = np.asarray(image) / 255.0
    assert np.allclose(
        corrupt(image, "contrast", 3, "a") / 255,
        ((pixels - pixels.mean((0, 1))) * 0.2 + pixels.mean((0, 1))),
        atol=1 / 255,
    )
    brighter = corrupt(image, "brightness", 2, "a") / 255
    assert np.allclose(brighter.max(-1), (pixels.max(-1) + 0.2).clip(0, 1), atol=1 / 255)
    grey = Image.new("RGB", (96, 96), (128, 128, 128))
    for name in ("defocus_blur", "motion_blur", "zoom_blur", "glass_blur", "elastic_transform", "pixelate"):
        assert np.abs(corrupt(grey, name, 5, "a").astype(int) - 128).max() <= 1, f"{name} moves brightness"
    noise = corrupt(grey, "gaussian_noise", 1, "a") / 255
    assert noise.std() == pytest.approx(0.08, rel=0.05)
    hit = (corrupt(grey, "impulse_noise", 5, "a") != 128).mean()
    assert hit == pytest.approx(0.27, rel=0.05)


def test_sizes_decide_the_constants_and_large_images_are_cropped() -> None:
    noise = [corrupt(Image.new("RGB", (s, s), (128,) * 3), "gaussian_noise", 1, "a").std() / 255 for s in (64, 65)]
    assert noise == pytest.approx([0.04, 0.08], rel=0.05)
    assert corrupt(photograph(300).resize((500, 300)), "fog", 1, "a").shape == (224, 224, 3)


@pytest.mark.parametrize("size", [(8, 8), (3, 40), (1, 1), (41, 17), (200, 300)])
def test_images_of_any_size_can_be_corrupted(size: tuple[int, int]) -> None:
    for name in WITHOUT_PHOTOGRAPHS:
        assert corrupt(photograph(64).resize(size), name, 5, "a").shape == (size[1], size[0], 3), name


def test_frost_takes_the_photographs_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNDRIFT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"`frost` needs photographs of frost in .*frost"):
        load_dataset("digits+frost-3").test[0]
    (tmp_path / "frost").mkdir()
    Image.new("RGB", (300, 250), (100, 100, 100)).save(tmp_path / "frost" / "one.png")
    black = Image.new("RGB", (224, 224))
    assert np.abs(corrupt(black, "frost", 1, "a").astype(int) - 40).max() <= 1


def test_a_corrupted_half_has_the_images_of_the_whole() -> None:
    whole, made = load_dataset("digits"), load_dataset("digits+new+gaussian_noise-2")
    assert made.class_names == ("five", "six", "seven", "eight", "nine")
    split, rows = originals(made.test)
    assert split.fingerprint == whole.test.fingerprint
    assert [whole.test.ids[row] for row in rows] == made.test.ids
    same, _ = shared_pixels(made.test)
    assert same is made.test, "its pixels are nobody else's"
    half = load_dataset("digits+new")
    split, rows = shared_pixels(half.test)
    assert split.fingerprint == whole.test.fingerprint
    assert np.array_equal(split[int(rows[3])], half.test[3])
    part, _ = evaluation_part(half, limit=10)
    assert part.class_counts(5) == [2] * 5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digits+middle", "no class half or corruption `middle`"),
        ("digits+fog", "did you mean `fog-3`"),
        ("digits+fog-6", "no class half or corruption `fog-6`; did you mean `fog-3`"),
        ("digits+gausian_noise-2", "did you mean `gaussian_noise-3`"),
        ("digits+", "no class half or corruption ``"),
        ("digts+new", "no dataset `digts`; did you mean `digits`"),
        ("digits+base+base+base+base+base", "has 1 class, which has no halves"),
    ],
)
def test_a_name_that_cannot_be_is_answered(name: str, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        _ = load_dataset(name).test


def test_suites_of_one_set() -> None:
    assert expand_suites(("digits+halves",), "tiles") == ("digits+base", "digits+new")
    one = expand_suites(("cifar100+corruptions-3",), "tiles")
    assert len(one) == 14
    assert "cifar100+fog-3" in one
    assert len(expand_suites(("cifar100+corruptions",), "tiles")) == 70
    assert "wds_vtab-eurosat" not in expand_suites(("clip-benchmark",), "eurosat"), "it has the target's source"
