"""What each extra is enough for, in environments that have it alone; and what a command says that misses one."""

from __future__ import annotations

import ast
import functools
import json
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PathDistribution, packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.extras.linked import ROOT, build_metadata, closure, copy_sources, link, run_linked

HERE = Path(__file__).parent
FIRST = ("torch", "transformers", "numpy", "safetensors")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources") / "attndrift")


@pytest.fixture(scope="module")
def metadata(sources: Path) -> PathDistribution:
    return build_metadata(sources)


def test_the_plain_package_brings_what_torch_and_transformers_bring_and_pillow(metadata: PathDistribution) -> None:
    assert set(closure(["attndrift"], metadata)) - {"attndrift"} == set(closure([*FIRST, "pillow"], metadata))


def test_all_is_every_extra_but_the_tools(metadata: PathDistribution) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["all"] == [f"attndrift[{','.join(name for name in extras if name not in ('all', 'dev'))}]"]


@pytest.fixture(scope="module")
def plain(metadata: PathDistribution, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(tmp_path_factory.mktemp("plain") / "packages", closure(["attndrift"], metadata))


@pytest.mark.slow
def test_plain_watches_guards_and_preserves(sources: Path, plain: Path, tmp_path: Path) -> None:
    ended = run_linked([str(HERE / "uses" / "plain.py")], sources, plain, tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith("watched\n")


MISSING = {
    "run demo": "study", "run demo --engine ray": "study,ray", "run demo --engine slurm": "study,slurm",
    "run demo --output s3://bucket/study": "study,s3", "check demo": "study", "demo": "study,report", "collect x": "study",
    "fetch s3://bucket/study x": "study,s3", "interpolate x": "study,report", "report x": "report", "figures x": "report",
    "analyze x": "report", "calibrate x": "report", "import x --output y": "report", "compare embedded x --images y": "report",
    "compare embedded x --images y --zero-shot objects": "report,study", "baseline embedded": "study",
    "baseline embedded --images x": "report", "baseline embedded --images x --zero-shot objects": "study,report",
}  # fmt: skip
PLAIN = ("--help", "--version", "list presets", "list methods", "run --help", "report --help")
_COMMANDS = """
import contextlib, io, json, sys
from attndrift.cli.main import main
for command in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["attndrift", *command.split()]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
    print(json.dumps([command, code, out.getvalue(), err.getvalue()]))
"""


def test_a_command_that_misses_an_extra_prints_the_one_line_that_installs_it(
    sources: Path, plain: Path, tmp_path: Path
) -> None:
    ended = run_linked(["-c", _COMMANDS, json.dumps([*MISSING, *PLAIN])], sources, plain, tmp_path)
    assert ended.returncode == 0, ended.stderr
    for command, code, out, err in map(json.loads, ended.stdout.splitlines()):
        if command in PLAIN:
            assert (code, err) == (0, ""), (command, err)
            assert out
            continue
        assert (code, out) == (1, ""), (command, out, err)
        assert err.count("\n") == err.count("pip install") == 1, (command, err)
        assert err.endswith(f'pip install "attndrift[{MISSING[command]}]"\n'), (command, err)
    assert not list(tmp_path.iterdir())


PACKAGE = ROOT / "src" / "attndrift"
EXTRAS_OF = {
    "study": ("study",), "results": ("study", "report"), "drift/recording.py": ("study",), "guard/recording.py": ("study",),
    "importing": ("report",), "analysis": ("report",), "figures": ("report",), "report": ("report",), "compare": ("report",),
    "data/hub.py": ("study",), "data/columns.py": ("study",), "data/readers.py": ("study",), "trackers": ("study",),
    "study/launchers/ray.py": ("ray",), "study/launchers/slurm.py": ("slurm",), "study/launchers/worker.py": ("slurm",),
    "retention/baseline.py": ("study",), "callbacks/lightning.py": ("lightning",),
    # A model that has adapters has peft.
    "methods/adapters.py": ("peft",), "models/parameters.py": ("peft",),
    **{f"methods/known/{name}.py": ("peft",) for name in ("lora", "_decomposed_lora", "boft", "corda", "ia3", "oft", "osf", "vera")},
    "compare/adapter_source.py": ("report", "peft"),
}  # fmt: skip
"""The extras that each of these files and packages may count on where it imports; any other has the plain package."""


def _extras_of(path: Path) -> list[tuple[str, ...]]:
    """Any one of these is enough for the file."""
    place = path.relative_to(PACKAGE)
    found = EXTRAS_OF.get(str(place)) or EXTRAS_OF.get(place.parts[0]) or ("",)
    # What adds to the room's own extra; what both of two extras use.
    return [found] if str(place) == "compare/adapter_source.py" else [(one,) for one in found]


def _imports(tree: ast.AST, within: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Every module that is imported, the extras whose absence is said there (`importing`), and the line."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case)):
            continue  # No import stands in an expression.
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, within, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, within, node.lineno
        calls = [item.context_expr for item in node.items] if isinstance(node, ast.With) else []
        said = tuple(c.args[0].value for c in calls if isinstance(c, ast.Call) and ast.unparse(c.func) == "importing")
        yield from _imports(node, within + said)


def test_what_a_file_imports_is_in_its_extra_or_its_absence_is_said(metadata: PathDistribution) -> None:
    """The kind: an import that works here, where everything is installed, and nowhere else."""
    brings = packages_distributions()

    @functools.cache
    def names(extras: tuple[str, ...]) -> set[str]:
        return set(closure(["attndrift", *(f"attndrift[{one}]" for one in extras if one)], metadata))

    problems = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for module, said, line in _imports(ast.parse(path.read_text())):
            top = module.partition(".")[0]
            homes = {canonicalize_name(name) for name in brings.get(top, [])}
            if top in sys.stdlib_module_names or top == "attndrift" or not homes:
                continue
            problems += [
                f"{path.relative_to(PACKAGE)}:{line}: {module}, which attndrift[{','.join(extras)}] does not bring"
                for extras in _extras_of(path)
                if not homes & names((*extras, *said))
            ]
    assert not problems, "\n".join(problems)
