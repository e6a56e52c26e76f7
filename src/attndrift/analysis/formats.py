"""Tables as CSV, Markdown and LaTeX.

CSV holds the stored values at full precision with standard deviations as columns of their own;
Markdown and LaTeX print rounded ones, with `±` and in the unit of the column's heading.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from attndrift.analysis.numbers import format_rate
from attndrift.analysis.result import Table
from attndrift.files import write_text
from attndrift.results.columns import Column
from attndrift.sanitize import markdown_text, sheet_text

SUFFIXES = (".csv", ".md", ".tex")
_NULL = "–"


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write ``table`` in all forms; returns the paths."""
    paths: list[Path] = []
    for suffix, text in zip(SUFFIXES, (to_csv(table), to_markdown(table), to_latex(table)), strict=True):
        path = folder / f"{table.name}{suffix}"
        write_text(path, text, sync=False)
        paths.append(path)
    return paths


def cell(column: Column, row: dict[str, Any]) -> str:
    """The printed value of ``column`` in ``row``, with its standard deviation where there is one."""
    value = row.get(column.name)
    # A rate is written as everywhere else: 3e-6, not 3e-06.
    rate = column.name == "learning_rate" and isinstance(value, float)
    text = format_rate(float(f"{value:.4g}")) if rate else _print(value, column)
    spread = row.get(column.sd) if column.sd else None
    if value is None or spread is None:
        return text
    return f"{text} ± {_print(spread, column, signed=False)}"


def _print(value: Any, column: Column, *, signed: bool = True) -> str:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and column.digits is None:
        return str(value)
    if isinstance(value, (int, float)):
        scaled = float(value) * column.scale
        if not math.isfinite(scaled):
            return _NULL
        if column.digits is None:
            return f"{scaled:.4g}"
        text = f"{scaled:{'+' if column.signed and signed else ''}.{column.digits}f}"
        # A rounded zero with a sign says that there was a change; there was none to speak of.
        return text.lstrip("+-") if float(text) == 0 else text
    return str(value)


def heading(column: Column) -> str:
    """Label with unit."""
    return f"{column.label} ({column.unit})" if column.unit and column.unit != "fraction" else column.label


def to_csv(table: Table) -> str:
    """Comma-separated values; null is empty, truth values are true and false."""
    names = [name for column in table.columns for name in (column.name, column.sd) if name]
    rows = [[_raw(row.get(name)) for name in names] for row in table.rows]
    return str(pd.DataFrame(rows, columns=names, dtype=object).to_csv(index=False, lineterminator="\n"))


def _raw(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        value = "; ".join(str(item) for item in value)
    return sheet_text(value) if isinstance(value, str) else value


def to_markdown(table: Table) -> str:
    """A pipe table under its title, its notes below it."""
    lines = [f"**{markdown_text(table.title)}**", ""]
    if table.rows:
        lines.append("| " + " | ".join(markdown_text(heading(c)) for c in table.columns) + " |")
        lines.append("|" + "|".join(" ---: " if _numeric(table, c) else " --- " for c in table.columns) + "|")
        lines += ["| " + " | ".join(markdown_text(cell(c, row)) for c in table.columns) + " |" for row in table.rows]
        lines.append("")
    else:
        lines += ["No rows.", ""]
    lines += [f"- {markdown_text(note)}" for note in table.notes]
    return "\n".join(lines).rstrip("\n") + "\n"


def _numeric(table: Table, column: Column) -> bool:
    for row in table.rows:
        value = row.get(column.name)
        if value is not None:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
    return False


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "·": r"$\cdot$",
        "–": "--",
        "λ": r"$\lambda$",
        "α": r"$\alpha$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "×": r"$\times$",
        "−": r"$-$",
        "→": r"$\rightarrow$",
    }
)


def latex_text(text: str) -> str:
    """``text`` with every character that LaTeX would read as something else escaped."""
    escaped = text.replace("\n", " ").translate(_LATEX)
    # Backticks mark names in the notes; in LaTeX they are quotes.
    while escaped.count("`") >= 2:
        escaped = escaped.replace("`", r"\texttt{", 1).replace("`", "}", 1)
    return escaped


def to_latex(table: Table) -> str:
    """A ``longtable`` with ``booktabs`` rules; needs both packages."""
    kinds = "".join("r" if _numeric(table, c) else "l" for c in table.columns)
    head = " & ".join(latex_text(heading(c)) for c in table.columns)
    lines = [
        r"% needs \usepackage{booktabs,longtable}",
        rf"\begin{{longtable}}{{{kinds}}}",
        rf"\caption{{{latex_text(table.title)}}} \label{{tab:{table.name}}} \\",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        r"\endhead",
    ]
    lines += [" & ".join(_number_text(cell(c, row)) for c in table.columns) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{longtable}"]
    lines += [rf"\noindent {latex_text(note)}\par" for note in table.notes]
    return "\n".join(lines) + "\n"


def _number_text(text: str) -> str:
    # A hyphen before a digit is a minus sign in a table of numbers.
    if text[:1] in "+-" and text[1:2].isdigit():
        head, plus_minus, tail = text.partition(" ± ")
        return f"${head}$" + (rf" $\pm$ {tail}" if plus_minus else "")
    return latex_text(text)
