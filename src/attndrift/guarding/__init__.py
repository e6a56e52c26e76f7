"""The guard: a budget for what fine-tuning may change, kept while the model is trained.

``Budget`` names what must hold, on measured drift or on zero-shot accuracy; ``Guard`` keeps to it in any loop, as an
argument of the callbacks of :mod:`attndrift.monitor`, or as a setting of a study's run.
"""

from __future__ import annotations

from attndrift.guarding.budget import Budget, Reading, RetentionBudget
from attndrift.guarding.events import GuardEvent
from attndrift.guarding.guard import Guard

__all__ = ["Budget", "Guard", "GuardEvent", "Reading", "RetentionBudget"]
