"""Write the recipes of CONTRIBUTING.md from the files that tests/extending installs and runs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tests" / "extending" / "package" / "src" / "attndrift_extension"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN = "<!-- recipes: made by `python scripts/recipes.py` from tests/extending/package -->"
END = "<!-- end of recipes -->"
RECIPES = {
    "largest_share": "a metric: it then appears in history, tables, figures, the report, alerts and budgets",
    "biases": "an adaptation method, with settings of its own",
    "loha": "a method with adapters of `peft`",
    "sharp_cosine": "a head",
    "l1_sp": "a preservation loss, for studies and for a loop of your own",
    "mean_weights": "an outcome: another model made of a run, without training anew",
    "toy": "a backbone for whole studies, with its attention family",
    "stripes": "a dataset and a suite",
    "nearest_centroid": "a retention measure",
    "lines": "a tracker",
    "backwards": "a launcher",
    "share_over_time": "a figure",
    "shares": "a section of the report",
}


def recipes() -> str:
    """The part of the page between its two marks."""
    parts = []
    for name, what in RECIPES.items():
        code = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        parts.append(f"### {what[0].upper()}{what[1:]}\n\n```python\n{code}```\n")
    return "\n".join(parts)


def page() -> str:
    """The whole page, with the recipes as they are now."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{recipes()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
