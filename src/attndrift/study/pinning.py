"""The commit of each model of a study: settled once, when the study is prepared, and kept with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attndrift.models.errors import ModelError
from attndrift.models.reference import is_on_hub, without_commit
from attndrift.study.settings import NamedRun, Study


def pin_models(study: Study, recorded: Sequence[Mapping[str, Any]], is_done: Callable[[str], bool]) -> Study:
    """``study`` with the commit of every model on a hub as the ``model_revision`` of its runs.

    Args:
        study: as it was loaded.
        recorded: the runs in ``study.json``; a commit that stands there is used again, wherever the hub has moved to.
        is_done: whether a run needs no model any more.

    Raises :class:`attndrift.models.ModelError` for a model that the hub does not give: once, before any run.
    """
    commits = RecordedCommits(recorded)

    def commit_of(run: NamedRun) -> str | None:
        model = run.settings.model
        if not is_on_hub(model):
            return None
        known = commits.of(run)
        # A run that is done needs no model, but it is not one of another revision.
        if known is not None or ("@" not in model and is_done(run.run_id)):
            return known
        # Here, so that a study of local models does not wait for the hub's client.
        from attndrift.models.hub import resolve_model

        return resolve_model(model).commit

    runs = tuple(run.model_copy(update={"model_revision": commit_of(run)}) for run in study.runs)
    return study.model_copy(update={"runs": runs})


class RecordedCommits:
    """The commits of models with which the runs in ``study.json`` were begun."""

    def __init__(self, recorded: Iterable[Mapping[str, Any]]) -> None:
        self._by_run: dict[tuple[str, str], str] = {}
        self._by_setting: dict[str, str] = {}
        self._by_name: dict[str, dict[str, None]] = {}
        for run in recorded:
            if run.get("model_revision") is not None:
                commit, model = str(run["model_revision"]), str(run["settings"]["model"])
                name = model.partition("@")[0]
                self._by_run[str(run["run_id"]), name] = commit
                self._by_setting[model] = commit
                self._by_name.setdefault(name, {})[commit] = None

    def of(self, run: NamedRun) -> str | None:
        """The commit that ``run`` goes on with; None where it is to be looked up.

        A bare name is what the run has already, else what the study has of that repository. Another revision is looked
        up. Raises :class:`attndrift.models.ModelError` for the bare name of a repository of which the study has several
        commits, where nothing says which of them the new run is to have.
        """
        model = run.settings.model
        if "@" in model:
            return self._by_setting.get(model)
        found = self._by_run.get((run.run_id, model)) or self._by_setting.get(model)
        if found is not None:
            return found
        commits = list(self._by_name.get(model, ()))
        if len(commits) > 1:
            raise ModelError(
                f"{model}: the study was begun with {len(commits)} commits of it ({', '.join(commits)}); for the new run "
                f"{run.run_id} name one of them: {model}@{commits[0]}"
            )
        return commits[0] if commits else None


def same_model(there: Any, here: Any) -> bool:
    """Whether two values of the setting ``model`` name one model, at whatever revision."""
    if there == here:
        return True
    if "@" not in f"{there}{here}" or not (is_on_hub(str(there)) and is_on_hub(str(here))):
        return False
    return without_commit(str(there)) == without_commit(str(here))


def changed_revision(run: NamedRun, recorded: Mapping[str, Any]) -> tuple[str, str] | None:
    """The commits that were recorded and asked for, where they differ; ``recorded``: the run in ``study.json``."""
    there, here = recorded.get("model_revision"), run.model_revision
    return None if there is None or here is None or there == here else (str(there), here)
