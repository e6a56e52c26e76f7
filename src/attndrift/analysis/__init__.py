"""Statistics on the tables: ``analyze(tables) -> Analysis``."""

from attndrift.analysis.core import analyze
from attndrift.analysis.image_intervals import read_image_outcomes
from attndrift.analysis.loading import load_tables
from attndrift.analysis.result import Analysis, Finding, Table
from attndrift.analysis.settings import AnalysisSettings, parse_analysis_settings
from attndrift.analysis.storing import read_analysis, write_analysis

__all__ = [
    "Analysis",
    "AnalysisSettings",
    "Finding",
    "Table",
    "analyze",
    "load_tables",
    "parse_analysis_settings",
    "read_analysis",
    "read_image_outcomes",
    "write_analysis",
]
