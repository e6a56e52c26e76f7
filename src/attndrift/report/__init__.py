"""The report of a study: ``write_report(study, output) -> ReportPaths``."""

from attndrift.report.write import ReportPaths, write_report

__all__ = ["ReportPaths", "write_report"]
