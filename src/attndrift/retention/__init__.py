"""Retention: what a model could do before, and what it can still do."""
