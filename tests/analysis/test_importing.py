"""Foreign records: forms, names, types, units, and what is written when."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from attndrift.importing.importer import import_tables
from attndrift.importing.options import ImportOptions, parse_constants, parse_renames, parse_scales, parse_values
from attndrift.results.tables import TableError, read_tables
from benchmarks.synthetic import synthetic_tables


@pytest.fixture
def runs() -> pd.DataFrame:
    return synthetic_tables(rates=2, seeds=1, layers=0, evaluations=2).runs


def save(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=path.suffix != ".json")
    return path


@pytest.mark.one_in(2)
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".ndjson", ".json"])
def test_every_form_gives_the_same_tables(runs: pd.DataFrame, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    save(runs, source / f"runs{suffix}")
    report = import_tables(source, tmp_path / "out")
    assert report.written == [tmp_path / "out" / name for name in ("runs.parquet", "history.parquet", "layers.parquet")]
    pd.testing.assert_frame_equal(read_tables(tmp_path / "out").runs, runs, rtol=1e-9)


def test_single_files_and_missing_ones(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs, tmp_path / "runs.csv")
    assert import_tables(path, tmp_path / "out").written
    with pytest.raises(TableError, match="no such file"):
        import_tables(tmp_path / "history.csv", tmp_path / "out2")
    report = import_tables(save(runs, tmp_path / "their results.csv"), tmp_path / "out2", check_only=True)
    assert "taken for the table runs, by its columns" in str(report)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="no tables here"):
        import_tables(tmp_path / "empty", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_nothing_is_overwritten_unasked(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs, tmp_path / "runs.csv")
    out = tmp_path / "out"
    import_tables(path, out)
    before = (out / "runs.parquet").read_bytes()
    save(runs.iloc[:3], path)
    with pytest.raises(TableError, match="already exists"):
        import_tables(path, out)
    assert (out / "runs.parquet").read_bytes() == before
    import_tables(path, out, overwrite=True)
    assert len(read_tables(out).runs) == 3


def test_a_bad_table_leaves_nothing_behind(runs: pd.DataFrame, tmp_path: Path) -> None:
    save(runs, tmp_path / "runs.csv")
    save(pd.DataFrame({"run_id": ["stranger"], "step": [0]}), tmp_path / "history.csv")
    with pytest.raises(TableError, match="stranger"):
        import_tables(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_check_only_writes_nothing(runs: pd.DataFrame, tmp_path: Path) -> None:
    report = import_tables(save(runs, tmp_path / "runs.csv"), tmp_path / "out", check_only=True)
    assert report.written == []
    assert not (tmp_path / "out").exists()


def test_percent_where_a_fraction_is_meant(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs.assign(test_accuracy=97.2), tmp_path / "runs.csv")
    with pytest.raises(TableError, match=r"percent where 0\.\.1 is meant"):
        import_tables(path, tmp_path / "out")


def test_fractions_where_percent_is_meant(runs: pd.DataFrame, tmp_path: Path) -> None:
    name = "transfer_cifar100_zero_shot_retention_pct"
    path = save(
        runs.assign(**{name: runs[name] / 100}).drop(columns=name.replace("retention_pct", "accuracy")),
        tmp_path / "runs.csv",
    )
    assert f"`{name}` lies in" in str(import_tables(path, tmp_path / "out", check_only=True))
    path = save(runs.assign(gini_change_pct=runs["gini_change_pct"] / 100), tmp_path / "runs.csv")
    with pytest.raises(
        TableError, match=r"`gini_change_pct` contradicts .*it is a hundredth of it.*--scale gini_change_pct=100"
    ):
        import_tables(path, tmp_path / "out", check_only=True)


def test_bits_where_nats_are_meant(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs.assign(entropy_baseline=7.1, entropy_final=7.1, entropy_change_pct=0.0), tmp_path / "runs.csv")
    assert "in bits" in str(import_tables(path, tmp_path / "out", check_only=True))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("foreign", "own"),
    [("lr", "learning_rate"), ("test_acc", "test_accuracy"), ("embeding_drift", "embedding_drift")],
)
def test_misnamed_columns_are_guessed_and_renamed_on_request(
    runs: pd.DataFrame, foreign: str, own: str, tmp_path: Path
) -> None:
    path = save(runs.rename(columns={own: foreign}), tmp_path / "runs.csv")
    report = import_tables(path, tmp_path / "out", check_only=True)
    assert f"--rename {foreign}={own}" in str(report)
    assert read_after(path, tmp_path / "out", {foreign: own})[own].equals(runs[own])


def read_after(path: Path, out: Path, rename: dict[str, str]) -> Any:
    report = import_tables(path, out, ImportOptions(rename=rename))
    assert report.tables[0].renamed
    return read_tables(out).runs


def test_a_missing_key_names_its_likely_twin(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs.rename(columns={"run_id": "run"}), tmp_path / "runs.csv")
    with pytest.raises(TableError, match=r"`run_id`.*--rename run=run_id"):
        import_tables(path, tmp_path / "out")


def test_renames_that_cannot_be(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs, tmp_path / "runs.csv")
    with pytest.raises(TableError, match="no table has a column `lr`"):
        import_tables(path, tmp_path / "out", ImportOptions(rename={"lr": "learning_rate"}))
    with pytest.raises(TableError, match="which is there already"):
        import_tables(path, tmp_path / "out", ImportOptions(rename={"cka_last": "cka_mean"}))
    with pytest.raises(TableError, match="must be old=new"):
        parse_renames(["lr"])
    assert parse_renames(["lr=learning_rate"]) == {"lr": "learning_rate"}


def test_a_rename_may_be_limited_to_one_table(runs: pd.DataFrame, tmp_path: Path) -> None:
    save(runs.rename(columns={"best_val_accuracy": "acc"}), tmp_path / "runs.csv")
    history = pd.DataFrame({"run_id": runs["run_id"], "step": 5, "acc": 0.5})
    save(history, tmp_path / "history.csv")
    import_tables(
        tmp_path,
        tmp_path / "out",
        ImportOptions(rename={"runs.acc": "best_val_accuracy", "history.acc": "val_accuracy"}),
    )
    made = read_tables(tmp_path / "out")
    assert made.history["val_accuracy"].eq(0.5).all()
    assert made.runs["best_val_accuracy"].equals(runs["best_val_accuracy"])


def test_what_is_missing_and_what_it_costs(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs.drop(columns=["learning_rate", "cka_mean"]), tmp_path / "runs.csv")
    report = import_tables(path, tmp_path / "out", check_only=True)
    text = "\n".join(report.costs)
    assert "`learning_rate`" in text
    assert "no table `history`" in text
    assert "no table `layers`" in text
    assert "test_accuracy" not in text


def test_retention_is_computed_only_where_its_column_is_absent(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs.drop(columns="transfer_cifar100_zero_shot_retention_pct"), tmp_path / "runs.csv")
    report = import_tables(path, tmp_path / "out")
    assert any("twice chance" in hint for hint in report.hints)
    kept = read_tables(tmp_path / "out").runs["transfer_cifar100_zero_shot_retention_pct"]
    expected = 100 * runs["transfer_cifar100_zero_shot_accuracy"] / runs["transfer_cifar100_zero_shot_pretrained"]
    pd.testing.assert_series_equal(kept, expected, check_names=False)
    path = save(runs.assign(transfer_cifar100_zero_shot_retention_pct=None), tmp_path / "runs.csv")
    import_tables(path, tmp_path / "out3")
    assert read_tables(tmp_path / "out3").runs["transfer_cifar100_zero_shot_retention_pct"].isna().all()


def test_types(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs.assign(dataset=7, train_projection="yes"), tmp_path / "runs.csv")
    import_tables(path, tmp_path / "out")
    made = read_tables(tmp_path / "out").runs
    assert set(made["dataset"]) == {"7"}
    assert made["train_projection"].all()
    with pytest.raises(TableError, match="true or false"):
        import_tables(save(runs.assign(train_projection="maybe"), path), tmp_path / "out2")
    with pytest.raises(TableError, match="`cka_mean` must be float"):
        import_tables(save(runs.assign(cka_mean="high"), path), tmp_path / "out2")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(TableError, match=r"runs\.parquet: cannot be read as parquet"):
        import_tables(tmp_path, tmp_path / "out")
    (tmp_path / "runs.parquet").unlink()
    (tmp_path / "runs.json").write_text("{")
    with pytest.raises(TableError, match=r"runs\.json: cannot be read as json"):
        import_tables(tmp_path, tmp_path / "out")


def test_percent_comes_in_where_it_is_said_to_be_percent(runs: pd.DataFrame, tmp_path: Path) -> None:
    percent = runs.assign(test_accuracy=100 * runs["test_accuracy"], gini_change_pct=runs["gini_change_pct"] / 100)
    path = save(percent, tmp_path / "runs.csv")
    with pytest.raises(TableError, match=r"--scale test_accuracy=0\.01"):
        import_tables(path, tmp_path / "out")
    scale = parse_scales(["test_accuracy=0.01", "runs.gini_change_pct=100"])
    report = import_tables(path, tmp_path / "out", ImportOptions(scale=scale))
    assert "multiplied `test_accuracy` by 0.01" in str(report)
    made = read_tables(tmp_path / "out").runs
    pd.testing.assert_series_equal(made["test_accuracy"], runs["test_accuracy"])
    pd.testing.assert_series_equal(made["gini_change_pct"], runs["gini_change_pct"])
    with pytest.raises(TableError, match="no table has a column `acc`"):
        import_tables(path, tmp_path / "out2", ImportOptions(scale={"acc": 0.01}))
    for wrong in ("test_accuracy", "test_accuracy=", "test_accuracy=nan", "=2"):
        with pytest.raises(TableError, match="must be column=factor"):
            parse_scales([wrong])


def test_words_for_nothing_are_null_in_columns_of_numbers(runs: pd.DataFrame, tmp_path: Path) -> None:
    spelled = runs.astype({"cka_mean": object})
    spelled["cka_mean"] = ["-", "N/A", "missing", *runs["cka_mean"].iloc[3:]]
    report = import_tables(save(spelled, tmp_path / "runs.json"), tmp_path / "out")
    assert "3 cells of `cka_mean` (`-`, `N/A`, `missing`) read as null" in str(report)
    assert read_tables(tmp_path / "out").runs["cka_mean"].isna().sum() == 3 + runs["cka_mean"].iloc[3:].isna().sum()
    spelled["cka_mean"] = ["lost", *runs["cka_mean"].iloc[1:]]
    path = save(spelled, tmp_path / "runs.csv")
    with pytest.raises(TableError, match="`cka_mean` must be float"):
        import_tables(path, tmp_path / "out2")
    import_tables(path, tmp_path / "out2", ImportOptions(nulls=["lost"]))
    assert pd.isna(read_tables(tmp_path / "out2").runs["cka_mean"].iloc[0])


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ";"), (".csv", "\t"), (".tsv", "\t")])
def test_other_separators(runs: pd.DataFrame, suffix: str, separator: str, tmp_path: Path) -> None:
    path = tmp_path / f"runs{suffix}"
    runs.to_csv(path, sep=separator, index=False)
    import_tables(path, tmp_path / "out")
    pd.testing.assert_frame_equal(read_tables(tmp_path / "out").runs, runs, rtol=1e-9)


def test_wide_layers_become_long(runs: pd.DataFrame, tmp_path: Path) -> None:
    save(runs, tmp_path / "runs.csv")
    names = runs["run_id"].iloc[:2].tolist()
    wide = pd.DataFrame(
        [
            {"run_id": run, "step": step, "layer": layer, "entropy": 3.0 + layer, "gini": None if layer == 2 else 0.1}
            for run in names
            for step in (0, 5)
            for layer in (1, 2)
        ]
    )
    save(wide, tmp_path / "layers.csv")
    report = import_tables(tmp_path, tmp_path / "out")
    assert "one column a metric (entropy, gini): made one row a value" in str(report)
    layers = read_tables(tmp_path / "out").layers
    assert layers["metric"].value_counts().to_dict() == {"entropy": 8, "gini": 4}
    assert layers.loc[layers["metric"] == "entropy", "value"].tolist() == wide["entropy"].tolist()


def test_records_without_seeds_say_what_that_costs(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs.drop(columns=["seed", "dataset"]), tmp_path / "runs.csv")
    costs = "\n".join(import_tables(path, tmp_path / "out").costs)
    assert "no `seed` in `runs`: telling seeds apart" in costs
    assert "no `dataset` in `runs`: telling data sets apart" in costs


# What a cell is


def _runs(path: Path, text: str, options: ImportOptions | None = None, encoding: str = "utf-8") -> pd.DataFrame:
    path.write_bytes(text.encode(encoding))
    out = path.parent / "out"
    import_tables(path, out, options, overwrite=True)
    return read_tables(out).runs


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    "names", [("1.10", "1.1"), ("007", "7"), ("1e3", "1000"), ("NA", "null"), ("1_0", "10"), ("+1", "1"), ("True", "1")]
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_names_stay_the_text_that_they_are(names: tuple[str, str], suffix: str, tmp_path: Path) -> None:
    for table, more in (("runs", {"method": "full"}), ("history", {"step": 0})):
        frame = pd.DataFrame([{"run_id": name, **more} for name in names])
        path = tmp_path / f"{table}{suffix}"
        if suffix == ".jsonl":
            save(frame, path)
        else:
            frame.to_csv(path, sep="\t" if suffix == ".tsv" else ",", index=False)
    import_tables(tmp_path, tmp_path / "out")
    made = read_tables(tmp_path / "out")
    assert tuple(made.runs["run_id"]) == tuple(made.history["run_id"]) == names


def test_numbers_of_json_keep_how_they_are_written(tmp_path: Path) -> None:
    text = '[{"run_id": 1.10, "method": "full"}, {"run_id": 1.1, "method": "full"}, {"run_id": 7, "method": "full"}]'
    assert list(_runs(tmp_path / "runs.json", text)["run_id"]) == ["1.10", "1.1", "7"]
    pd.DataFrame({"run_id": [1.1, 2.0], "method": "full"}).to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(TableError, match=r"`run_id` holds the number 1\.1.*store names as text"):
        import_tables(tmp_path / "runs.parquet", tmp_path / "out2")


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("cell", "accuracy"),
    [
        ("0,912", 0.912),
        ("91%", 0.91),
        ("91.2 %", 0.912),
        ("91,2%", 0.912),
        ("9,12E-1", 0.912),
        (",912", 0.912),
        ("9.12e-1", 0.912),
    ],
)
def test_shares_as_people_write_them(cell: str, accuracy: float, tmp_path: Path) -> None:
    made = _runs(tmp_path / "runs.csv", f"run_id;method;test_accuracy\na;full;{cell}\n")
    assert made["test_accuracy"].tolist() == pytest.approx([accuracy], abs=1e-12)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cell", ["50,000", "50 000", "50'000", "50\u202f000", "50\u00a0000"])
def test_thousands_as_people_write_them(cell: str, tmp_path: Path) -> None:
    made = _runs(tmp_path / "runs.csv", f'run_id,method,n_train\na,full,"{cell}"\n')
    assert made["n_train"].tolist() == [50_000]


@pytest.mark.parametrize("cell", ["50.000", "1.234.567,0", "1.234"])
def test_a_number_with_two_readings_is_refused_or_decided(cell: str, tmp_path: Path) -> None:
    text = f"run_id;method;n_train\na;full;{cell}\n"
    number = float(cell.replace(".", "").replace(",", "."))
    if "," not in cell:
        with pytest.raises(TableError, match=rf"`n_train` holds `{cell}`.*--decimal comma"):
            _runs(tmp_path / "runs.csv", text)
    assert _runs(tmp_path / "runs.csv", text, ImportOptions(decimal=","))["n_train"].tolist() == [number]
    beside = f"run_id;method;n_train;test_accuracy\na;full;{cell};0,9\n"
    assert _runs(tmp_path / "runs.csv", beside)["n_train"].tolist() == [number]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("cell", ["#DIV/0!", "#N/A", "#VALUE!", "#REF!", "#NUM!", "n/a", "-", "<NA>"])
def test_errors_of_a_spreadsheet_are_null_and_said(cell: str, tmp_path: Path) -> None:
    text = f"run_id,method,test_accuracy,cka_mean\na,full,{cell},0.5\n"
    assert _runs(tmp_path / "runs.csv", text)["test_accuracy"].isna().all()
    report = import_tables(tmp_path / "runs.csv", tmp_path / "out", overwrite=True)
    assert f"1 cells of `test_accuracy` (`{cell}`) read as null" in str(report)
    if cell.startswith("#"):
        with pytest.raises(TableError, match=r"`run_id` holds .* an error of a spreadsheet"):
            _runs(tmp_path / "runs.csv", f"run_id,method\n{cell},full\n")


@pytest.mark.one_in(5)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("start", ["", "sep=;\r\n", '"sep=;"\r\n'])
def test_encodings_and_the_line_that_excel_writes(encoding: str, start: str, tmp_path: Path) -> None:
    made = _runs(tmp_path / "runs.csv", f"{start}run_id;method;dataset\r\na;full;größe, zwei\r\n", encoding=encoding)
    assert made.loc[0, ["run_id", "method", "dataset"]].tolist() == ["a", "full", "größe, zwei"]


def test_a_decimal_comma_that_splits_a_cell_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="line 2 has 4 cells, and the heading has 3"):
        _runs(tmp_path / "runs.csv", "run_id,method,test_accuracy\na,full,0,912\n")


# Words and columns that must agree


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("column", "written", "meant"),
    [
        ("method", "LoRA", "lora"),
        ("method", "Linear Probe", "linear_probe"),
        ("method", "LAST-BLOCK", "last_block"),
        ("method", "Full", "full"),
        ("status", "FINISHED", "finished"),
    ],
)
def test_other_spellings_of_a_word_are_that_word_and_said(
    column: str, written: str, meant: str, tmp_path: Path
) -> None:
    other = "" if column == "method" else ",full"
    text = f"run_id,{column}{',method' if other else ''}\na,{written}{other}\n"
    assert _runs(tmp_path / "runs.csv", text)[column].tolist() == [meant]
    report = import_tables(tmp_path / "runs.csv", tmp_path / "out", overwrite=True)
    assert f"1 cells `{written}` of `{column}` read as `{meant}`" in str(report)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("written", ["Full FT", "lora_r8", "full-finetuning", "linear", "LoRA-16", "lastblock+proj"])
def test_a_method_that_is_near_a_known_one_is_asked_for(written: str, tmp_path: Path) -> None:
    text = f"run_id,method\na,{written}\n"
    with pytest.raises(TableError, match=re.escape(f'--map "method:{written}=')):
        _runs(tmp_path / "runs.csv", text)
    mapping = parse_values([f"method:{written}=full"])
    assert _runs(tmp_path / "runs.csv", text, ImportOptions(values=mapping))["method"].tolist() == ["full"]
    with pytest.raises(TableError, match="no column `method` holds `absent`"):
        _runs(tmp_path / "runs.csv", text, ImportOptions(values={("method", "absent"): "full", **mapping}))


def test_a_word_that_a_closed_column_lacks_is_refused_and_two_spellings_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="`status` holds `crashed`; it has finished, diverged, failed"):
        _runs(tmp_path / "runs.csv", "run_id,method,status\na,full,crashed\n")
    with pytest.raises(TableError, match='--map "dataset:eurosat=EuroSAT"'):
        _runs(tmp_path / "runs.csv", "run_id,method,dataset\na,full,EuroSAT\nb,full,eurosat\n")


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        ("history", {"step": 5}),
        ("layers", {"step": 5, "layer": 1, "metric": "gini"}),
        ("interpolation", {"alpha": 0.5}),
    ],
)
def test_rows_that_are_there_twice_are_named(
    table: str, keys: dict[str, Any], runs: pd.DataFrame, tmp_path: Path
) -> None:
    save(runs, tmp_path / "runs.csv")
    save(pd.DataFrame([{"run_id": runs["run_id"][0], **keys}] * 2), tmp_path / f"{table}.csv")
    with pytest.raises(TableError, match="1 rows are there twice, first run_id"):
        import_tables(tmp_path, tmp_path / "out")


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("derived", "change"),
    [
        ("transfer_cifar100_zero_shot_retention_pct", lambda v: v / 100),
        ("transfer_cifar100_zero_shot_retention_pct", lambda v: v + 5),
        *((f"{metric}_change_pct", lambda v: v + 9) for metric in ("entropy", "erf95", "gini", "head_diversity")),
    ],
)
def test_a_column_that_contradicts_those_it_follows_from(
    derived: str, change: Any, runs: pd.DataFrame, tmp_path: Path
) -> None:
    import_tables(save(runs, tmp_path / "runs.csv"), tmp_path / "out")
    row = runs[derived].notna().to_numpy().nonzero()[0][-1]
    wrong = runs.copy()
    wrong.loc[row, derived] = change(wrong.loc[row, derived])
    with pytest.raises(TableError, match=f"in 1 of .*`{derived}` contradicts 100 x"):
        import_tables(save(wrong, tmp_path / "runs.csv"), tmp_path / "out2")
    aside = ImportOptions(rename={derived: f"their_{derived}"})
    assert import_tables(tmp_path / "runs.csv", tmp_path / "out2", aside).written


def test_values_that_were_rounded_contradict_nothing(runs: pd.DataFrame, tmp_path: Path) -> None:
    numbers = runs.select_dtypes("float").columns.difference(["learning_rate"])
    for digits in (2, 3, 4):
        rounded = runs.copy()
        rounded[numbers] = rounded[numbers].round(digits)
        assert import_tables(save(rounded, tmp_path / "runs.csv"), tmp_path / "out", overwrite=True).written


# What people have


def test_constants_and_rows_without_names(tmp_path: Path) -> None:
    text = "method,transfer_cifar100_zero_shot_accuracy\nfull,0.3011\nlora,0.6022\n"
    constants = parse_constants(["transfer_cifar100_zero_shot_pretrained=0.6022", "dataset=007"])
    made = _runs(tmp_path / "their table.csv", text, ImportOptions(constants=constants, number_rows=True))
    assert made["run_id"].tolist() == ["row 1", "row 2"]
    assert made["dataset"].tolist() == ["007", "007"]
    assert made["transfer_cifar100_zero_shot_retention_pct"].tolist() == pytest.approx([50, 100])
    with pytest.raises(TableError, match="--number-rows"):
        _runs(tmp_path / "their table.csv", text)
    with pytest.raises(TableError, match="no column of the table runs `datset`; did you mean `dataset`"):
        _runs(tmp_path / "their table.csv", text, ImportOptions(constants={"datset": "x"}, number_rows=True))
    with pytest.raises(TableError, match="`method` is there already"):
        _runs(tmp_path / "their table.csv", text, ImportOptions(constants={"method": "x"}, number_rows=True))


def test_a_chart_of_wandb_becomes_a_history(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("run_id,method\na - b,full\nc,lora\n")
    (tmp_path / "wandb_export_2026.csv").write_text(
        "Step,a - b - val_acc,a - b - val_acc__MIN,a - b - val_acc__MAX,c - val_acc,c - val_acc__MIN,c - val_acc__MAX\n"
        "0,0.1,0.1,0.1,0.2,0.2,0.2\n5,0.3,0.3,0.3,,,\n"
    )
    options = ImportOptions(rename={"Step": "step", "val_acc": "val_accuracy"})
    report = import_tables([tmp_path / "runs.csv", tmp_path / "wandb_export_2026.csv"], tmp_path / "out", options)
    assert "one column a run (2 runs)" in str(report)
    history = read_tables(tmp_path / "out").history[["run_id", "step", "val_accuracy"]]
    assert history.values.tolist() == [["a - b", 0, 0.1], ["a - b", 5, 0.3], ["c", 0, 0.2]]


def test_a_scalar_of_tensorboard_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "run7.csv").write_text("Wall time,Step,Value\n1.5,0,0.25\n")
    with pytest.raises(TableError, match=r"--rename Step=step .*--set history\.run_id=run7"):
        import_tables(tmp_path / "run7.csv", tmp_path / "out")
    (tmp_path / "run7.csv").rename(tmp_path / "history.csv")
    (tmp_path / "runs.csv").write_text("run_id,method\nrun7,full\n")
    options = ImportOptions(rename={"Step": "step", "Value": "val_accuracy"}, constants={"history.run_id": "run7"})
    import_tables(tmp_path, tmp_path / "out", options)
    assert read_tables(tmp_path / "out").history["val_accuracy"].tolist() == [0.25]


@pytest.mark.parametrize("column", ["params.learning_rate", "config/lr", "params.lr", "config.learning_rate"])
def test_columns_of_trackers_are_recognised(column: str, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(f"run_id,method,{column}\na,full,1e-5\n")
    assert f"--rename {column}=learning_rate" in str(import_tables(tmp_path, tmp_path / "out"))
