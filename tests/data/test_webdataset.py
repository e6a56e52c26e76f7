"""Sets in tar files: class names and templates from their text files, images from the tars."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_data import picture

from attndrift.data import DataError, DatasetUnavailable, UnreadableImageError, load_dataset
from attndrift.data.splits import make_splits


def tar_of(path: Path, rows: Sequence[Mapping[str, bytes]], first: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows, first):
            for suffix, content in row.items():
                member = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def image(label: object, seed: int, suffix: str = "webp") -> dict[str, bytes]:
    with io.BytesIO() as stream:
        picture(seed).save(stream, "WEBP" if suffix == "webp" else "PNG", lossless=True)
        return {suffix: stream.getvalue(), "cls": str(label).encode()}


def made(
    root: Path, *, names: str | None = "cat\nbig_dog\nowl\n", templates: str | None = "a {c}.\nmany {c}s\n"
) -> Path:
    tar_of(root / "test" / "0.tar", [image(k % 3, k) for k in range(6)])
    tar_of(root / "test" / "1.tar", [image(k % 3, 50 + k, "png") for k in range(3)], 6)
    tar_of(root / "train" / "0.tar", [image(k % 3, 100 + k) for k in range(9)])
    (root / "test" / "nshards.txt").write_text("2\n")
    for name, text in (("classnames.txt", names), ("zeroshot_classification_templates.txt", templates)):
        if text is not None:
            (root / name).write_text(text)
    return root


def opened(root: Path, **more: Any) -> Any:
    return load_dataset({"name": "made", "path": str(root), **more})


def test_names_templates_labels_and_images(tmp_path: Path) -> None:
    dataset = opened(made(tmp_path))
    assert dataset.class_names == ("cat", "big dog", "owl")
    assert dataset.templates == ("a {class}.", "many {class}s")
    assert (len(dataset.train), len(dataset.test)) == (9, 9)
    assert dataset.test.labels.tolist() == [0, 1, 2] * 3
    assert dataset.test.ids[:2] == ["0/s0000000", "0/s0000001"]
    assert np.array_equal(dataset.test[7], picture(51))
    assert np.array_equal(dataset.train[8], picture(108))
    before = dataset.fingerprint
    tar_of(tmp_path / "test" / "1.tar", [image(k % 3, 51 + k, "png") for k in range(3)], 6)
    assert opened(tmp_path).fingerprint != before
    assert opened(tmp_path, class_names=["a", "b", "c"]).class_names == ("a", "b", "c")


def test_a_set_to_evaluate_on_alone_is_no_target(tmp_path: Path) -> None:
    root = made(tmp_path)
    for file in (root / "train").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="images of the test would train"):
        make_splits(opened(root), selection="validation", data_seed=0)


def _no_names(root: Path) -> None:
    (root / "classnames.txt").unlink()


def _few_names(root: Path) -> None:
    (root / "classnames.txt").write_text("cat\ndog\n")


def _bare_template(root: Path) -> None:
    (root / "zeroshot_classification_templates.txt").write_text("a {c}.\na photo\n")


def _no_label(root: Path) -> None:
    tar_of(root / "test" / "0.tar", [{"webp": image(0, 1)["webp"]}])


def _no_tar(root: Path) -> None:
    (root / "test" / "0.tar").write_bytes(b"no tar at all" * 100)


def _cut(root: Path) -> None:
    content = (root / "test" / "0.tar").read_bytes()
    (root / "test" / "0.tar").write_bytes(content[: len(content) // 3])


def _odd_label(root: Path) -> None:
    tar_of(root / "test" / "0.tar", [image("cat", 1)])


def _missing_shard(root: Path) -> None:
    (root / "test" / "1.tar").unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_no_names, "there is no classnames.txt. Give `class_names`"),
        (_few_names, "its labels run from 0 to 2, but classnames.txt has 2 class names"),
        (_bare_template, "zeroshot_classification_templates.txt, line 2: 'a photo' must hold {c} exactly once"),
        (_no_label, "images without a label (`.cls`): s0000000"),
        (_no_tar, "0.tar cannot be read as a tar of images and labels"),
        (_cut, "0.tar cannot be read as a tar of images and labels"),
        (_odd_label, "0.tar cannot be read as a tar of images and labels"),
        (_missing_shard, "the split `test` has 1 of 2 tar files here"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_files_is_named(tmp_path: Path, harm: Any, said: str) -> None:
    root = made(tmp_path)
    harm(root)
    with pytest.raises(DataError, match=re.escape(said)) as raised:
        _ = opened(root).test
    assert "made" in str(raised.value)
    assert isinstance(raised.value, DatasetUnavailable) == (harm is _missing_shard)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = made(tmp_path)
    tar_of(root / "test" / "0.tar", [image(0, 1), {"webp": b"nothing", "cls": b"1"}, image(2, 3)])
    with pytest.raises(UnreadableImageError, match="made/0/s0000001"):
        opened(root).test[1]
