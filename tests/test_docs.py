"""The documents: short sentences, links that lead somewhere, commands that exist, and code that runs as it is printed."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib import pyplot
from typer.main import get_command

from attndrift.cli.main import app
from attndrift.results.tables import write_tables
from attndrift.study.loading import load_study
from benchmarks.synthetic import synthetic_tables

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ROOT_PAGES = [
    ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
]
PAGES = [*ROOT_PAGES, *DOCS]

MOST_WORDS = 32  # in a sentence
MADE = {f"{notebook.stem}.md" for notebook in NOTEBOOKS} | {"api.md"}
"""Pages that exist on the site alone; `scripts/site_pages.py` makes them."""


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    return text


def _blocks(path: Path, *languages: str) -> list[str]:
    """The code in fences of these languages; an empty one is a fence without a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)
    return [code for language, code in found if language in languages]


def _sentences(text: str) -> Iterator[str]:
    text = re.sub(r"^```.*?^```", "\n", text, flags=re.S | re.M)
    text = re.sub(r"<[^>]+>", " ", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    # A heading, an item, a cell and a paragraph end a sentence.
    text = re.sub(r"^#+ (.*)$", r"\n\n\1\n\n", text, flags=re.M)
    text = re.sub(r"^\s*([-*]|\d+\.|>)\s", "\n\n", text, flags=re.M)
    text = re.sub(r"(?<!\\)\|", "\n\n", text)
    for paragraph in re.split(r"\n\s*\n", text):
        yield from re.split(r"(?<=[.!?])[)*\"]*\s+(?=[^a-z])", " ".join(paragraph.split()))


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS, *NOTEBOOKS], ids=_name)
def test_no_sentence_is_long(path: Path) -> None:
    long = [(len(sentence.split()), sentence) for sentence in _sentences(_text(path))]
    assert [one for one in long if one[0] > MOST_WORDS] == []


def test_sentences_are_told_apart() -> None:
    text = "# One head\nTwo words. Three small words!\n\n- an item\n- `code` and [a link](x.md)\n\n| a cell | b |\n\n```\nno code\n```\n"
    assert [len(one.split()) for one in _sentences(text) if one] == [2, 2, 3, 2, 4, 2, 1]


def test_the_readme_is_short_and_in_order() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1200
    assert re.findall(r"^## (.*)$", text, re.M) == [
        "Is it for me?",
        "Two commands",
        "Install",
        "Watch my training",
        "What to watch",
        "Compare two checkpoints",
        "Keep what matters",
        "Run a study",
        "What we found",
        "What is supported",
        "Documentation",
        "Cite, contribute, licence",
    ]


def _anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    heads = [re.sub(r"[`*]", "", head) for head in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = path if not file else path.parent / file
        if path in DOCS and file in MADE:
            continue
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


def _command_lines() -> Iterator[tuple[str, list[str]]]:
    for path in PAGES:
        for block in _blocks(path, "", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if "attndrift" not in line or line.lstrip()[:1] in ("#", "$"):
                    continue
                words = shlex.split(line, comments=True)
                if "attndrift" not in words or (words[0] != "attndrift" and "=" not in words[0] and "-m" not in words):
                    continue
                given = words[words.index("attndrift") + 1 :]
                # Two commands on one line.
                yield _name(path), given[: next((i for i, word in enumerate(given) if word in ("&&", "||", ">")), None)]


@pytest.mark.parametrize(("page", "words"), [pytest.param(*one, id=" ".join(one[1])[:80]) for one in _command_lines()])
def test_commands_exist_with_their_options(page: str, words: list[str]) -> None:
    commands: Any = get_command(app).commands  # type: ignore[attr-defined]
    name, *given = words
    assert name in commands, page
    if given != ["..."]:
        commands[name].make_context(name, given)  # raises for what it does not know


def test_there_are_commands_to_check() -> None:
    found = list(_command_lines())
    assert len(found) > 30
    assert {"run", "check", "compare", "report", "import", "interpolate"} <= {words[0] for _, words in found}


@pytest.mark.parametrize(
    ("path", "block"),
    [(path, block) for path in PAGES for block in _blocks(path, "yaml") if "runs:" in block],
    ids=lambda value: _name(value) if isinstance(value, Path) else "",
)
def test_studies_can_be_loaded(path: Path, block: str, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(block, encoding="utf-8")
    assert len(load_study(str(study)).runs) > 1


def test_extras_exist_under_the_names_that_installers_compare() -> None:
    """In pages and in what the code says; of a name like `open_clip` the metadata has another form, and old installers miss it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in extras)
    texts = [
        path.read_text("utf-8") for path in (*PAGES, *(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.py"))
    ]
    named = [name for text in texts for name in re.findall(r"(?:attndrift|\"\.)\[([A-Za-z_,-]+)\]", text)]
    assert len(named) > 5
    assert {one for name in named for one in name.split(",")} <= set(extras)


def test_the_generated_pages_are_current() -> None:
    module = _script("reference_pages")
    for name, made in module.PAGES.items():
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert page == made(), f"docs/{name} is old; write it again: python scripts/reference_pages.py"


def test_every_setting_is_described() -> None:
    rows = [
        line.split(" | ")
        for line in (ROOT / "docs/settings.md").read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert len(rows) > 50
    assert [row[0] for row in rows if not row[-1].strip(" |")] == []


def test_every_exit_code_is_listed() -> None:
    console = importlib.import_module("attndrift.cli.console")
    codes = {value for name, value in vars(console).items() if name.startswith("EXIT_")}
    assert codes | {0, 2} == set(_script("reference_pages").EXIT_CODES)


def _script(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _modules_with_examples() -> list[str]:
    source = ROOT / "src"
    files = [path for path in source.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    return sorted(".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__") for path in files)


@pytest.mark.parametrize("name", _modules_with_examples())
def test_examples_in_docstrings_hold(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed


@pytest.mark.slow
@pytest.mark.ci("readme")
def test_the_readme_runs_as_it_is_printed(tmp_path: Path) -> None:
    """Both blocks of the README in a new Python, in a folder with nothing in it."""
    blocks = _blocks(ROOT / "README.md", "python")
    printed = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=500
    ).stdout.splitlines()
    (shown,) = [block.splitlines() for block in _blocks(ROOT / "README.md", "") if "drift at step" in block]
    shown = [line for line in shown if line.startswith("drift")]
    assert [line.partition(":")[0] for line in printed] == [line.partition(":")[0] for line in shown]
    assert printed[0] == shown[0]
    assert [_numbers(line) for line in printed] == [pytest.approx(_numbers(line), abs=0.02) for line in shown]
    assert (tmp_path / "tuned" / "model.safetensors").exists()


def _numbers(line: str) -> list[float]:
    """Entropy, CKA, embedding drift and weight drift of a printed line."""
    return [float(found) for found in re.findall(r"(?:entropy|CKA|embeddings|weights) ([\d.]+)", line)]


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the code in the guides takes for granted: a model, images, a loop and a trainer."""
    from transformers import Trainer, TrainingArguments

    from attndrift import AttentionPreservation, DriftMonitor
    from attndrift.data import load_dataset
    from attndrift.models import load_model, load_processor

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = load_model("embedded").train()
    tokenizer, processor = load_processor("embedded")
    objects = load_dataset("objects").test
    images = processor([objects[i] for i in range(16)], return_tensors="pt")["pixel_values"]
    labels = torch.from_numpy(objects.labels[:16])
    classifier = torch.nn.Linear(model.config.projection_dim, len(objects.class_names))
    optimizer = torch.optim.SGD([*model.parameters(), *classifier.parameters()], lr=1e-3)

    def task_loss(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        features = model.get_image_features(pixel_values=images).pooler_output
        return torch.nn.functional.cross_entropy(classifier(features), targets)

    def train_step(images: torch.Tensor, targets: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = task_loss(images, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return {
        "model": model,
        "probe_images": images,
        "pixels": images,
        "labels": labels,
        "loader": [(images, labels)] * 2,
        "task_loss": task_loss,
        "train_step": train_step,
        "classifier": classifier,
        "validate": lambda: 0.5,
        "class_names": objects.class_names,
        "tokenizer": tokenizer,
        "monitor": DriftMonitor(model, images),
        "preserve": AttentionPreservation(model, weight=1.0),
        "trainer": Trainer(model, TrainingArguments(str(tmp_path), report_to="none")),
    }


RUN = ["loops.md", "losses.md", "guard.md", "what-to-watch.md", "figures.md"]


@pytest.mark.parametrize("name", RUN)
def test_the_code_in_the_guides_runs(name: str, training: dict[str, Any]) -> None:
    blocks = _blocks(ROOT / "docs" / name, "python")
    assert blocks
    if "studies/demo" in "".join(blocks):
        write_tables(synthetic_tables(seeds=1, rates=3, datasets=("eurosat",), evaluations=2, layers=2), "studies/demo")
        alert = {"metric": "cka_mean", "below": 0.9, "above": None}
        Path("studies/demo/alerts.json").write_text(json.dumps({"alerts": [alert]}))
        training["my_axes"] = pyplot.subplots()[1]
    for block in blocks:
        exec(compile(block, name, "exec"), training)


def test_other_guides_hold_no_code() -> None:
    assert [path.name for path in DOCS if _blocks(path, "python") and path.name not in RUN] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.slow
def test_notebooks_run(tmp_path: Path) -> None:
    pytest.importorskip("nbmake", reason="nbmake is not installed")
    for notebook in NOTEBOOKS:
        (tmp_path / notebook.name).write_bytes(notebook.read_bytes())
    here = Path(sys.executable).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "--nbmake-timeout=300",
        "-q",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
    ]
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert f"{len(NOTEBOOKS)} passed" in ran.stdout


@pytest.mark.slow
def test_the_site_is_built_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = sorted(tmp_path.glob("*.html"))
    assert {f"{path.stem}.html" for path in DOCS} | {f"{Path(name).stem}.html" for name in MADE} <= {
        p.name for p in pages
    }
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?https?:[^\" >]*", text) == [], page.name
        assert re.findall(r"<link\b(?![^>]*rel=\"?canonical)[^>]*\bhref=\"?https?:[^\" >]*", text) == [], page.name
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", style.read_text(encoding="utf-8")), style.name


def test_workflows_call_what_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    called: set[str] = set()
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            for step in job["steps"]:
                called |= set(re.findall(r"^make ([a-z-]+)", step.get("run", ""), re.M))
    assert called
    assert called <= targets


def test_settings_of_the_repository_are_yaml() -> None:
    files = [
        *(ROOT / ".github").rglob("*.yml"),
        ROOT / ".pre-commit-config.yaml",
        ROOT / "mkdocs.yml",
        ROOT / "CITATION.cff",
    ]
    assert len(files) > 10
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path
