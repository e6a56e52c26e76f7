"""Claims in words, generated from tested numbers.

Every sentence carries effect, n, interval with the unit resampled, and correction; what it is
allowed to say follows from them alone. ``supported`` needs at least ``min_configurations``
configurations, two seeds, a Holm-corrected p below ``alpha`` on configuration means and an interval
without 0.
"""

from __future__ import annotations

import pandas as pd

from attndrift.analysis.claims_attention import attention_claims
from attndrift.analysis.claims_headline import headline_claims
from attndrift.analysis.claims_methods import method_claims
from attndrift.analysis.claims_retention import retention_claims
from attndrift.analysis.claims_settings import loss_claims, setting_claims
from attndrift.analysis.image_intervals import ImageIntervals
from attndrift.analysis.result import Finding
from attndrift.analysis.wording import Evidence


def generate(evidence: Evidence, runs: pd.DataFrame, images: ImageIntervals) -> list[Finding]:
    """All findings, in the order of the questions; a question without data gets a finding that says so.

    ``runs`` are the analysed adapted runs, ``images`` the intervals of single runs.
    """
    headline_claims(evidence, runs, images)
    for claims in (attention_claims, method_claims, retention_claims, loss_claims, setting_claims):
        claims(evidence)
    return sorted(evidence.found, key=lambda finding: finding.question)


__all__ = ["Evidence", "generate"]
