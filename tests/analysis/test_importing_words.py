"""Imported words and derived columns: every categorical and every derived column of the schema is checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from attndrift.importing.importer import import_tables
from attndrift.importing.options import ImportOptions, parse_values
from attndrift.results.tables import TableError, Tables, read_tables
from benchmarks.synthetic import synthetic_tables


def _import(tmp_path: Path, options: ImportOptions | None = None, **tables: str) -> Tables:
    source = tmp_path / "in"
    source.mkdir(exist_ok=True)
    for name, text in tables.items():
        (source / f"{name}.csv").write_text(text)
    import_tables(source, tmp_path / "out", options, overwrite=True)
    return read_tables(tmp_path / "out")


def _runs(loss: str) -> str:
    return f'run_id,method,loss\na,full,"{loss}"\n'


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("attention_preservation:0.1", "attention_preservation:0.1"),
        ("Attention-Preservation:0.10", "attention_preservation:0.1"),
        ("APR:0.1", "attention_preservation:0.1"),
        ("entropy floor : 1e-2 + attention preservation:1", "attention_preservation:1+entropy_floor:0.01"),
        ("ENTROPY_FLOOR:5e-1", "entropy_floor:0.5"),
        ("their_loss", "their_loss"),
        ("kd:0.5", "kd:0.5"),
    ],
)
def test_losses_are_read_in_their_canonical_form(tmp_path: Path, written: str, meant: str) -> None:
    tables = _import(tmp_path, runs=_runs(written))
    assert tables.runs["loss"].tolist() == [meant]
    told = "+".join(
        name if pd.isna(weight) else f"{name}:{weight:g}"
        for name, weight in zip(tables.losses["loss"], tables.losses["weight"], strict=True)
    )
    assert told == meant, "the table `losses` is made from the column"


@pytest.mark.parametrize("written", ["", "none", "-", "n/a", "NULL"])
def test_words_for_no_loss_are_null(tmp_path: Path, written: str) -> None:
    tables = _import(tmp_path, runs=_runs(written))
    assert tables.runs["loss"].isna().all()
    assert tables.losses.empty


@pytest.mark.one_in(4)
@pytest.mark.parametrize("written", ["0.1", "0", "1e-3", "0,25", "-2", "3.14159", "12%", "nan:1"])
def test_a_column_of_numbers_is_no_column_of_losses(tmp_path: Path, written: str) -> None:
    if written == "nan:1":
        assert _import(tmp_path, runs=_runs(written)).losses["loss"].tolist() == ["nan"]
        return
    with pytest.raises(TableError, match=re.escape(f"column `loss` holds the number `{written}`")) as refused:
        _import(tmp_path, runs=_runs(written))
    assert "--rename loss=their_loss" in str(refused.value)
    aside = ImportOptions(rename={"loss": "their_loss"})
    assert _import(tmp_path, aside, runs=_runs(written)).runs["loss"].isna().all()
    mapped = ImportOptions(values=parse_values([f"loss:{written}=entropy_floor:0.1"]))
    assert _import(tmp_path, mapped, runs=_runs(written)).runs["loss"].tolist() == ["entropy_floor:0.1"]


@pytest.mark.parametrize(
    "written",
    ["attention_preservatoin:0.1", "attention:0.1", "entropy:0.1", "attention_preservation_kl:1", "entropyfloor2:1"],
)
def test_a_loss_that_is_near_a_known_one_is_asked_for(tmp_path: Path, written: str) -> None:
    with pytest.raises(TableError, match=re.escape(f'--map "loss:{written}=')):
        _import(tmp_path, runs=_runs(written))


@pytest.mark.parametrize(
    "written",
    [
        "attention_preservation", "entropy_floor:much", "entropy_floor:-1", "entropy_floor:inf", "entropy_floor:",
        "entropy_floor:0.1+Entropy Floor:0.2", "entropy_floor+attention_preservation:1",
    ],
)  # fmt: skip
def test_a_weight_that_is_none_is_named(tmp_path: Path, written: str) -> None:
    with pytest.raises(TableError, match="column `loss` holds"):
        _import(tmp_path, runs=_runs(written))


RUN = _runs("entropy_floor:0.1+attention_preservation:0.01")


@pytest.mark.parametrize(
    ("losses", "agrees"),
    [
        ("a,entropy_floor,0.1\na,attention_preservation,0.01\n", True),
        ("a,attention_preservation,1e-2\na,Entropy Floor,0.1\n", True),
        ("a,entropy_floor,0.2\na,attention_preservation,0.01\n", False),
        ("a,entropy_floor,0.1\n", False),
        ("a,entropy_floor,0.1\na,attention_preservation,0.01\na,kd,1\n", False),
        ("a,entropy_floor,\na,attention_preservation,0.01\n", False),
    ],
)
def test_a_table_of_losses_is_compared_with_the_column(tmp_path: Path, losses: str, agrees: bool) -> None:
    text = f"run_id,loss,weight\n{losses}"
    if agrees:
        assert len(_import(tmp_path, runs=RUN, losses=text).losses) == 2
    else:
        with pytest.raises(TableError, match=r"run `a` has the loss .* and the table `losses` has"):
            _import(tmp_path, runs=RUN, losses=text)


def test_a_table_of_losses_alone_gives_the_column(tmp_path: Path) -> None:
    tables = _import(
        tmp_path, runs="run_id,method\na,full\nb,full\n", losses="run_id,loss,weight\na,entropy_floor,0.1\na,attention_preservation,2\n"
    )  # fmt: skip
    assert tables.runs["loss"].fillna("").tolist() == ["attention_preservation:2+entropy_floor:0.1", ""]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("table", "column", "written", "meant"),
    [
        ("runs", "method", "Full", "full"),
        ("runs", "method", "ＬｏＲＡ", "lora"),
        ("runs", "head", "TEXT", "text"),
        ("runs", "guard", "Retention-pct", "retention_pct"),
        ("runs", "guard_outcome", "Kept", "kept"),
        ("runs", "selection", " Validation ", "validation"),
        ("layers", "metric", "Entropy", "entropy"),
        ("layers", "metric", "head diversity", "head_diversity"),
        ("losses", "loss", "ENTROPY FLOOR", "entropy_floor"),
    ],
)
def test_every_column_of_words_takes_other_spellings(
    tmp_path: Path, table: str, column: str, written: str, meant: str
) -> None:
    others = {"runs": "run_id,method\na,lora\n"}
    fields = {"run_id": "a", **({"step": "0", "layer": "1"} if table == "layers" else {})}
    fields |= {"method": "full"} if table == "runs" and column != "method" else {}
    fields[column] = written
    others[table] = f"{','.join(fields)}\n{','.join(fields.values())}\n"
    assert getattr(_import(tmp_path, **others), table)[column].tolist() == [meant]


@pytest.mark.parametrize(
    ("table", "text", "written"),
    [
        ("runs", "run_id,method,head\na,full,texts\n", "head:texts"),
        ("runs", "run_id,method,selection\na,full,val\n", "selection:val"),
        ("runs", "run_id,method,guard\na,full,retention\n", "guard:retention"),
        ("layers", "run_id,step,layer,metric\na,0,1,entropy_nats\n", "metric:entropy_nats"),
        ("losses", "run_id,loss\na,entropy_flor\n", "loss:entropy_flor"),
        ("runs", "run_id,method,lora_targets\na,lora,fc1\nb,lora,FC1\n", "lora_targets:FC1"),
    ],
)  # fmt: skip
def test_every_column_of_words_asks_for_near_ones(tmp_path: Path, table: str, text: str, written: str) -> None:
    with pytest.raises(TableError, match=re.escape(f'--map "{written}=')):
        _import(tmp_path, **{"runs": "run_id,method\na,full\n", table: text})


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("table", "derived", "change"),
    [
        *(("history", f"{m}_change_pct", lambda v: v + 9) for m in ("entropy", "erf95", "gini", "head_diversity")),
        ("history", "entropy_change_pct", lambda v: v / 100),
        ("history", "monitor_zero_shot_retention_pct", lambda v: v / 100),
        ("history", "monitor_zero_shot_retention_pct", lambda v: v + 9),
        ("interpolation", "entropy_change_pct", lambda v: v + 9),
    ],
)
def test_a_row_that_contradicts_the_start_of_its_run_is_named(
    tmp_path: Path, table: str, derived: str, change: Any
) -> None:
    runs = "run_id,method\na,full\n"
    axis = {"history": "step", "interpolation": "alpha"}[table]
    value = derived.removesuffix("_change_pct") if "change" in derived else "monitor_zero_shot_accuracy"
    good = pd.DataFrame(
        {"run_id": "a", axis: [0, 0.5, 1] if axis == "alpha" else [0, 5, 10], value: [0.8124, 0.6093, 0.4062]}
    )
    good[derived] = [0.0, -25.0, -50.0] if "change" in derived else [100.0, 75.0, 50.0]
    wrong = good.copy()
    wrong.loc[2, derived] = change(wrong.loc[2, derived])
    _import(tmp_path, runs=runs, **{table: good.to_csv(index=False)})
    with pytest.raises(TableError, match=f"`{derived}` contradicts 100 x"):
        _import(tmp_path, runs=runs, **{table: wrong.to_csv(index=False)})


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "cell", ["#DIV/0!", "#N/A", "#NV", "#WERT!", "#ÜBERLAUF!", "#VALEUR!", "#NOM?", "#¡VALOR!", "#¿NOMBRE?", "Err:502", "#BUSY!"]
)  # fmt: skip
def test_errors_of_spreadsheets_are_nulls_in_any_language(tmp_path: Path, cell: str) -> None:
    assert _import(tmp_path, runs=f"run_id,method,test_accuracy\na,full,{cell}\nb,full,0.5\n").runs[
        "test_accuracy"
    ].isna().tolist() == [True, False]
    with pytest.raises(TableError, match="an error of a spreadsheet"):
        _import(tmp_path, runs=f"run_id,method\n{cell},full\n")


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("12.345.678", 12_345_678),
        ("1,234,567", 1_234_567),
        ("12 345", 12_345),
        ("1'234", 1_234),
        ("12\u202f345\u202f678", 12_345_678),
    ],
)
def test_thousands_in_groups_are_one_number(tmp_path: Path, cell: str, number: int) -> None:
    assert _import(tmp_path, runs=f'run_id,method,n_train\na,full,"{cell}"\n').runs["n_train"].tolist() == [number]


@pytest.mark.parametrize(
    "text",
    [
        '[{"run_id": "a", "run_id": "b", "method": "full"}]',
        '[{"run_id": "a", "method": "full", "x": {"y": 1, "y": 2}}]',
    ],
)
def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(TableError, match="stands twice in one object"):
        import_tables(tmp_path / "runs.json", tmp_path / "out")


def test_our_own_tables_contradict_nothing(tmp_path: Path) -> None:
    tables = synthetic_tables(rates=2, seeds=1, layers=2, evaluations=3)
    source = tmp_path / "in"
    source.mkdir()
    for name in ("runs", "history", "layers", "interpolation"):
        getattr(tables, name).to_csv(source / f"{name}.csv", index=False)
    assert import_tables(source, tmp_path / "out").written
