"""The page in a real headless Chromium: read, sorted, filtered, used by keyboard, printed, and checked by axe."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, Browser
from study_folder import study_tables

from attndrift.analysis import analyze
from attndrift.report.build import write_report
from attndrift.results.tables import Tables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ci("chromium"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: `apt install chromium`)"),
]
WIDTHS = (1440, 768, 390)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def page(browser: Browser, written: tuple[Path, Path]) -> Browser:
    browser.open(written[1])
    return browser


def test_nothing_fails_and_nothing_is_blocked(page: Browser) -> None:
    assert page.errors == []
    assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window(browser: Browser, written: tuple[Path, Path], width: int) -> None:
    browser.open(written[1], width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_first_screen_holds_verdict_figure_table_and_findings(page: Browser) -> None:
    bottom = "document.querySelector({!r}).getBoundingClientRect().bottom"
    for part in (".verdict", ".caveats", "#overview", "#summary .findings li:first-child"):
        assert page.run(bottom.format(part)) <= 900, part


def column(page: Browser, index: int) -> list[Any]:
    return page.run(
        f"[...document.querySelectorAll('#run-table tbody tr')].map((row) => row.cells[{index}].dataset.n ?? row.cells[{index}].textContent)"
    )


def test_columns_sort_both_ways_on_a_click(page: Browser) -> None:
    headings = page.run(
        "[...document.querySelectorAll('#run-table th')].map((th) => [th.textContent, th.className, th.hidden])"
    )
    varied = 0
    for index, (name, kind, hidden) in enumerate(headings):
        if hidden:
            continue
        for direction in ("ascending", "descending"):
            page.click(f"#run-table th:nth-child({index + 1}) button")
            assert (
                page.run("[...document.querySelectorAll('#run-table [aria-sort]')].map((th) => th.ariaSort)").count(
                    direction
                )
                == 1
            )
            values = column(page, index)
            if kind == "number":
                known = [value for value in values if value != "–"]
                # What was not measured stands last.
                assert values == known + ["–"] * (len(values) - len(known))
                numbers = [float(value) for value in known]
                assert numbers == sorted(numbers, reverse=direction == "descending"), name
                varied += len(set(numbers)) > 1
    assert varied > 8


def test_filter_wants_all_words_in_any_order(page: Browser) -> None:
    count = "document.getElementById('run-count').textContent"
    every = page.run(count)
    page.type("#run-filter", "full eurosat")
    words = page.run(count)
    page.type("#run-filter", "eurosat full")
    assert page.run(count) == words != every
    page.type("#run-filter", "full nowhere")
    assert page.run(count).startswith("0 of ")
    page.type("#run-filter", "")
    assert page.run(count) == every


def test_columns_are_picked_and_saved(page: Browser) -> None:
    shown = "[...document.querySelectorAll('#run-table th')].filter((th) => !th.hidden).length"
    before = page.run(shown)
    assert before < page.run("document.querySelectorAll('#run-table th').length")
    page.click("#run-columns summary")
    page.click("#run-columns input:not(:checked)")
    assert page.run(shown) == before + 1
    page.click("#run-columns input:checked")
    assert page.run(shown) == before
    page.run(
        "window.saved = null; URL.createObjectURL = (blob) => { blob.text().then((text) => { window.saved = text; }); return '#'; }"
    )
    page.type("#run-filter", "lora")
    page.click("#run-csv")
    lines = page.run(
        "new Promise((done) => { const wait = () => (saved === null ? setTimeout(wait, 10) : done(saved.trim())); wait(); })"
    ).split("\n")
    assert lines[0].startswith("Method,Rate,")
    assert f"{len(lines) - 1} of " in page.run("document.getElementById('run-count').textContent")


def test_keyboard_reaches_heatmap_and_sorts(page: Browser, tables: Tables) -> None:
    page.run("document.querySelector('#run-table th:nth-child(2) button').focus()")
    page.press("Enter")
    assert page.run("document.querySelector('#run-table th:nth-child(2)').ariaSort") == "ascending"
    assert page.run("document.getElementById('heat-table').parentElement.tabIndex") == 0
    cells = page.run("[...document.querySelectorAll('#heat-table tbody td')].map((td) => td.textContent)")
    assert len(cells) == 4 * page.run("document.querySelectorAll('#heat-table thead th').length - 1")
    assert sum(bool(re.fullmatch(r"[+−]?[\d.e-]+", cell)) for cell in cells) == len(cells)


def test_rows_lead_to_the_blocks_and_maps_of_their_run(page: Browser) -> None:
    for word, select in (("curves", "heat-run"), ("maps", "map-run")):
        label = page.run(
            f"[...document.querySelectorAll('#run-table a')].filter((a) => a.textContent === '{word}').at(-1).ariaLabel"
        )
        page.run(
            f"[...document.querySelectorAll('#run-table a')].filter((a) => a.textContent === '{word}').at(-1).click()"
        )
        chosen = page.run(
            f"(() => {{ const s = document.getElementById('{select}'); return s.options[s.selectedIndex].dataset.run; }})()"
        )
        assert label == f"{word} of {chosen}"


def test_map_controls_redraw_the_stored_maps(page: Browser, written: tuple[Path, Path]) -> None:
    pixels = "document.getElementById({!r}).toDataURL()"
    for control, event, canvas in (
        ("map-run", "change", "map-after"),
        ("map-image", "change", "map-before"),
        ("map-head", "change", "map-before"),
    ):
        before = page.run(pixels.format(canvas))
        page.run(
            f"(() => {{ const e = document.getElementById('{control}'); e.value = [...e.options].map((o) => o.value).find((v) => v !== e.value); e.dispatchEvent(new Event('{event}')); }})()"
        )
        assert page.run(pixels.format(canvas)) != before, control
    page.run(
        "document.getElementById('map-image').value = 0; document.getElementById('map-head').value = -1; document.getElementById('map-head').dispatchEvent(new Event('change'))"
    )
    readout = page.run("document.getElementById('map-readout').textContent")
    run = readout.partition(" ")[0]
    with np.load(written[0].parent.parent / "runs" / run / "maps.npz") as file:
        for side in ("before", "after"):
            mean = file[side][0, -1].astype(float).mean(axis=0)
            entropy = float(-(mean / mean.sum() * np.log(mean / mean.sum())).sum())
            printed = float(re.search(rf"([\d.]+)(?: nats)? {side}[,;]", readout).group(1))  # type: ignore[union-attr]
            assert printed == pytest.approx(entropy, abs=0.01)


def test_a_finding_opens_its_table_and_the_current_section_is_marked(page: Browser) -> None:
    link = "#summary .findings a[href^='#t-']"
    target = page.run(f'document.querySelector("{link}").hash.slice(1)')
    page.click(link)
    # The page scrolls smoothly, and may have arrived before this is asked.
    page.run(
        "new Promise((done) => { const look = () => document.querySelector('nav [aria-current]').hash === '#appendix'"
        " ? done() : setTimeout(look, 50); look(); setTimeout(done, 20000); })"
    )
    assert page.run(
        f"document.getElementById({target!r}).open && document.getElementById({target!r}).parentElement.open"
    )
    assert page.run("document.querySelectorAll('nav [aria-current]').length") == 1
    assert page.run("document.querySelector('nav [aria-current]').hash") == "#appendix"


def test_print_cuts_no_table(page: Browser) -> None:
    # 273 mm of A4 across, in CSS pixels.
    page.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    page.send("Emulation.setEmulatedMedia", media="print")
    page.send("Emulation.setDeviceMetricsOverride", width=1031, height=700, deviceScaleFactor=1, mobile=False)
    wide = page.run(
        "[...document.querySelectorAll('table')].filter((t) => t.offsetWidth && t.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((t) => t.parentElement.ariaLabel)"
    )
    hidden = page.run(
        "[...document.querySelectorAll('.scroll')].filter((s) => s.scrollHeight > s.clientHeight + 1 || s.scrollWidth > s.clientWidth + 1).map((s) => s.ariaLabel)"
    )
    page.send("Emulation.setEmulatedMedia", media="")
    assert wide == []
    assert hidden == []
    assert page.pdf().startswith(b"%PDF-")


def test_without_javascript_it_says_what_is_missing(browser: Browser, written: tuple[Path, Path]) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(written[1])
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert "JavaScript is off" in browser.run("document.querySelector('main').innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_no_violation(browser: Browser, written: tuple[Path, Path], width: int, scheme: str) -> None:
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        assert not os.environ.get("ATTNDRIFT_REQUIRE"), "axe is missing: `make install` brings it"
        pytest.skip("axe is not installed: `pip install --no-deps axe-playwright-python`")
    source = Path(str(found.origin)).with_name("axe.min.js").read_text(encoding="utf-8")
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(written[1], width=width)
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    # From the debugger, so that the page's own policy stays as it is.
    browser.run(source + "; 0")
    violations = browser.run(
        "axe.run().then((found) => found.violations.map((one) => [one.id, one.nodes.slice(0, 3).map((n) => n.html)]))"
    )
    browser.send("Emulation.setEmulatedMedia", features=[])
    assert violations == []


def test_narrow_page_without_layers_or_maps(browser: Browser, tmp_path: Path) -> None:
    tables = study_tables(seeds=1, layers=0)
    path = write_report(tmp_path, analysis=analyze(tables), tables=tables, figures=[])[1]
    browser.open(path, width=390)
    assert browser.errors == []
    assert browser.run("document.documentElement.scrollWidth") <= 390
    text = browser.run("document.body.innerText")
    assert "No attention maps lie beside these tables." in text
    assert "there is no heatmap" in text
