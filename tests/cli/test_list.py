"""The command `keras-sat list`."""

import json
import re

import pytest


def test_list(run):
    known = json.loads(run("list", "--json").stdout)
    assert "ResNet50" in known["models"]
    assert "smooth_relu" in known["activations"]
    assert known["forms"]["ResNet50"] == ["sat", "small", "torchvision"]
    assert known["datasets"] == ["fashion_mnist_mini"]
    assert {"tag", "model", "clean", "robust", "under", "source"} <= set(known["weights"][0])
    text = run("list").stdout
    assert all(name in text for kind, names in known.items() if kind != "weights" for name in names)
    assert re.search(r"^forms .*, WideResNet28_10 \(trades, dm\), ", text, re.MULTILINE)
    assert re.search(r"sat-imagenet-380 +ResNeXt152_32x8d +silu +380 +122372392 +78.0 +51.0", text)


def test_list_is_a_leaderboard(inside, capsys):
    assert inside("list", "--dataset=cifar10", "--threat=linf") == 0
    heading, _, _, _, columns, first, second, *_ = capsys.readouterr().out.splitlines()
    assert heading == "59 weights, dataset CIFAR-10, threat Linf, the most robust first"
    assert columns.split() == ["robust", "clean", "under", "model", "form", "activation", "tag"]
    expected = r"73.71 +93.68 +autoattack 8 +WideResNet94_16 +dm +silu +robustbench/Bartoldson2024Adversarial_WRN-94-16"
    assert re.fullmatch(expected, first)
    assert second.startswith("71.59")
    assert inside("list", "--model=ResNet20", "--json") == 0
    assert {row["model"] for row in json.loads(capsys.readouterr().out)["weights"]} == {"ResNet20"}
    assert inside("list", "--model=ResNet20") == 0
    assert "77.0    86.7   autoattack 25.5*  sat   relu        sat-fashion-mnist" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no weights of threat 'l3'; there are of L2, Linf, corruptions"):
        inside("list", "--threat=l3")


def test_the_list_of_all_is_no_wall_of_text(inside, capsys):
    """A line counts the networks of RobustBench for a dataset and a threat model, and names the most robust one."""
    assert inside("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 60
    [counted] = [line for line in lines if re.match("CIFAR-10 +Linf", line)]
    assert counted.split()[2:] == ["59", "73.71", "robustbench/Bartoldson2024Adversarial_WRN-94-16"]
