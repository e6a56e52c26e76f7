"""Costs as ratios against a named alternative; one file a benchmark, ``ratios.py`` what they share."""
