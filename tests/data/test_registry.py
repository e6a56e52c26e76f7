"""The rows of the registry, and the prompts that go with them."""

from __future__ import annotations

import pytest

from attndrift.data import DATASETS, DataError, clean_class_name, fill, prompts_for
from attndrift.data.prompts import TEMPLATES, templates
from attndrift.data.registry import SUITES, find_spec, row_of_hub


def test_every_row_is_complete() -> None:
    assert {"eurosat", "pets", "cifar10", "cifar100", "objects", "tiles", "critters", "digits"} <= set(DATASETS.names())
    for row in DATASETS:
        assert row.origin
        assert row.title
        assert row.prompts in TEMPLATES
        assert (row.hub is not None) == (row.load is None)


def test_each_dataset_has_an_origin_of_its_own() -> None:
    """CLIP_benchmark alone has copies of other sets, and several labellings of one."""
    origins = [row.origin for row in DATASETS if not row.name.startswith("wds_")]
    assert len(set(origins)) == len(origins)
    copies = {row.name: row.origin for row in DATASETS if row.name.startswith("wds_")}
    for name in (
        "sun397",
        "cars",
        "mnist",
        "gtsrb",
        *(f"vtab-{one}" for one in ("svhn", "dtd", "resisc45", "eurosat")),
    ):
        assert copies[f"wds_{name}"] in origins, "the copy and the set are of one source"


def test_sets_to_evaluate_on_are_told() -> None:
    assert {row.name for row in DATASETS if row.evaluation_only} == {
        *SUITES["imagenet-shifts"].sets, "wds_imagenet-o"
    }  # fmt: skip
    for suite in SUITES:
        assert all(one in DATASETS for one in suite.sets)


def test_hub_names_are_those_of_the_design() -> None:
    assert DATASETS["eurosat"].hub == "tanganke/eurosat"
    assert DATASETS["pets"].hub == "timm/oxford-iiit-pet"
    assert DATASETS["cifar100"].hub == "uoft-cs/cifar100"


def test_a_hub_name_of_the_registry_has_its_origin() -> None:
    assert row_of_hub("Tanganke/EuroSAT") is DATASETS["eurosat"]
    assert row_of_hub("someone/else") is None
    mirror = row_of_hub("timm/eurosat-rgb")
    assert mirror is not None
    assert (mirror.origin, mirror.revision) == ("eurosat", None)


@pytest.mark.parametrize(("wrong", "right"), [("eurosta", "eurosat"), ("CIFAR-100", "cifar100"), ("pet", "pets")])
def test_an_unknown_name_brings_a_near_one(wrong: str, right: str) -> None:
    with pytest.raises(DataError, match=f"did you mean `{right}`"):
        find_spec(wrong)


def test_an_unknown_name_without_a_near_one() -> None:
    with pytest.raises(
        DataError, match=r"no dataset `zzzzzz`; `attndrift list datasets` shows every dataset\. .*`path`"
    ):
        find_spec("zzzzzz")


def test_underscores_become_spaces() -> None:
    assert clean_class_name(" aquarium_fish ") == "aquarium fish"
    assert clean_class_name("a__b  c") == "a b c"


def test_prompts() -> None:
    assert prompts_for(["maple_tree", "{odd}"]) == [["a photo of a maple tree."], ["a photo of a {odd}."]]
    assert [len(TEMPLATES[name]) for name in ("cifar", "eurosat", "pets")] == [18, 3, 1]
    assert len(set(TEMPLATES["cifar"])) == 18
    for ensemble in TEMPLATES.values():
        for template in ensemble:
            assert "dog" in fill(template, "dog")
            assert "{" not in fill(template, "dog")


@pytest.mark.parametrize("bad", ["a photo.", "{class} {class}"])
def test_a_template_without_one_class_is_refused(bad: str) -> None:
    with pytest.raises(DataError, match=r"\{class\} exactly once"):
        fill(bad, "dog")


def test_an_unknown_ensemble_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean `eurosat`"):
        templates("eurosatt")
    with pytest.raises(DataError, match="empty"):
        templates([])
    assert templates("a {class}") == ("a {class}",)
