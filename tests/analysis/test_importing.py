"""Foreign records: forms, names, types, units, and what is written when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from attndrift.results.importing import import_tables, parse_renames, parse_scales
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
    with pytest.raises(TableError, match=r"did you mean history\.csv"):
        import_tables(save(runs, tmp_path / "histories.csv"), tmp_path / "out2")
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
    kept = runs["transfer_cifar100_retention_pct"] / 100
    change = runs["gini_change_pct"] / 100
    path = save(runs.assign(transfer_cifar100_retention_pct=kept, gini_change_pct=change), tmp_path / "runs.csv")
    text = str(import_tables(path, tmp_path / "out", check_only=True))
    assert "`transfer_cifar100_retention_pct` lies in" in text
    assert "`gini_change_pct` is a hundredth" in text


def test_bits_where_nats_are_meant(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs.assign(entropy_baseline=7.1), tmp_path / "runs.csv")
    assert "in bits" in str(import_tables(path, tmp_path / "out", check_only=True))


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
    report = import_tables(path, out, rename=rename)
    assert report.tables[0].renamed
    return read_tables(out).runs


def test_a_missing_key_names_its_likely_twin(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs.rename(columns={"run_id": "run"}), tmp_path / "runs.csv")
    with pytest.raises(TableError, match=r"`run_id`.*--rename run=run_id"):
        import_tables(path, tmp_path / "out")


def test_renames_that_cannot_be(runs: pd.DataFrame, tmp_path: Path) -> None:
    path = save(runs, tmp_path / "runs.csv")
    with pytest.raises(TableError, match="no table has a column `lr`"):
        import_tables(path, tmp_path / "out", rename={"lr": "learning_rate"})
    with pytest.raises(TableError, match="which is there already"):
        import_tables(path, tmp_path / "out", rename={"cka_last": "cka_mean"})
    with pytest.raises(TableError, match="must be old=new"):
        parse_renames(["lr"])
    assert parse_renames(["lr=learning_rate"]) == {"lr": "learning_rate"}


def test_a_rename_may_be_limited_to_one_table(runs: pd.DataFrame, tmp_path: Path) -> None:
    save(runs.rename(columns={"best_val_accuracy": "acc"}), tmp_path / "runs.csv")
    history = pd.DataFrame({"run_id": runs["run_id"], "step": 5, "acc": 0.5})
    save(history, tmp_path / "history.csv")
    import_tables(tmp_path, tmp_path / "out", rename={"runs.acc": "best_val_accuracy", "history.acc": "val_accuracy"})
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
    path = save(runs.drop(columns="transfer_cifar100_retention_pct"), tmp_path / "runs.csv")
    report = import_tables(path, tmp_path / "out")
    assert any("twice chance" in hint for hint in report.hints)
    kept = read_tables(tmp_path / "out").runs["transfer_cifar100_retention_pct"]
    expected = 100 * runs["transfer_cifar100_accuracy"] / runs["transfer_cifar100_pretrained"]
    pd.testing.assert_series_equal(kept, expected, check_names=False)
    path = save(runs.assign(transfer_cifar100_retention_pct=None), tmp_path / "runs.csv")
    import_tables(path, tmp_path / "out3")
    assert read_tables(tmp_path / "out3").runs["transfer_cifar100_retention_pct"].isna().all()


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
    report = import_tables(path, tmp_path / "out", scale=scale)
    assert "multiplied `test_accuracy` by 0.01" in str(report)
    made = read_tables(tmp_path / "out").runs
    pd.testing.assert_series_equal(made["test_accuracy"], runs["test_accuracy"])
    pd.testing.assert_series_equal(made["gini_change_pct"], runs["gini_change_pct"])
    with pytest.raises(TableError, match="no table has a column `acc`"):
        import_tables(path, tmp_path / "out2", scale={"acc": 0.01})
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
    import_tables(path, tmp_path / "out2", nulls=["lost"])
    assert pd.isna(read_tables(tmp_path / "out2").runs["cka_mean"].iloc[0])


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
