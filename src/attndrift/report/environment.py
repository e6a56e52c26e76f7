"""The Jinja environments of every page and text."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from attndrift.report import escaping


def html_environment() -> Environment:
    """For pages: everything is escaped, and an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("attndrift.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=escaping.harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marked": escaping.html, "embedded_json": escaping.embedded_json}
    return environment
