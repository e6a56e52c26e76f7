"""The form of the tables: what is read as null, what is refused, and that equal tables are equal bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from attndrift.results.tables import (
    TABLES,
    TableError,
    Tables,
    conform,
    read_tables,
    schema,
    transfer_sets,
    write_tables,
)

RUN = {"run_id": "a", "dataset": "eurosat", "method": "full", "seed": 1}


def test_an_absent_column_is_read_as_null() -> None:
    runs = Tables(pd.DataFrame([RUN])).runs
    assert list(runs.columns) == [column.name for column in schema("runs")]
    assert runs["test_accuracy"].isna().all()
    assert runs["train_projection"].isna().all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"run_id": None}, "`run_id` is null in row 0"),
        ({"test_accuracy": 97.2}, r"`test_accuracy`.*is 97.2 in row 0.*percent where 0..1 is meant"),
        ({"seed": "one"}, "`seed` must be int"),
        ({"seed": 1.5}, "`seed` must be int: not whole numbers"),
        ({"dataset": 3}, "`dataset` must be string"),
        ({"entropy_final": -1.0}, "outside 0.0"),
        ({"transfer_cifar100_zero_shot_accuracy": 60.2}, "`transfer_cifar100_zero_shot_accuracy`"),
    ],
)
def test_a_value_of_the_wrong_kind_or_unit_is_named(change: dict[str, object], expected: str) -> None:
    with pytest.raises(TableError, match=expected):
        Tables(pd.DataFrame([RUN | change]))


def test_one_message_tells_the_first_problem_of_each_column() -> None:
    runs = pd.DataFrame([RUN, RUN | {"run_id": "b", "test_accuracy": 97.2, "cka_mean": 2.0, "epochs": "ten"}])
    with pytest.raises(TableError) as caught:
        Tables(runs)
    told = str(caught.value)
    assert (
        "`test_accuracy` (test accuracy of the selected checkpoint (0..1)) is 97.2 in row 1, outside 0.0 .. 1.0" in told
    )
    assert "`cka_mean`" in told
    assert "column `epochs` must be float: 'ten' in row 1 is no number" in told
    with pytest.raises(TableError, match=r"; 2 more columns$"):
        Tables(
            pd.DataFrame(
                [
                    RUN
                    | {f"{name}_final": -1.0 for name in ("entropy", "erf95", "gini", "head_diversity")}
                    | {"cka_mean": 2.0, "cka_last": 2.0, "test_accuracy": 2.0}
                ]
            )
        )


def test_a_missing_key_column_is_named() -> None:
    with pytest.raises(TableError, match=r"`method`.* is missing"):
        conform("runs", pd.DataFrame([{"run_id": "a", "dataset": "x", "seed": 1}]))


def test_run_ids_are_unique_and_known() -> None:
    with pytest.raises(TableError, match="more than once"):
        Tables(pd.DataFrame([RUN, RUN]))
    with pytest.raises(TableError, match="`b` is not in the table runs"):
        Tables(pd.DataFrame([RUN]), history=pd.DataFrame([{"run_id": "b", "step": 0}]))


@pytest.mark.parametrize("share", [False, True])
def test_written_and_read_again(share: bool, tmp_path: Path) -> None:
    tables = Tables(
        pd.DataFrame(
            [RUN | {"test_accuracy": 0.9, "lora_rank": None, "transfer_cifar100_zero_shot_retention_pct": 41.0}]
        ),
        losses=pd.DataFrame([{"run_id": "a", "loss": "entropy_floor", "weight": 0.1, "active_fraction": 0.5}]),
        history=pd.DataFrame([{"run_id": "a", "step": 0, "entropy": 3.5}]),
        layers=pd.DataFrame([{"run_id": "a", "step": 0, "layer": 1, "metric": "cka", "value": 1.0}]),
        interpolation=pd.DataFrame([{"run_id": "a", "alpha": 0.5, "transfer_cifar100_zero_shot_accuracy": 0.4}]),
    )
    write_tables(tables, tmp_path)
    again = read_tables(tmp_path, share=share)
    one, other = (again.history[name].to_numpy() for name in ("val_accuracy", "weight_drift"))
    assert np.shares_memory(one, other) is share
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(tables, name), getattr(again, name))
    assert transfer_sets(again.runs) == ["cifar100"]
    before = (tmp_path / "runs.parquet").read_bytes()
    write_tables(again, tmp_path)
    assert (tmp_path / "runs.parquet").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}.parquet" for name in TABLES)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    write_tables(Tables(pd.DataFrame([RUN])), tmp_path)
    path = tmp_path / "history.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TableError, match=r"history.parquet: not a readable Parquet file"):
        read_tables(tmp_path)


def test_a_value_out_of_range_is_named_with_its_file_where_it_has_one(tmp_path: Path) -> None:
    tables = Tables(pd.DataFrame([RUN]))
    tables.runs["test_accuracy"] = 97.2
    with pytest.raises(TableError, match=r"^table runs: column `test_accuracy` .* is 97.2 in row 0"):
        Tables(tables.runs)
    write_tables(tables, tmp_path)
    with pytest.raises(TableError, match=r"^/.*/runs.parquet: column `test_accuracy` .* is 97.2 in row 0"):
        read_tables(tmp_path)


def test_a_folder_without_tables_says_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="attndrift collect"):
        read_tables(tmp_path)
