"""Two models compared on all axes: attention, representation, weights and zero-shot accuracy."""

from attndrift.comparing.compare import SUMMARY, Comparison, compare_models
from attndrift.comparing.errors import CompareError
from attndrift.comparing.fail_if import Condition, parse_condition, parse_conditions
from attndrift.comparing.sources import Side, resolve
from attndrift.comparing.writing import print_comparison, write_comparison

__all__ = [
    "SUMMARY",
    "CompareError",
    "Comparison",
    "Condition",
    "Side",
    "compare_models",
    "parse_condition",
    "parse_conditions",
    "print_comparison",
    "resolve",
    "write_comparison",
]
