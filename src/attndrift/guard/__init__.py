"""The guard: a budget for what fine-tuning may change, kept while the model is trained.

``Budget`` names what must hold, on measured drift or on zero-shot accuracy; ``Guard`` keeps to it in any loop, as an
argument of the callbacks of :mod:`attndrift.drift`, or as a setting of a study's run.
"""

from __future__ import annotations

from attndrift.guard.budget import Budget, Reading, RetentionBudget
from attndrift.guard.events import GuardEvent
from attndrift.guard.guard import Guard

__all__ = ["Budget", "Guard", "GuardEvent", "Reading", "RetentionBudget"]
