"""The benchmarks run on a tiny model, produce ratios, and are written whole. Nothing here looks at how long anything took."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from attndrift.bench.capture import CASES, Case, _Forwards, capture, case_of
from attndrift.bench.graphs import observed_once, observed_throughout
from attndrift.bench.growth import Shape, growth
from attndrift.bench.memory import peak_bytes
from attndrift.bench.physical import STEP_TITLE
from attndrift.bench.ratios import balanced_orders, ratio_of, rounds
from attndrift.bench.reference import reference
from attndrift.bench.result import Machine, Result
from attndrift.bench.startup import startup
from attndrift.bench.train import CLASSES, WORDS, _Steps, train
from attndrift.cli import app
from attndrift.metrics import StructureAccumulator
from attndrift.models import AdaptationSettings, adapt, load_clip
from attndrift.observing import observe
from attndrift.observing.observer import Recorder
from attndrift.regularizers import AttentionPreservation, attention_preservation_loss

TINY = "config:tiny"
CPU = torch.device("cpu")


def test_a_ratio_is_the_median_over_pairs_of_one_round() -> None:
    found = ratio_of("a", "b", [2.0, 9.0, 4.0], [1.0, 3.0, 4.0], case="c")
    assert (found.ratio, found.low, found.high, found.pairs, found.case) == (2.0, 1.0, 3.0, 3, "c")
    assert (found.seconds, found.seconds_against) == (4.0, 3.0)
    assert found.rounds == ((2.0, 1.0), (9.0, 3.0), (4.0, 4.0))
    assert found.aiming_at(1.05).to_json()["at_most"] == 1.05


def test_rounds_run_everything_and_throw_the_first_away() -> None:
    order: list[str] = []
    found = rounds({name: lambda name=name: order.append(name) for name in "abc"}, 5)
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 5, "b": 5, "c": 5}
    turns = ["".join(order[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)


@pytest.mark.parametrize("count", range(2, 9))
def test_each_comes_equally_often_first_last_and_right_after_each_other_one(count: int) -> None:
    orders = balanced_orders(count)
    times = len(orders) // count
    assert Counter(order[0] for order in orders) == Counter(order[-1] for order in orders)
    assert Counter(order[0] for order in orders) == dict.fromkeys(range(count), times)
    followed = Counter(pair for order in orders for pair in pairwise(order))
    assert followed == {(one, other): times for one in range(count) for other in range(count) if one != other}
    done: list[int] = []
    rounds({str(one): lambda one=one: done.append(one) for one in range(count)}, len(orders))
    assert [done[start : start + count] for start in range(count, len(done), count)] == orders


FUSED = "aten::scaled_dot_product_attention"


def _operators(work: Callable[[], object]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    return {event.key for event in found.key_averages()}


def test_only_the_references_attention_is_eager() -> None:
    """`from_config` writes into the config it is given: a model that shares it would be eager too, and no alternative."""
    forwards = _Forwards(Case(TINY, 2, 2), CPU, torch.float32).works
    steps = _Steps(TINY, 2, 1, CPU, half=False).works
    assert set(forwards) == {"bare", "observed", "reference"}
    for name, work in [*forwards.items(), *steps.items()]:
        assert (FUSED in _operators(work)) == (not name.startswith("reference")), name


def test_a_batch_of_ones_own_keeps_the_targets_that_are_meant_for_it() -> None:
    model = CASES[0].model
    assert case_of(model, None) == CASES[0]
    assert (case_of(model, 256).gpu_batch, case_of(model, 256).gpu_reference_at_most) == (256, 1 / 1.2)
    small = case_of(model, 32)
    assert (small.batch, small.gpu_batch, small.at_most, small.gpu_reference_at_most) == (32, 32, 1.05, None)
    assert case_of(model, 5).at_most is None


def test_traced_memory_is_what_was_held_at_once() -> None:
    def work() -> None:
        first = torch.ones(1000, 1000)
        second = first + 1
        del first, second
        torch.ones(500, 1000)

    assert peak_bytes(work, CPU) == pytest.approx(8e6, abs=1e3)


def test_the_reference_measures_what_attndrift_measures() -> None:
    """A reference that computed something else would be no reference."""
    plain = reference("reference_capture")
    clip = load_clip(TINY)
    pixels = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    expected = plain.measure_attention(plain.eager_clip(clip.config, clip.state_dict()), [pixels])
    accumulator = StructureAccumulator()
    with torch.no_grad(), observe(clip) as seen:
        clip.vision_model(pixel_values=pixels)
        accumulator.update(seen.attention)
    found = accumulator.compute()
    for name, layers in expected.items():
        torch.testing.assert_close(found.layers(name), torch.tensor(layers).double(), rtol=1e-4, atol=1e-5)


def test_the_references_losses_are_those_of_attndrift() -> None:
    plain = reference("reference_capture")
    clip = load_clip(TINY)
    before, now = plain.eager_clip(clip.config, clip.state_dict()), load_clip(TINY)
    with torch.no_grad():
        for parameter in now.vision_model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    eager = plain.eager_clip(now.config, now.state_dict())
    pixels = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    logs, maps = [], []
    with torch.no_grad():
        for ours, theirs in ((now, eager), (clip, before)):
            with observe(ours) as seen:
                ours.vision_model(pixel_values=pixels)
            logs.append(seen.log_attention)
            maps.append(theirs.vision_model(pixel_values=pixels, output_attentions=True).attentions)
    expected = plain.preservation_loss(*maps)
    assert expected > 0.001
    torch.testing.assert_close(attention_preservation_loss(*logs), expected, rtol=1e-3, atol=1e-6)
    # A whole step of each from the same weights: the same loss before it, and the same one after it.
    losses = []
    labels = torch.tensor([0, 1, 2, 0, 1])
    classifier = plain.ImageClassifier(eager, 3)
    own = adapt(now, AdaptationSettings(method="full"), 3, seed=0).train()
    own.classifier.load_state_dict(classifier.classifier.state_dict())
    eager.requires_grad_(False)
    for part in (eager.vision_model, eager.visual_projection):
        part.requires_grad_(True)
    optimizer = plain.make_optimizer(classifier, lr=1e-3)
    ours = torch.optim.AdamW([p for p in own.parameters() if p.requires_grad], 1e-3, weight_decay=0.01, fused=True)
    protect = AttentionPreservation(own, 0.1, teacher=clip)
    for _ in range(2):
        metrics = plain.training_step(classifier, optimizer, pixels, labels, before, 0.1)
        ours.zero_grad()
        loss = own(pixel_values=pixels, labels=labels).loss + protect(own)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        ours.step()
        losses.append((float(loss.detach()), metrics["loss"]))
    assert losses[0][0] != losses[1][0]
    for mine, its in losses:
        assert mine == pytest.approx(its, rel=1e-4)


def test_capture_measures_time_memory_and_drift() -> None:
    found = capture(
        cases=(Case(TINY, 3, 3, 1.05, 1.0, 1.0),), pairs=2, probe=TINY, probe_images=6, device="cpu"
    ).to_json()
    assert [row["at_most"] for row in found["ratios"]] == [1.05, 1.0, None, 1.15, None]
    assert all(row["ratio"] > 0 and row["pairs"] == 2 for row in found["ratios"])
    spent, floors, faults, memory = found["tables"].values()
    assert len(faults) == 3
    assert all(0 <= row["fewest"] <= row["pages"] <= row["most"] and row["n"] == 2 for row in faults)
    assert 0 < spent[0]["observing s"] < spent[0]["whole s"]
    assert 1 < spent[0]["lowest"] <= spent[0]["whole / whole without"] <= spent[0]["highest"]
    for row, maps in zip(floors, (0, 0, 4), strict=True):
        assert row["GB moved"] == pytest.approx(maps * 3 * 3 * 4 * 17 * 17 * 4 / 1e9)
        least = row["GFLOP"] / row["GFLOP/s of a lone product"] + row["GB moved"] / row["GB/s of a copy"]
        assert row["floor s"] == pytest.approx(least)
        assert row["reached, %"] == pytest.approx(100 * least / row["measured s"])
    # 3 images: 16 patches of 7 x 7 x 3, then 3 layers of 17 tokens, width 32, an MLP of 64.
    patches, token, scores = 16 * 2 * 147 * 32, 8 * 32 * 32 + 4 * 32 * 64, 4 * 17 * 17 * 32
    assert [row["GFLOP"] for row in floors] == [pytest.approx(3 * (patches + 3 * (17 * token + scores)) / 1e9)] * 3
    bare, observed, eager = memory
    # 3 layers of 3 images, 4 heads and 17 x 17 numbers of 4 bytes.
    assert bare["all maps MB"] == pytest.approx(3 * 3 * 4 * 17 * 17 * 4 / 1e6)
    assert bare["extra MB"] == 0
    assert 0 < observed["extra MB"] < eager["extra MB"]
    assert {"python", "torch", "transformers"} <= set(found["versions"])


def test_train_measures_every_kind_of_step() -> None:
    found = train(model=TINY, batch=3, pairs=2, device="cpu", keep_freed=False).to_json()
    assert [row["at_most"] for row in found["ratios"][:3]] == [1.05, 1.10, 1.45]
    assert all(row["ratio"] > 0 for row in found["ratios"])
    floors = found["tables"][STEP_TITLE]
    assert [row["what"] for row in floors] == [WORDS[kind] for kind in ("plain", "observed", "cached")]
    clip = load_clip(TINY)
    width, out = 32, clip.config.projection_dim
    # An image: 16 patches of 7 x 7 x 3, of which no gradient is wanted; all else once forwards and twice backwards.
    patches, token, scores = 16 * 2 * 147 * width, 8 * width * width + 4 * width * 64, 4 * 17 * 17 * width
    heads = 2 * width * out + 2 * out * CLASSES
    trained = [*clip.vision_model.parameters(), *clip.visual_projection.parameters()]
    numbers = sum(parameter.numel() for parameter in trained) + out * CLASSES + CLASSES
    for row in floors:
        assert row["GFLOP"] == pytest.approx(3 * (2 * patches + 3 * (3 * (17 * token + scores) + heads)) / 1e9)
        assert row["GB moved"] == pytest.approx(40 * numbers / 1e9)
        assert row["reached, %"] == pytest.approx(100 * row["floor s"] / row["measured s"])
    profile = next(rows for title, rows in found["tables"].items() if title.startswith("profile"))
    assert profile[-1]["operator"] == "all"
    assert any("mm" in row["operator"] for row in profile)


def test_growth_has_an_exponent_for_every_size() -> None:
    small = {"layers": 2, "heads": 2, "width": 32, "batch": 2}
    found = growth(
        pairs=2,
        device="cpu",
        tokens=[Shape(**small | {"grid": grid}) for grid in (2, 4, 8)],
        layers=[Shape(**small | {"grid": 2, "layers": layers}) for layers in (1, 2, 4)],
        heads=[Shape(**small | {"grid": 2, "heads": heads}) for heads in (2, 4, 8)],
        probe=Shape(**small | {"grid": 2}),
        keep_freed=False,
        images=(4, 8, 16),
    ).to_json()
    tokens, *others, exponents = found["tables"].values()
    assert [row["tokens"] for row in tokens] == [5, 17, 65]
    assert all(row["observing s"] > 0 for row in tokens)
    assert len(others) == 3
    by_name = {(row["against"], row["of"]): row for row in exponents}
    # Not a time, so exact: all maps grow with the square of the tokens, and in proportion to layers and heads.
    assert by_name["tokens", "all maps MB"]["exponent"] == pytest.approx(2)
    assert by_name["layers", "all maps MB"]["exponent"] == pytest.approx(1)
    assert by_name["heads", "all maps MB"]["exponent"] == pytest.approx(1)
    assert ("images", "measuring s") in by_name


def test_hooks_are_left_as_they_were_after_growth_has_timed_them() -> None:
    before = {name: getattr(Recorder, name) for name in Recorder.HOOKS}
    growth(
        pairs=2,
        device="cpu",
        keep_freed=False,
        tokens=[Shape(grid=2, width=32, heads=2)],
        layers=[],
        heads=[],
        images=[],
    )
    assert {name: getattr(Recorder, name) for name in Recorder.HOOKS} == before


def test_startup_times_whole_processes() -> None:
    found = startup(pairs=2).to_json()
    assert [row["what"] for row in found["ratios"]] == ["import attndrift", "attndrift --help"]
    (rows,) = found["tables"].values()
    assert all(0 < row["lowest"] <= row["seconds"] <= row["highest"] for row in rows)


def test_a_result_is_printed_and_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "results" / "capture.json"
    parts = ["--only", "time", "--only", "memory"]
    options = ["--model", TINY, "--batch", "2", "--pairs", "2", "--return-freed", "--device", "cpu", *parts]
    options += ["--output", str(path)]
    printed = CliRunner().invoke(app, ["bench", "capture", *options])
    assert printed.exit_code == 0, printed.output
    for words in ("bench capture", "tiny, 17 tokens, batch 2", "(n = 2)", "extra peak memory", "torch"):
        assert words in printed.output, printed.output
    written = json.loads(path.read_text())
    assert written["bench"] == "capture"
    assert len(written["ratios"]) == 3
    again = CliRunner().invoke(app, ["bench", "capture", *options, "--json"])
    assert json.loads(again.stdout)["ratios"][0]["case"] == written["ratios"][0]["case"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["capture", "--device", "cuda"], "torch sees no such accelerator"),
        (["capture", "--device", "mps"], "times are taken on cpu and cuda alone"),
        (["capture", "--device", "gpu9"], "no such device; choose cpu, cuda or auto"),
        (["capture", "--precision", "int8"], "choose float32, bfloat16 or auto"),
        (["train", "--precision", "int8"], "choose float32, bfloat16 or auto"),
        (["capture", "--batch", "4"], "name it with --model"),
        (["capture", "--only", "profile"], "choose from time, memory, probe"),
        (["train", "--kind", "eager"], "choose from plain, observed, cached"),
        (["train", "--only", "probe"], "choose from time, memory, profile"),
        (["train", "--kind", "cached"], "nothing to compare with; add plain"),
        (["startup", "--output", "."], "is a folder; name a file in it"),
        (["startup", "--output", "/proc/absent/result.json"], "nothing can be written in /proc"),
    ],
)
def test_a_wrong_option_is_named(options: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code != 0
    assert expected in f"{result.exception} {result.output}".replace("\n", " ")


def test_an_absent_reference_is_an_error_that_says_where_it_is_kept() -> None:
    with pytest.raises(FileNotFoundError, match=r"benchmarks/nothing.py is not here.*checkout"):
        reference("nothing")


def test_what_other_programs_took_is_a_share_of_the_machine() -> None:
    machine = Machine()
    sum(range(2_000_000))
    share = machine.others_pct()
    assert share is None or 0 <= share <= 100
    assert Result("x", [], others_pct=share).to_json()["others_pct"] == share


def test_what_is_measured_on_an_accelerator_is_what_is_measured_elsewhere() -> None:
    model = load_clip("config:tiny")
    size = model.config.vision_config.image_size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    passes: list[int] = []

    @torch.no_grad()
    def forward() -> None:
        passes.append(1)
        model.vision_model(pixel_values=pixels)

    once = observed_once(model, forward).compute()
    several = observed_throughout(model, forward, 3)
    assert len(passes) == 4
    with observe(model) as seen:
        forward()
        expected = StructureAccumulator()
        expected.update(seen.attention, seen.cls_mass)
    for summary in (once, *several):
        assert torch.equal(summary.entropy, expected.compute().entropy)
        assert torch.equal(summary.head_diversity, expected.compute().head_diversity)
