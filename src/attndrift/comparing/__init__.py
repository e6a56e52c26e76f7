"""Two models compared on all axes, attention, representation, weights and zero-shot accuracy; and one model's attention."""

from attndrift.comparing.compare import SUMMARY, Comparison, compare_models
from attndrift.comparing.errors import CompareError
from attndrift.comparing.fail_if import Condition, parse_condition, parse_conditions
from attndrift.comparing.sources import Side, resolve
from attndrift.comparing.structure import ModelStructure, measure_structure, print_structure, write_structure
from attndrift.comparing.writing import print_comparison, write_comparison

__all__ = [
    "SUMMARY",
    "CompareError",
    "Comparison",
    "Condition",
    "ModelStructure",
    "Side",
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
