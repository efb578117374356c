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
    folder = tmp_path_factory.mktemp("lowered")
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
    assert re.search(r"images +10\n", capsys.readouterr().out)
    run, model = script.trained_network(lowered, trained)
    with np.load(lowered / script.ATTACKED) as file:
        images, labels = file["image"], file["label"]
    with np.load(adversarial) as file:
        found, logits = file["adversarial"], file["logits"]
    is_clean = model.predict(images.astype(np.float32), verbose=0).argmax(-1) == labels
    judged = json.loads(report.read_text())
    assert judged == {"clean": is_clean.tolist(), "robust": (is_clean & (logits.argmax(-1) == labels)).tolist()}
    np.savez(tmp_path / "far.npz", adversarial=np.where(found < 128, found + run.epsilon + 1, found))
    with pytest.raises(ValueError, match=rf"within {run.epsilon:g} of the images, with pixels in 0..255"):
        call(script, "judge", lowered, tmp_path / "far.npz", f"--values={trained}")
    np.savez(tmp_path / "others.npz", adversarial=np.concatenate([found, found]))
    with pytest.raises(ValueError, match="do not belong to images"):
        call(script, "judge", lowered, tmp_path / "others.npz", f"--values={trained}")


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_an_attack_on_random_images_is_refused(script, lowered, tmp_path):
    """It would end at once, since a network misclassifies them, and its time would be wrong."""
    pytest.importorskip("jax")
    for path in lowered.iterdir():
        if path.name != script.ATTACKED:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    done = subprocess.run([sys.executable, SCRIPT, "run", tmp_path, "--function=pgd-3"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "lowered with --all_steps" in done.stderr.splitlines()[-1]


def test_with_all_steps_pgd_does_not_end_early(script):
    run = Run(model="ResNet8", dataset="fashion_mnist_mini")
    assert [one.keep for one in script.attacks_of(run, "pgd-3,pgd-10").values()] == ["first", "first"]
    timed = script.attacks_of(run, "pgd-3,square", all_steps=True)
    assert timed["pgd-3"].keep == "last"
    assert str(timed["square"]) == "Square"


@pytest.mark.slow
@pytest.mark.xdist_group("pjrt")
def test_plain_steps_run_on_random_images(script, lowered, tmp_path):
    """Without images and weights, as for the timing of a large network."""
    for path in lowered.iterdir():
        if path.suffix != ".npz":
            (tmp_path / path.name).write_bytes(path.read_bytes())
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
