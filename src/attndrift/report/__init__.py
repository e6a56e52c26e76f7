"""The report: ``report.md`` and a self-contained ``report.html`` from tables, analysis and figures."""

from attndrift.report.build import write_report

__all__ = ["write_report"]
