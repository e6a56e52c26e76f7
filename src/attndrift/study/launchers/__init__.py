"""Launchers: where the runs of a study are run."""

from attndrift.study.launchers.registry import LAUNCHERS, Launcher, Options, make_engine

__all__ = ["LAUNCHERS", "Launcher", "Options", "make_engine"]
