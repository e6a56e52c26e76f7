"""Two models compared on all axes, attention, representation, weights and zero-shot accuracy; and one model's attention."""

from attndrift.compare.attention_structure import (
    ModelStructure,
    measure_structure,
    print_structure,
    write_structure,
)
from attndrift.compare.compare import compare_models
from attndrift.compare.comparison import Comparison
from attndrift.compare.conditions import Condition, parse_condition, parse_conditions
from attndrift.compare.errors import CompareError
from attndrift.compare.resolved import ResolvedModel
from attndrift.compare.sources import resolve
from attndrift.compare.summary import summary_names
from attndrift.compare.writing import print_comparison, write_comparison

__all__ = [
    "CompareError",
    "Comparison",
    "Condition",
    "ModelStructure",
    "ResolvedModel",
    "compare_models",
    "measure_structure",
    "parse_condition",
    "parse_conditions",
    "print_comparison",
    "print_structure",
    "resolve",
    "summary_names",
    "write_comparison",
    "write_structure",
]
