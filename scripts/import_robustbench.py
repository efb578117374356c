"""Writes RobustBench's networks that this package can build into the registry, keras_sat/models/weights.json.

    git clone https://github.com/RobustBench/robustbench
    python scripts/import_robustbench.py robustbench

PATH is a clone of RobustBench; a bare one will do. The facts come from its commit HEAD: figures and papers from
model_info/, networks and files from robustbench/model_zoo/, licences from LICENSE. The Python of the model zoo is only
parsed. The script prints each network that it leaves out, with the reason.
"""

import argparse
import ast
import collections
import dataclasses
import fractions
import json
import re
import subprocess
from typing import Any

from keras_sat import files
from keras_sat.models import weights

SOURCE = "https://github.com/RobustBench/robustbench"
ZOO = "robustbench/model_zoo"
ARCHITECTURES = ("wide_resnet", "dm_wide_resnet", "resnet")
DATASETS = {
    "cifar10": {"dataset": "CIFAR-10", "image_size": 32, "classes": 10, "crop": "stretch"},
    "cifar100": {"dataset": "CIFAR-100", "image_size": 32, "classes": 100, "crop": "stretch"},
    # None: each network has its own crop, under "preprocessing".
    "imagenet": {"dataset": "ImageNet-1k", "image_size": 224, "classes": 1000, "crop": None},
}
TFDS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet": "imagenet2012"}
TABLES = {"Linf": "linf", "L2": "l2", "corruptions": "common_corruptions"}  # threat model: its table in the model zoo
LIBRARY_DEFAULT = "robustbench/cifar10/Linf"  # what RobustBench's load_model(name) means
# load_model takes what lies under "last" in the files of these networks, not what lies under "best".
LAST = re.compile("Kireev2021Effectiveness.*|Andriushchenko2020Understanding")
NORMALIZATIONS = {
    ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)): "cifar10",
    ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)): "cifar100",
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "imagenet",
}
ACTIVATIONS = {"nn.ReLU": "relu", "Swish": "silu", "nn.SiLU": "silu"}  # Swish: x sigmoid(x), with its own gradient
EXACT_GELU = {"name": "gelu", "approximate": False}
RESNETS = {("BasicBlock", (2, 2, 2, 2)): "ResNet18", ("Bottleneck", (3, 4, 6, 3)): "ResNet50"}
TORCHVISION = {("resnet18", 64): "ResNet18", ("resnet50", 64): "ResNet50", ("wide_resnet50_2", 64): "WideResNet50_2"}
TORCHVISION["resnet50", 128] = "WideResNet50_2"  # wide_resnet50_2() is resnet50(width_per_group=128)
CONVNEXTS = {
    **{f"convnext_{size[0].lower()}_cvst": f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large")},
    **{f"convnext_{size.lower()}": f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large")},
}


class LeftOut(ValueError):
    """The reason why an entry of the model zoo does not get into the registry."""


# What the Python of the model zoo says


@dataclasses.dataclass(frozen=True)
class Zoo:
    """What Python files define.

    Attributes:
        names: {name: value} of what is assigned a literal.
        definitions: {name: node} of classes and functions.
        tables: {name: node} of what is assigned an OrderedDict.
    """

    names: dict[str, Any] = dataclasses.field(default_factory=dict)
    definitions: dict[str, Any] = dataclasses.field(default_factory=dict)
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)

    def read(self, text):
        """Adds what a Python file defines. Returns self."""
        for node in ast.parse(text).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign) and _called(node.value) == "OrderedDict":
                self.tables[node.targets[0].id] = node.value.args[0]
            elif isinstance(node, ast.Assign):
                self.names[ast.unparse(node.targets[0])] = value(node.value, self.names)
        return self


def value(node, names):
    """Returns the value of an expression: a literal, a product or a known name; else the text of the expression."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(value(item, names) for item in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return value(node.left, names) * value(node.right, names)
    text = ast.unparse(node)
    return names.get(text, text)


def _called(node):
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def method(definition, name):
    return next(node for node in definition.body if isinstance(node, ast.FunctionDef) and node.name == name)


def arguments(function, call, names):
    """Returns {argument: value} of a call of a function or method (None: of one with keywords), with its defaults."""
    parameters = [each.arg for each in function.args.args if each.arg != "self"] if function else []
    defaults = function.args.defaults if function else []
    bound = {name: value(node, names) for name, node in zip(parameters[len(parameters) - len(defaults) :], defaults)}
    bound |= {name: value(node, names) for name, node in zip(parameters, call.args)}
    return bound | {keyword.arg: value(keyword.value, names) for keyword in call.keywords}


def network(node, zoo):
    """Returns the facts of a network (`model`, `form` or `stem`, ...) from the expression that builds it."""
    if isinstance(node, ast.Lambda):
        return network(node.body, zoo)
    if isinstance(node, ast.Name):
        node = ast.Call(node, [], [])
    name = _called(node)
    if name == "normalize_model":
        mean_and_std = tuple(value(each, zoo.names) for each in node.args[1:])
        return network(node.args[0], zoo) | {"normalization": mean_and_std}
    if name.startswith("pt_models."):
        return torchvision(name.removeprefix("pt_models."), **arguments(None, node, zoo.names))
    if name in ("get_convstem_models", "timm.create_model"):
        return convnext(value(node.args[0], {}), "conv" if name == "get_convstem_models" else "patch")
    definition = zoo.definitions.get(name)
    if isinstance(definition, ast.FunctionDef):
        return network(definition.body[-1].value, zoo)
    if name in CLASSES:
        return CLASSES[name](**arguments(method(definition, "__init__"), node, zoo.names))
    if definition is None or not {ast.unparse(base) for base in definition.bases} & set(CLASSES):
        raise LeftOut(f"another network: {name}")
    return normalized(definition, node, zoo)


def normalized(definition, call, zoo):
    """Returns the facts of a class of the model zoo that normalizes images for the class from which it inherits."""
    initialize, statements = method(definition, "__init__"), method(definition, "forward").body
    names = zoo.names | arguments(initialize, call, zoo.names)
    calls = [node for node in ast.walk(initialize) if isinstance(node, ast.Call)]
    parent = next(node for node in calls if re.fullmatch(r"super\(.*\)\.__init__", _called(node)))
    inherited = ast.Call(definition.bases[0], parent.args, parent.keywords)
    facts = network(inherited, dataclasses.replace(zoo, names=names))
    statement = next(ast.unparse(node) for node in statements if isinstance(node, ast.Assign))
    if statement == "x = 2.0 * x - 1.0":
        return facts | {"normalization": ((0.5,) * 3, (0.5,) * 3)}
    if statement != "x = (x - self.mu) / self.sigma":
        raise LeftOut("it standardises each image by itself")
    buffers = {value(node.args[0], {}): node.args[1] for node in calls if _called(node) == "self.register_buffer"}
    mean_and_std = tuple(value(buffers[name].func.value.args[0], names) for name in ("mu", "sigma"))
    return facts | {"normalization": mean_and_std, "buffers": True}


# What its classes are in this package


def trades_wide_resnet(depth, widen_factor, num_classes, bias_last, dropRate, sub_block1):  # noqa: N803
    """(Nothing uses `sub_block1`, and `dropRate` is for training.)"""
    if not bias_last:
        raise LeftOut("WideResNet without a bias in its last layer")
    return {"model": f"WideResNet{depth}_{widen_factor}", "form": "trades", "classes": num_classes}


def dm_wide_resnet(depth, width, num_classes, activation_fn, mean, std, padding, num_input_channels):
    if padding or num_input_channels != 3:
        raise LeftOut("DMWideResNet for padded or grey images")
    facts = {"model": f"WideResNet{depth}_{width}", "form": "dm", "activation": ACTIVATIONS[activation_fn]}
    return facts | {"classes": num_classes, "normalization": (mean, std)}


def dm_preact_resnet(depth, width, num_classes, activation_fn, mean, std, padding, num_input_channels, use_cuda):
    if depth != 18 or padding or num_input_channels != 3:
        raise LeftOut(f"DMPreActResNet of depth {depth}, or for padded or grey images")
    facts = {"model": "PreActResNet18", "form": "dm", "activation": ACTIVATIONS[activation_fn]}
    return facts | {"classes": num_classes, "normalization": (mean, std)}


def preact_resnet(block, num_blocks, num_classes, bn_before_fc, out_shortcut):
    """ "plain": the shortcut sees x. "batch_norm": it sees relu(bn1(x)), and a batch norm comes before the pooling."""
    sees_batch_norm = block == "PreActBlockV2" or out_shortcut
    if num_blocks != (2, 2, 2, 2) or sees_batch_norm != bn_before_fc:
        raise LeftOut(f"PreActResNet of {block}, {num_blocks}, bn_before_fc={bn_before_fc}")
    return {"model": "PreActResNet18", "form": "batch_norm" if bn_before_fc else "plain", "classes": num_classes}


def small_resnet(block, num_blocks, num_classes):
    if (block, num_blocks) not in RESNETS:
        raise LeftOut(f"ResNet of {block}, {num_blocks}")
    return {"model": RESNETS[block, num_blocks], "form": "small", "classes": num_classes}


def torchvision(name, width_per_group=64, pretrained=False):
    if (name, width_per_group) not in TORCHVISION:
        raise LeftOut(f"another network: {name}")
    return {"model": TORCHVISION[name, width_per_group], "form": "torchvision", "classes": 1000}


def convnext(name, stem):
    if name not in CONVNEXTS:
        raise LeftOut(f"another network: {name}")
    return {"model": CONVNEXTS[name], "stem": stem, "activation": EXACT_GELU, "classes": 1000}


CLASSES = {
    "WideResNet": trades_wide_resnet,
    "DMWideResNet": dm_wide_resnet,
    "DMPreActResNet": dm_preact_resnet,
    "PreActResNet": preact_resnet,
    "ResNet": small_resnet,
}


# The number of trainable parameters


def parameters(facts):
    """Returns the number of trainable parameters of a network with these facts, by the formula of its family."""
    model, form, classes = facts["model"], facts.get("form", facts.get("stem")), facts["classes"]
    if model.startswith("WideResNet") and form != "torchvision":
        return _wide_resnet(*map(int, model.removeprefix("WideResNet").split("_")), classes)
    if model == "PreActResNet18":
        return _preact_resnet(form, classes)
    return _convnext(model, form, classes) if model.startswith("ConvNeXt") else _resnet(model, form, classes)


def _wide_resnet(depth, width, classes):
    channels, total = 16, 27 * 16
    for filters in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            shortcut = channels * filters if channels != filters else 0
            total += 2 * channels + 9 * channels * filters + 2 * filters + 9 * filters**2 + shortcut
            channels = filters
    return total + 2 * channels + (channels + 1) * classes


def _preact_resnet(form, classes):
    channels, total = 64, 27 * 64
    for filters in (64, 64, 128, 128, 256, 256, 512, 512):
        shortcut = (9 if form == "dm" else 1) * channels * filters if channels != filters else 0
        total += 2 * channels + 9 * channels * filters + 2 * filters + 9 * filters**2 + shortcut
        channels = filters
    return total + (0 if form == "plain" else 2 * channels) + (channels + 1) * classes


def _resnet(model, form, classes):
    """(A convolution of n kernels and its batch norm have n x (size of a kernel + 2) parameters.)"""
    channels, total = 64, 64 * ((27 if form == "small" else 147) + 2)
    blocks = (2, 2, 2, 2) if model == "ResNet18" else (3, 4, 6, 3)
    for filters, number in zip((64, 128, 256, 512), blocks):
        for index in range(number):
            if model == "ResNet18":
                out, convolutions = filters, filters * (9 * channels + 2) + filters * (9 * filters + 2)
            else:
                inner, out = filters * (2 if model == "WideResNet50_2" else 1), 4 * filters
                convolutions = inner * (channels + 2) + inner * (9 * inner + 2) + out * (inner + 2)
            total += convolutions + (out * (channels + 2) if index == 0 and channels != out else 0)
            channels = out
    return total + (channels + 1) * classes


def _convnext(model, stem, classes):
    depths = (3, 3, 9, 3) if model == "ConvNeXtTiny" else (3, 3, 27, 3)
    first = {"ConvNeXtTiny": 96, "ConvNeXtSmall": 96, "ConvNeXtBase": 128, "ConvNeXtLarge": 192}[model]
    stem_widths = (first // 2, first) if first == 96 else (first // 2, first * 3 // 4, first)
    total, channels = (0, 3) if stem == "conv" else (48 * first + 3 * first, first)
    for width in stem_widths if stem == "conv" else ():
        total, channels = total + 9 * channels * width + 3 * width, width
    for stage, depth in enumerate(depths):
        width = first * 2**stage
        total += 2 * channels + 4 * channels * width + width if stage else 0
        total += depth * (50 * width + 2 * width + 8 * width**2 + 5 * width + width)
        channels = width
    return total + 2 * channels + (channels + 1) * classes


# What becomes an entry


class Repository:
    """The commit HEAD of a clone of RobustBench."""

    def __init__(self, path):
        self.path = path
        self.commit = self._git("rev-parse", "HEAD").strip()

    def _git(self, *command):
        return subprocess.run(["git", "-C", self.path, *command], check=True, capture_output=True, text=True).stdout

    def text(self, path):
        return self._git("show", f"{self.commit}:{path}")

    def names(self, folder):
        """Returns the names of the files in a folder."""
        return self._git("ls-tree", "--name-only", f"{self.commit}:{folder}").split()


def licenses(text):
    """Returns [(datasets, threat models, pattern of the name, license)] of the models that are not under MIT."""
    line = re.compile(r"^- (CIFAR\S*|ImageNet\S*), (\S+), ([^:\s]+): (.+)$", re.MULTILINE)
    return [
        (datasets.lower().replace("-", "").split("/"), threats.split("/"), name.replace("*", ".*"), license)
        for datasets, threats, name, license in line.findall(text)
    ]


def license_of(exceptions, dataset, threat, name):
    for datasets, threats, pattern, license in exceptions:
        if dataset in datasets and threat in threats and re.fullmatch(pattern, name):
            return license
    return "MIT"


def normalization(facts):
    """Returns a name, [mean, std] or None."""
    pair = facts.get("normalization")
    return NORMALIZATIONS.get(pair, pair and [list(each) for each in pair])


def pixels(epsilon):
    """Returns a radius such as "8/255" or "0.031" of images in 0..1 for pixels 0..255."""
    return round(float(fractions.Fraction(epsilon) * 255), 6)


def figures(info):
    """Returns the reported accuracies in percent. The last one is the robust accuracy that counts.

    That is an external evaluation only where it found a lower one than AutoAttack.
    """
    names = {"clean": "clean_acc", "corruptions": "corruptions_acc", "autoattack": "autoattack_acc"}
    reported = {name: float(info[key]) for name, key in names.items() if key in info}
    if float(info.get("external", 100)) < reported.get("autoattack", 0):
        reported["external"] = float(info["external"])
    return reported


def without_buffers(text):
    """Returns the names of the networks whose files lack the mean and standard deviation of their classes.

    For these alone, load_model passes over the missing entries, so that the values of the class hold.
    """
    return set(re.findall(r'"([^"]+)"', re.search(r"known_failing_models = \{(.*?)\}", text, re.DOTALL)[1]))


def entry(name, item, info, zoo, has_no_buffers):
    """Returns the registry's entry for an item of the model zoo, without what its group has in common.

    Raises:
        LeftOut: if the package cannot build the network, or there is no single file of it.
    """
    fields = {key.value: node for key, node in zip(item.keys, item.values)}
    drive = value(fields["gdrive_id"], {})
    if not drive:
        raise LeftOut("no file of its own on Google Drive")
    if isinstance(drive, tuple):
        raise LeftOut(f"an ensemble, of {len(drive)} files")
    facts = network(fields["model"], zoo)
    if facts.get("buffers") and not has_no_buffers:
        raise LeftOut("its mean and standard deviation are in its file alone")
    if info is None:
        raise LeftOut("RobustBench reports no figures")
    own = {"id": name, "model": facts["model"]}
    own |= {key: facts[key] for key in ("form", "stem") if key in facts}
    own |= {"activation": facts.get("activation", "relu"), "normalization": normalization(facts)}
    own |= {"classes": facts["classes"], "parameters": parameters(facts)}
    if "preprocessing" in fields:
        own["preprocessing"] = value(fields["preprocessing"], {})
        own["image_size"] = int(re.search(r"\d+$", own["preprocessing"])[0])  # Res256Crop224, Crop288
    own |= {"choice": "last"} if LAST.fullmatch(name) else {}
    own |= {"reported": figures(info), "unreliable": info.get("unreliable")}
    own |= {"footnote": info["footnote"]} if info.get("footnote") else {}
    own |= {"paper": info["link"], "title": info["name"], "authors": info["authors"], "venue": info["venue"]}
    own |= {"architecture": info["architecture"], "additional_data": info["additional_data"]}
    return own | {"measured": None, "sha256": None, "drive": {"pt": drive}}


def group(dataset, threat):
    """Returns what the entries of a dataset and a threat model have in common, but for the radius."""
    return {
        **DATASETS[dataset],
        "threat": threat,
        "channels": 3,
        "pixels": "0..255, RGB; normalized in the model",
        "preprocessing": "none",
        "ema": False,
        "source": SOURCE,
    }


def threat_facts(dataset, threat, epsilon):
    """Returns the epsilon as RobustBench writes it, and the threat model in the terms of this package."""
    norm = {"Linf": "linf", "L2": "l2", "corruptions": None}[threat]
    radius = epsilon and pixels(epsilon)
    attack = f"{threat.replace('Linf', 'L-inf')}, epsilon {radius:g} of 255" if norm else "common corruptions"
    evaluation = {"dataset": TFDS[dataset], "norm": norm, "epsilon": radius}
    return {"epsilon": epsilon, "evaluation": evaluation, "attack": attack}


def import_table(repository, zoo, dataset, threat):
    """Returns a group of the registry, and {name: reason} of what it leaves out."""
    folder = f"model_info/{dataset}/{threat}"
    reported = set(repository.names(folder))
    has_no_buffers = without_buffers(repository.text("robustbench/utils.py"))
    exceptions = licenses(repository.text("LICENSE"))
    checkpoints, left_out, epsilons = [], {}, {}
    for element in zoo.tables[TABLES[threat]].elts:
        name = value(element.elts[0], {})
        info = json.loads(repository.text(f"{folder}/{name}.json")) if f"{name}.json" in reported else None
        try:
            own = entry(name, element.elts[1], info, zoo, name in has_no_buffers)
        except LeftOut as reason:
            left_out[name] = str(reason)
            continue
        epsilons[name] = info.get("eps") if threat != "corruptions" else None
        checkpoints.append(own | {"license": license_of(exceptions, dataset, threat, name)})
    usual = collections.Counter(epsilons.values()).most_common(1)[0][0]
    common = group(dataset, threat) | threat_facts(dataset, threat, usual)
    for own in checkpoints:
        if own.pop("classes") != common["classes"]:
            raise ValueError(f"{own['id']} has another number of classes than {dataset}.")
        if epsilons[own["id"]] != usual:
            own |= threat_facts(dataset, threat, epsilons[own["id"]])
    return common | {"checkpoints": checkpoints}, left_out


def name_tags(groups):
    """Gives each entry its full name as `id`, and its tag: the name as RobustBench has it, where that is enough.

    A name that stands for several networks is that of the network which RobustBench's load_model returns by default.
    """
    uses = collections.Counter(own["id"] for each in groups.values() for own in each["checkpoints"])
    for title, each in groups.items():
        for index, own in enumerate(each["checkpoints"]):
            full = f"{title}/{own['id']}"
            is_short = uses[own["id"]] == 1 or title == LIBRARY_DEFAULT
            tag = f"robustbench/{own['id']}" if is_short else full
            each["checkpoints"][index] = {"id": full, "tag": tag, **{key: own[key] for key in own if key != "id"}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="a clone of RobustBench, bare or not")
    parser.add_argument("--registry", default=weights.REGISTRY, help="the file to write to (default: the package's)")
    args = parser.parse_args()
    repository = Repository(args.path)
    architectures = Zoo()
    for name in ARCHITECTURES:
        architectures.read(repository.text(f"{ZOO}/architectures/{name}.py"))
    groups, number = {}, 0
    for dataset in DATASETS:
        zoo = Zoo(dict(architectures.names), dict(architectures.definitions)).read(
            repository.text(f"{ZOO}/{dataset}.py")
        )
        for threat in [threat for threat, table in TABLES.items() if table in zoo.tables]:
            title = f"robustbench/{dataset}/{threat}"
            groups[title], left_out = import_table(repository, zoo, dataset, threat)
            groups[title]["commit"] = repository.commit
            groups[title]["left_out"] = left_out
            number += len(groups[title]["checkpoints"]) + len(left_out)
            print("\n".join(f"{title}/{name}: {reason}" for name, reason in left_out.items()))
    name_tags(groups)
    with open(args.registry, encoding="utf-8") as file:
        registry = {name: each for name, each in json.load(file).items() if not name.startswith("robustbench/")}
    files.write_text(args.registry, json.dumps(registry | groups, indent=1, ensure_ascii=False) + "\n")
    print(f"{sum(len(each['checkpoints']) for each in groups.values())} of {number} networks")


if __name__ == "__main__":
    main()
