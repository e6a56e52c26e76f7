"""Attention maps before and after, on the same probe images, from ``maps.npz``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from attndrift.figures.canvas import MM, drawing_width
from attndrift.figures.registry import figure
from attndrift.figures.source import Drawing, NoData, Source, usual_variant
from attndrift.figures.style import new_figure, wrap
from attndrift.files import is_inside, warn_left_out
from attndrift.methods.registry import in_order
from attndrift.results.attention_maps import MapError, MapSet, read_maps

_IMAGES = 4


def find_maps(maps: Path | Mapping[str, Any] | None, run_ids: Sequence[str]) -> dict[str, Path | Mapping[str, Any]]:
    """Where the maps of each run lie.

    ``maps`` is a study folder (``runs/<run_id>/maps.npz``), a folder of run folders, one run folder, one
    ``maps.npz``, a mapping from run to any of these, or the arrays of one run.
    """
    if maps is None:
        return {}
    if isinstance(maps, Mapping):
        if "before" in maps and "after" in maps:
            return {run_ids[0] if run_ids else "run": maps}
        found: dict[str, Path | Mapping[str, Any]] = {}
        for name, value in maps.items():
            if isinstance(value, Mapping):
                found[str(name)] = value
            else:
                path = Path(value)
                found[str(name)] = path / "maps.npz" if path.is_dir() else path
        return found
    root = Path(maps)
    if root.is_file():
        name = root.parent.name
        return {name if name in run_ids or not run_ids else run_ids[0]: root}
    found = {}
    for name in run_ids:
        # A run id becomes a path here; one that leads elsewhere is not a run of this folder.
        if Path(name).name != name or name in ("..", "."):
            continue
        for path in (root / "runs" / name / "maps.npz", root / name / "maps.npz"):
            if path.is_file() and is_inside(path, root):
                found[name] = path
                break
    if not found and (root / "maps.npz").is_file():
        found[root.name] = root / "maps.npz"
    return found


@figure(
    "attention_maps",
    title="Attention maps before and after",
    section="rq1",
    alt="Rows of images: the picture, and the attention on it before and after adaptation.",
)
def attention_maps(source: Source) -> Drawing:
    """Last block, head mean: image, before, and after for full and LoRA on the same probe images."""
    available = find_maps(source.maps, list(source.adapted["run_id"]))
    if not available:
        raise NoData("there is no maps.npz of any run")
    sets = _readable(source, available)
    first = next(iter(sets.values()))
    same = {name: one for name, one in sets.items() if one.ids == first.ids and one.before.shape == first.before.shape}
    count = min(_IMAGES, len(first.images))
    if count == 0:
        raise NoData("the maps hold no image")
    columns = 2 + len(same)
    cell = drawing_width() / MM / (columns + 0.35)
    figure, axes = new_figure(10 + count * cell * 0.94, count, columns)
    height, width = first.images.shape[1:3]
    mesh: Any = None
    rows: list[dict[str, Any]] = []
    for row, index in enumerate(_spread(first, count)):
        shown = [("before", first.before)] + [(name, one.after) for name, one in same.items()]
        maps = [array[index, -1].mean(axis=0).reshape(first.grid) for _, array in shown]
        top = 100 * max(float(one.max()) for one in maps)
        axes[row, 0].imshow(first.images[index], aspect="equal")
        axes[row, 0].set_ylabel(wrap(first.name(index), 11, 2))
        for place, ((name, _), values) in enumerate(zip(shown, maps, strict=True), 1):
            mesh = axes[row, place].imshow(
                100 * values,
                cmap="viridis",
                vmin=0,
                vmax=top,
                extent=(0, width, height, 0),
                aspect="equal",
            )
            for patch, value in enumerate(values.ravel()):
                rows.append(
                    {"image": first.ids[index], "map": name, "patch": patch, "attention_pct": 100 * float(value)}
                )
        bar = figure.colorbar(mesh, ax=axes[row, :], location="right", fraction=0.05, pad=0.02, aspect=12)
        bar.ax.yaxis.set_major_locator(MaxNLocator(3))
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}%"))
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[["left", "bottom"]].set_visible(False)
    titles = ["image", "pretrained", *(_title(source, name) for name in same)]
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontweight="normal", fontsize=6.5, loc="center")
    patches = first.before.shape[-1]
    text = (
        f"Attention of the CLS token in the last block, mean over {first.before.shape[2]} heads, in percent of the "
        f"attention to the {patches} patches (uniform: {100 / patches:.1f}%); the same probe images "
        f"(n = {count} of {len(first.images)}) before and after. A row has one scale. Runs: {', '.join(same)}. Single images, one seed each: "
        "an illustration, not evidence."
    )
    return Drawing(figure, source.caption(text), pd.DataFrame(rows))


def _readable(source: Source, available: Mapping[str, Path | Mapping[str, Any]]) -> dict[str, MapSet]:
    """The maps of the chosen runs. Others are chosen for those that cannot be read."""
    left = dict(available)
    while left:
        sets = {}
        for name in _choose(source, list(left)):
            try:
                sets[name] = read_maps(left[name])
            except MapError as error:
                warn_left_out(f"{error}. The figure of attention maps is drawn without it")
                del left[name]
                sets.clear()
                break
        if sets:
            return sets
    raise NoData("no maps.npz can be read")


def _spread(maps: MapSet, count: int) -> list[int]:
    """``count`` images of as many different classes as there are."""
    seen: set[int] = set()
    first = [i for i, label in enumerate(maps.labels) if not (int(label) in seen or seen.add(int(label)))]  # type: ignore[func-returns-value]
    rest = [i for i in range(len(maps.labels)) if i not in first]
    return sorted((first + rest)[:count])


def _choose(source: Source, names: list[str]) -> list[str]:
    """A run of each of the first two methods on the data set with most runs, at their usual rates; else the first run."""
    runs = source.adapted[source.adapted["run_id"].isin(names)]
    chosen: list[str] = []
    for dataset in source.datasets:
        here = runs[runs["dataset"] == dataset]
        for method in in_order(here["method"])[:2]:
            own = here[here["method"] == method]
            plain = own[own["run_id"].isin(source.plain(dataset)["run_id"])]
            own = plain if len(plain) else own
            variant = usual_variant(own, method)
            same = own[own["variant"] == variant]
            usual = same[same["rate_text"] == source.usual_rate(same, variant)]
            chosen.append(str(usual["run_id"].iloc[0]))
        if chosen:
            return chosen
    return names[:1]


def _title(source: Source, name: str) -> str:
    own = source.adapted[source.adapted["run_id"] == name]
    if own.empty:
        return "after"
    return f"{wrap(str(own['variant'].iloc[0]), 14, 2)}\nrate {own['rate_text'].iloc[0]}"
