"""RobustBench's form of a report, and what is refused."""

import dataclasses
import json

import pytest

from keras_sat.attacks import PGD, AutoAttack, L2Ball, LinfBall
from keras_sat.evaluation import AttackResult, RobustnessReport, robustbench
from keras_sat.preprocessing import Preprocessing

PAPER = {"name": "A title", "link": "https://arxiv.org/abs/1", "authors": "Ann, Bob", "venue": "arXiv"}
FACTS = PAPER | {"architecture": "ResNet-50", "additional_data": False}
CIFAR = {"dataset": "cifar10", "split": "test"}
CROP = Preprocessing(224, 224, 3, "Res256Crop224").settings()
IMAGENET = {"dataset": "/data/imagenet", "split": "robustbench", "preprocessing": CROP}


def a_report(attack, context, n=10_000):
    rows = [
        AttackResult.of("clean", n, n * 9 // 10, 1.0, {}),
        AttackResult.of("AA", n, n * 4021 // 10_000, 9.0, attack.settings()),
    ]
    return RobustnessReport(rows, context, {"index": list(range(n))})


def test_the_form_is_robustbenchs(tmp_path):
    path = tmp_path / "info.json"
    info = robustbench.model_info(a_report(AutoAttack(LinfBall(8)), CIFAR), **FACTS, path=path)
    expected = {"dataset": "cifar10", "eps": "8/255", "clean_acc": "90.00", "autoattack_acc": "40.21"}
    assert info.items() >= expected.items()
    assert json.loads(path.read_text()) == info
    # the fields of model_info/cifar10/Linf
    fields = "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported"
    assert list(info) == [*fields.split(), "footnote", "autoattack_acc", "unreliable"]
    scaled = a_report(AutoAttack(L2Ball(0.5, bounds=(0, 1))), CIFAR)
    assert robustbench.model_info(scaled, **FACTS, reported=41.5)["reported"] == "41.50"
    of_imagenet = robustbench.model_info(a_report(AutoAttack(LinfBall(4)), IMAGENET, 5000), **FACTS)
    assert (of_imagenet["dataset"], of_imagenet["eps"]) == ("imagenet", "4/255")


STANDARD = AutoAttack(LinfBall(8))
REFUSED = {
    "one row of AutoAttack": a_report(PGD(LinfBall(8)), CIFAR),
    "one row of AutoAttack.*": a_report(dataclasses.replace(STANDARD, version="plus"), CIFAR),
    "the standard version": a_report(dataclasses.replace(STANDARD, steps=20), CIFAR),
    "epsilon is 4, 8/255 of": a_report(AutoAttack(LinfBall(4)), CIFAR),
    "its dataset is not said": a_report(STANDARD, {}),
    "its dataset is mnist and its norm linf": a_report(STANDARD, CIFAR | {"dataset": "mnist"}),
    "norm l2; there are": a_report(AutoAttack(L2Ball(128)), IMAGENET, 5000),
    "its split is train, test was": a_report(STANDARD, CIFAR | {"split": "train"}),
    "it has 1000 images, 10000 were": a_report(STANDARD, CIFAR, 1000),
    "attack_precision=mixed_bfloat16": a_report(STANDARD, CIFAR | {"attack_precision": "mixed_bfloat16"}),
    "have crop padded": a_report(STANDARD, CIFAR | {"preprocessing": Preprocessing(32, 32, 3, "padded").settings()}),
    "have 64 x 64": a_report(STANDARD, CIFAR | {"preprocessing": Preprocessing(64, 64, 3).settings()}),
    "does not say the preprocessing": a_report(
        AutoAttack(LinfBall(4)), {"dataset": "imagenet2012", "split": "robustbench"}, 5000
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_follow_the_protocol_is_refused(message):
    with pytest.raises(ValueError, match=f"does not follow RobustBench's protocol: .*{message}"):
        robustbench.model_info(REFUSED[message], **FACTS)
