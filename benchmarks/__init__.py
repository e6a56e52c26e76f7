"""What attndrift costs, measured against a named alternative. Run from the root of a checkout: ``python -m benchmarks.capture``."""
