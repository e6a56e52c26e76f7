"""Two models compared on all axes, attention, representation, weights and zero-shot accuracy; and one model's attention."""

from attndrift.compare.attention_structure import (
    ModelStructure,
    measure_structure,
    print_structure,
    write_structure,
)
from attndrift.compare.compare import SUMMARY, Comparison, compare_models
from attndrift.compare.conditions import Condition, parse_condition, parse_conditions
from attndrift.compare.errors import CompareError
from attndrift.compare.sources import ResolvedModel, resolve
from attndrift.compare.writing import print_comparison, write_comparison

__all__ = [
    "SUMMARY",
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
    "write_comparison",
    "write_structure",
]
