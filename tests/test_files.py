"""Atomic writing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attndrift.files import new_folder, plain, read_json, write_json, write_text


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "x" * 100)
    monkeypatch.undo()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    with new_folder(target) as folder:
        (folder / "a").write_text("old")

    def interrupted() -> None:
        with new_folder(target) as folder:
            (folder / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_what_json_does_not_have_becomes_null() -> None:
    assert plain({"a": (1.0, float("nan"), float("inf")), 1: None}) == {"a": [1.0, None, None], "1": None}


def test_json_that_was_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"r\.json: not valid JSON"):
        read_json(tmp_path / "r.json")
