"""Study files and presets: what they expand to, and what each mistake is answered with."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attndrift.study.loading import (
    StudyError,
    load_study,
    parse_overrides,
    parse_replacements,
    parse_seeds,
    parse_study,
    preset_names,
)
from attndrift.study.settings import NAME_PATTERN, Study


def test_collapse_21_is_the_matrix_of_the_original_study() -> None:
    study = load_study("collapse-21")
    labels = Counter(run.settings.experiment for run in study.runs)
    assert labels == {
        "E1": 2, "E2": 1, "E3": 1, "E4": 1, "E5": 1, "E6": 1, "E7": 1,
        "A1": 4, "A2": 1, "A3": 3, "R1": 3, "R2": 2, "R3": 2,
    }  # fmt: skip
    assert sum(run.settings.method != "none" for run in study.runs) == 21
    by_name = {run.run_id: run.settings for run in study.runs}
    assert {s.selection for s in by_name.values()} == {"test"}
    assert {s.transfer for s in by_name.values()} == {("cifar100",)}
    assert {(s.seed, s.data_seed, s.batch_size) for s in by_name.values()} == {(42, 42, 64)}
    for settings in by_name.values():
        if settings.method != "none":
            assert settings.epochs == {"eurosat": 20, "pets": 30}[settings.dataset]
        if settings.method == "lora":
            assert settings.learning_rate == 1e-4
            assert settings.lora_alpha == 2 * settings.lora_rank
        elif settings.experiment != "A1":
            assert settings.learning_rate == 1e-5
    ours = [s for s in by_name.values() if s.experiment == "A1"]
    assert sorted(s.learning_rate for s in ours) == [1e-6, 5e-6, 5e-5, 1e-4]
    assert [s.lora_targets for s in by_name.values() if s.experiment == "A2"] == ["q,k,v,out"]
    assert sorted(s.freeze_layers for s in by_name.values() if s.experiment == "A3") == [3, 6, 9]
    regularized = {(s.experiment, name, weight) for s in by_name.values() for name, weight in s.losses.items()}
    assert regularized == {
        ("R1", "attention_preservation", 0.01), ("R1", "attention_preservation", 0.1), ("R1", "attention_preservation", 1.0),
        ("R2", "entropy_floor", 0.01), ("R2", "entropy_floor", 0.1),
    }  # fmt: skip
    assert sorted(s.weight_decay for s in by_name.values() if s.experiment == "R3") == [0.0, 0.1]


def test_matched_rate_80_crosses_method_dataset_rate_and_seed() -> None:
    study = load_study("matched-rate-80")
    cells = {(r.settings.method, r.settings.dataset, r.settings.learning_rate, r.settings.seed) for r in study.runs}
    assert len(study.runs) == len(cells) == 80
    assert {c[0] for c in cells} == {"full", "lora"}
    assert {c[2] for c in cells} == {1e-6, 5e-6, 1e-5, 5e-5}
    assert {c[3] for c in cells} == {0, 1, 2, 3, 4}
    assert {(r.settings.dataset, r.settings.epochs) for r in study.runs} == {("eurosat", 20), ("pets", 30)}
    assert {r.settings.selection for r in study.runs} == {"validation"}


def test_dose_response_84_has_66_and_18_runs() -> None:
    study = load_study("dose-response-84")
    models = Counter(run.settings.model for run in study.runs)
    assert models == {"openai/clip-vit-base-patch32": 66, "openai/clip-vit-base-patch16": 18}
    kinds = Counter((r.settings.method, r.settings.dataset, r.settings.train_projection) for r in study.runs)
    assert kinds[("linear_probe", "eurosat", False)] == kinds[("linear_probe", "pets", False)] == 3
    assert kinds[("last_block", "eurosat", True)] == 6
    assert kinds[("lora", "eurosat", False)] == 6
    sizes = {
        (s.dataset, s.train_per_class, s.validation_per_class, s.probe_per_class)
        for s in (r.settings for r in study.runs)
    }
    assert sizes == {("eurosat", 160, 30, 20), ("pets", 40, 10, 6)}
    assert {(s.epochs, s.batch_size, s.data_seed, s.transfer) for s in (r.settings for r in study.runs)} == {
        (6, 32, 0, ("cifar100", "cifar10"))
    }


def test_every_preset_expands_to_unique_valid_names() -> None:
    for name in preset_names():
        names = [run.run_id for run in load_study(name).runs]
        assert len(set(names)) == len(names)
        assert all(re.match(NAME_PATTERN, run) for run in names)


MINIMAL = "name: x\nruns:\n  - {dataset: tiles}\n"


MISTAKES = [
    ("name: x\nruns:\n  - {dataset: tiles, lr: 3}", r"f:3: there is no setting `lr`; `attndrift list settings` shows"),
    ("name: x\nruns:\n  - {dataset: tiles, learning_rat: 3}", r"did you mean `learning_rate`"),
    ("name: x\nshared:\n  epochs: two\nruns:\n  - {dataset: tiles}", r"f:3: `epochs` is 'two'"),
    ("name: x\nruns:\n  - {dataset: tiles, method: fulll}", r"f:3: `method` is 'fulll'.*did you mean `full`\?"),
    ("name: x\nruns:\n  - {dataset: tiles, head: txt}", r"f:3: `head` is 'txt'.*did you mean `text`\?"),
    ("name: x\nruns:\n  - {dataset: tiles, method: lora,\n     lora_rank: 0}", r"f:4: `lora_rank` is 0"),
    ("name: x\nruns:\n  - {dataset: tiles, entropy_floor_fraction: 1.0}", r"needs loss: entropy_floor"),
    ("name: x\nruns:\n  - {dataset: tiles, outcomes: [wise_fit]}", r"f:3: `outcomes`.*did you mean `wise_ft`\?"),
    ("name: x\nruns:\n  - {dataset: tiles, outcomes: wise_ft:2}", r"alpha of `wise_ft` is '2'; .* from 0 to 1"),
    ("name: x\nruns:\n  - {dataset: tiles, method: none, outcomes: [ema]}", r"`outcomes` does nothing"),
    ("name: x\nruns:\n  - {dataset: tiles, lora_rank: 3}", r"f:3: `lora_rank` needs method: lora"),
    ("name: x\nruns:\n  - {dataset: tiles, method: lora, freeze_layers: 3}", r"f:3: `freeze_layers` needs"),
    ("name: x\nruns:\n  - {dataset: tiles, loss: attention_preservation}", r"has no weight"),
    ("name: x\nruns:\n  - {dataset: tiles, loss: {entropy_flor: 1}}", r"`loss`.*did you mean `entropy_floor`"),
    ("name: x\nruns:\n  - {dataset: tiles, loss: {entropy_floor: much}}", r"`loss`.*must be a number"),
    (
        "name: x\nruns:\n  - {dataset: tiles, method: linear_probe, loss: attention_preservation:1}",
        r"leaves the image encoder as it is",
    ),
    ("name: x\nruns:\n  - {dataset: tiles, transfer: [tiles]}", r"names the target"),
    ("name: x\nruns:\n  - {dataset: tiles, prompts: [a photo]}", r"\{class\} exactly once"),
    ("name: x\nname: y\nruns: [{dataset: tiles}]", r"f:2: the key `name` stands twice"),
    ("name: x\nruns:\n  - {dataset: tiles}\n  - {dataset: tiles}", r"f:4: this run stands already on line 3"),
    ("name: x\nruns:\n  - {dataset: tiles, seed: 1, grid: {seed: [1, 2]}}", r"f:3: `seed` stands both"),
    ("name: x\nruns:\n  - {dataset: tiles, grid: {seed: []}}", r"f:3: the grid of `seed` is empty"),
    ("name: x\nruns: []", r"f:2: `runs`"),
    ("name: ../x\nruns: [{dataset: tiles}]", r"f:1: `name`"),
    ("name: x\nruns: [{dataset: ../../etc}]", r"`dataset` is '../../etc'"),
    ("- a\n- b", r"f:1: a study file is a mapping"),
    ("name: [", r"f:1: not valid YAML"),
    ("a: &a [1]\nname: *a", r"aliases .* are not allowed"),
    ("name: !!python/object/apply:os.system ['true']\nruns: [{dataset: tiles}]", r"not valid YAML"),
    ("", r"a study file is a mapping"),
    ("name: x\nruns:\n  - {dataset: tiles, sources: oops}", r"f:3: `sources` is 'oops'"),
    ("name: x\nruns:\n  - {dataset: tiles, sources: [1]}", r"f:3: `sources` is \[1\]"),
    ("name: x\nshared: {sources: 3}\nruns: [{dataset: tiles}]", r"f:2: `sources` is 3"),
    ("name: x\nruns:\n  - {dataset: tiles, epochs: true}", r"f:3: `epochs` is True: must be a number"),
    (
        "name: x\nruns:\n  - {dataset: tiles, seed: '2'}",
        r"f:3: `seed` is '2': must be a number, in plain digits without separators, units or quotation marks",
    ),
    ("name: x\nruns:\n  - {dataset: tiles, flip: 1}", r"f:3: `flip` is 1: must be true or false"),
    ("name: x\nruns:\n  - {dataset: tiles, clip_norm: .inf}", r"f:3: `clip_norm` is inf: .* finite"),
    ("name: x\nruns:\n  - {dataset: tiles, probe_size: 3}", r"f:3: `probe_size` is 3: .* 4"),
    ("name: x\nruns:\n  - {dataset: tiles, source: {folder: x}}", r"there is no setting `folder`; allowed: path, hub"),
    (
        "name: x\nruns:\n  - {dataset: tiles, selection: test, validation_per_class: 2}",
        r"f:3: `validation_per_class` has no meaning",
    ),
    (
        "name: x\nruns:\n  - {dataset: tiles, device: cpu, precision: float16}",
        r"f:3: `precision` float16 needs an accelerator",
    ),
    (
        "name: x\nruns:\n  - {dataset: tiles, seed: 1}\ndatasets:\n  tile: {epochs: 2}",
        r"f:5: `datasets`: no run is on 'tile'; they are on tiles",
    ),
    ("name: x\nruns:\n  - {dataset: tiles, seed: 1}\nlearning_rate_scale: .inf", r"f:4: `learning_rate_scale` is inf"),
    ("name: x\nruns:\n  - {dataset: tiles, seed: 1}\nlearning_rate_scale: 1e9", r"f:3: `learning_rate` is 10000.0"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_a_mistake_is_answered_with_its_line_and_the_remedy(text: str, expected: str) -> None:
    with pytest.raises(StudyError, match=re.compile(expected, re.DOTALL)):
        parse_study(text, where="f")


def test_rates_are_numbers_without_a_decimal_point() -> None:
    study = parse_study("name: x\nruns:\n  - {dataset: tiles, learning_rate: 1e-5}", where="f")
    assert study.runs[0].settings.learning_rate == 1e-5
    assert study.runs[0].run_id == "tiles_full_lr1e-5_s42"


def test_one_factor_scales_every_rate() -> None:
    text = "name: x\nlearning_rate_scale: 30\nruns:\n  - {dataset: tiles, grid: {learning_rate: [1e-5, 2e-4]}}"
    assert [r.settings.learning_rate for r in parse_study(text, where="f").runs] == [3e-4, 6e-3]


def test_settings_of_a_dataset_and_of_a_run_take_precedence_in_this_order() -> None:
    text = (
        "name: x\nshared: {epochs: 1}\ndatasets: {tiles: {epochs: 2}}\n"
        "runs:\n  - {dataset: digits}\n  - {dataset: tiles}\n  - {dataset: tiles, seed: 1, epochs: 3}\n"
    )
    assert [r.settings.epochs for r in parse_study(text, where="f").runs] == [1, 2, 3]


def test_overrides_reach_every_run_and_one_dataset() -> None:
    overrides = parse_overrides(["batch_size=16", "pets.epochs=2", "transfer=[objects]", "name=small"])
    study = load_study("collapse-21", overrides=overrides, datasets={"eurosat": "tiles"})
    assert study.name == "small"
    assert {r.settings.batch_size for r in study.runs} == {16}
    assert {r.settings.transfer for r in study.runs} == {("objects",)}
    trained = [r.settings for r in study.runs if r.settings.method != "none"]
    assert {(s.dataset, s.epochs) for s in trained} == {("tiles", 20), ("pets", 2)}


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("epochs", "key=value"),
        ("epocs=3", "did you mean `epochs`"),
        ("learning_rate=1e-3", "differ in `learning_rate`"),
        ("epochs=-1", "--set: `epochs` is -1"),
        ("pets.epocs=1", "did you mean `epochs`"),
        ("petz.epochs=1", "no run of preset collapse-21 is on 'petz'; they are on eurosat, pets"),
        ("learning_rate_scale=.inf", "is not a number above 0"),
        ("epochs=" + "[" * 5000, "not valid YAML"),
        ("epochs=" + "9" * 5000, "not valid YAML"),
    ],
)
def test_an_impossible_override_is_refused(pair: str, expected: str) -> None:
    with pytest.raises(StudyError, match=expected):
        load_study("collapse-21", overrides=parse_overrides([pair]))


def test_an_unknown_study_names_the_presets() -> None:
    with pytest.raises(StudyError, match="there is no study file or preset `colapse-21`; did you mean `collapse-21`"):
        load_study("colapse-21")


def test_a_dataset_that_no_run_has_cannot_be_replaced() -> None:
    with pytest.raises(StudyError, match=r"there is no dataset"):
        load_study("collapse-21", datasets={"imagenet": "tiles"})


def test_single_values_can_be_replaced_in_runs_and_grids() -> None:
    """A model of 8 blocks cannot freeze 9."""
    study = load_study("collapse-21", replacements=parse_replacements(["freeze_layers:9=7"]))
    assert sorted(r.settings.freeze_layers for r in study.runs if r.settings.experiment == "A3") == [3, 6, 7]
    for items, expected in (
        (["freeze_layers:5=7"], "no run of preset collapse-21 has `freeze_layers` 5"),
        (["freeze_layer:9=7"], "did you mean `freeze_layers`"),
        (["freeze_layers=7"], "FIELD:OLD=NEW"),
    ):
        with pytest.raises(StudyError, match=expected):
            load_study("collapse-21", replacements=parse_replacements(items))


def test_selection_by_label_and_by_name() -> None:
    study = load_study("collapse-21")
    assert [r.settings.experiment for r in study.select(["A1"]).runs] == ["A1"] * 4
    assert len(study.select(["E1_pets_none"]).runs) == 1
    with pytest.raises(ValueError, match="there is no run `A9`"):
        study.select(["A9"])


def test_lora_defaults_are_written_into_the_settings() -> None:
    study = parse_study("name: x\nruns:\n  - {dataset: tiles, method: lora}", where="f")
    settings = study.runs[0].settings
    assert (settings.lora_rank, settings.lora_alpha, settings.lora_dropout) == (8, 16.0, 0.05)
    assert (settings.lora_targets, settings.train_projection) == ("q,v", True)


def test_settings_survive_json_and_their_hash_does_not_change() -> None:
    for run in load_study("dose-response-84").runs:
        again = type(run.settings).model_validate(run.settings.to_json())
        assert again == run.settings
        assert again.hash == run.settings.hash


@given(st.text(max_size=300))
def test_any_text_is_a_study_or_a_study_error(text: str) -> None:
    try:
        study = parse_study(text, where="f")
    except StudyError:
        return
    assert isinstance(study, Study)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["name", "runs", "shared", "grid", "dataset", "method", "seed", "datasets", "epochs"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_any_structure_is_a_study_or_a_study_error(content: object) -> None:
    import yaml

    text = yaml.safe_dump(
        {"name": "x", "runs": [{"dataset": "tiles"}], **(content if isinstance(content, dict) else {})}
    )
    try:
        study = parse_study(text, where="f")
    except StudyError as error:
        assert str(error).startswith("f:")  # noqa: PT017
    else:
        assert study.runs


def test_a_study_is_repeated_over_seeds_and_keeps_the_runs_it_has() -> None:
    once, thrice = load_study("demo"), load_study("demo", seeds=parse_seeds("42,43,44"))
    untouched = [run for run in once.runs if run.settings.method == "none"]
    assert len(thrice.runs) == 3 * (len(once.runs) - len(untouched)) + len(untouched)
    settings = {run.run_id: run.settings for run in thrice.runs}
    # The first seed is the preset's own: its finished runs stay valid.
    assert all(settings[run.run_id] == run.settings for run in once.runs)
    assert {one.seed for one in settings.values() if one.method == "full"} == {42, 43, 44}
    assert {one.data_seed for one in settings.values()} == {42}


@pytest.mark.parametrize(
    ("preset", "seeds", "words"),
    [
        ("demo", "1,1", "stands twice"),
        ("demo", "one", "whole numbers"),
        ("demo", "-1", "`seed` is -1"),
        ("matched-rate-80", "1,2", "seeds of its own"),
    ],
)
def test_seeds_that_cannot_be_are_refused(preset: str, seeds: str, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        load_study(preset, seeds=parse_seeds(seeds))


def test_a_study_of_several_methods_takes_shared_settings_that_concern_some() -> None:
    """The pretrained model has no projection to train and no classifier to start from text."""
    overrides = parse_overrides(["train_projection=true", "head=text"])
    study = load_study("collapse-21", overrides=overrides)
    assert {r.settings.train_projection for r in study.runs if r.settings.method != "none"} == {True}
    assert {r.settings.head for r in study.runs if r.settings.method == "none"} == {"trained"}


def test_another_dataset_by_override_brings_its_own_settings() -> None:
    """Never those, and least of all the folder, of the dataset that it takes the place of."""
    text = (
        "name: x\nruns:\n  - {dataset: a}\n  - {dataset: b, seed: 1}\n"
        "datasets: {a: {epochs: 3, source: {path: here}}, b: {epochs: 4}}\n"
    )
    runs = parse_study(text, where="f", overrides=parse_overrides(["dataset=b"])).runs
    assert [(r.settings.dataset, r.settings.epochs, r.settings.source) for r in runs] == [("b", 4, None)] * 2


def test_what_is_set_for_one_dataset_stands_above_what_is_set_for_all() -> None:
    overrides = parse_overrides(["train_per_class=160", "pets.train_per_class=40", "pets.learning_rate=1e-3"])
    study = load_study("collapse-21", overrides=overrides)
    of = {d: {r.settings.train_per_class for r in study.runs if r.settings.dataset == d} for d in ("eurosat", "pets")}
    assert of == {"eurosat": {160}, "pets": {40}}
    assert {r.settings.learning_rate for r in study.runs if r.settings.dataset == "pets"} == {1e-3}, "E7 has its own"
    with pytest.raises(StudyError, match="differ in `learning_rate`"):
        load_study("collapse-21", overrides=parse_overrides(["eurosat.learning_rate=1e-3"]))


def test_another_dataset_and_its_settings_can_be_set_together() -> None:
    overrides = parse_overrides(["dataset=digits", "digits.epochs=1"])
    runs = parse_study("name: x\nruns:\n  - {dataset: tiles}", where="f", overrides=overrides).runs
    assert [(r.settings.dataset, r.settings.epochs) for r in runs] == [("digits", 1)]


def test_a_named_prompt_ensemble_is_its_templates() -> None:
    study = parse_study("name: x\nruns:\n  - {dataset: tiles, prompts: cifar, transfer: [objects]}", where="f")
    assert len(study.runs[0].settings.prompts) == 18
    with pytest.raises(StudyError, match="name of an ensemble"):
        parse_study("name: x\nruns:\n  - {dataset: tiles, prompts: cifat}", where="f")


def _epochs(value: str) -> object:
    text = f"name: a\nshared: {{model: embedded, dataset: tiles, method: full, epochs: {value}}}\nruns: [{{}}]\n"
    return parse_study(text, where="f").runs[0].settings.epochs


@pytest.mark.parametrize(
    ("written", "meant"),
    [("064", 64), ("010", 10), ("08", 8), ("+5", 5), ("0o17", 15), ("0x10", 16), ("5.", 5), ("1e1", 10), (".5e+1", 5)],
)
def test_numbers_are_those_of_yaml_1_2(written: str, meant: int) -> None:
    assert _epochs(written) == meant
    assert parse_overrides([f"epochs={written}"]) == {"epochs": meant}
    assert parse_replacements([f"epochs:{written}=1"]) == [("epochs", meant, 1)]


@pytest.mark.parametrize("written", ["1:30", "1_000", "0b11", "1:30.5", "0_64", "190:20:30", "1_0.5", "-1:30", "0x_1"])
def test_what_two_versions_of_yaml_read_differently_is_refused_by_name(written: str) -> None:
    with pytest.raises(StudyError, match=f"`{re.escape(written)}` is a number to some YAML readers"):
        _epochs(written)
    with pytest.raises(StudyError, match=f"--set epochs:1: `{re.escape(written)}`"):
        parse_overrides([f"epochs={written}"])
    with pytest.raises(StudyError, match=f"--replace epochs:1: `{re.escape(written)}`"):
        parse_replacements([f"epochs:1={written}"])


def test_words_are_text_and_text_in_quotation_marks_stays_text() -> None:
    names = ["on", "off", "yes", "no", "n", "2026-01-01", "1:30"]
    text = "[on, off, yes, no, n, 2026-01-01, '1:30']"
    assert parse_overrides([f"prompts={text}"]) == {"prompts": names}
    assert parse_overrides(["prompts=[true, ~, null]"]) == {"prompts": [True, None, None]}


def test_losses_in_any_form_are_one_setting(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    forms = ("{entropy_floor: 0.1, attention_preservation: 1}", "entropy_floor:0.1+attention_preservation:1")
    path.write_text(
        "name: x\nshared: {dataset: tiles}\nruns:\n"
        + "".join(f"  - {{loss: {form!s}, seed: {n}}}\n" for n, form in enumerate(forms))
    )
    losses = [run.settings.loss for run in load_study(str(path)).runs]
    assert losses == ["attention_preservation:1+entropy_floor:0.1"] * 2


@pytest.mark.parametrize(
    "written",
    ["!!float 1:30", "!!float 1_0", "!!int 0b11", "!!int 1:30", "!!timestamp 2026-01-01", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]",
     "!own 5", "!!float high"],
)  # fmt: skip
def test_tags_change_no_number_into_another(written: str) -> None:
    with pytest.raises(StudyError, match="not valid YAML"):
        parse_overrides([f"epochs={written}"])
    with pytest.raises(StudyError, match="not valid YAML"):
        parse_study(f"name: x\nruns:\n  - dataset: tiles\n    epochs: {written}\n", where="f")
