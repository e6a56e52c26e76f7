"""What the report says, and that it says it in both forms whatever the names are."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from study_folder import HOSTILE, DrawnFigure, draw, study_tables, write_records

from attndrift.analysis import Analysis, analyze
from attndrift.analysis.digest import overview_rows
from attndrift.metrics.registry import structure_metrics
from attndrift.report import page as reports
from attndrift.report.build import MAX_PAGE, write_report
from attndrift.report.explore import heatmap_data, maps_data
from attndrift.report.records import Records, read_records
from attndrift.report.registry import build_sections
from attndrift.results.tables import Tables
from attndrift.sanitize import markdown_line, markdown_text


class Page(HTMLParser):
    """Elements with attributes, texts of cells, of scripts and of everything."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.texts: list[str] = []
        self.content: dict[str, list[str]] = {"script": [], "style": [], "td": [], "button": []}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)
        if tag in self.content:
            self.content[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        for tag in self.content:
            if tag in self.inside:
                self.content[tag][-1] += data

    def boxes(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "input" and name in attributes]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def data(self, place: str) -> Any:
        scripts = [attributes for tag, attributes in self.elements if tag == "script"]
        number = next(i for i, attributes in enumerate(scripts) if attributes.get("id") == place)
        return json.loads(self.content["script"][number])


@pytest.fixture(scope="module")
def page(written: tuple[Path, Path]) -> Page:
    return Page(written[1])


@pytest.fixture(scope="module")
def text(written: tuple[Path, Path]) -> str:
    return written[0].read_text(encoding="utf-8")


def limits(tables: Tables, records: Records | None = None, analysis: Analysis | None = None) -> str:
    sections = build_sections(reports.Page(analysis or analyze(tables), tables, records or Records()))
    found = next(section for section in sections if section.key == "limits")
    return " ".join(found.blocks[0].items)


def test_first_screen_is_printed_in_both(analysis: Analysis, page: Page, text: str) -> None:
    first = analysis.digest
    assert len(first.findings) == 5
    for printed, marked in ((page.text, str), (text, markdown_text)):
        assert marked(first.verdict) in printed
        assert all(marked(caveat) in printed for caveat in first.caveats)
        assert all(marked(finding.sentence) in printed for finding in first.findings)
        for row in overview_rows(analysis.tables["overview"]):
            assert all(marked(cell) in printed for cell in row.cells)
    best = next(row for row in overview_rows(analysis.tables["overview"]) if row.best)
    assert f"| **{markdown_text(best.cells[0])}** |" in text


def test_every_finding_is_linked_to_a_table_that_is_there(analysis: Analysis, page: Page, text: str) -> None:
    ids = [attributes.get("id") for _, attributes in page.elements]
    assert len(set(ids) - {None}) == len([one for one in ids if one])
    links = [a["href"] or "" for tag, a in page.elements if tag == "a" and a.get("class") == "source"]
    assert len(links) == 5 + len(analysis.findings)
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    for finding in analysis.digest.findings:
        assert f"(tables/{finding.table}.csv)" in text


def test_body_is_short_and_the_rest_is_folded(page: Page, text: str) -> None:
    assert len(text.split()) < 1500
    headings = re.findall(r"^## (.+)", text, re.MULTILINE)
    assert headings == ["Summary", "Drift over time", "All runs", "Everything else"]
    parts = [a["id"] for tag, a in page.elements if tag == "details" and a.get("class") == "part"]
    assert parts == ["all-findings", "tables", "figures", "excluded", "method", "limits", "reproducibility"]
    assert not any("open" in a for tag, a in page.elements if tag == "details")


def test_runs_show_results_before_settings(page: Page) -> None:
    headings = [text.strip() for text in page.content["button"] if text != "Save CSV"]
    assert headings[:4] == ["Method", "Rate", "Test accuracy (%)", "cifar100 retention (%)"]
    shown = [label for label, box in zip(headings, page.boxes("data-column"), strict=True) if "checked" in box]
    assert shown == [*headings[: len(shown)]]
    assert {"Entropy change (%)", "Entropy change, last block (%)", "CKA, mean over blocks", "Run"} < set(shown)


def test_one_seed_is_said_once(tmp_path: Path) -> None:
    tables = study_tables(seeds=1)
    markdown, html = write_report(tmp_path, analysis=analyze(tables), tables=tables, figures=[])
    assert markdown.read_text(encoding="utf-8").lower().count("one seed") == 1
    page = html.read_text(encoding="utf-8")
    assert page[: page.index('id="appendix"')].lower().count("one seed") == 1


def test_several_seeds_are_not_called_one(text: str) -> None:
    assert "one seed" not in text.lower()


def test_figures_of_few_points_are_named_not_shown(tmp_path: Path, analysis: Analysis, tables: Tables) -> None:
    drawn = draw(tmp_path / "figures")[0].files
    names = ("fig5b_fullft_vs_lora_pets", "extra_lora_qkvo", "convergence", "fig6_lr_sweep")
    figures = [DrawnFigure(name, drawn, "A caption") for name in names]
    page = Page(write_report(tmp_path, analysis=analysis, tables=tables, figures=figures)[1])
    assert len([1 for tag, _ in page.elements if tag == "img"]) == 1
    for name in names[:3]:
        assert f"{name}: few points; its numbers are in tables/" in page.text


def test_hostile_names_stay_text_in_html(page: Page) -> None:
    assert [a.get("id") or a.get("type") for tag, a in page.elements if tag == "script"] == [
        "heat-data",
        "map-data",
        None,
    ]
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert " ".join(HOSTILE.split()) in [" ".join(cell.split()) for cell in page.content["td"]]
    assert HOSTILE in [run["run"] for run in page.data("heat-data")["runs"]]
    assert HOSTILE in page.data("map-data")["runs"][0]["names"]


def test_hostile_names_stay_text_in_markdown(tmp_path: Path) -> None:
    given = study_tables(hostile=False)
    tables = Tables(given.runs.assign(dataset=HOSTILE), given.history, given.layers)
    text = write_report(tmp_path, analysis=analyze(tables), tables=tables)[0].read_text(encoding="utf-8")
    assert "<" not in text
    assert "![The" not in text
    assert markdown_text(HOSTILE) in text
    table: list[int] = []
    for line in text.splitlines():
        if line.startswith("| "):
            table.append(len(re.findall(r"(?<!\\)\|", line)))
        elif table:
            assert len(set(table)) == 1
            table = []


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a|b", "a\\|b"),
        ("two\nlines\r\n", "two lines"),
        ("`code_name` and _this_", "`code_name` and \\_this\\_"),
        ("`a` b`", "`a` b\\`"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("`<b>`", "\\`&lt;b&gt;\\`"),
        ("[a](b)", "\\[a\\](b)"),
    ],
)
def test_markdown_escapes(given: str, wanted: str) -> None:
    assert markdown_text(given) == wanted


@pytest.mark.parametrize(("given", "wanted"), [("# a", "\\# a"), ("1. a", "&#49;. a"), ("- a", "\\- a"), ("12", "12")])
def test_markdown_line_starts_no_heading_or_list(given: str, wanted: str) -> None:
    assert markdown_line(given) == wanted


def test_page_asks_nothing_of_a_network(written: tuple[Path, Path], page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#", "tables/")), (tag, name, value)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv")) or ""
    strict = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert policy == f"{strict}; base-uri 'none'; form-action 'none'"
    assert "url(" not in page.content["style"][0]
    assert "@import" not in page.content["style"][0]
    assert written[1].stat().st_size < MAX_PAGE


def test_figures_are_referenced_relatively_and_embedded(written: tuple[Path, Path], page: Page, text: str) -> None:
    assert "](../figures/fig2%20baseline.png)" in text
    assert (written[0].parent / "../figures/fig2 baseline.png").is_file()
    embedded = [a["src"] or "" for tag, a in page.elements if tag == "img"]
    (data,) = embedded
    with Image.open(io.BytesIO(base64.b64decode(data.removeprefix("data:image/webp;base64,")))) as picture:
        assert picture.size == (40, 30)
    assert "fig8_regularization: no preservation loss was used" in page.text


def test_missing_figure_is_an_error(tmp_path: Path, analysis: Analysis, tables: Tables) -> None:
    figure = DrawnFigure("fig6_lr_sweep", [tmp_path / "gone.png"], "A caption")
    with pytest.raises(FileNotFoundError, match="fig6_lr_sweep"):
        write_report(tmp_path, analysis=analysis, tables=tables, figures=[figure])


def test_transfer_carries_its_evidence(page: Page) -> None:
    for printed in (page.text,):
        assert "a photo of a {class}." in printed
        assert "class names: 100 (class 0, class 1, class 2, ...)" in printed
        assert "split test" in printed
        assert "resize to shortest edge 28, bicubic resampling" in printed
        assert "For 1 of the accuracies no record says" in printed


def test_reproducibility_prints_what_the_records_hold(page: Page) -> None:
    for printed in (page.text,):
        part = printed[printed.rindex("Reproducibility") :]
        for wanted in (
            "9.8.7",
            "ab" * 32,
            "cd" * 32,
            "ef" * 32,
            "a processor",
            "clip_norm",
            "Without a record: 1 run;",
        ):
            assert wanted in part
        assert "there was no test split" in part
        assert "Time in all: 0.04 hours (150 s)" in part


def test_a_probe_whose_fit_did_not_converge_is_noted(analysis: Analysis, tables: Tables) -> None:
    from attndrift.report.evidence import transfer_table
    from attndrift.report.records import Record
    from attndrift.results.measures import set_and_measure

    plain = transfer_table(analysis, tables, Records()).rows[0]
    run_id, (of_set, measure) = str(plain["run_id"]), set_and_measure(str(plain["transfer_set"]))
    said = {"adapted": {"converged": False}, "pretrained": {"converged": True}}
    record = Record(run_id, Path(), {"transfer": {of_set: {measure: said}}})
    rows = transfer_table(analysis, tables, Records({run_id: record})).rows
    noted = [(row["run_id"], row["transfer_set"]) for row in rows if "probe_iterations" in str(row["note"])]
    assert noted == [(run_id, plain["transfer_set"])]


def test_foreign_tables_without_records_are_named_as_such(tmp_path: Path, analysis: Analysis, tables: Tables) -> None:
    text = write_report(tmp_path, analysis=analysis, tables=tables, figures=[])[1].read_text(encoding="utf-8")
    assert "No run record lies beside the tables" in text
    assert "not recorded" in text


def test_damaged_record_is_named_and_a_foreign_name_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "runs" / "cut").mkdir(parents=True)
    (tmp_path / "runs" / "cut" / "record.json").write_text('{"status": ', encoding="utf-8")
    (tmp_path / "record.json").write_text("{}", encoding="utf-8")
    records = read_records(tmp_path, ["cut", "", "..", "../..", "a/b", "x" * 300, "with\0null"])
    assert not records.found
    assert len(records.missing) == 6
    assert len(records.problems) == 1
    assert records.problems[0].startswith("cut: record.json: not valid JSON")


@pytest.mark.slow
def test_limits_follow_the_data() -> None:
    tables = study_tables(seeds=1, hostile=False)
    said = limits(tables)
    for wanted in ("One seed:", "One dataset (`eurosat`)", "One model", "0.79", "One data seed"):
        assert wanted in said
    assert "share no rate" not in said
    runs = tables.runs.copy()
    runs.loc[runs["method"] == "lora", "learning_rate"] = 2e-4
    assert "share no rate" in limits(Tables(runs=runs))
    runs["selection"] = "test"
    assert "optimistic" in limits(Tables(runs=runs))
    assert "One dataset" not in limits(study_tables(datasets=("eurosat", "pets"), hostile=False))


def test_chance_level_is_the_recorded_one(tmp_path: Path, analysis: Analysis, tables: Tables) -> None:
    write_records(tmp_path, tables)
    for path in (tmp_path / "runs").glob("*/record.json"):
        path.write_text(path.read_text(encoding="utf-8").replace("0.79", "0.613"), encoding="utf-8")
    records = read_records(tmp_path, list(tables.runs["run_id"]))
    assert "chance level, 0.61 for independent" in limits(tables, records, analysis)


def test_what_was_left_out_of_transfer_sets_is_a_limit(tmp_path: Path, analysis: Analysis, tables: Tables) -> None:
    write_records(tmp_path, tables)
    for path in (tmp_path / "runs").glob("*/record.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["absent"] = {"cifar10": "the hub is out of reach"}
        record["transfer"]["cifar100"] |= {
            "duplicates": [["a/1", "b/2"], ["a/3", "b/4"]],
            "compared": {"images of cifar100": [50_000, 60_000]},
        }
        path.write_text(json.dumps(record), encoding="utf-8")
    records = read_records(tmp_path, list(tables.runs["run_id"]))
    said = limits(tables, records, analysis)
    assert f"could not be had, so that nothing is said about them: `cifar10` ({len(records.found)} runs)." in said
    assert "dropped as near-duplicates of training images: 2 of `cifar100`." in said
    assert "50,000 of 60,000 images of cifar100" in said


def test_heatmap_is_the_change_from_step_zero(analysis: Analysis, tables: Tables) -> None:
    data = heatmap_data(tables, analysis)
    run_id = str(tables.runs["run_id"].iloc[3])
    run = next(run for run in data["runs"] if run["run"] == run_id)
    assert set(run["metrics"]) >= set(structure_metrics())
    frame = tables.layers[(tables.layers["run_id"] == run_id) & tables.layers["head"].isna()]
    wide = frame[frame["metric"] == "entropy"].pivot(index="layer", columns="step", values="value")
    wanted = 100 * (wide.to_numpy() / wide.to_numpy()[:, :1] - 1)
    np.testing.assert_allclose(np.array(run["metrics"]["entropy"]["values"], float), wanted, rtol=6e-3, atol=1e-12)
    assert run["metrics"]["entropy"]["steps"] == list(wide.columns)


def unpacked(data: dict[str, Any], place: int, shape: tuple[int, ...]) -> np.ndarray:
    item = data["maps"][place]
    codes = np.frombuffer(base64.b64decode(item["codes"]), np.uint8).reshape(shape)
    top = np.frombuffer(base64.b64decode(item["top"]), "<f4").reshape(shape[:-1])
    return codes / 255 * top[..., None]


def test_maps_are_within_the_stated_error_and_shared(tmp_path: Path, analysis: Analysis, tables: Tables) -> None:
    write_records(tmp_path, tables)
    records = read_records(tmp_path, list(tables.runs["run_id"]))
    data = maps_data(records, analysis, budget=10**7)
    assert len(data["runs"]) == len(records.found)
    assert len(data["images"]) == 3
    # One set before for all, and one after for every adapted run.
    assert len(data["maps"]) == len(records.found)
    for run in data["runs"]:
        with np.load(tmp_path / "runs" / run["run"] / "maps.npz") as file:
            for side in ("before", "after"):
                exact = file[side].astype(float)
                error = np.abs(unpacked(data, run[side], exact.shape) - exact)
                assert (error <= exact.max(axis=-1, keepdims=True) / 510 * (1 + 1e-5)).all()


def test_maps_stay_within_their_budget_and_say_what_is_left_out(
    tmp_path: Path, analysis: Analysis, tables: Tables
) -> None:
    write_records(tmp_path, tables)
    records = read_records(tmp_path, list(tables.runs["run_id"]))
    whole = maps_data(records, analysis, budget=10**7)
    size = sum(len(item["codes"]) + len(item["top"]) for item in whole["maps"]) + sum(map(len, whole["images"]))
    fewer = maps_data(records, analysis, budget=size - 1)
    assert "At most 2 of the kept images" in " ".join(fewer["notes"])
    few = maps_data(records, analysis, budget=size // 5)
    assert 0 < len(few["runs"]) < len(records.found)
    assert f"Left out to keep the page small: {len(records.found) - len(few['runs'])} run" in " ".join(few["notes"])
    used = sum(len(item["codes"]) + len(item["top"]) for item in few["maps"]) + sum(map(len, few["images"]))
    assert used <= size // 5


def test_unusable_maps_are_named(tmp_path: Path, analysis: Analysis, tables: Tables) -> None:
    write_records(tmp_path, tables)
    records = read_records(tmp_path, list(tables.runs["run_id"]))
    first = next(iter(records.found.values()))
    (first.folder / "maps.npz").write_bytes(b"PK\x03\x04 cut short")
    data = maps_data(records, analysis, budget=10**7)
    assert len(data["runs"]) == len(records.found) - 1
    assert first.run_id in data["notes"][0]


def test_equal_content_gives_equal_bytes(tmp_path: Path, analysis: Analysis, tables: Tables) -> None:
    write_records(tmp_path, tables)
    figures = draw(tmp_path / "figures")
    first = [p.read_bytes() for p in write_report(tmp_path, analysis=analysis, figures=figures, tables=tables)]
    assert first == [p.read_bytes() for p in write_report(tmp_path, analysis=analysis, figures=figures, tables=tables)]


def test_a_study_of_one_bare_run_still_gives_a_report(tmp_path: Path) -> None:
    tables = study_tables(seeds=1, hostile=False, rates=1, methods=("full",), baseline=False, layers=0, transfer=())
    tables = Tables(runs=tables.runs)
    markdown_path, html_path = write_report(tmp_path, analysis=analyze(tables), tables=tables, figures=[])
    assert "no retention was measured" in markdown_path.read_text(encoding="utf-8")
    assert Page(html_path).data("heat-data")["runs"] == []
