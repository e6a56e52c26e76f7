"""From a study file (YAML) or a preset to a :class:`~attndrift.study.settings.Study`.

A study file has shared settings, a list of runs (each may hold a grid) and settings by dataset::

    name: rates                      # required
    description: one line            # optional
    learning_rate_scale: 1.0         # optional: one factor for every rate of the study
    shared: {model: embedded, epochs: 3, transfer: [objects]}
    datasets:                        # optional: settings for the runs on one dataset
      tiles: {epochs: 4}
    runs:
      - {experiment: E1, method: none, grid: {dataset: [tiles, critters]}}
      - {method: full, dataset: tiles, grid: {learning_rate: [1e-5, 1e-4], seed: [0, 1, 2]}}

A run's settings are the shared ones, then those of its dataset, then its own, then its grid's. Every
error names the file, the line and what is allowed.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attndrift.data.errors import some
from attndrift.methods.registry import DEFAULT_METHOD, trains
from attndrift.plain_digits import whole_number
from attndrift.registry import unknown_name
from attndrift.study.set_descriptions import DatasetSource, other_sets
from attndrift.study.settings import (
    NAME_PATTERN,
    NamedRun,
    RunSettings,
    Study,
    applies,
    run_name,
    setting_names,
)


class StudyError(ValueError):
    """A study that cannot be run as written; the message names the place and the remedy."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow")
    grid: dict[str, list[Any]] = Field(default_factory=dict)


class _StudyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    name: str = Field(pattern=NAME_PATTERN)
    description: str = ""
    learning_rate_scale: float = Field(1.0, gt=0)
    shared: dict[str, Any] = Field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    runs: list[_Entry] = Field(min_length=1)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the core schema of YAML 1.2: `064` is 64, `1e-5` is a number, `on` and `no` are text."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Decimal, `0o17` or `0x1F`; a leading zero changes nothing."""
        text = str(self.construct_scalar(node))
        try:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"`{text[:60]}` is no whole number ({error})", node.start_mark
            ) from error

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """A plain decimal, or `.inf` and `.nan`; no base 60, no underscores."""
        text = str(self.construct_scalar(node))
        try:
            return float("invalid" if "_" in text else re.sub(r"\.(?=inf|nan)", "", text.lower()))
        except ValueError as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"`{text[:60]}` is no number", node.start_mark
            ) from error


_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
"""The tags of the core schema; others make sets, dates and bytes, which no setting is."""
_OLD_NUMBERS = {
    key: [pair for pair in resolvers if pair[0].endswith((":int", ":float"))]
    for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _check_scalar(node: yaml.ScalarNode, where: str) -> None:
    """Refuse what YAML 1.1 takes for a number and YAML 1.2 for text, such as `1:30`, `1_000` and `0b11`."""
    old = _OLD_NUMBERS.get(node.value[:1], [])
    if node.style is None and node.tag.endswith(":str") and any(pattern.match(node.value) for _, pattern in old):
        raise StudyError(
            f"{where}:{node.start_mark.line + 1}: `{node.value}` is a number to some YAML readers and text to others; "
            "write the number in plain digits, or put text in quotation marks"
        )


def _load_yaml(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """The value and the node tree of YAML text. Raises ``yaml.YAMLError``, ``ValueError`` and :class:`StudyError`."""
    node = yaml.compose(text, Loader=_Loader)
    if node is not None:
        _check_plain(node, where)
    return yaml.load(text, Loader=_Loader), node


Place = tuple[str | int, ...]
MAX_FILE_BYTES = 4_000_000
MAX_RUNS = 100_000


def _lines(node: yaml.Node, place: Place = ()) -> dict[Place, int]:
    """Line (from 1) of every key and item below ``node``."""
    found = {place: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found |= _lines(value, (*place, str(key.value)))
            found[(*place, str(key.value))] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found |= _lines(value, (*place, index))
    return found


def _check_plain(node: yaml.Node, where: str) -> None:
    """Refuse unusual tags, repeated keys, and aliases: a few lines of nested aliases unfold to gigabytes."""
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if id(current) in seen:
            raise StudyError(
                f"{where}:{current.start_mark.line + 1}: YAML aliases (*name) are not allowed; write it out"
            )
        seen.add(id(current))
        if current.tag not in _TAGS:
            raise StudyError(
                f"{where}:{current.start_mark.line + 1}: not valid YAML for a study: the tag `{current.tag[:80]}`; leave it out"
            )
        if isinstance(current, yaml.MappingNode):
            keys = [str(key.value) for key, _ in current.value]
            for key, count in Counter(keys).items():
                if count > 1:
                    line = [k.start_mark.line + 1 for k, _ in current.value if str(k.value) == key][1]
                    raise StudyError(f"{where}:{line}: the key `{key}` stands twice")
            stack += [value for _, value in current.value]
        elif isinstance(current, yaml.SequenceNode):
            stack += current.value
        elif isinstance(current, yaml.ScalarNode):
            _check_scalar(current, where)


def _checked(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """As :func:`_load_yaml`, with every problem as a :class:`StudyError` that names file and line."""
    if len(text) > MAX_FILE_BYTES:
        raise StudyError(f"{where}: {len(text):,} characters; a study file has at most {MAX_FILE_BYTES:,}")
    try:
        return _load_yaml(text, where)
    except StudyError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise StudyError(f"{where}{line}: not valid YAML: {problem}") from error
    except (RecursionError, ValueError) as error:
        raise StudyError(f"{where}: not valid YAML: {type(error).__name__}: {error}") from error


def read_yaml(text: str, where: str) -> Any:
    """The value of YAML text as study files have it; ``where`` it stands is named in a :class:`StudyError`."""
    return _checked(text, where)[0]


def _parse(text: str, where: str) -> tuple[dict[str, Any], dict[Place, int]]:
    content, node = _checked(text, where)
    if not isinstance(content, dict):
        raise StudyError(f"{where}:1: a study file is a mapping with `name`, `shared` and `runs`")
    assert node is not None
    return content, _lines(node)


def _line(lines: Mapping[Place, int], place: Sequence[str | int]) -> str:
    for end in range(len(place), -1, -1):
        if tuple(place[:end]) in lines:
            return f":{lines[tuple(place[:end])]}"
    return ""


def _allowed(model: type[BaseModel], field: str) -> str:
    names = setting_names() if model is RunSettings else list(model.model_fields)
    few = len(names) <= 20
    otherwise = f"allowed: {', '.join(names)}" if few else "`attndrift list settings` shows every setting"
    return unknown_name("setting", field, names, otherwise)


def _explain(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One pydantic error in words, with the allowed values."""
    location = [part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    field = ".".join(str(part) for part in location)
    if field.startswith("sources."):
        field = f"datasets.{location[1]}.source{''.join(f'.{part}' for part in location[2:])}"
    if error["type"] == "extra_forbidden":
        return _allowed(DatasetSource if location[0] in ("source", "sources") else model, str(location[-1]))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"`{field}` is missing"
    if not field or error["type"] == "other_owner":
        return message
    value = repr(error.get("input"))
    return f"`{field}` is {value if len(value) < 80 else value[:77] + '...'}: {message}"


def _first_error(error: ValidationError) -> Mapping[str, Any]:
    return error.errors(include_url=False, include_context=False)[0]


def _merge(file: _StudyFile, entry: Mapping[str, Any], dataset: Any) -> dict[str, Any]:
    by_dataset = file.datasets.get(str(dataset), {}) if dataset is not None else {}
    return {**file.shared, **by_dataset, **entry}


def _check_keys(values: Iterable[str], where: str, lines: Mapping[Place, int], place: Place) -> None:
    for key in values:
        if key not in setting_names():
            raise StudyError(f"{where}{_line(lines, (*place, key))}: {_allowed(RunSettings, str(key))}")


def _expand(
    file: _StudyFile,
    where: str,
    lines: Mapping[Place, int],
    overrides: Mapping[str, Any],
    by_dataset: Mapping[str, Mapping[str, Any]],
) -> Study:
    _check_keys(file.shared, where, lines, ("shared",))
    known = _dataset_names(file)
    for name, values in file.datasets.items():
        _check_keys(values, where, lines, ("datasets", name))
        for key in values:
            if name not in known and key != "source":
                raise StudyError(
                    f"{where}{_line(lines, ('datasets', name, key))}: `datasets`: no run is on {name!r}; they are on "
                    f"{some(sorted(known), 3)}. Of a transfer set only `source` is read, not `{key}`"
                )
    _check_number(file, where, lines)
    expanded: list[tuple[RunSettings, Place]] = []
    for index, entry in enumerate(file.runs):
        place: Place = ("runs", index)
        own: dict[str, Any] = dict(entry.model_extra or {})
        _check_keys(own, where, lines, place)
        _check_keys(entry.grid, where, lines, (*place, "grid"))
        for key, axis in entry.grid.items():
            if key in own:
                at = _line(lines, (*place, "grid", key))
                raise StudyError(f"{where}{at}: `{key}` stands both in the run and in its grid")
            if not axis:
                raise StudyError(f"{where}{_line(lines, (*place, 'grid', key))}: the grid of `{key}` is empty")
        for point in itertools.product(*entry.grid.values()):
            chosen = dict(zip(entry.grid, point, strict=True))
            dataset = {"dataset": file.shared.get("dataset"), **own, **chosen, **overrides}["dataset"]
            # What is said of one dataset is the more particular, and stands above what is said of all.
            set_here = {**overrides, **by_dataset.get(str(dataset), {})}
            _refuse_equal_runs(set_here, entry, where, lines, place)
            raw = {**_merge(file, {**own, **chosen}, dataset), **set_here}
            raw = _fit_to_method(raw, own | chosen)
            if isinstance(given := raw.get("sources", {}), Mapping):  # anything else is refused below
                raw["sources"] = {**_sources(file), **given}
            try:
                settings = _scaled(RunSettings.model_validate(raw), file.learning_rate_scale)
            except ValidationError as error:
                first = _first_error(error)
                field = str(first["loc"][0]) if first["loc"] else ""
                at = _place_of(first["loc"], place, dataset, lines)
                source = "--set: " if field in set_here else ""
                raise StudyError(f"{where}{at}: {source}{_explain(first, RunSettings)}") from error
            expanded.append((settings, place))
    _refuse_unused(file, [settings for settings, _ in expanded], where, lines)
    return _named(file, expanded, where, lines)


def _sources(file: _StudyFile) -> dict[str, Any]:
    """Where the sets are that the file describes, by name: each may be a transfer set too."""
    return {name: values["source"] for name, values in file.datasets.items() if values.get("source") is not None}


def _refuse_unused(file: _StudyFile, runs: Sequence[RunSettings], where: str, lines: Mapping[Place, int]) -> None:
    """Raise :class:`StudyError` for a described set that no run has: its name may be misspelt."""
    used = _dataset_names(file).union(*(other_sets(settings) for settings in runs))
    for name in file.datasets:
        if name not in used:
            otherwise = f"the runs have {some(sorted(used), 6)}"
            at = _line(lines, ("datasets", name))
            raise StudyError(
                f"{where}{at}: `datasets`: no run is on {name!r} or has it in `transfer`: "
                + unknown_name("set", name, used, otherwise)
            )


def _check_number(file: _StudyFile, where: str, lines: Mapping[Place, int]) -> None:
    """Count the runs before any is made: a few short axes multiply to more than a machine holds."""
    total = 0
    for index, entry in enumerate(file.runs):
        total += math.prod(len(axis) for axis in entry.grid.values())
        if total > MAX_RUNS:
            raise StudyError(
                f"{where}{_line(lines, ('runs', index))}: {total:,} runs up to here; a study has at most {MAX_RUNS:,}"
            )


def _refuse_equal_runs(
    values: Mapping[str, Any], entry: _Entry, where: str, lines: Mapping[Place, int], place: Place
) -> None:
    for key, axis in entry.grid.items():
        if key in values and len(axis) > 1:
            raise StudyError(
                f"--set {key}: runs on line {_line(lines, place)[1:]} of {where} differ in `{key}`; "
                "setting it would make them equal. Choose runs with --only, or edit the study file."
            )


def _scaled(settings: RunSettings, scale: float) -> RunSettings:
    """``settings`` with their rate multiplied. Raises ``ValidationError`` for a rate that is none."""
    if scale == 1.0:
        return settings
    rate = float(f"{settings.learning_rate * scale:.12g}")
    return RunSettings.model_validate({**settings.to_json(), "learning_rate": rate})


def _fit_to_method(raw: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Leave shared settings that concern other methods, heads and losses aside; a run's own stay, to be refused by name."""
    return {name: value for name, value in raw.items() if name in own or applies(name, raw)}


def _place_of(loc: Sequence[Any], place: Place, dataset: Any, lines: Mapping[Place, int]) -> str:
    field = str(loc[0]) if loc else ""
    if field == "sources" and len(loc) > 1:
        return _line(lines, ("datasets", loc[1], "source", *loc[2:]))
    candidates: list[Place] = [
        (*place, "grid", field),
        (*place, field),
        ("datasets", str(dataset), field),
        ("shared", field),
    ]
    for candidate in candidates:
        if candidate in lines:
            return _line(lines, candidate)
    return _line(lines, place)


def _named(
    file: _StudyFile, expanded: Sequence[tuple[RunSettings, Place]], where: str, lines: Mapping[Place, int]
) -> Study:
    with_model = len({settings.model for settings, _ in expanded}) > 1
    with_data_seed = len({settings.data_seed for settings, _ in expanded}) > 1
    runs: dict[str, tuple[RunSettings, Place]] = {}
    for settings, place in expanded:
        name = run_name(settings, with_model=with_model, with_data_seed=with_data_seed)
        if name in runs:
            earlier, first = runs[name]
            if earlier == settings:
                at, before = _line(lines, place), _line(lines, first)[1:]
                raise StudyError(f"{where}{at}: this run stands already on line {before} ({name})")
            # Runs that differ in a setting that their name does not show get a piece of their hash.
            name = f"{name}_{settings.hash[:6]}"
        runs[name] = (settings, place)
    named = tuple(NamedRun(run_id=name, settings=settings) for name, (settings, _) in runs.items())
    return Study(name=file.name, description=file.description, runs=named)


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["epochs=3", "transfer=[objects]"]`` as settings; values are read as YAML.

    Raises :class:`StudyError` for a pair without ``=`` and for an unknown key.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise StudyError(f"--set {pair}: write it as key=value")
        key = key.strip()
        if key not in ("name", "learning_rate_scale") and "." not in key and key not in setting_names():
            raise StudyError(f"--set {pair}: {_allowed(RunSettings, key)}")
        try:
            values[key], _ = _load_yaml(text, f"--set {key}")
        except StudyError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise StudyError(f"--set {pair[:200]}: the value is not valid YAML") from error
    return values


def parse_replacements(items: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """``["freeze_layers:9=7"]`` as (field, old, new); values are read as YAML. Raises :class:`StudyError`."""
    replacements = []
    for item in items:
        field, colon, pair = item.partition(":")
        old, equals, new = pair.partition("=")
        if not (colon and equals):
            raise StudyError(f"--replace {item}: write it as FIELD:OLD=NEW, e.g. freeze_layers:9=7")
        if field not in setting_names():
            raise StudyError(f"--replace {item}: {_allowed(RunSettings, field)}")
        try:
            (before, _), (after, _) = (_load_yaml(value, f"--replace {field}") for value in (old, new))
            replacements.append((field, before, after))
        except StudyError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise StudyError(f"--replace {item[:200]}: the values are not valid YAML") from error
    return replacements


def parse_seeds(text: str) -> list[int]:
    """``"0,1,2"`` as seeds. Raises :class:`StudyError`."""
    try:
        seeds = [whole_number(value) for value in text.split(",")]
    except ValueError:
        raise StudyError(f"--seeds {text}: write them as whole numbers with commas, e.g. 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise StudyError(f"--seeds {text}: a seed stands twice")
    return seeds


def _repeat_over_seeds(file: _StudyFile, seeds: Sequence[int], where: str, lines: Mapping[Place, int]) -> None:
    """Every run once a seed; the pretrained model, which no seed changes, once."""
    for index, entry in enumerate(file.runs):
        own = entry.model_extra or {}
        if "seed" in own or "seed" in entry.grid:
            at = _line(lines, ("runs", index))
            raise StudyError(f"--seeds: the run at {where}{at} has seeds of its own; edit the study file instead")
        methods = entry.grid.get("method", [own.get("method", file.shared.get("method", DEFAULT_METHOD))])
        if not any(trains(method) for method in methods):
            own["seed"] = seeds[0]
        else:
            entry.grid["seed"] = list(seeds)


def _replace_values(file: _StudyFile, replacements: Sequence[tuple[str, Any, Any]], where: str) -> None:
    for field, old, new in replacements:
        places = [file.shared, *file.datasets.values(), *(entry.model_extra or {} for entry in file.runs)]
        found = 0
        for place in places:
            if field in place and place[field] == old:
                place[field] = new
                found += 1
        for entry in file.runs:
            axis = entry.grid.get(field, [])
            found += axis.count(old)
            if field in entry.grid:
                entry.grid[field] = [new if value == old else value for value in axis]
        if not found:
            raise StudyError(f"--replace {field}:{old}={new}: no run of {where} has `{field}` {old!r}")


def parse_study(
    text: str,
    *,
    where: str,
    overrides: Mapping[str, Any] | None = None,
    datasets: Mapping[str, str] | None = None,
    replacements: Sequence[tuple[str, Any, Any]] = (),
    seeds: Sequence[int] | None = None,
) -> Study:
    """Read a study from YAML text.

    ``overrides``: settings for every run (``name`` renames the study, ``learning_rate_scale`` multiplies
    its rates; ``DATASET.key`` concerns the runs on one dataset). ``datasets``: targets to replace by
    others, ``{"pets": "critters"}``. ``replacements``: (field, old, new), single values of runs and grids.
    ``seeds``: every run is repeated with each of them (the pretrained model is not).
    """
    content, lines = _parse(text, where)
    try:
        file = _StudyFile.model_validate(content)
    except ValidationError as error:
        first = _first_error(error)
        raise StudyError(f"{where}{_line(lines, first['loc'])}: {_explain(first, _StudyFile)}") from error
    overrides = dict(overrides or {})
    if "name" in overrides:
        file.name = str(overrides.pop("name"))
    if "learning_rate_scale" in overrides:
        scale = overrides.pop("learning_rate_scale")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise StudyError(f"--set learning_rate_scale: {scale!r} is not a number above 0")
        file.learning_rate_scale = float(scale)
    _replace_datasets(file, datasets or {}, where)
    _replace_values(file, replacements, where)
    if seeds is not None:
        _repeat_over_seeds(file, seeds, where, lines)
    by_dataset: dict[str, dict[str, Any]] = {}
    for key in [k for k in overrides if "." in k]:
        dataset, _, field = key.partition(".")
        if field not in setting_names() or field == "dataset":
            raise StudyError(f"--set {key}: {_allowed(RunSettings, field)}")
        known = _dataset_names(file) | ({str(overrides["dataset"])} if "dataset" in overrides else set())
        if dataset not in known:
            raise StudyError(
                f"--set {key}: no run of {where} is on {dataset!r}; they are on {', '.join(sorted(known))}"
            )
        by_dataset.setdefault(dataset, {})[field] = overrides.pop(key)
    try:
        return _expand(file, where, lines, overrides, by_dataset)
    except ValidationError as error:
        raise StudyError(f"{where}: {_explain(_first_error(error), Study)}") from error


def _dataset_names(file: _StudyFile) -> set[str]:
    """The datasets that runs are on."""
    named = [file.shared.get("dataset")]
    for entry in file.runs:
        named += [(entry.model_extra or {}).get("dataset"), *entry.grid.get("dataset", [])]
    return {str(name) for name in named if name is not None}


def _replace_datasets(file: _StudyFile, names: Mapping[str, str], where: str) -> None:
    def swapped(value: Any) -> Any:
        return names.get(value, value) if isinstance(value, str) else value

    known = _dataset_names(file)
    for old in names:
        if old not in known:
            otherwise = f"the runs of {where} have {some(sorted(known), 3)}"
            raise StudyError(f"--dataset {old}: {unknown_name('dataset', old, known, otherwise)}")
    if "dataset" in file.shared:
        file.shared["dataset"] = swapped(file.shared["dataset"])
    file.datasets = {names.get(name, name): values for name, values in file.datasets.items()}
    for entry in file.runs:
        if entry.model_extra and "dataset" in entry.model_extra:
            entry.model_extra["dataset"] = swapped(entry.model_extra["dataset"])
        if "dataset" in entry.grid:
            entry.grid["dataset"] = [swapped(value) for value in entry.grid["dataset"]]


def preset_names() -> list[str]:
    """Names of the studies that ship with the package."""
    folder = resources.files("attndrift.study") / "presets"
    names = [item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")]
    return sorted(name for name in names if not name.endswith(".expected"))


def preset_text(name: str) -> str:
    """The study file of the preset ``name``."""
    return (resources.files("attndrift.study") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def load_study(
    source: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    datasets: Mapping[str, str] | None = None,
    replacements: Sequence[tuple[str, Any, Any]] = (),
    seeds: Sequence[int] | None = None,
) -> Study:
    """A study from a preset's name or the path of a YAML file; the rest as :func:`parse_study` takes it.

    Raises :class:`StudyError`.
    """
    name = str(source)

    def parse(text: str, where: str) -> Study:
        return parse_study(
            text, where=where, overrides=overrides, datasets=datasets, replacements=replacements, seeds=seeds
        )

    if name in preset_names():
        return parse(preset_text(name), f"preset {name}")
    path = Path(source)
    if not path.is_file():
        otherwise = "`attndrift list presets` shows every preset"
        raise StudyError(unknown_name("study file or preset", name, preset_names(), otherwise))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse(text, str(path))
