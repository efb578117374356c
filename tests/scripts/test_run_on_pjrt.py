"""What TensorFlow lowers, jax runs in a process without TensorFlow: the same losses, weights and attacks."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sat
from keras_sat.attacks import PGD, LinfBall, from_name
from keras_sat.run import Run
from keras_sat.training import AdversarialModel

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "run_on_pjrt.py"
# A process in which TensorFlow, Keras and keras_sat cannot be imported.
WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules.update(dict.fromkeys(["tensorflow", "keras", "keras_sat"]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SGD = "--model=ResNet8 --epochs=1 --optimizer=sgd --learning_rate=0.02"
SMALL = f"{SGD} --image_size=8 --train_split=train[:96] --batch_size=4 --steps=2 --attack=pgd-3 --test_split=test[:10]"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[SCRIPT.stem] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules[SCRIPT.stem]


def call(script, *words):
    args = script.parser().parse_args([str(word) for word in words])
    args.function_of_command(args)
    return args


def on_the_device(*words):
    """Runs the script with jax alone, and returns what it prints."""
    pytest.importorskip("jax")
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, SCRIPT, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def lowered(script, tmp_path_factory):
    """The folder of a small ResNet-8."""
    folder = tmp_path_factory.mktemp("lowered") / "new"
    call(script, "lower", folder, "--with_images", *shlex.split(SMALL))
    return folder


def train_here(script, folder, steps):
    """Trains the network of a folder with TensorFlow, and returns the trainer and its losses."""
    manifest = json.loads((folder / script.MANIFEST).read_text())
    run = Run(**manifest["settings"])
    trainer = script.trainer_of(run, script.network(run), jit_compile=False)
    with np.load(folder / script.IMAGES) as file:
        images, labels = file["image"], file["label"]
    order = script.batches(images, labels, run.batch_size, run.epochs)
    logs = [trainer.train_on_batch(*batch[:2], return_dict=True) for batch, _ in zip(order, range(steps))]
    return trainer, [one["loss"] for one in logs]


def compare(script, folder, tmp_path, steps=20):
    """Compares the losses and weights of `steps` steps on jax' device with those of TensorFlow."""
    trained, report = tmp_path / "trained.npz", tmp_path / "report.json"
    printed = on_the_device("run", folder, f"--train_steps={steps}", f"--output={trained}", f"--report={report}")
    assert "images/s" in printed and "temporary" in printed
    trainer, losses = train_here(script, folder, steps)
    found = json.loads(report.read_text())
    np.testing.assert_allclose([one["loss"] for one in found["steps"]], losses, rtol=1e-5)
    file = tmp_path / "trained.weights.h5"
    call(script, "weights", folder, trained, file)
    other = keras.models.clone_model(trainer.classifier)
    other.load_weights(file)
    for ours, theirs, before in zip(
        other.variables, trainer.classifier.variables, script.network(Run(**_settings(script, folder))).variables
    ):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-5, err_msg=ours.path)
        assert "kernel" not in ours.path or np.abs(ours.numpy() - before.numpy()).max() > 1e-4  # it was trained


def _settings(script, folder):
    return json.loads((folder / script.MANIFEST).read_text())["settings"]


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_twenty_steps_are_tensorflows(script, lowered, tmp_path):
    compare(script, lowered, tmp_path)


@pytest.fixture(scope="module")
def attacked(script, lowered, tmp_path_factory):
    """The files of a training of one step, and of an attack of its network on 10 images, in batches of 4."""
    trained, output = (tmp_path_factory.mktemp("attacked") / name for name in ("trained.npz", "adversarial.npz"))
    on_the_device("run", lowered, "--train_steps=1", f"--output={trained}")
    on_the_device("run", lowered, "--function=pgd-3", f"--values={trained}", f"--output={output}")
    return trained, output


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_an_attack_is_tensorflows(script, lowered, attacked):
    run, model = script.trained_network(lowered, attacked[0])
    with np.load(lowered / script.ATTACKED) as file:
        images, labels = file["image"], file["label"]
    attack = from_name("pgd-3", LinfBall(run.epsilon))
    batches = script.batches_in_order(images, labels, run.batch_size)
    expected = [attack(model, *batch[:2], tf.constant([0, number])) for number, batch in enumerate(batches)]
    with np.load(attacked[1]) as file:
        assert len(file["adversarial"]) == len(images) == 10
        difference = np.abs(file["adversarial"] - np.concatenate(expected)[:10])
    assert np.mean(difference < 1e-3) > 0.999
    assert difference.max() <= 2 * run.epsilon


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_judge_counts_what_the_attack_left(script, lowered, attacked, tmp_path, capsys):
    trained, adversarial = attacked
    report = tmp_path / "judged.json"
    call(script, "judge", lowered, adversarial, f"--values={trained}", f"--report={report}")
    assert re.search(r"attack +pgd-3, epsilon 25.5, 10 images\n", capsys.readouterr().out)
    run, model = script.trained_network(lowered, trained)
    with np.load(lowered / script.ATTACKED) as file:
        images, labels = file["image"], file["label"]
    with np.load(adversarial) as file:
        arrays = dict(file)
    is_clean = model.predict(images.astype(np.float32), verbose=0).argmax(-1) == labels
    judged = json.loads(report.read_text())
    assert judged == {
        "clean": is_clean.tolist(),
        "robust": (is_clean & (arrays["logits"].argmax(-1) == labels)).tolist(),
    }


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda arrays: {"adversarial": arrays["adversarial"][::-1]}, "must be within 25.5 of the images"),
        (lambda arrays: {"epsilon": 1.0}, "has epsilon 1. Expected: 25.5, of pgd-3"),
        (lambda arrays: {"attack": "pgd-4"}, "holds no function 'pgd-4'"),
        (lambda arrays: {"adversarial": np.repeat(arrays["adversarial"], 2, 0)}, "do not belong to images"),
        (lambda arrays: {"logits": -arrays["logits"]}, "Expected: the --values that were attacked"),
        (lambda arrays: {"logits": None}, "has no array 'logits'. Expected: what `run` wrote of an attack"),
    ],
)
def test_judge_refuses_images_of_another_attack(change, message, script, lowered, attacked, tmp_path):
    trained, adversarial = attacked
    with np.load(adversarial) as file:
        arrays = dict(file)
    arrays |= change(arrays)
    np.savez(tmp_path / "other.npz", **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ValueError, match=re.escape(message)):
        call(script, "judge", lowered, tmp_path / "other.npz", f"--values={trained}")


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_a_run_is_written_and_says_how_far_it_was_trained(script, lowered, attacked, tmp_path):
    call(script, "weights", lowered, attacked[0], tmp_path / "run")
    with pytest.warns(UserWarning, match="was interrupted at step 1"):
        run, model = keras_sat.run.load(tmp_path / "run")
    assert run.model == "ResNet8"
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(model(images), script.trained_network(lowered, attacked[0])[1](images))
    with pytest.raises(ValueError, match="Expected: the name of a new folder"):
        call(script, "weights", lowered, attacked[0], tmp_path / "run")


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
@pytest.mark.parametrize(
    "words, message",
    [
        ("--function=pgd-3", "An attack needs a trained network. Expected: --values"),
        ("--function=pgd-3 --values=images.npz", "has no array '0'. Expected: values of the network"),
        ("--function=pgd-3 --values=no.npz", "No such file"),
        ("--values=no.npz", "--values is for attacks"),
        ("--function=pgd-4", "holds no function 'pgd-4', only step, plain, pgd-3"),
        ("--output=nowhere/trained.npz", "The folder of nowhere/trained.npz does not exist"),
        ("--train_steps=0", "an integer >= 1 was expected"),
    ],
)
def test_a_run_that_would_mislead_is_refused(words, message, lowered):
    pytest.importorskip("jax")
    command = [sys.executable, SCRIPT, "run", ".", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=lowered)
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_random_images_are_for_timings(script, lowered, tmp_path):
    """Attacks end at once on them, since a network misclassifies them."""
    pytest.importorskip("jax")
    manifest = json.loads((lowered / script.MANIFEST).read_text())
    for path in lowered.glob("*.stablehlo"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / script.MANIFEST).write_text(json.dumps(manifest | {"files": []}))
    for words, message in {
        ("--function=pgd-3",): "There are no images to attack",
        (f"--output={tmp_path / 'trained.npz'}",): "A training on random images is for timings",
    }.items():
        done = subprocess.run([sys.executable, SCRIPT, "run", tmp_path, *words], capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_with_all_steps_random_images_are_attacked_for_timings_alone(script, lowered, tmp_path):
    manifest = json.loads((lowered / script.MANIFEST).read_text())
    for path in lowered.glob("*.stablehlo"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / script.MANIFEST).write_text(json.dumps(manifest | {"files": [], "all_steps": True}))
    report = tmp_path / "report.json"
    printed = on_the_device("run", tmp_path, "--function=pgd-3", "--train_steps=12", f"--report={report}")
    assert re.search("weights +random", printed)
    assert json.loads(report.read_text())["images_per_s"] > 0
    command = [sys.executable, SCRIPT, "run", tmp_path, "--function=pgd-3", f"--output={tmp_path / 'attacked.npz'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "its PGD is weaker than its name says" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_weights_of_a_network_with_the_same_shapes_are_refused(script, lowered, attacked, tmp_path):
    with np.load(attacked[0]) as file:
        other = str(file["network"]).replace('"activation": "silu"', '"activation": "relu"')
        np.savez(tmp_path / "relu.npz", **(dict(file) | {"network": other}))
    with pytest.raises(ValueError, match="is of another network: .*relu"):
        call(script, "weights", lowered, tmp_path / "relu.npz", tmp_path / "run")


def test_attacks_have_the_names_of_evaluate(script):
    run = Run(model="ResNet8", dataset="fashion_mnist_mini", epsilon=8)
    named = script.attacks_of(run, "pgd-3, pgd-10@4,square")
    assert {name: (str(one), one.ball.epsilon) for name, one in named.items()} == {
        "pgd-3": ("PGD-3", 8),
        "pgd-10@4": ("PGD-10", 4),
        "square": ("Square", 8),
    }
    assert named["pgd-3"].keep == "first"
    assert script.attacks_of(run, "pgd-3", all_steps=True)["pgd-3"].keep == "last"
    with pytest.raises(ValueError, match="--all_steps is for PGD. square ends when"):
        script.attacks_of(run, "pgd-3,square", all_steps=True)
    with pytest.raises(ValueError, match="such as pgd-50@8. Received: 'pgd-3@8/255'"):
        script.attacks_of(run, "pgd-3@8/255")


def test_a_folder_is_not_lowered_into_twice(script, tmp_path):
    with pytest.raises(ValueError, match="exists. Expected: the name of a new folder"):
        call(script, "lower", tmp_path, *shlex.split(SMALL))


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_plain_steps_run_on_random_images(script, lowered, tmp_path):
    """Without images and weights, as for the timing of a large network."""
    for path in lowered.glob("*.stablehlo"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((lowered / script.MANIFEST).read_text())
    (tmp_path / script.MANIFEST).write_text(json.dumps(manifest | {"files": []}))
    report = tmp_path / "report.json"
    on_the_device("run", tmp_path, "--function=plain", "--train_steps=12", f"--report={report}")
    losses = [one["loss"] for one in json.loads(report.read_text())["steps"]]
    assert len(losses) == 12
    assert losses[-1] < losses[0]  # it learns the same batch


@pytest.fixture(scope="module")
def tiny(script, tiny_model):
    """A lowered step of a tiny trainer, inputs for it, and the variables."""
    trainer = AdversarialModel(tiny_model(), PGD(LinfBall(8), steps=2), static_shapes=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(0.1, 0.9), loss, jit_compile=False)
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)), tf.uint8)
    inputs = {"images": images, "labels": tf.constant([0, 1, 2, 3])}
    variables = sum(script.prepare(trainer, *inputs.values()).values(), [])
    specs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in inputs.items()}
    step = script.lower(lambda images, labels: trainer.train_step((images, labels)), specs, variables)
    return step, inputs, variables


def test_the_check_passes_and_leaves_the_variables(script, tiny):
    step, inputs, variables = tiny
    before = [variable.numpy() for variable in variables]
    script.check(step, inputs, variables)
    for variable, value in zip(variables, before):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("what", ["arguments", "results"])
def test_a_wrong_order_is_refused(what, script, tiny):
    """Two neighbours of one shape are exchanged: the first ones, and some behind."""
    step, inputs, variables = tiny
    records = getattr(step, what)
    types = [(one["shape"], one["dtype"]) for one in records]
    places = [place for place in range(2, len(types) - 1) if types[place] == types[place + 1]]
    assert len(places) >= 2
    for place in (places[0], places[len(places) // 2]):
        wrong = [*records[:place], records[place + 1], records[place], *records[place + 2 :]]
        with pytest.raises(ValueError, match="order of arguments or results"):
            script.check(dataclasses.replace(step, **{what: wrong}), inputs, variables)


def test_a_value_that_is_no_variable_of_the_trainer_is_refused(script):
    hidden = tf.Variable(1.0)
    with pytest.raises(ValueError, match="none of the trainer's variables"):
        script.lower(lambda images: {"sum": hidden * images}, {"images": tf.TensorSpec((2,))})


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_too_few_images_are_refused(lowered, tmp_path):
    pytest.importorskip("jax")
    np.savez(tmp_path / "small.npz", image=np.zeros((2, 8, 8, 1), np.uint8), label=np.zeros(2, int))
    command = [sys.executable, SCRIPT, "run", lowered, f"--images={tmp_path / 'small.npz'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("run_on_pjrt.py: The function takes batches of uint8 images")


def test_the_documented_commands_parse(script):
    text = SCRIPT.read_text() + (ROOT / "docs" / "accelerators.md").read_text()
    text = re.sub(r" *\\\n *", " ", text)  # a backslash ends a line of a long command
    commands = re.findall(r"run_on_pjrt\.py ((?:lower|run|judge|compile|weights) .*?)(?: #.*)?$", text, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        assert callable(script.parser().parse_args(shlex.split(command)).function_of_command)
