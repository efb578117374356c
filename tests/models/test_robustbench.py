"""RobustBench's networks in the registry, and the leaderboard."""

import collections
import pathlib

import numpy as np
import pytest

from keras_sat import models
from keras_sat.models import leaderboard
from keras_sat.models import weights as weights_lib

ENTRIES = {entry["id"]: entry for entry in weights_lib.entries() if entry["release"].startswith("robustbench/")}
ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS, README = (ROOT / "docs" / "robustbench.md").read_text(), (ROOT / "README.md").read_text()
CIFAR10 = "robustbench/cifar10/Linf"


def left_out():
    """Returns {full name: reason} of the networks that the registry leaves out."""
    groups = {entry["release"]: entry["left_out"] for entry in ENTRIES.values()}
    return {f"{group}/{name}": reason for group, names in groups.items() for name, reason in names.items()}


def variant(entry):
    return {name: entry[name] for name in ("form", "stem") if name in entry}


def test_the_pages_count_as_the_registry_does():
    for text in (DOCS, README):
        assert f"{len(ENTRIES)} of RobustBench's {len(ENTRIES) + len(left_out())} networks" in text
    for release, number in collections.Counter(entry["release"] for entry in ENTRIES.values()).items():
        entry = next(entry for entry in ENTRIES.values() if entry["release"] == release)
        whole = number + len(entry["left_out"])
        assert f"| {entry['dataset']} | {entry['threat']} | {number} | {whole} |" in DOCS
    reasons = collections.Counter(reason.partition(":")[0].partition(",")[0] for reason in left_out().values())
    for reason, number in reasons.items():
        assert f"| {reason} | {number} |" in DOCS
    assert all(entry["commit"] in DOCS for entry in ENTRIES.values())


def test_entries_are_complete():
    facts = {
        "dataset",
        "threat",
        "epsilon",
        "activation",
        "normalization",
        "preprocessing",
        "license",
        "paper",
        "title",
    }
    facts |= {"authors", "venue", "architecture", "additional_data", "unreliable", "image_size", "channels", "classes"}
    for entry in ENTRIES.values():
        assert facts <= set(entry)
        assert (entry["measured"], entry["sha256"], set(entry["drive"])) == (None, None, {"pt"})
        assert len(variant(entry)) == 1
        robust = [value for name, value in entry["reported"].items() if name != "clean"]
        assert robust[-1] == min(robust)  # an external figure stands there only if it is lower
    assert len({entry["tag"] for entry in ENTRIES.values()}) == len(ENTRIES)


def test_facts_as_robustbench_has_them():
    """Read by hand in its model_info/, model_zoo/, utils.py and LICENSE."""
    wang = ENTRIES["robustbench/cifar100/Linf/Wang2023Better_WRN-28-10"]
    assert wang["reported"] == {"clean": 72.58, "autoattack": 38.83, "external": 38.77}
    assert (wang["normalization"], wang["unreliable"]) == ("cifar100", False)
    hendrycks = ENTRIES[f"{CIFAR10}/Hendrycks2019Using"]
    assert hendrycks["normalization"] == [[0.5] * 3] * 2  # 2 x - 1
    assert hendrycks["license"] == "Apache License 2.0; Copyright (c) 2019, Dan Hendrycks"
    carmon = ENTRIES[f"{CIFAR10}/Carmon2019Unlabeled"]
    assert (carmon["normalization"], carmon["license"], carmon["epsilon"]) == (None, "MIT", "8/255")
    assert carmon["evaluation"] == {"dataset": "cifar10", "norm": "linf", "epsilon": 8.0}
    trades = ENTRIES[f"{CIFAR10}/Zhang2019Theoretically"]  # evaluated at 0.031
    assert (trades["epsilon"], trades["evaluation"]["epsilon"]) == ("0.031", 7.905)
    engstrom = ENTRIES["robustbench/cifar10/L2/Engstrom2019Robustness"]
    assert (engstrom["model"], engstrom["form"]) == ("ResNet50", "small")
    assert engstrom["normalization"] == [[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]]
    assert (engstrom["epsilon"], engstrom["evaluation"]["epsilon"]) == ("0.5", 127.5)
    wong = ENTRIES["robustbench/imagenet/Linf/Wong2020Fast"]
    assert (wong["preprocessing"], wong["image_size"], wong["crop"]) == ("Crop288", 288, None)
    assert ENTRIES["robustbench/imagenet/Linf/Chen2024Data_WRN_50_2"]["normalization"] is None
    forms = {
        "Andriushchenko2020Understanding": "plain",
        "Wong2020Fast": "plain",
        "Rade2021Helper_R18_ddpm": "dm",
        "Carmon2019Unlabeled": "trades",
    }
    assert {name: ENTRIES[f"{CIFAR10}/{name}"]["form"] for name in forms} == forms
    for name in ("L2/Rice2020Overfitting", "corruptions/Kireev2021Effectiveness_RLAT"):
        assert ENTRIES[f"robustbench/cifar10/{name}"]["form"] == "batch_norm"
    assert ENTRIES["robustbench/cifar100/Linf/Rice2020Overfitting"]["form"] == "batch_norm"
    last = {name.rpartition("/")[2].partition("_")[0] for name, entry in ENTRIES.items() if "choice" in entry}
    assert last == {"Andriushchenko2020Understanding", "Kireev2021Effectiveness"}
    assert "standardises" in left_out()[f"{CIFAR10}/Ding2020MMA"]
    assert "in its file alone" in left_out()["robustbench/cifar10/corruptions/Modas2021PRIMEResNet18"]


DISTINCT = {
    (entry["model"], *variant(entry).values(), entry["classes"], str(entry["activation"])): entry
    for entry in ENTRIES.values()
}


@pytest.mark.parametrize("entry", DISTINCT.values(), ids=["-".join(map(str, key[:3])) for key in DISTINCT])
def test_an_entry_is_of_a_network_that_there_is(entry, without_weights):
    """The number of parameters in the registry comes from a formula."""
    options = variant(entry) | {"activation": entry["activation"], "normalization": entry["normalization"]}
    with without_weights():
        model = models.builder(entry["model"])(input_shape=(32, 32, 3), classes=entry["classes"], **options)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == entry["parameters"]


@pytest.mark.parametrize(
    ("network", "activation", "tag", "options", "expected"),
    [
        ("WideResNet28_10", "relu", "robustbench/Carmon2019Unlabeled", {}, f"{CIFAR10}/Carmon2019Unlabeled"),
        ("WideResNet28_10", "swish", "robustbench/Wang2023Better_WRN-28-10", {"form": "dm"}, None),
        ("WideResNet28_10", "silu", "robustbench/cifar10/L2/Wang2023Better_WRN-28-10", {}, None),
        ("WideResNet28_10", "silu", f"{CIFAR10}/Wang2023Better_WRN-28-10", {"normalization": "cifar10"}, None),
        ("WideResNet28_10", "relu", "robustbench/Carmon2019Unlabeled", {"normalization": None}, None),
        ("WideResNet28_10", "relu", f"{CIFAR10}/Hendrycks2019Using", {"normalization": ((0.5,) * 3, (0.5,) * 3)}, None),
        ("ConvNeXtTiny", {"name": "gelu", "approximate": False}, "robustbench/Singh2023Revisiting_ConvNeXt-T-ConvStem",
         {"form": "conv"}, "robustbench/imagenet/Linf/Singh2023Revisiting_ConvNeXt-T-ConvStem"),
    ],
)  # fmt: skip
def test_what_a_tag_picks(network, activation, tag, options, expected):
    full = expected or (tag if tag.count("/") == 3 else tag.replace("robustbench", CIFAR10))
    assert weights_lib.find(network, activation, tag, **options)["id"] == full
    assert weights_lib.resolve(tag, network, activation, (32, 32, 3), **options)["id"] == full


NEEDS = r'need WideResNet28_10\(form="dm", activation="silu", weights="robustbench/Wang2023Better_WRN-28-10"\)'


@pytest.mark.parametrize(
    ("network", "activation", "name", "options", "message"),
    [
        ("WideResNet28_10", "silu", "Wang2023Better_WRN-28-10", {"form": "trades"}, NEEDS),
        ("WideResNet28_10", "relu", "Wang2023Better_WRN-28-10", {"form": "dm"}, NEEDS),
        ("WideResNet34_10", "silu", "Wang2023Better_WRN-28-10", {"form": "dm"}, NEEDS),
        ("WideResNet28_10", "silu", "Wang2023Better_WRN-28-10", {"normalization": None}, NEEDS),
        ("WideResNet28_10", "silu", "Wang2023Better_WRN-28-10", {"normalization": "imagenet"}, NEEDS),
        ("WideResNet70_16", "silu", "Gowal2020Uncovering",
         {}, "of this name are robustbench/cifar10/L2/Gowal2020Uncovering, robustbench/cifar100/Linf/Gowal2020Unc"),
        ("WideResNet28_4", "relu", "Ding2020MMA", {}, r"cannot be built here \(it standardises each image by itself\)"),
        ("WideResNet28_10", "relu", "Carmon2019", {}, "; did you mean robustbench/Carmon2019Unlabeled.* lists"),
        ("WideResNet28_10", "relu", "@", {}, "'robustbench/@'; `keras-sat list --dataset=cifar10` lists those"),
    ],
)  # fmt: skip
def test_what_is_refused(network, activation, name, options, message):
    with pytest.raises(ValueError, match=message):
        weights_lib.find(network, activation, f"robustbench/{name}", **options)


def test_weights_of_the_sat_release_are_refused_by_another_form():
    assert weights_lib.find("ResNet50", "silu", "sat-imagenet", form="sat")["id"] == "Res50-silu"
    for options in ({"form": "torchvision"}, {"normalization": "imagenet"}, {"normalization": None}):
        with pytest.raises(
            ValueError, match=r'sat-imagenet need ResNet50\(activation="silu", weights="sat-imagenet"\)'
        ):
            weights_lib.find("ResNet50", "silu", "sat-imagenet", **options)


def test_the_list_is_a_leaderboard():
    for options in ({}, {"dataset": "cifar10"}, {"dataset": "ImageNet-1k", "threat": "Linf"}):
        robust = [row["robust"] for row in leaderboard.list_weights(**options)]
        known = [each for each in robust if each is not None]
        assert known == sorted(known, reverse=True)
        assert robust[: len(known)] == known
    first = leaderboard.list_weights(dataset="cifar10", threat="linf")[0]
    assert first["tag"] == "robustbench/Bartoldson2024Adversarial_WRN-94-16"
    assert (first["model"], first["form"], first["activation"]) == ("WideResNet94_16", "dm", "silu")
    assert (first["robust"], first["under"]) == (73.71, "autoattack, L-inf, epsilon 8 of 255")
    assert first["measured"] is False
    assert all(row["measured"] is (row["tag"] == "sat-fashion-mnist") for row in leaderboard.list_weights())
    [malt] = [row for row in leaderboard.list_weights("cifar100", "linf", "WideResNet28_10") if "Wang" in row["tag"]]
    assert (malt["robust"], malt["under"]) == (38.77, "external, L-inf, epsilon 8 of 255")


@pytest.mark.parametrize(
    ("options", "datasets", "threats"),
    [
        ({"dataset": "CIFAR-10"}, {"CIFAR-10"}, {"Linf", "L2", "corruptions"}),
        ({"dataset": "cifar"}, {"CIFAR-10", "CIFAR-100"}, {"Linf", "L2", "corruptions"}),
        ({"dataset": "imagenet", "threat": "L-inf"}, {"ImageNet-1k"}, {"Linf"}),
        ({"threat": "l2"}, {"CIFAR-10"}, {"L2"}),
        ({"model": "preactresnet18"}, {"CIFAR-10", "CIFAR-100"}, {"Linf", "L2", "corruptions"}),
    ],
)
def test_filters(options, datasets, threats):
    rows = leaderboard.list_weights(**options)
    assert {row["dataset"] for row in rows} == datasets
    assert {row["threat"] for row in rows} == threats


def test_filters_by_a_model_or_a_family():
    assert {row["model"] for row in leaderboard.list_weights(model="ResNet50")} == {"ResNet50"}
    assert {row["form"] for row in leaderboard.list_weights(model="ResNet50")} == {"sat", "small", "torchvision"}
    assert len({row["model"] for row in leaderboard.list_weights(model="WideResNet")}) > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dataset": "cifar11"},
            "no weights of dataset 'cifar11'; there are of CIFAR-10, CIFAR-100, Fashion-MNIST, Imag",
        ),
        ({"threat": "L1"}, "no weights of threat 'L1'; there are of L2, Linf, corruptions"),
        ({"model": ""}, "no weights of model ''; there are of ConvNeXtBase"),
        (
            {"dataset": "imagenet", "threat": "L2"},
            "no weights of dataset='imagenet', threat='L2' and model=None at once",
        ),
    ],
)
def test_filters_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        leaderboard.list_weights(**options)
