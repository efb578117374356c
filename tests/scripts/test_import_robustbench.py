"""The registry's entries of RobustBench, from a small repository that is laid out like RobustBench's."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent.parent / "scripts" / "import_robustbench.py"
INFO = {
    "link": "https://arxiv.org/abs/1",
    "name": "A paper",
    "authors": "A, B",
    "venue": "ICML 2023",
    "architecture": "WRN",
    "additional_data": False,
    "eps": "8/255",
    "clean_acc": "90.00",
}
WIDE = """
class WideResNet(nn.Module):
    def __init__(self, depth=28, num_classes=10, widen_factor=10, sub_block1=False, dropRate=0.0, bias_last=True):
        pass
"""
CIFAR10 = """
open("it_ran", "w")

class Normalized(WideResNet):
    def __init__(self, depth=16, widen_factor=2):
        super(Normalized, self).__init__(depth=depth, widen_factor=widen_factor)
        self.register_buffer('mu', torch.tensor([0.5] * 3).view(1, 3, 1, 1))
        self.register_buffer('sigma', torch.tensor([0.2471, 0.2435, 0.2616]).view(1, 3, 1, 1))

    def forward(self, x):
        x = (x - self.mu) / self.sigma
        return super().forward(x)

class Doubled(Normalized):
    def forward(self, x):
        return super().forward(x) * 2

linf = OrderedDict([
    ('Ann2020_Plain', {'model': lambda: WideResNet(10, 10, widen_factor=1), 'gdrive_id': 'one'}),
    ('Ann2020_NoBias', {'model': lambda: WideResNet(10, bias_last=False), 'gdrive_id': 'two'}),
    ('Bob2020', {'model': Normalized, 'gdrive_id': 'three'}),
    ('Bob2020_Own', {'model': Normalized, 'gdrive_id': 'four'}),
    ('Bob2020_Two', {'model': Normalized, 'gdrive_id': ['five', 'six']}),
    ('Bob2020_None', {'model': Normalized, 'gdrive_id': None}),
    ('Cy2020', {'model': Doubled, 'gdrive_id': 'seven'}),
    ('Cy2020_Unknown', {'model': lambda: WideResNet(10), 'gdrive_id': 'eight'}),
])
"""
LEFT_OUT = {
    "Ann2020_NoBias": "WideResNet without a bias in its last layer",
    "Bob2020_Own": "its mean and standard deviation are in its file alone",
    "Bob2020_Two": "an ensemble, of 2 files",
    "Bob2020_None": "no file of its own on Google Drive",
    "Cy2020": "another network: Doubled",
    "Cy2020_Unknown": "RobustBench reports no figures",
}


@pytest.fixture
def repository(tmp_path):
    figures = {
        "Ann2020_Plain": {"autoattack_acc": "50.50", "external": "50.1", "unreliable": True, "footnote": "Doubtful."},
        "Bob2020": {"autoattack_acc": "40.00", "external": "40.00", "eps": "0.031"},
    }
    texts = {
        "LICENSE": "MIT\n- CIFAR-10/CIFAR-100, Linf/L2, Bob2020*: Apache License 2.0; Copyright (c) 2021, Bob\n",
        "robustbench/utils.py": 'known_failing_models = {\n  "Bob2020", "Bob2020_Two"\n}\nother = {"Bob2020_Own"}\n',
        "robustbench/model_zoo/architectures/wide_resnet.py": WIDE,
        "robustbench/model_zoo/architectures/dm_wide_resnet.py": "CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)\n",
        "robustbench/model_zoo/architectures/resnet.py": "",
        "robustbench/model_zoo/cifar10.py": CIFAR10,
        "robustbench/model_zoo/cifar100.py": "",
        "robustbench/model_zoo/imagenet.py": "",
    }
    for name in ("Ann2020_NoBias", "Bob2020_Own", "Cy2020"):
        figures[name] = {"autoattack_acc": "1"}
    for name, own in figures.items():
        texts[f"model_info/cifar10/Linf/{name}.json"] = json.dumps(INFO | own)
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    author = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "All")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_what_becomes_an_entry(repository, tmp_path):
    registry = tmp_path / "weights.json"
    registry.write_text(json.dumps({"sat": {"checkpoints": []}, "robustbench/old/Linf": {}}))
    command = [sys.executable, SCRIPT, repository, f"--registry={registry}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert not os.path.exists(repository / "it_ran")
    written = json.loads(registry.read_text())
    assert list(written) == ["sat", "robustbench/cifar10/Linf"]
    group = written["robustbench/cifar10/Linf"]
    assert group["left_out"] == LEFT_OUT
    assert done.stdout.splitlines()[-1] == "2 of 8 networks"
    assert f"robustbench/cifar10/Linf/Bob2020_Two: {LEFT_OUT['Bob2020_Two']}" in done.stdout.splitlines()
    ann, bob = group["checkpoints"]
    assert (ann["id"], ann["tag"]) == ("robustbench/cifar10/Linf/Ann2020_Plain", "robustbench/Ann2020_Plain")
    assert (ann["model"], ann["form"], ann["normalization"]) == ("WideResNet10_1", "trades", None)
    assert (ann["parameters"], bob["parameters"]) == (77_850, 691_674)  # those of RobustBench's class
    assert ann["reported"] == {"clean": 90.0, "autoattack": 50.5, "external": 50.1}
    assert (ann["unreliable"], ann["footnote"], ann["license"]) == (True, "Doubtful.", "MIT")
    assert (bob["model"], bob["drive"]) == ("WideResNet16_2", {"pt": "three"})
    assert bob["normalization"] == [[0.5] * 3, [0.2471, 0.2435, 0.2616]]
    assert bob["reported"] == {"clean": 90.0, "autoattack": 40.0}
    assert (bob["epsilon"], bob["evaluation"]["epsilon"]) == ("0.031", 7.905)
    assert bob["license"] == "Apache License 2.0; Copyright (c) 2021, Bob"
