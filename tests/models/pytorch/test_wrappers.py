import pathlib

import numpy as np
import pytest

from keras_sat.models.pytorch import reader, wrappers

FOLDER = pathlib.Path(__file__).parent / "files"
WANTED = ["conv1.weight", "bn1.weight", "bn1.running_mean", "layer1.0.model.fc.weight", "layer1.0.model.fc.bias"]


def network(start=0.0, prefix=""):
    """Returns the entries of a network: those wanted, and one that no forward pass uses."""
    entries = {name: np.full(3, start + number, np.float32) for number, name in enumerate(WANTED)}
    entries["bn1.num_batches_tracked"] = np.array(5)
    return {prefix + name: array for name, array in entries.items()}


OPTIMIZER = {"state": {0: {"momentum.weight": np.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def is_network(entries, start=0.0):
    return list(entries) == list(network()) and all(np.array_equal(entries[k], v) for k, v in network(start).items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda entries: entries,
        lambda entries: {"state_dict": entries, "epoch": 3, "optimizer": OPTIMIZER, "best": np.float32(0.5)},
        lambda entries: {"model": entries, "args": {"lr": 0.1}, "rng": np.zeros(9, np.uint8), "loss": np.array(0.5)},
        lambda entries: {"net": entries, "acc": 93.0},
        lambda entries: {"last": {"state_dict": entries, "optimizer": OPTIMIZER}},
        lambda entries: [entries, OPTIMIZER],
        lambda entries: {**entries, "_extra_state": None, "bn1._extra_state": {"a": 1}, "step": 5},
    ],
)
def test_the_one_state_dict_is_found(wrap):
    assert is_network(wrappers.state_dict(wrap(network())))


def test_the_state_dict_of_a_training():
    found = wrappers.state_dict(reader.read(FOLDER / "training.pt"))
    assert len(found) == 9 and all(name.startswith("module.") for name in found)


TWO = {"last": network(1), "best": network(2), "epoch": 5}
NESTED = {"ema": {"state_dict": network(1), "updates": 5}, "state_dict": network(2), "optimizer": OPTIMIZER}
FLAT = {**network(1), "model_ema": network(2)}
FOUR = {
    name: {"model": network(number), "teacher": network(number + 10)} for number, name in enumerate(("last", "best"))
}


@pytest.mark.parametrize(
    ("content", "choice", "start"),
    [
        (TWO, "last", 1),
        (TWO, "best", 2),
        (NESTED, "ema", 1),
        (NESTED, "ema.state_dict", 1),
        (NESTED, "state_dict", 2),
        (FLAT, "top", 1),
        (FLAT, "model_ema", 2),
        (FOUR, "best.teacher", 11),
        ([network(1), network(2)], "1", 2),
    ],
)
def test_a_choice(content, choice, start):
    assert is_network(wrappers.state_dict(content, choice=choice), start)


@pytest.mark.parametrize(
    ("content", "choice", "says"),
    [
        (TWO, None, "2 state dicts: choice must be one of last, best."),
        ({"last": TWO["last"], "best": TWO["last"]}, None, "choice must be one of last, best."),
        (TWO, "newest", "choice must be one of last, best. Received: 'newest'."),
        (TWO, "las", "Received: 'las'"),
        (NESTED, None, "choice must be one of ema.state_dict, state_dict."),
        (FLAT, None, "choice must be one of top, model_ema."),
        (FOUR, "last", "last.model, last.teacher, best.model, best.teacher. Received: 'last'."),
        ({"state_dict": network(), "state_dict_ema": network(1)}, None, "one of state_dict, state_dict_ema."),
        ({"model": network()}, "last", "choice must be one of model. Received: 'last'."),
    ],
)
def test_a_choice_is_never_guessed(content, choice, says):
    with pytest.raises(ValueError) as caught:
        wrappers.state_dict(content, choice=choice)
    assert says in str(caught.value)


DM = {"model_state_dict": network(1), "unaveraged_model_state_dict": network(2), "optimizer_state_dict": OPTIMIZER}


def test_averaged_weights():
    assert is_network(wrappers.state_dict(DM), 1)
    assert is_network(wrappers.state_dict(DM, averaged=False), 2)
    assert is_network(wrappers.state_dict(DM, choice="unaveraged_model_state_dict"), 2)
    both = {"last": DM, "best": {name: network(7) for name in DM}}
    assert is_network(wrappers.state_dict(both, choice="last"), 1)
    assert is_network(wrappers.state_dict(both, averaged=False, choice="last"), 2)


@pytest.mark.parametrize(
    ("content", "averaged", "says"),
    [
        ({"model_state_dict": network()}, False, "no unaveraged weights; expected averaged=True"),
        ({"unaveraged_model_state_dict": network()}, True, "only unaveraged weights; expected averaged=False"),
        ({"last": DM, "best": DM}, True, "choice must be one of last.model_state_dict"),
    ],
)
def test_weights_that_are_not_as_asked(content, averaged, says):
    with pytest.raises(ValueError, match=says):
        wrappers.state_dict(content, averaged)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 3, "optimizer": OPTIMIZER}, "It holds: epoch, optimizer."),
        ({}, "It holds: nothing."),
        (np.ones(3), "an object of type ndarray"),
        ({"conv.weight": {"exp_avg": np.ones(3)}}, "It holds: conv.weight."),
    ],
)
def test_without_a_state_dict(content, says):
    with pytest.raises(ValueError, match=f"No state dict was found.*{says}"):
        wrappers.state_dict(content)


def test_a_container_that_holds_itself():
    content = {"model": network()}
    content["self"] = content
    assert is_network(wrappers.state_dict(content))


PREFIXES = [
    "",
    "module.",
    "model.",
    "module.0.",
    "module.model.",
    "0.",
    "1.",
    "_orig_mod.",
    "net.",
    "any.thing.at.all.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_modules_around_the_network_are_cut(prefix):
    found = wrappers.fit(network(prefix=prefix), WANTED)
    assert is_network(found.entries)
    assert found.normalization is None


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_the_networks_own_names_are_left_alone(prefix):
    wanted = ["model.0.conv.weight", "model.1.module.conv.weight", "module.fc.weight"]
    entries = {prefix + name: np.full(1, number) for number, name in enumerate(wanted)}
    assert list(wrappers.fit(entries, wanted).entries) == wanted


def test_what_does_not_belong_to_the_network_keeps_its_name():
    entries = {**network(prefix="module."), "module.sub_block1.weight": np.ones(1), "head.weight": np.ones(1)}
    found = wrappers.fit(entries, WANTED).entries
    assert set(found) == {*network(), "sub_block1.weight", "head.weight"}


def test_another_network_stays_as_it_is():
    entries = {"module.a.weight": np.ones(1), "module.conv1.weight": np.ones(1)}
    assert wrappers.fit(entries, WANTED) == (entries, None)


def test_a_smaller_network_of_the_family_is_cut_too():
    found = wrappers.fit(network(prefix="module."), [*WANTED, *(f"layer{number}.weight" for number in range(50))])
    assert is_network(found.entries)


MEAN, STD = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.25, 0.3])


@pytest.mark.parametrize(
    ("prefix", "mean", "std"),
    [
        ("", "mu", "sigma"),
        ("", "mean", "std"),
        ("module.", "module.mu", "module.sigma"),
        ("module.0.", "module.mean", "module.std"),
        ("1.", "0.mean", "0.std"),
        ("module.1.", "module.0.mean", "module.0.std"),
        ("model.", "normalize.mean", "normalize.std"),
        ("module.model.", "module.normalizer.new_mean", "module.normalizer.new_std"),
    ],
)
@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_the_normalization_comes_apart(prefix, mean, std, shape):
    entries = {**network(prefix=prefix), mean: MEAN.reshape(shape), std: STD.reshape(shape)}
    found = wrappers.fit(entries, WANTED)
    assert is_network(found.entries)
    np.testing.assert_array_equal(found.normalization, [MEAN, STD])
    assert set(entries) == {*network(prefix=prefix), mean, std}  # the argument is not changed


def test_a_mean_of_the_networks_own_or_without_a_deviation_is_an_entry():
    entries = {**network(), "pool.mean": MEAN, "pool.std": STD}
    assert wrappers.fit(entries, [*WANTED, "pool.mean", "pool.std"]) == (entries, None)
    entries = {**network(), "mean": MEAN, "scores.mean": np.ones(64), "scores.std": np.ones(64)}
    assert wrappers.fit(entries, WANTED) == (entries, None)


def madry(**changes):
    """Returns the entries of a checkpoint of MadryLab's robustness, which holds network and normalizer twice."""
    entries = {**network(prefix="module.model."), **network(prefix="module.attacker.model.")}
    for scope, shape in (("module.normalizer.", (3, 1, 1)), ("module.attacker.normalize.", (1, 3, 1, 1))):
        entries |= {f"{scope}new_mean": MEAN.reshape(shape), f"{scope}new_std": STD.reshape(shape)}
    return entries | changes


def test_madrylabs_doubles_are_dropped_if_they_are_identical():
    found = wrappers.fit(madry(), WANTED)
    assert is_network(found.entries)
    np.testing.assert_array_equal(found.normalization, [MEAN, STD])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("module.attacker.model.conv1.weight", "two networks that differ: module.model.conv1.weight is not module.att"),
        ("module.model.bn1.num_batches_tracked", "two networks that differ"),
        ("module.attacker.normalize.new_std", "normalizes images in two ways that differ: module.normalizer.new_mean"),
    ],
)
def test_doubles_that_differ_are_refused(name, says):
    entries = madry()
    with pytest.raises(ValueError, match=says):
        wrappers.fit(madry(**{name: entries[name] + entries[name].dtype.type(1)}), WANTED)


def test_what_only_the_double_has_is_left_over():
    found = wrappers.fit(madry(**{"module.attacker.model.extra.weight": MEAN}), WANTED)
    assert set(found.entries) == {*network(), "module.attacker.model.extra.weight"}


def test_two_networks_in_one_state_dict_are_refused():
    with pytest.raises(ValueError, match="two networks that differ: student.conv1.weight is not teacher.conv1.weight"):
        wrappers.fit({**network(prefix="student."), **network(1, prefix="teacher.")}, WANTED)


def test_an_entry_outside_the_networks_modules_is_refused():
    entries = network(prefix="module.")
    entries["conv1.weight"] = entries.pop("module.conv1.weight")
    with pytest.raises(ValueError, match="conv1.weight lies outside 'module.'"):
        wrappers.fit(entries, WANTED)
    with pytest.raises(ValueError, match="lies outside|both after 'module.' and without it"):
        wrappers.fit({**network(prefix="module."), "bn1.num_batches_tracked": np.array(5)}, WANTED)
