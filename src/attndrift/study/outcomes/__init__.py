"""Outcomes of a run: models that are made from its training without training anew, each a row of its own."""
