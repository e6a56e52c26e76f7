from __future__ import annotations

from pathlib import Path

import pytest
from study_folder import draw, study_tables, write_records

from attndrift.analysis import Analysis, analyze
from attndrift.report.build import write_report
from attndrift.results.tables import Tables


@pytest.fixture(scope="package")
def tables() -> Tables:
    return study_tables()


@pytest.fixture(scope="package")
def analysis(tables: Tables) -> Analysis:
    return analyze(tables)


@pytest.fixture(scope="package")
def written(tmp_path_factory: pytest.TempPathFactory, tables: Tables, analysis: Analysis) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("a study")
    write_records(folder, tables)
    figures = draw(folder / "figures")
    return write_report(folder, output=folder / "report", analysis=analysis, figures=figures, tables=tables)
