"""A number is what people write in plain digits: what Python alone takes for one is refused, with what was typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from attndrift.analysis.settings import parse_analysis_settings
from attndrift.cli.main import app
from attndrift.importing.options import parse_scales
from attndrift.study.loading import StudyError, load_study, parse_overrides, parse_seeds

runner = CliRunner()

NO_NUMBERS = [
    "1_0",
    "\uff11\uff10",
    "\u0661\u0660",
    "0x10",
    "1,000",
    "1'000",
    "nan",
    "inf",
    "\u00b2",
    "10k",
    "--1",
    "\u22121",
]


@pytest.mark.parametrize("text", [*(text for text in NO_NUMBERS if "," not in text), "1e3", "1.0", "1,2_0", ""])
def test_seeds_are_plain_digits(text: str) -> None:
    with pytest.raises(StudyError, match="write them as whole numbers with commas"):
        parse_seeds(text)
    assert parse_seeds(" 1, 20,+3") == [1, 20, 3]


@pytest.mark.parametrize(
    "options",
    [
        ["check", "demo", "--limit"],
        ["check", "demo", "--jobs"],
        ["check", "demo", "--retries"],
        ["check", "demo", "--cpus-per-run"],
        ["check", "demo", "--gpus-per-run"],
        ["demo", "--jobs"],
        ["baseline", "embedded", "--limit"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("text", NO_NUMBERS)
def test_options_are_plain_digits(text: str, options: list[str]) -> None:
    found = runner.invoke(app, [*options, text])
    assert found.exit_code == 2, found.output
    assert "in plain digits" in " ".join(found.output.split()).replace("│ ", "")


@pytest.mark.parametrize("text", ["0", "-1"])
def test_options_keep_their_range(text: str) -> None:
    found = runner.invoke(app, ["baseline", "embedded", "--limit", text])
    assert found.exit_code == 2
    assert f"{text} is not in the range x>=1" in " ".join(found.output.split())


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_alphas_scales_and_settings_of_the_analysis_are_plain_digits(text: str, tmp_path: Path) -> None:
    if text != "1,000":
        found = runner.invoke(app, ["interpolate", str(tmp_path), "--alphas", f"0,{text}"])
        assert found.exit_code == 1
        assert "in plain digits" in found.output
    with pytest.raises(ValueError, match="scale "):
        parse_scales([f"test_accuracy={text}"])
    for name in ("level", "max_sweeps"):
        with pytest.raises(ValueError, match=f"analysis setting `{name}`"):
            parse_analysis_settings([f"{name}={text}"])
    assert parse_analysis_settings(["level=0.9", "least_accuracies=0.8,.9"]).level == 0.9


@pytest.mark.parametrize("text", [*NO_NUMBERS, "'10'", "1 000"])
@pytest.mark.parametrize("name", ["seed", "batch_size", "learning_rate"])
def test_settings_are_plain_digits_and_the_message_names_no_marks_that_are_not_there(name: str, text: str) -> None:
    if text == "0x10":
        text = "0b11"  # hexadecimal numbers are YAML 1.2's own
    with pytest.raises(StudyError, match=r"plain digits") as raised:
        load_study("demo", overrides=parse_overrides([f"{name}={text}"]))
    assert text.strip("'") in str(raised.value)
