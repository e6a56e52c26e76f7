"""The images of a comparison are found as those of a dataset: none twice, none left out without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.compare import CompareError, compare_models
from attndrift.compare.image_folder import open_images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two images, and two in a folder."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, place in enumerate(["a.png", "b.png", "deep/c.png", "deep/d.png"]):
        Image.new("RGB", (32, 32), (60 * number, 90, 200 - 40 * number)).save(folder / place)
    return folder


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("again.png", "a.png"),
        ("again", "deep"),
        ("deep/up", ".."),
        ("deep/here", "."),
        ("deep/a.png", "../a.png"),
        ("deep/top.png", "{folder}/b.png"),
    ],
)
def test_an_image_that_a_link_repeats_is_refused(link: str, target: str, pictures: Path) -> None:
    (pictures / link).symlink_to(target.format(folder=pictures))
    with pytest.raises(CompareError, match=r"is a link to .*would count twice"):
        open_images(pictures)


@pytest.mark.parametrize("links", [("a", "b"), ("a", "deep/b"), ("one.png", "two.png"), ("a", "deep/two.png")])
def test_an_image_that_two_links_reach_is_refused(links: tuple[str, str], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "elsewhere" / "e.png")
    for link in links:
        file = "e.png" if link.endswith(".png") else ""
        (pictures / link).symlink_to(tmp_path / "elsewhere" / file)
    with pytest.raises(CompareError, match=r"links to one image, .*e\.png"):
        open_images(pictures)


def test_a_link_that_leads_out_counts_once(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "elsewhere" / "e.png")
    (pictures / "more").symlink_to(tmp_path / "elsewhere")
    through = tmp_path / "link"
    through.symlink_to(pictures)
    for folder in (pictures, through):
        assert open_images(folder).names == ["a.png", "b.png", "deep/c.png", "deep/d.png", "more/e.png"]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", ["a.heic", "x.JXL", "x.cr2", "x.svg", "picture", "x.png.part", "deep/x.avifs"])
@pytest.mark.parametrize("command", ["compare", "baseline"])
def test_files_that_are_left_out_are_counted_and_named(command: str, name: str, pictures: Path, tmp_path: Path) -> None:
    (pictures / name).write_bytes(b"x")
    (pictures / "gone.png").symlink_to("nowhere.png")
    words = f"2 files are left out, as no image that can be read by its suffix: 1 {Path(name).suffix.lower() or 'no suffix'}"
    assert open_images(pictures).left_out.startswith(words) or "1 broken link, 1 " in open_images(pictures).left_out
    if name not in ("a.heic", "deep/x.avifs"):
        return
    out = tmp_path / "out"
    models = ["embedded", "embedded"] if command == "compare" else ["embedded"]
    arguments = [command, *models, "--images", str(pictures), "--output", str(out)]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    shown = " ".join(found.stdout.split())
    assert "2 files are left out" in shown
    assert Path(name).name in shown
    page = next(out.glob("*.html")).read_text(encoding="utf-8")
    assert "2 files are left out" in page
    record = next(out.glob("*.json"))
    assert "2 files are left out" in json.loads(record.read_text(encoding="utf-8"))["images"]["left_out"]


def test_an_error_of_too_few_images_says_what_is_there_instead(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.heic").write_bytes(b"x")
    with pytest.raises(CompareError, match=r"holds 0 image file.*3 files are left out.*3 \.heic"):
        compare_models("embedded", "embedded", tmp_path)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("place", [".", "compare", "deep/../out", "new/out", "{link}"])
@pytest.mark.parametrize("command", ["compare", "baseline"])
def test_what_is_written_is_no_image_of_the_next_call(command: str, place: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pictures)
    output = place.format(link=tmp_path / "link")
    models = ["embedded", "embedded"] if command == "compare" else ["embedded"]
    found = CliRunner().invoke(app, [command, *models, "--images", str(pictures), "--output", str(pictures / output)])
    assert found.exit_code == 1
    assert "would be measured the next time" in str(found.exception)
    assert sorted(path.name for path in pictures.iterdir()) == ["a.png", "b.png", "deep"]
