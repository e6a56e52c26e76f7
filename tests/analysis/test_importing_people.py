"""What people's own tables hold: each kind of misreading, through the command line."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.results.tables import Tables, read_tables
from benchmarks.synthetic import synthetic_tables


@dataclass
class Imported:
    """What an import printed or refused, and its tables."""

    text: str
    refused: str
    folder: Path

    @property
    def tables(self) -> Tables:
        assert not self.refused, self.refused
        return read_tables(self.folder)


def imported(folder: Path, *options: str, **files: str) -> Imported:
    """Import files, whose names have a double underscore for the dot."""
    source = folder / "in"
    source.mkdir(exist_ok=True)
    for name, text in files.items():
        (source / name.replace("__", ".", 1)).write_text(text, encoding="utf-8")
    given = [str(source / name.replace("__", ".", 1)) for name in files]
    result = CliRunner().invoke(app, ["import", *given, "-o", str(folder / "out"), "--overwrite", *options])
    return Imported(result.output, str(result.exception or ""), folder / "out")


# Units that are settled once


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("column", "cells", "scale", "values"),
    [
        ("test_accuracy", ("91%", "85"), "0.01", [0.91, 0.85]),
        ("best_val_accuracy", ("91,5 %", "85"), "0.01", [0.915, 0.85]),
        ("transfer_cifar100_zero_shot_accuracy", ("30%", "40"), "0.01", [0.3, 0.4]),
        ("transfer_cifar100_zero_shot_retention_pct", ("80%", "0.9"), "100", [80, 90]),
        ("entropy_change_pct", ("-12%", "-0.2"), "100", [-12, -20]),
        ("cka_mean", ("99%", "98"), "0.01", [0.99, 0.98]),
        ("loss_active_fraction", ("5%", "50"), "0.01", [0.05, 0.5]),
    ],
)
def test_a_cell_with_a_percent_sign_is_not_scaled_as_well(
    column: str, cells: tuple[str, str], scale: str, values: list[float], tmp_path: Path
) -> None:
    text = f'run_id,method,loss,{column}\na,full,their_loss,"{cells[0]}"\nb,full,their_loss,"{cells[1]}"\n'
    made = imported(tmp_path, "--scale", f"{column}={scale}", runs__csv=text)
    assert made.tables.runs[column].tolist() == pytest.approx(values)
    assert f"1 cells of `{column}` have a percent sign and are not multiplied" in made.text
    only = imported(tmp_path, "--scale", f"{column}={scale}", runs__csv=text.replace(cells[1], cells[0]))
    assert "has a percent sign, which says its unit already; leave that option out" in only.refused


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("table", "column", "cell"),
    [
        ("runs", "weight_drift", "inf"),
        ("runs", "test_accuracy", "1e999"),
        ("runs", "entropy_change_pct", "-Infinity"),
        ("runs", "learning_rate", "+inf"),
        ("history", "train_loss", "Infinity"),
        ("history", "entropy_change_pct", "-inf"),
        ("layers", "value", "inf"),
        ("interpolation", "weight_drift", "1e400"),
    ],
)
def test_infinite_numbers_are_said(table: str, column: str, cell: str, tmp_path: Path) -> None:
    keys = {
        "history": {"step": "1"},
        "layers": {"step": "1", "layer": "1", "metric": "gini"},
        "interpolation": {"alpha": "1"},
        "runs": {"method": "full"},
    }
    row = {"run_id": "a", **keys[table], column: cell}
    files = {f"{table}__csv": f"{','.join(row)}\n{','.join(row.values())}\n"}
    made = imported(tmp_path, **({"runs__csv": "run_id,method\na,full\n"} | files))
    assert getattr(made.tables, table)[column].isna().all()
    assert f"1 infinite numbers of `{column}` read as null" in made.text


@pytest.mark.one_in(4)
@pytest.mark.parametrize("column", ["entropy", "erf95", "gini", "head_diversity", "entropy_last_layer"])
@pytest.mark.parametrize("table", ["runs", "history"])
def test_changes_that_look_like_fractions_are_pointed_out(table: str, column: str, tmp_path: Path) -> None:
    name = f"{column}_change_pct"
    history = f"run_id,step,{name}\na,0,0\na,5,-0.12\na,9,-0.31\n"
    runs = f"run_id,method,{name}\na,full,-0.31\n" if table == "runs" else "run_id,method\na,full\n"
    files = {"runs__csv": runs} | ({"history__csv": history} if table == "history" else {})
    assert f"--scale {name}=100" in imported(tmp_path, **files).text
    told = "run_id,method,entropy_baseline,entropy_final,entropy_change_pct\na,full,3.6831,3.6721,-0.3\n"
    assert "--scale" not in imported(tmp_path, runs__csv=told).text, "the two ends settle the unit"


# Contradictions between tables

_HISTORY = (
    "run_id,step,epoch,val_accuracy,weight_drift,entropy,gini,cka_mean,entropy_change_pct,embedding_drift\n"
    "a,0,0,,0,3.683,0.15,1,0,0\na,5,1,0.91,0.05,3.5,0.2,0.9,-5.0,0.1\na,10,2,0.85,0.14,3.002,0.3,0.8,-18.5,0.2\n"
)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("column", "good", "wrong"),
    [
        ("best_val_accuracy", "0.91", "0.85"),
        ("best_val_accuracy", "0.9100", "0.8990"),
        ("best_val_accuracy", "0.91", "0.97"),
        ("weight_drift", "0.14", "0.0107"),
        ("entropy_baseline", "3.683", "5.313"),
        ("gini_baseline", "0.15", "0.25"),
        ("entropy_final", "3.002", "3.402"),
        ("cka_mean", "0.8", "0.99"),
        ("entropy_change_pct", "-18.5", "-1.85"),
        ("embedding_drift", "0.1", "0.4"),
    ],
)
def test_a_run_that_contradicts_its_history_is_named(column: str, good: str, wrong: str, tmp_path: Path) -> None:
    def text(value: str) -> str:
        return f"run_id,method,epochs,selected_epoch,{column}\na,full,2,1,{value}\n"

    assert imported(tmp_path, runs__csv=text(good), history__csv=_HISTORY).tables.runs[column].notna().all()
    refused = imported(tmp_path, runs__csv=text(wrong), history__csv=_HISTORY).refused
    assert f"`{column}` of 1 runs contradicts another table: that of `a` is {float(wrong):.4g}" in refused
    option = re.search(r"--rename (\S+=\S+?)\)", refused)
    assert option
    aside = imported(tmp_path, "--rename", option[1], runs__csv=text(wrong), history__csv=_HISTORY)
    assert aside.tables.runs[column].isna().all()


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("column", "value", "table", "text"),
    [
        ("test_accuracy", "0.5", "interpolation", "run_id,alpha,test_accuracy\na,1,0.9\n"),
        ("entropy_final", "3.012", "interpolation", "run_id,alpha,entropy\na,1,3.612\n"),
        ("entropy_baseline", "3.012", "interpolation", "run_id,alpha,entropy\na,0,3.612\n"),
        (
            "transfer_cifar100_zero_shot_accuracy", "0.3", "interpolation",
            "run_id,alpha,transfer_cifar100_zero_shot_accuracy\na,1,0.6\n",
        ),
        ("entropy_baseline", "3.012", "layers", "run_id,step,layer,metric,value\na,0,1,entropy,3.512\na,0,2,entropy,3.712\n"),
        ("weight_drift", "0.1", "history", "run_id,step,weight_drift\na,5,0.01\n"),
    ],
)  # fmt: skip
def test_what_may_have_another_reason_is_said(column: str, value: str, table: str, text: str, tmp_path: Path) -> None:
    runs = f"run_id,method,{column}\na,full,{value}\n"
    made = imported(tmp_path, runs__csv=runs, **{f"{table}__csv": text})
    assert f"`{column}` of 1 runs contradicts another table" in made.text
    assert made.tables


def test_one_pretrained_model_has_one_accuracy(tmp_path: Path) -> None:
    text = "run_id,method,transfer_cifar100_pretrained,transfer_cifar100_accuracy\na,full,0.6022,0.3\nb,full,0.8,0.3\n"
    assert "lies in 0.6022 .. 0.8 for one model" in imported(tmp_path, runs__csv=text).text


def test_our_own_tables_contradict_nothing_and_are_pointed_at_by_nothing(tmp_path: Path) -> None:
    tables = synthetic_tables(rates=3, seeds=2, layers=0, evaluations=3)
    files = {f"{name}__csv": getattr(tables, name).to_csv(index=False) for name in ("runs", "history")}
    made = imported(tmp_path, **files)
    assert len(made.tables.runs) == len(tables.runs)
    assert "contradicts" not in made.text


# How runs were adapted, and what they are called


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("settings", "column"),
    [
        ({"method": "full", "lora_rank": "8"}, "lora_rank"),
        ({"method": "linear_probe", "lora_targets": '"q,v"'}, "lora_targets"),
        ({"method": "none", "lora_alpha": "16"}, "lora_alpha"),
        ({"method": "last_block", "lora_dropout": "0.1"}, "lora_dropout"),
        ({"method": "full", "entropy_floor_fraction": "0.7"}, "entropy_floor_fraction"),
        ({"method": "full", "guard_at_least": "90"}, "guard_at_least"),
        ({"method": "full", "loss_active_fraction": "0.5"}, "loss_active_fraction"),
    ],
)
def test_a_setting_that_the_run_does_not_use_is_said(settings: dict[str, str], column: str, tmp_path: Path) -> None:
    text = f"run_id,{','.join(settings)}\na,{','.join(settings.values())}\n"
    made = imported(tmp_path, runs__csv=text)
    assert f"1 runs have a `{column}` and " in made.text
    assert "first `a`" in made.text


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("v,q", "q,v"),
        ("q_proj,v_proj", "q,v"),
        ("['q_proj', 'v_proj']", "q,v"),
        ('["query", "value"]', "q,v"),
        ("q+v", "q,v"),
        ("qv", "q,v"),
        ("QKVO", "q,k,v,out"),
        ("self_attn.q_proj; self_attn.out_proj", "q,out"),
        ("Wq Wk Wv Wo", "q,k,v,out"),
        ("fc1", "fc1"),
        ("all-linear", "all-linear"),
    ],
)
def test_projections_have_one_spelling(written: str, meant: str, tmp_path: Path) -> None:
    quoted = written.replace('"', '""')
    made = imported(tmp_path, runs__csv=f'run_id,method,lora_rank,lora_targets\na,lora,8,"{quoted}"\n')
    assert made.tables.runs["lora_targets"].tolist() == [meant]
    assert (f"`{written}` of `lora_targets` read as `{meant}`" in made.text) == (written != meant)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("value", "column", "meant"),
    [
        (["q_proj", "v_proj"], "lora_targets", "q,v"),
        (["out_proj", "k", "v", "q"], "lora_targets", "q,k,v,out"),
        (["query"], "lora_targets", "q"),
        (["attention_preservation:0.1", "entropy_floor:1"], "loss", "attention_preservation:0.1+entropy_floor:1"),
        (["q", "fc1"], "lora_targets", "q,fc1"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_lists_of_json_are_read(value: list[str], column: str, meant: str, suffix: str, tmp_path: Path) -> None:
    row = {"run_id": "a", "method": "lora", "lora_rank": 8, column: value}
    made = imported(tmp_path, **{f"runs__{suffix}": json.dumps([row] if suffix == "json" else row)})
    assert made.tables.runs[column].tolist() == [meant]
    other = json.dumps([row | {"dataset": ["eurosat"]}])
    assert (
        "column `dataset` holds the list ['eurosat']; it has one value a row"
        in imported(tmp_path, runs__json=other).refused
    )


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("names", "same"),
    [
        (("run-1", "Run-1"), True),
        (("LoRA", "lora"), True),
        (("caf\u00e9", "CAFE\u0301"), True),
        (("ａ１", "a1"), True),
        (("a b", "a  b"), True),
        (("a", "a\u200b"), True),
        (("stra\u00dfe", "STRASSE"), True),
        (("1.1", "1.10"), False),
        (("a_b", "a-b"), False),
    ],
)
def test_runs_that_differ_in_case_or_width_are_asked_for(names: tuple[str, str], same: bool, tmp_path: Path) -> None:
    text = "run_id,method\n" + "".join(f'"{name}",full\n' for name in names)
    made = imported(tmp_path, runs__csv=text)
    if not same:
        assert len(made.tables.runs) == 2
        return
    assert "differ in nothing but case, width or spaces" in made.refused
    option = re.search(r'--map "(.+)"$', made.refused)
    assert option
    assert len(imported(tmp_path, "--map", option[1], runs__csv=text).tables.runs) == 2
    one, other = (f"run_id,method\n{names[0]},full\n", f"run_id,step\n{names[1]},0\n")
    made = imported(tmp_path, runs__csv=one, history__csv=other)
    assert f"and the run is called `{names[0]}`: --map" in made.refused
    option = re.search(r'--map "(.+)"$', made.refused)
    assert option
    assert len(imported(tmp_path, "--map", option[1], runs__csv=one, history__csv=other).tables.history) == 1


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["caf\u00e9", "\u00e5ngstr\u00f6m", "\ud55c\uad6d", "n\u0303", "\u1e69"])
def test_the_unicode_form_of_a_name_does_not_matter(name: str, tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    made = imported(
        tmp_path, runs__csv=f"run_id,method\n{forms[0]},full\n", history__csv=f"run_id,step\n{forms[1]},0\n"
    )
    assert made.tables.history["run_id"].tolist() == [forms[0]]
    both = imported(tmp_path, runs__csv=f"run_id,method\n{forms[0]},full\n{forms[1]},full\n")
    assert both.refused


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("zero-shot", "none"), ("Zero Shot CLIP", "none"), ("pretrained", "none"), ("pre-trained", "none"),
        ("original", "none"), ("no fine-tuning", "none"), ("baseline", "none"), ("raw", "none"),
        ("fine-tuned", "full"), ("FT", "full"), ("end-to-end", "full"), ("LP", "linear_probe"), ("Full FT", "full"),
        ("probing", "linear_probe"), ("last layer", "last_block"),
    ],
)  # fmt: skip
def test_other_words_for_a_method_are_asked_for(written: str, meant: str, tmp_path: Path) -> None:
    text = f"run_id,method\na,{written}\n"
    refused = imported(tmp_path, runs__csv=text).refused
    assert f'--map "method:{written}={meant}"' in refused
    assert imported(tmp_path, "--map", f"method:{written}={meant}", runs__csv=text).tables.runs["method"].tolist() == [
        meant
    ]
    apart = f"method:{written}=their {written}"
    assert f'--map "{apart}"' in refused
    assert imported(tmp_path, "--map", apart, runs__csv=text).tables.runs["method"].tolist() == [f"their {written}"]


# Exports of trackers


@pytest.mark.one_in(5)
@pytest.mark.parametrize("legend", ["{}", "Name: {}", "name: {}", "Run: {}", "ID: {}", "Display Name: {}"])
@pytest.mark.parametrize("run", ["a", "a - b", "lora r=8: 2"])
def test_wide_charts_of_wandb_name_their_runs(legend: str, run: str, tmp_path: Path) -> None:
    name = legend.format(run)
    chart = f"Step,{name} - _step,{name} - val/accuracy,{name} - val/accuracy__MIN,{name} - val/accuracy__MAX\n5,5,0.9,0.9,0.9\n"
    runs = f"run_id,method\n{run},full\n"
    made = imported(
        tmp_path, "--rename", "Step=step", "--rename", "val/accuracy=val_accuracy", runs__csv=runs, chart__csv=chart
    )
    assert made.tables.history[["run_id", "val_accuracy"]].values.tolist() == [[run, 0.9]]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("key", "run"),
    [("tag", "run"), ("key", "run_id"), ("metric", "run_id"), ("Tag", "Run"), ("metric_name", "run_name")],
)
def test_long_exports_are_made_a_row_a_step(key: str, run: str, tmp_path: Path) -> None:
    long = f"{run},{key},step,value\na,val_accuracy,5,0.9\na,train_loss,5,1.5\na,val_accuracy,9,0.95\n"
    made = imported(tmp_path, runs__csv="run_id,method\na,full\n", scalars__csv=long)
    assert made.tables.history["val_accuracy"].tolist() == [0.9, 0.95]
    assert made.tables.history["train_loss"].dropna().tolist() == [1.5]


def test_a_scalar_of_tensorboard_says_run_and_metric_in_its_name(tmp_path: Path) -> None:
    files = {
        "runs__csv": "run_id,method\na,full\n",
        "run-a-tag-val_accuracy__csv": "Wall time,Step,Value\n1.5,5,0.25\n",
    }
    assert imported(tmp_path, **files).tables.history["val_accuracy"].tolist() == [0.25]


_STEPS = "Wall time,Step,Value\n"
_WIDE = "run_id,step,val_accuracy\n"


@pytest.mark.parametrize(
    ("files", "accuracy", "loss"),
    [
        # Another tag of the same run, another run, both; rows of other runs; other columns; the same value twice.
        ({"run-a-tag-val_accuracy__csv": f"{_STEPS}1,5,0.25\n", "run-a-tag-train_loss__csv": f"{_STEPS}2,5,1.5\n"}, [0.25], [1.5]),
        ({"run-a-tag-val_accuracy__csv": f"{_STEPS}1,5,0.25\n", "run-b-tag-val_accuracy__csv": f"{_STEPS}2,5,0.5\n"}, [0.25, 0.5], []),
        ({"run-a-tag-val_accuracy__csv": f"{_STEPS}1,5,0.25\n", "run-b-tag-train_loss__csv": f"{_STEPS}2,9,1.5\n"}, [0.25], [1.5]),
        ({"one__csv": f"{_WIDE}a,5,0.25\n", "two__csv": f"{_WIDE}b,5,0.5\n"}, [0.25, 0.5], []),
        ({"one__csv": f"{_WIDE}a,5,0.25\n", "two__csv": "run_id,step,train_loss\na,5,1.5\n"}, [0.25], [1.5]),
        ({"one__csv": f"{_WIDE}a,5,0.25\n", "two__csv": f"{_WIDE}a,5,0.25\na,9,0.5\n"}, [0.25, 0.5], []),
    ],
    ids=["tags", "runs", "both", "rows", "columns", "overlap"],
)  # fmt: skip
def test_several_files_of_one_table_are_joined(
    files: dict[str, str], accuracy: list[float], loss: list[float], tmp_path: Path
) -> None:
    history = imported(tmp_path, runs__csv="run_id,method\na,full\nb,lora\n", **files).tables.history
    assert history.sort_values(["run_id", "step"])["val_accuracy"].dropna().tolist() == accuracy
    assert history["train_loss"].dropna().tolist() == loss


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"one__csv": f"{_WIDE}a,5,0.25\n", "two__csv": f"{_WIDE}a,5,0.5\n"},
         ("one.csv", "two.csv", "contradict each other in 1 rows", "run_id a, step 5", "`val_accuracy` is 0.25 in one and 0.5")),
        ({"x__csv": "run_id,method\na,full\n", "y__csv": "run_id,method\na,lora\n"},
         ("x.csv", "y.csv", "first run_id a: `method` is full in one and lora in the other")),
        ({"one__csv": f"{_WIDE}a,5,0.25\n", "two__csv": "step,val_accuracy\n5,0.5\n"}, ("two.csv names no run",)),
    ],
    ids=["values", "settings", "no run"],
)  # fmt: skip
def test_files_that_contradict_each_other_are_refused_by_name(
    files: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    runs = {} if "x__csv" in files else {"runs__csv": "run_id,method\na,full\n"}
    refused = imported(tmp_path, **runs, **files).refused
    assert all(word in refused for word in words), refused


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("table", "theirs", "ours"),
    [
        ("runs", "params.lr", "learning_rate"), ("runs", "config.lr.value", "learning_rate"),
        ("runs", "config/optimizer.lr", "learning_rate"), ("runs", "summary.test/acc", "test_accuracy"),
        ("runs", "metrics.val_acc", "best_val_accuracy"), ("runs", "State", "status"),
        ("runs", "params.target_modules", "lora_targets"), ("runs", "config.model_name_or_path", "model"),
        ("runs", "random_seed", "seed"), ("runs", "num_seeds", "n_seeds"), ("runs", "test_accuracy_std", "test_accuracy_sd"),
        ("runs", "Test Acc SD", "test_accuracy_sd"), ("runs", "cifar100_zero_shot_acc", "transfer_cifar100_zero_shot_accuracy"),
        ("history", "val/accuracy", "val_accuracy"), ("history", "eval/accuracy", "val_accuracy"),
        ("history", "train/loss", "train_loss"), ("history", "train/accuracy", "train_accuracy"),
    ],
)  # fmt: skip
def test_usual_names_of_trackers_are_pointed_at(table: str, theirs: str, ours: str, tmp_path: Path) -> None:
    texts = {"runs": "run_id,method{}\na,full{}\n", "history": "run_id,step{}\na,5{}\n"}
    files = {
        f"{name}__csv": text.format(f",{theirs}", ",") if name == table else text.format("", "")
        for name, text in texts.items()
    }
    said = imported(tmp_path, **files).text
    assert f"is `{theirs}` the column `{ours}`?" in said
    assert f"{theirs}={ours}" in said


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "name", ["Run ID", "id", "Name", "mlflow.runName", "tags.mlflow.runName", "run_name", "Run UUID"]
)
def test_a_missing_name_of_runs_is_pointed_at(name: str, tmp_path: Path) -> None:
    text = f"{name},method\na,full\n"
    assert f"is `{name}` the column `run_id`?" in imported(tmp_path, runs__csv=text).refused
    assert imported(tmp_path, "--rename", f"{name}=run_id", runs__csv=text).tables.runs["run_id"].tolist() == ["a"]


# Files of any name


@pytest.mark.one_in(7)
@pytest.mark.parametrize("name", ["results", "results.txt", "table.dat", "export.CSV", "runs (1).csv", "a.b.tab"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_any_file_name_will_do(name: str, separator: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("method,lr\nfull,1e-5\nlora,1e-4\n".replace(",", separator))
    options = ["--number-rows", "--rename", "lr=learning_rate"]
    result = CliRunner().invoke(app, ["import", str(path), "-o", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.exception
    runs = read_tables(tmp_path / "out").runs
    assert runs[["run_id", "method", "learning_rate"]].values.tolist() == [
        ["row 1", "full", 1e-5],
        ["row 2", "lora", 1e-4],
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04rest", "Excel workbook"),
        (b"\x1f\x8brest", "unpack it first"),
        (b"\xd0\xcf\x11\xe0rest", "Excel workbook"),
        (b"SQLite format 3\0", "SQLite"),
        (b"\x93NUMPY\0\0\0", "unknown form"),
    ],
)
def test_a_file_that_is_no_table_says_what_it_is(content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "results.xlsx"
    path.write_bytes(content)
    result = CliRunner().invoke(app, ["import", str(path), "-o", str(tmp_path / "out")])
    assert what in str(result.exception)


def test_files_beside_named_tables_are_read_or_said(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("run_id,method\na,full\n")
    (tmp_path / "curves.csv").write_text("run_id,step,val_accuracy\na,5,0.9\n")
    (tmp_path / "notes.csv").write_text("run_id,note\na,fine\n")
    result = CliRunner().invoke(app, ["import", str(tmp_path), "-o", str(tmp_path / "out")])
    assert "`notes.csv` is not read" in result.output
    assert read_tables(tmp_path / "out").history["val_accuracy"].tolist() == [0.9]


# Rows that are means over seeds


@pytest.mark.one_in(5)
@pytest.mark.parametrize("cell", ["0.912 ± 0.013", "0.912±0.013", "0.912 +/- 0.013", "0.912 +- 0.013", "$0.912 \\pm 0.013$", "91.2 ± 1.3 %", "91.2% ± 1.3%"])  # fmt: skip
@pytest.mark.parametrize("column", ["test_accuracy", "transfer_cifar100_zero_shot_accuracy"])
def test_means_with_their_spread_in_one_cell(cell: str, column: str, tmp_path: Path) -> None:
    text = f"run_id,method,{column}\na,full,{cell}\n"
    made = imported(tmp_path, "--set", "n_seeds=5", runs__csv=text).tables.runs
    assert made[[column, f"{column}_sd", "n_seeds"]].values.tolist() == [
        [pytest.approx(0.912), pytest.approx(0.013), 5]
    ]
    assert "--set n_seeds=5" in imported(tmp_path, runs__csv=text).refused


def test_a_factor_goes_for_the_standard_deviation_too(tmp_path: Path) -> None:
    text = "run_id,method,n_seeds,test_accuracy,test_accuracy_sd\na,full,3,91.2,1.3\n"
    made = imported(tmp_path, "--scale", "test_accuracy=0.01", runs__csv=text).tables.runs
    assert made[["test_accuracy", "test_accuracy_sd"]].values.tolist() == [[pytest.approx(0.912), pytest.approx(0.013)]]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"n_seeds": "", "test_accuracy": "0.9", "test_accuracy_sd": "0.01"}, "does not say of how many"),
        ({"n_seeds": "1", "test_accuracy": "0.9", "test_accuracy_sd": "0.01"}, "has n_seeds 1"),
        ({"n_seeds": "5", "test_accuracy": "", "test_accuracy_sd": "0.01"}, "no `test_accuracy`"),
        ({"n_seeds": "5", "test_accuracy": "0.9", "test_accuracy_sd": "0.6"}, "in percent?"),
        ({"n_seeds": "5", "test_accuracy": "0.9", "test_accuracy_sd": "1.3"}, "percent where 0..1"),
        ({"n_seeds": "5", "test_accuracy": "0.9", "seed": "3"}, "names one in `seed`"),
        ({"n_seeds": "0", "test_accuracy": "0.9"}, "outside 1"),
    ],
)
def test_means_that_contradict_themselves_are_named(cells: dict[str, str], what: str, tmp_path: Path) -> None:
    text = f"run_id,method,{','.join(cells)}\na,full,{','.join(cells.values())}\n"
    assert what in imported(tmp_path, runs__csv=text).refused


@pytest.mark.one_in(2)
@pytest.mark.parametrize("column", ["pretrained", "accuracy", "retention_pct", "n"])
def test_constants_and_short_names_of_transfer_columns(column: str, tmp_path: Path) -> None:
    value = {"n": "10000", "retention_pct": "80"}.get(column, "0.6022")
    made = imported(tmp_path, "--set", f"transfer_cifar100_{column}={value}", runs__csv="run_id,method\na,full\n")
    assert made.tables.runs[f"transfer_cifar100_zero_shot_{column}"].tolist() == [float(value)]
    short = pd.DataFrame({"run_id": ["a"], "method": "full", f"transfer_cifar100_{column}": [float(value)]})
    made = imported(tmp_path, runs__csv=short.to_csv(index=False))
    assert made.tables.runs[f"transfer_cifar100_zero_shot_{column}"].tolist() == [float(value)]
