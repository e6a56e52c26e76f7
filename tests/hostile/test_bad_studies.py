"""Bad study files: a study, or an error that names the file; in time, and nothing is run and nothing written."""

from __future__ import annotations

import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_bad import mutated, surroundings, within

from attndrift.study.loading import (
    MAX_RUNS,
    StudyError,
    load_study,
    parse_overrides,
    parse_replacements,
    preset_text,
)
from attndrift.study.settings import RunSettings

TIME_LIMIT = 20.0

GOOD = """
name: rates
description: one line
learning_rate_scale: 1.0
shared: {model: embedded, epochs: 3, transfer: [objects], batch_size: 16}
datasets:
  tiles: {epochs: 4}
  own: {source: {path: ./images, class_names: [a, b]}}
runs:
  - {experiment: E1, method: none, grid: {dataset: [tiles, critters]}}
  - {method: full, dataset: tiles, grid: {learning_rate: [1e-5, 1e-4], seed: [0, 1, 2]}}
  - {method: lora, dataset: own, lora_rank: 4, grid: {seed: [0, 1]}}
  - {method: full, dataset: critters, loss: "attention_preservation:0.1", prompts: ["a {class}.", "the {class}"]}
"""

WORDS = [
    "null", "true", "~", "''", "[]", "{}", ".nan", ".inf", "-.inf", "NaN", "1e400", "-1", "0", "9" * 30, "9" * 5000, "0x7f",
    "0o17", "1_000", "1:30", "2026-01-01", "!!python/object/apply:os.system ['touch owned']", "!!binary aGk=", "!!set {a, b}",
    "&a [*a]", "*a", "&x {<<: *x}", "<<", "? [1, 2] : 3", "|\n  text", '"\\x00\\x1b[31m"', "../../../escape", "/etc/passwd", "a" * 4000,
    "[" * 200 + "]" * 200, "{a: " * 150 + "}" * 150, "\u202e", "🙂", "%TAG", "---", "...", "\t", "- - - -",
]  # fmt: skip

_AXIS = list(range(1, 1001))

FAULTS = {
    "billion laughs": "name: x\na: &a [1, 1, 1]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nruns: [{dataset: *c}]",
    "cyclic anchor": "name: x\nshared: &s {model: *s}\nruns: [{dataset: tiles}]",
    "cyclic list": "&a [*a]",
    "merge keys": "name: x\nbase: &b {epochs: 1}\nruns: [{<<: *b, dataset: tiles}]",
    "a repeated key": "name: x\nname: y\nruns: [{dataset: tiles}]",
    "a repeated key within": "name: x\nruns: [{dataset: tiles, epochs: 1, epochs: 2}]",
    "deep nesting": "name: " + "[" * 30_000 + "]" * 30_000,
    "deep mapping": "\n".join(" " * level + "a:" for level in range(3000)),
    "a number of a million digits": "name: x\nruns: [{dataset: tiles, seed: " + "9" * 1_000_000 + "}]",
    "not a number": "name: x\nruns: [{dataset: tiles, learning_rate: .nan}]",
    "infinite": "name: x\nruns: [{dataset: tiles, weight_decay: .inf}]",
    "infinite scale": "name: x\nlearning_rate_scale: .inf\nruns: [{dataset: tiles}]",
    "a grid of 10^9 runs": f"name: x\nruns: [{{dataset: tiles, grid: {{seed: {_AXIS}, data_seed: {_AXIS}, epochs: {_AXIS}}}}}]",
    "grids of 10^6 runs each": f"name: x\nruns: [{', '.join([f'{{dataset: tiles, grid: {{seed: {_AXIS}, epochs: {_AXIS}}}}}'] * 4)}]",
    "no utf-8": b"name: \xff\xfe\nruns: []",
    "control characters": b"name: \x00\x01\nruns: []",
    "nothing": "",
    "only a comment": "# nothing",
    "a text": "hello",
    "a tag of Python": "name: !!python/object/apply:os.system ['touch owned']\nruns: []",
    "a tag of Python for a key": "? !!python/name:os.system\n: 1",
    "another tag": "name: !exec rm\nruns: []",
    "two documents": "name: a\nruns: []\n---\nname: b",
    "too large": "#" * 5_000_000,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_answered_in_time_with_the_file(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"
    content = FAULTS[fault]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with within(TIME_LIMIT, fault), pytest.raises(StudyError, match=r"study\.yaml") as caught:
        load_study(path)
    assert len(str(caught.value)) < 3000
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


def test_a_grid_that_explodes_says_how_many_runs_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(str(FAULTS["a grid of 10^9 runs"]))
    with pytest.raises(StudyError, match=f"1,000,000,000 runs up to here; a study has at most {MAX_RUNS:,}"):
        load_study(path)


def _spliced(random: np.random.Generator) -> bytes:
    """The good file with words of trouble in place of some of its values, keys and lines."""
    lines = GOOD.splitlines()
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(0, len(lines)))
        word = WORDS[int(random.integers(0, len(WORDS)))]
        tokens = [i for i, c in enumerate(lines[place]) if c in " [{,:"]
        if not tokens:
            continue
        start = tokens[int(random.integers(0, len(tokens)))] + 1
        end = start
        while end < len(lines[place]) and lines[place][end] not in ",]}":
            end += 1
        kind = int(random.integers(0, 4))
        if kind == 0:
            lines[place] = lines[place][:start] + word + lines[place][end:]
        elif kind == 1:
            lines.insert(place, lines[place])
        elif kind == 2:
            lines[place] = lines[place][:start] + word + ": " + lines[place][start:]
        else:
            key = list(RunSettings.model_fields)[int(random.integers(0, len(RunSettings.model_fields)))]
            lines[place] = lines[place].replace("dataset", key, 1)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _bad_studies(seeds: range, folder: Path) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    presets = [preset_text(name).encode() for name in ("demo", "collapse-21")]
    path = folder / "study.yaml"
    for seed in seeds:
        random = np.random.default_rng([4, seed])
        kind = seed % 4
        if kind == 0:
            content = _spliced(random)
        elif kind == 1:
            content = mutated([GOOD.encode(), *presets][int(random.integers(0, 3))], random)
        elif kind == 2:
            alphabet = list(string.printable + "é🙂\u202e\x00\x1b")
            content = "".join(random.choice(alphabet, int(random.integers(0, 200)))).encode()
        else:
            content = _spliced(random) + b"\n" + random.bytes(int(random.integers(0, 8)))
        path.write_bytes(content)
        with within(TIME_LIMIT, f"study {seed}"):
            try:
                study = load_study(path)
            except StudyError as error:
                outcomes["refused" if str(path) in str(error) else "said badly"] += 1
            else:
                assert len({run.run_id for run in study.runs}) == len(study.runs)
                for run in study.runs:
                    inside = (folder / "runs" / run.run_id).resolve()
                    assert inside.parent == (folder / "runs").resolve(), "a run is a folder right below `runs`"
                outcomes["taken"] += 1
            for parse, text in ((parse_overrides, "epochs={}"), (parse_replacements, "epochs:{}=2")):
                try:
                    parse([text.format(content[:200].decode("utf-8", "replace"))])
                except StudyError:
                    outcomes["options refused"] += 1
    assert not outcomes["said badly"]
    return outcomes


def test_bad_studies_are_studies_or_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = _bad_studies(range(120), tmp_path)
    assert outcomes["refused"] > 30
    assert outcomes["taken"] > 2
    assert list(surroundings(tmp_path)) == [str(tmp_path / "study.yaml")]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_thousands_of_bad_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = _bad_studies(range(120, 3120), tmp_path)
    print(f"\nbad study files: {outcomes['refused'] + outcomes['taken']} inputs, {dict(outcomes)}")
    assert list(surroundings(tmp_path)) == [str(tmp_path / "study.yaml")]
