"""The arithmetic of the benchmarks: ratios, memory, roofline, hooks; and that the reference computes what attndrift computes.

Nothing here looks at how long anything took.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from attndrift.attention import observe
from attndrift.attention.observer import Recorder
from attndrift.losses import AttentionPreservation, attention_preservation_loss
from attndrift.methods import AdaptationSettings, adapt
from attndrift.metrics import StructureAccumulator
from attndrift.models import load_model
from benchmarks import hook_overhead, reference_capture
from benchmarks.capture import Forwards
from benchmarks.hook_overhead import observed_pass
from benchmarks.memory import peak_bytes
from benchmarks.ratios import balanced_orders, ratio_of, rounds
from benchmarks.result import ROOT, OtherPrograms, Result
from benchmarks.result import main as print_files
from benchmarks.roofline import roofline_row
from benchmarks.train import ADAPTED, CLASSES, Steps, train

TINY = "config:tiny"


def quiet(line: object) -> None:
    pass


def test_a_ratio_is_the_median_over_pairs_of_one_round() -> None:
    found = ratio_of("a", "b", [2.0, 9.0, 4.0], [1.0, 3.0, 4.0], case="c", at_most=1.05)
    assert (found.ratio, found.low, found.high, found.pairs, found.case) == (2.0, 1.0, 3.0, 3, "c")
    assert (found.seconds, found.seconds_against) == (4.0, 3.0)
    assert found.rounds == ((2.0, 1.0), (9.0, 3.0), (4.0, 4.0))
    assert found.to_json()["at_most"] == 1.05


def test_rounds_run_everything_and_throw_the_first_away() -> None:
    order: list[str] = []
    found = rounds({name: lambda name=name: order.append(name) for name in "abc"}, 5, quiet)
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
    rounds({str(one): lambda one=one: done.append(one) for one in range(count)}, len(orders), quiet)
    assert [done[start : start + count] for start in range(count, len(done), count)] == orders


FUSED = "aten::scaled_dot_product_attention"


def _operators(work: Callable[[], object]) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    return {event.key for event in found.key_averages()}


@pytest.mark.slow
def test_only_the_references_attention_is_eager() -> None:
    """`from_config` writes into the config it is given: a model that shares it would be eager too, and no alternative."""
    forwards = Forwards(TINY, 2).works
    steps = Steps(TINY, 4).works
    assert set(forwards) == {"bare", "observed", "reference"}
    for name, work in [*forwards.items(), *steps.items()]:
        assert (FUSED in _operators(work)) == (not name.startswith("reference")), name


def test_traced_memory_is_what_was_held_at_once() -> None:
    def work() -> None:
        first = torch.ones(1000, 1000)
        second = first + 1
        del first, second
        torch.ones(500, 1000)

    assert peak_bytes(work) == pytest.approx(8e6, abs=1e3)


def test_the_reference_measures_what_attndrift_measures() -> None:
    """A reference that computed something else would be no reference."""
    plain = reference_capture
    clip = load_model(TINY)
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
    plain = reference_capture
    clip = load_model(TINY)
    before, now = plain.eager_clip(clip.config, clip.state_dict()), load_model(TINY)
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
    preserve = AttentionPreservation(own, 0.1, teacher=clip)
    for _ in range(2):
        metrics = plain.training_step(classifier, optimizer, pixels, labels, before, 0.1)
        ours.zero_grad()
        loss = own(pixel_values=pixels, labels=labels).loss + preserve(own)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        ours.step()
        losses.append((float(loss.detach()), metrics["loss"]))
    assert losses[0][0] != losses[1][0]
    for mine, its in losses:
        assert mine == pytest.approx(its, rel=1e-4)


def test_the_memory_of_a_forward_pass_is_compared_with_that_of_all_maps() -> None:
    bare, observed, eager = Forwards(TINY, 3).memory()
    # 3 layers of 3 images, 4 heads and 17 x 17 numbers of 4 bytes.
    assert bare["all maps MB"] == pytest.approx(3 * 3 * 4 * 17 * 17 * 4 / 1e6)
    assert bare["extra MB"] == 0
    assert 0 < observed["extra MB"] < eager["extra MB"]


# An image of the tiny model: 16 patches of 7 x 7 x 3; a token in a block of width 32 with an MLP of 64; scores and values.
PATCHES, TOKEN, SCORES = 16 * 2 * 147 * 32, 8 * 32 * 32 + 4 * 32 * 64, 4 * 17 * 17 * 32


def test_the_operations_of_a_forward_pass() -> None:
    assert Forwards(TINY, 3).operations() == pytest.approx(3 * (PATCHES + 3 * (17 * TOKEN + SCORES)))


def test_the_operations_and_bytes_of_a_step() -> None:
    operations, moved = Steps(TINY, 4, ("plain",)).least()
    clip = load_model(TINY)
    out = clip.config.projection_dim
    heads = 2 * 32 * out + 2 * out * CLASSES
    # The images need no gradient; all else runs once forwards and twice backwards.
    assert operations == pytest.approx(4 * (2 * PATCHES + 3 * (3 * (17 * TOKEN + SCORES) + heads)))
    trained = [*clip.vision_model.parameters(), *clip.visual_projection.parameters()]
    assert moved == 40 * (sum(parameter.numel() for parameter in trained) + out * CLASSES + CLASSES)


def test_a_roofline_is_the_operations_and_bytes_at_the_mean_rates() -> None:
    row = roofline_row("case", "what", 4.0, 6e9, 2e9, (1e9, 1e9), (3e9, 3e9))
    assert (row["GFLOP/s of a lone product"], row["GB/s of a copy"]) == (2.0, 2.0)
    assert (row["least s"], row["reached, %"]) == (4.0, 100.0)


def test_the_share_of_observing_is_taken_pass_by_pass() -> None:
    row = hook_overhead.overhead_row("what", "case", [1.0, 2.0, 1.0], [5.0, 4.0, 11.0])
    assert (row["lowest"], row["whole / whole without"], row["highest"], row["n"]) == (1.1, 1.25, 2.0, 3)


def test_hooks_are_left_as_they_were_after_they_were_timed() -> None:
    before = {name: getattr(Recorder, name) for name in Recorder.HOOKS}
    forwards = Forwards(TINY, 2)
    assert observed_pass(forwards.clip, forwards._bare) > 0
    assert {name: getattr(Recorder, name) for name in Recorder.HOOKS} == before


def test_every_method_and_loss_has_a_step() -> None:
    assert {"lora", "last_block"} <= set(ADAPTED)
    for work in Steps(TINY, 4, ("entropy_floor", *ADAPTED)).works.values():
        work()


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [(["eager"], "choose from plain, observed"), (["cached"], "nothing to compare with; add plain")],
)
def test_a_wrong_kind_of_step_is_named(kinds: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        train(TINY, 3, kinds, 2, quiet)


def test_a_result_is_printed_and_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratio = ratio_of("a", "b", [3.0, 3.0], [2.0, 2.4], case="c", at_most=1.6)
    path = tmp_path / "results" / "x.json"
    Result("x", [ratio], {"rows": [{"one": 1.5, "two": None}]}, ["a note"], 3.2).deliver(path)
    printed = capsys.readouterr().out
    for words in ("1.375, at most 1.6 (1.250 to 1.500, n = 2)", "| one | two |", "| 1.5 |  |", "a note", "torch", "3%"):
        assert words in printed, printed
    written = json.loads(path.read_text())
    assert {"python", "torch", "pandas"} <= set(written["versions"])
    assert written["ratios"][0]["rounds"] == [[3.0, 2.0], [3.0, 2.4]]
    print_files([path])
    assert capsys.readouterr().out == printed


def test_the_kept_results_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        path for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")) if path.stem not in ("faults", "gpu")
    ]
    assert len(files) >= 10
    print_files(files)
    assert capsys.readouterr().out.count("commit ") >= len(files)


def test_what_other_programs_took_is_a_share_of_the_machine() -> None:
    others = OtherPrograms()
    sum(range(2_000_000))
    assert 0 <= others.percent() <= 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("capture", ["--model", TINY, "--batch", "2", "--pairs", "2"]),
        ("train", ["--model", TINY, "--batch", "4", "--pairs", "2"]),
        ("step_costs", ["--model", TINY, "--batch", "4", "--pairs", "2", "--no-memory", "--only", "loss l2_sp"]),
        ("drift", ["--model", TINY, "--images", "6", "--pairs", "2"]),
        ("commands", ["--pairs", "1"]),
        ("analysis", ["--runs", "100", "--pairs", "1"]),
        ("ray_workers", ["--images", "8", "--pairs", "1"]),
    ],
)
def test_every_command_writes_its_result(name: str, options: list[str], tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["bench"] == name
    assert found["ratios"] or found["tables"]
    assert all(row["ratio"] > 0 for row in found["ratios"])
