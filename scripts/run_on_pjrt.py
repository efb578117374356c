"""Trains and attacks on a GPU, a TPU or a CPU of a machine that has jax and NumPy, but no TensorFlow.

    # 1. Where TensorFlow and keras_sat are: lower the training step and the attack to StableHLO.
    python scripts/run_on_pjrt.py lower lowered --model=ResNet8 --dataset=fashion_mnist_mini --epochs=8 --with_images \
        --test_split='test[:500]'
    # 2. Where the device is: this file and the folder are all that it needs.
    python run_on_pjrt.py run lowered --output=trained.npz
    python run_on_pjrt.py run lowered --function=pgd-10 --values=trained.npz --output=attacked.npz
    # 3. Where TensorFlow and keras_sat are: count what the attack left, write a run, and evaluate it.
    python scripts/run_on_pjrt.py judge lowered attacked.npz --values=trained.npz
    python scripts/run_on_pjrt.py weights lowered trained.npz runs/trained
    keras-sat evaluate runs/trained

`lower` writes `step`, the adversarial training step (`AdversarialModel.train_step`); `plain`, the same network's step
without an attack; and a function for each name of `--attack`, an attack on a network with fixed weights, such as
`pgd-10` or `autoattack`. Variables are arguments and results. Before it writes, `lower` runs each lowered function once
and compares all results with those of TensorFlow.

`run` compiles a function for the first device that jax finds, runs it, and prints the time of a step, images per second
and memory. `judge` counts, with TensorFlow, which adversarial images the network misclassifies. `compile` compiles a
function for a TPU on a machine without a TPU, and prints the memory. It needs libtpu:

    python -m venv jax-environment                                    # separate from TensorFlow's environment
    jax-environment/bin/pip install jax==0.10.2 libtpu==0.0.52
    jax-environment/bin/python scripts/run_on_pjrt.py compile lowered --topology=v5e:2x2

Batch size and memory are those of one device.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import re
import statistics
import sys
import time
import zipfile
import zlib

import numpy as np

STEPS = {"step": "training step with {objective}", "plain": "plain training step"}
MANIFEST, VALUES = "manifest.json", "values.npz"
IMAGES, ATTACKED = "images.npz", "test_images.npz"
CHECKED = 4  # images of the batch with which `lower` checks the lowered functions
# Of the largest change or value. In float32 a wrong argument differs by more than 1e-2, rounding by 1e-6. In bfloat16
# rounding changes the images of PGD-10, and results by up to 0.2. Variables that changed places differ by 1 or more.
TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-3, 0.5
WEAKER = "was lowered with --all_steps, for timings: its PGD is weaker than its name says. Lower it without."
MOST_OTHERS = 0.02  # share of images; rounding changes the class of few
GROUP = 10  # steps that are timed together, because a device works on several steps ahead

# ---------------------------------------------------------------------------------------------------------------------
# With TensorFlow: lower, judge, weights


def _settings(args):
    """Returns the `Run` of the flags."""
    from keras_sat.cli import flags
    from keras_sat.run import Run

    given = {name: value for name, value in vars(args).items() if name in FLAGS}
    if "activation" in given:
        given["activation"] = flags.activation(given["activation"])
    return Run(**given, validation=0.0, guard="none", strategy="none", keep="last")


def network(run, classes=None):
    """Returns the untrained network of a `Run`, with random weights that depend on its seed alone.

    Args:
        run: the configuration.
        classes: number of classes, in place of the dataset's.
    """
    import keras

    from keras_sat import models
    from keras_sat.models import normalization
    from keras_sat.run.configuration import dtype_policy

    keras.utils.set_random_seed(run.seed)
    described = run.description
    options = {"input_shape": described.preprocessing.shape, "classes": classes or len(described.classes)}
    with dtype_policy(run.precision):
        return models.build(
            run.model, run.form, run.normalization or normalization.PUBLISHED, activation=run.activation, **options
        )


def trainer_of(run, model, jit_compile=False):
    """Returns a compiled AdversarialModel whose attacks keep the shape of a batch, as XLA requires.

    With `jit_compile=True`, XLA compiles its own steps too. Its noise is that of a lowered step in both cases.
    """
    from keras_sat.run import optimizers
    from keras_sat.run.configuration import dtype_policy
    from keras_sat.training import AdversarialModel

    with dtype_policy(run.precision):
        trainer = AdversarialModel(
            model, run.attack(), seed=run.seed, attack_precision=run.attack_precision, static_shapes=True
        )
        steps = run.steps_per_epoch()
        rate = optimizers.learning_rate(run, steps, run.epochs)
        optimizer = optimizers.optimizer(run, model, steps, rate)
        trainer.compile(optimizer, optimizers.loss(run), metrics=["accuracy"], jit_compile=jit_compile)
    return trainer


def prepare(trainer, images, labels):
    """Creates all variables of a trainer, and leaves their initial values.

    Args:
        trainer: a compiled trainer, not trained yet.
        images, labels: a batch, for a step that is undone.

    Returns:
        The variables, {kind: list of Keras variables}. The kinds are "weight" (those of the network, in its order),
        "optimizer", "metric" and "other".
    """
    weights = trainer.classifier.variables
    trainer.optimizer.build(trainer.trainable_variables)
    kept = [*trainer.variables, *weights, *trainer.optimizer.variables]
    values = [variable.numpy() for variable in kept]
    trainer.train_on_batch(images, labels)
    trainer.reset_metrics()
    for variable, value in zip(kept, values):
        variable.assign(value)
    trainer.reset_metrics()
    kinds = {"weight": weights, "optimizer": trainer.optimizer.variables, "metric": trainer.metrics_variables}
    known = {id(variable) for variables in kinds.values() for variable in variables}
    return kinds | {"other": [variable for variable in trainer.variables if id(variable) not in known]}


def functions(run, trainer, attacks, one_hot=None):
    """Returns {name: a function of images, labels and, for an attack, a seed, that returns {name: tensor}}.

    Args:
        run: the configuration.
        trainer: a prepared trainer.
        attacks: {name: Attack}.
        one_hot: number of classes if the loss takes one-hot labels; None if it takes integers.
    """
    import keras
    import tensorflow as tf

    from keras_sat.models import folding

    folded = folding.Folding(trainer.classifier)

    def targets(labels):
        return labels if one_hot is None else tf.one_hot(labels, one_hot)

    def step(images, labels):
        return trainer.train_step((images, targets(labels)))

    def plain(images, labels):
        logs = keras.Model.train_step(trainer, (images, targets(labels)))
        return {name: logs[name] for name in ("loss", "accuracy")}

    def attacked(attack, images, labels, seed):
        network = folded.bind()
        adversarial = attack(network, images, labels, seed, static_shapes=True)
        return {"adversarial": adversarial, "logits": tf.cast(network(adversarial), tf.float32)}

    return {"step": step, "plain": plain} | {name: functools.partial(attacked, attacks[name]) for name in attacks}


def attacks_of(run, names, all_steps=False):
    """Returns {name: Attack} of names as in `keras-sat evaluate --attack`.

    Args:
        run: the configuration.
        names: names, separated by commas. "pgd-50@8" is PGD-50 with epsilon 8 in place of that of the run.
        all_steps: True for timings. PGD then goes on to its last step when all images are misclassified.

    Raises:
        ValueError: for an unknown name or epsilon; with `all_steps`, for an attack that is not PGD.
    """
    from keras_sat.attacks import PGD, from_name

    named = {}
    for name in map(str.strip, names.split(",")):
        attack, at, epsilon = name.partition("@")
        try:
            radius = float(epsilon) if at else None
        except ValueError:
            raise ValueError(f"Expected: an epsilon in pixels after @, such as pgd-50@8. Received: {name!r}") from None
        named[name] = from_name(attack, run.ball(radius))
    if not all_steps:
        return named
    if others := [name for name, one in named.items() if not isinstance(one, PGD)]:
        raise ValueError(f"--all_steps is for PGD. {', '.join(others)} ends when all images are misclassified.")
    return {name: dataclasses.replace(one, keep="last") for name, one in named.items()}


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A function as a StableHLO module.

    Attributes:
        text: the module as text.
        module: the module, a portable artifact of StableHLO.
        arguments: of the module, in order: {"input": its name} or {"variable": its index}, with "shape" and "dtype".
        results: of the module, in order: {"output": its name}, or {"variable": the index of the variable that gets the
            result}, with "shape" and "dtype".
        function: the compiled tf.function that was lowered.
    """

    text: str
    module: bytes
    arguments: list
    results: list
    function: object


def lower(function, inputs, variables=()):
    """Lowers a function for XLA.

    Args:
        function: a function of tensors that returns {name: tensor}. It may read and assign variables.
        inputs: {name: tf.TensorSpec} of its arguments, in order.
        variables: the Keras variables that it may use.

    Returns:
        A `Lowered`. `check` shows whether its arguments and results are what it says.

    Raises:
        ValueError: if the function uses a variable or tensor that is not in `variables`, or if the module does not say
            which result is which variable.
    """
    import tensorflow as tf
    from tensorflow.compiler.mlir.stablehlo import stablehlo

    compiled = tf.function(function, jit_compile=True, autograph=False)
    concrete = compiled.get_concrete_function(*inputs.values())
    text = compiled.experimental_get_compiler_ir(*inputs.values())(stage="stablehlo")
    places = {id(variable.value.handle): place for place, variable in enumerate(variables)}
    captured = [places.get(id(handle)) for handle in concrete.captured_inputs]
    if None in captured:
        unknown = concrete.captured_inputs[captured.index(None)]
        raise ValueError(f"The function uses a value that is none of the trainer's variables: {unknown}")
    arguments = [_record("input", name, spec) for name, spec in inputs.items()]
    arguments += [_record("variable", place, variables[place]) for place in captured]
    outputs = concrete.structured_outputs
    results = [_record("output", name, outputs[name]) for name in sorted(outputs)]  # TensorFlow sorts a dict's keys
    results += _assigned(text, arguments, len(results))
    text = _portable(text)
    # Later versions of XLA read this artifact too. Text has no such promise.
    module = stablehlo.serialize_portable_artifact_str(text, stablehlo.get_current_version())
    return Lowered(text, module, arguments, results, compiled)


def _record(kind, name, tensor):
    """Returns what the manifest says of an argument or a result."""
    dtype = tensor.dtype if isinstance(tensor.dtype, str) else tensor.dtype.name
    return {kind: name, "shape": list(tensor.shape), "dtype": dtype}


def _portable(text):
    """Returns the text of a module without what TensorFlow's own compilers alone know."""
    # TensorFlow copies values that it assigns to variables. No other compiler knows this operation.
    text = re.sub(r"mhlo\.copy (%\S+)", r"stablehlo.optimization_barrier \1", text)
    return re.sub(r"^(module @\S+) attributes \{.*\} \{$", r"\1 {", text, count=1, flags=re.MULTILINE)


def _assigned(text, arguments, outputs):
    """Returns the results of a module that follow its outputs: the new values of variables.

    An attribute of the module says which result takes the place of which argument.

    Args:
        text: the module.
        arguments: see `Lowered`.
        outputs: number of outputs.
    """
    pairs = re.findall(r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>", text)
    replaced = {int(result): arguments[int(argument)] for argument, result in pairs}
    results = re.search(r"@main\(.*?\) -> (.*)", text).group(1).count("tensor<")
    if sorted(replaced) != list(range(outputs, results)):
        raise ValueError(f"The module does not say which of its {results} results are variables: {sorted(replaced)}")
    return [replaced[place] for place in sorted(replaced)]


def check(lowered, inputs, variables, tolerance=TOLERANCE):
    """Runs a lowered function, and TensorFlow's own, on changed variables, and compares all results.

    Each variable is changed at random, so that no two are equal. XLA compiles both for the CPU. At the end the
    variables have their former values.

    Args:
        lowered: a `Lowered`.
        inputs: {name: tensor}.
        variables: the Keras variables.
        tolerance: largest difference, as a share of a variable's change or of an output.

    Raises:
        ValueError: if a result differs, or if TensorFlow changes a variable that is no result.
    """
    before = [variable.numpy() for variable in variables]
    try:
        _change(variables)
        changed = [variable.numpy() for variable in variables]
        values = [inputs[a["input"]] if "input" in a else changed[a["variable"]] for a in lowered.arguments]
        found = _call(lowered, values)
        outputs = lowered.function(*inputs.values())
        after = [variable.numpy() for variable in variables]
        for result, value in zip(lowered.results, found, strict=True):
            if "output" in result:
                _compare(result["output"], value, outputs[result["output"]].numpy(), tolerance)
            else:
                place = result["variable"]
                _compare(variables[place].path, value, after[place], tolerance, changed[place])
        written = {result.get("variable") for result in lowered.results}
        for place, variable in enumerate(variables):
            if place not in written and not np.array_equal(after[place], changed[place]):
                raise ValueError(f"TensorFlow changes {variable.path}, which is no result of the lowered function.")
    finally:
        for variable, value in zip(variables, before):
            variable.assign(value)


def _change(variables):
    """Changes each variable at random, by a tenth up to all of it, and keeps its sign."""
    rng = np.random.default_rng(0)
    for variable in variables:
        value = variable.numpy()
        if np.issubdtype(value.dtype, np.integer):
            variable.assign(value + rng.integers(1, 4))
        else:
            noise = (np.abs(value) + 0.1) * rng.uniform(0.1, 1.0, value.shape)
            variable.assign((value + np.where(value < 0, -noise, noise)).astype(value.dtype))


def _call(lowered, values):
    """Runs a module with XLA on the CPU, and returns its results as arrays."""
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla

    @tf.function(jit_compile=True, autograph=False)
    def run(*arguments):
        shapes = [tuple(result["shape"]) for result in lowered.results]
        types = [tf.as_dtype(result["dtype"]) for result in lowered.results]
        return xla.call_module(arguments, version=9, module=lowered.module, Tout=types, Sout=shapes, platforms=["CPU"])

    return [result.numpy() for result in run(*map(tf.constant, values))]


def _compare(name, found, expected, tolerance, before=0.0):
    """Raises ValueError if an array differs from what was expected by more than rounding.

    Args:
        name: for the message.
        found, expected: the arrays.
        tolerance: see `check`.
        before: the value that the function changed, whose change is the measure.
    """
    change = np.max(np.abs(np.subtract(expected, before, dtype=np.float64)), initial=0.0)
    difference = np.max(np.abs(np.subtract(found, expected, dtype=np.float64)), initial=0.0)
    if not difference <= tolerance * change:  # also if either is not finite
        raise ValueError(
            f"{name} of the lowered function differs from TensorFlow's by {difference:.1e}, where it changes by "
            f"{change:.1e}: the order of arguments or results is not the expected one."
        )


def _lower(args):
    """Lowers all functions, checks them, and writes a new folder."""
    import tensorflow as tf

    from keras_sat import files

    if os.path.lexists(args.folder):
        raise ValueError(f"{args.folder} exists. Expected: the name of a new folder.")
    run = _settings(args)
    attacks = attacks_of(run, args.attack, args.all_steps)
    trainer = trainer_of(run, network(run, args.classes))
    shape, classes = run.description.preprocessing.shape, trainer.classifier.output_shape[-1]
    one_hot = classes if run.has_soft_labels else None

    def inputs(name, batch_size, make):
        made = {"images": make((batch_size, *shape), tf.uint8), "labels": make((batch_size,), tf.int32)}
        return made if name in STEPS else made | {"seed": make((2,), tf.int32)}

    random = _random(classes)
    batch = inputs("step", CHECKED, random)
    labels = tf.one_hot(batch["labels"], classes) if one_hot else batch["labels"]
    kinds = prepare(trainer, batch["images"], labels)
    variables = [variable for group in kinds.values() for variable in group]
    modules, described = {}, {}
    for name, function in functions(run, trainer, attacks, one_hot).items():
        begin = time.perf_counter()
        batch_size = run.batch_size if name in STEPS else args.attack_batch_size or run.batch_size
        # An NVIDIA GPU rounds float32 to 10 bits (TF32) where it may. An attack must see what the network computes.
        tf.config.experimental.enable_tensor_float_32_execution(name in STEPS)
        small = lower(function, inputs(name, CHECKED, tf.TensorSpec), variables)
        is_exact = run.precision == "float32" and not (name == "step" and run.attack_precision)
        check(small, inputs(name, CHECKED, random), variables, TOLERANCE if is_exact else LOW_PRECISION_TOLERANCE)
        is_small = batch_size == CHECKED
        whole = small if is_small else lower(function, inputs(name, batch_size, tf.TensorSpec), variables)
        if _places(whole) != _places(small):
            raise ValueError(f"{name}: the order of arguments or results depends on the batch size.")
        modules[name] = whole.module
        described[name] = {"arguments": whole.arguments, "results": whole.results}
        described[name] |= {"epsilon": float(attacks[name].ball.epsilon)} if name in attacks else {}
        print(
            f"{name}: {len(whole.module) / 2**20:.1f} MiB, lowered and checked in {time.perf_counter() - begin:.0f} s"
        )
    tf.config.experimental.enable_tensor_float_32_execution(True)
    with files.atomic_write(args.folder) as temporary:
        os.makedirs(temporary)
        _write(args, temporary, run, kinds, modules, {"functions": described, "classes": classes})
    print(f"Written to {args.folder}.")


def _random(classes):
    """Returns a function that makes a tensor of integers of a shape and type: pixels if uint8, else classes."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    return lambda shape, dtype: tf.constant(rng.integers(0, 256 if dtype == tf.uint8 else classes, shape), dtype)


def _places(lowered):
    """Returns which arguments and results a function has, without their shapes."""
    return [(one.get("input"), one.get("output"), one.get("variable")) for one in lowered.arguments + lowered.results]


def _write(args, folder, run, kinds, modules, manifest):
    """Writes the functions, the initial values, the images of the training split and those to attack, the manifest."""
    for name, module in modules.items():
        with open(os.path.join(folder, f"{name}.stablehlo"), "wb") as file:
            file.write(module)
    variables = [(kind, variable) for kind, group in kinds.items() for variable in group]
    values = [variable.numpy() for _, variable in variables]
    if not args.without_weights:
        np.savez_compressed(os.path.join(folder, VALUES), **{str(place): value for place, value in enumerate(values)})
    for name, split in {IMAGES: run.train_split if args.with_images else "", ATTACKED: args.test_split}.items():
        if split:
            parts = [(images.numpy(), labels.numpy()) for images, labels in run.load_data(split)]
            images, labels = (np.concatenate(part) for part in zip(*parts))
            np.savez_compressed(os.path.join(folder, name), image=images, label=labels)
    manifest |= {
        "files": [name for name in os.listdir(folder) if name.endswith(".npz")],
        "all_steps": args.all_steps,
        "settings": run.settings(),
        "training_steps": run.steps_per_epoch() * run.epochs,
        "seed": run.seed,
        "variables": [
            _record("name", variable.path, variable)
            | {"kind": kind, "mean": float(np.mean(value)), "std": float(np.std(value))}
            for (kind, variable), value in zip(variables, values)
        ],
    }
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)


def _manifest(folder):
    """Returns what `lower` wrote of a folder's functions. Raises ValueError for anything else."""
    path = os.path.join(folder, MANIFEST)
    with open(path, encoding="utf-8") as file:
        try:
            manifest = json.load(file)
        except ValueError:
            raise ValueError(f"{path} is damaged. Expected: what `lower` wrote.") from None
    if "files" not in manifest:
        raise ValueError(f"{folder} was lowered by another version of this script: lower it again, into a new folder.")
    return manifest


def _network(manifest):
    """Returns what tells networks of the same shapes apart, as text."""
    names = ("model", "form", "normalization", "activation", "dataset", "epsilon", "seed")
    return json.dumps({name: manifest["settings"][name] for name in names})


def _arrays(path, what, *names):
    """Returns the arrays of an .npz file, {name: array}.

    Args:
        path: the file.
        what: what it should be, for the message.
        names: those that it must have.

    Raises:
        ValueError: if it is no such file.
    """
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, AttributeError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged, or no .npz file. Expected: {what}.") from None
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{path} has no array {missing[0]!r}. Expected: {what}.")
    return found


def trained_network(folder, values):
    """Returns the `Run` of a folder and its network with trained values.

    Args:
        folder: the folder that `lower` wrote.
        values: the .npz file that `run --output` wrote.
    """
    from keras_sat.run import Run

    manifest = _manifest(folder)
    run = Run(**manifest["settings"])
    model = network(run, manifest["classes"])
    described = [one for one in manifest["variables"] if one["kind"] == "weight"]
    trained = _values(values, manifest, len(described))
    for place, (variable, record) in enumerate(zip(model.variables, described, strict=True)):
        if [record["name"].rpartition("/")[2], record["shape"]] != [variable.name, list(variable.shape)]:
            raise ValueError(f"{variable.path} of the network is {record['name']} in {folder}.")
        variable.assign(trained[place])
    return run, model


def _weights(args):
    """Writes trained values as a file of weights, or as the folder of a run, which `keras-sat evaluate` takes."""
    from keras_sat import models

    is_file = args.output.endswith(".weights.h5")
    if not is_file and (os.path.exists(args.output) or args.output.endswith(".h5")):
        raise ValueError(f"Expected: the name of a new folder, or of a file *.weights.h5. Received: {args.output}")
    run, model = trained_network(args.folder, args.trained)
    if is_file:
        models.weights.save_file(model, args.output)
    else:
        done = int(_arrays(args.trained, "what `run` of a training wrote", "steps")["steps"])
        _write_run(args.output, run, model, done, _manifest(args.folder)["training_steps"])
    print(f"Written to {args.output}.")


def _write_run(output, run, model, done, planned):
    """Writes the folder of a run whose training did a number of steps of those that were planned."""
    from keras_sat import files, models, provenance
    from keras_sat.run import folder

    classes, found = len(run.description.classes), model.output_shape[-1]
    if found != classes:
        raise ValueError(
            f"The network has {found} classes, {run.dataset} has {classes}: it cannot be the folder of a run. "
            "Expected: a file *.weights.h5."
        )
    record = {"finished": done >= planned, "iterations": done, "kept": "last", "history": {}}
    with files.atomic_write(output) as temporary:
        os.makedirs(temporary)
        models.weights.save_file(model, folder.weights(temporary))
        record |= {"versions": provenance.versions()}
        files.write_json(folder.run_json(temporary), folder.record(run) | record)


def _judge(args):
    """Counts which adversarial images the network misclassifies, with TensorFlow, in the precision of the run.

    An image is robust if the network classifies it correctly, and its adversarial image too.
    """
    run, model = trained_network(args.folder, args.values)
    attacked = _attacked(args)
    adversarial, epsilon = attacked["adversarial"], float(attacked["epsilon"])
    given = _arrays(args.images or os.path.join(args.folder, ATTACKED), "images and labels", "image", "label")
    images, labels = given["image"][: len(adversarial)].astype(np.float32), given["label"][: len(adversarial)]
    _check_ball(run.ball(), epsilon, adversarial, images)
    clean, found = _judged(model, images, labels), _judged(model, adversarial, labels)
    others = np.count_nonzero(found["predicted"] != attacked["logits"].argmax(-1))
    if others > max(1, MOST_OTHERS * len(images)):
        raise ValueError(
            f"TensorFlow gives {others} of {len(images)} adversarial images another class than the device did. "
            f"Expected: the --values that were attacked, and at most {100 * MOST_OTHERS:g} %."
        )
    is_clean, is_robust = clean["is_correct"], clean["is_correct"] & found["is_correct"]
    _show({"attack": f"{attacked['attack']}, epsilon {epsilon:g}, {len(images)} images"})
    _show({"other class than there": f"{others} images"})
    _show({name: f"{100 * which.mean():.1f} %" for name, which in {"clean": is_clean, "robust": is_robust}.items()})
    if args.report:
        _write_json(args.report, {"clean": is_clean.tolist(), "robust": is_robust.tolist()})


def _attacked(args):
    """Returns the arrays that `run` wrote of an attack of the folder. Raises ValueError for those of another attack."""
    manifest = _manifest(args.folder)
    if manifest["all_steps"]:
        raise ValueError(f"{args.folder} {WEAKER}")
    found = _arrays(args.adversarial, "what `run` wrote of an attack", "adversarial", "logits", "attack", "epsilon")
    attack, epsilon = str(found["attack"]), float(found["epsilon"])
    _check_name(args.folder, manifest, attack)
    expected = manifest["functions"][attack]["epsilon"]
    if epsilon != expected:
        raise ValueError(
            f"{args.adversarial} has epsilon {epsilon:g}. Expected: {expected:g}, of {attack} in {args.folder}."
        )
    return found


def _check_ball(ball, epsilon, adversarial, images):
    """Raises ValueError if adversarial images are not within epsilon of their images."""
    if adversarial.shape != images.shape:
        raise ValueError(f"Adversarial images {adversarial.shape} do not belong to images {images.shape}.")
    distance = float(np.max(ball.distance(adversarial, images)))
    if not (distance <= epsilon + 1e-3 and adversarial.min() >= 0 and adversarial.max() <= 255):
        raise ValueError(
            f"Adversarial images must be within {epsilon:g} of the images, with pixels in 0..255. Their largest "
            f"distance is {distance:g}, their pixels are {adversarial.min():g}..{adversarial.max():g}."
        )


def _judged(model, images, labels, batch_size=100):
    """Returns how a model classifies images: {name of a field of `judging.Judgement`: array}."""
    from keras_sat.attacks import judging

    parts = range(0, len(images), batch_size)
    judged = [judging.judge(model, images[at : at + batch_size], labels[at : at + batch_size]) for at in parts]
    return {name: np.concatenate(values) for name, values in zip(judging.Judgement._fields, zip(*judged))}


# ---------------------------------------------------------------------------------------------------------------------
# With jax and NumPy alone: run, compile


def program(folder, name, platform):
    """Returns what a lowered function is, and the function itself for jax.

    Args:
        folder: the folder that `lower` wrote.
        name: "step", "plain" or the name of an attack.
        platform: jax' name of the platform: "cpu", "cuda", "rocm" or "tpu".

    Returns:
        The contents of the manifest, and a function (state, fixed, inputs) -> (state, outputs). `state` are the values
        of the variables that the function changes, {index: array}; `fixed` those of the others. Metrics are fixed too:
        each call begins with the same, so that what it returns are the metrics of its own batch.
    """
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)  # iterations are int64
    manifest = _manifest(folder)
    _check_name(folder, manifest, name)
    arguments, results = (manifest["functions"][name][key] for key in ("arguments", "results"))

    def same_signature(*_):
        return [jnp.zeros(result["shape"], result["dtype"]) for result in results]

    # jax calls a StableHLO module through an Exported. This one takes and returns the same types, and gets the module.
    exported = jax.export.export(jax.jit(same_signature, keep_unused=True), platforms=[platform])(*_specs(arguments))
    with open(os.path.join(folder, f"{name}.stablehlo"), "rb") as file:
        exported = dataclasses.replace(exported, mlir_module_serialized=file.read())
    changed = _changed(manifest, name)

    def function(state, fixed, inputs):
        variables = fixed | state
        found = exported.call(*(variables[a["variable"]] if "variable" in a else inputs[a["input"]] for a in arguments))
        outputs = {}
        for result, value in zip(results, found, strict=True):
            if "output" in result:
                outputs[result["output"]] = value
            elif result["variable"] in changed:
                state = state | {result["variable"]: value}
        return state, outputs

    return manifest, function


def _check_name(folder, manifest, name):
    if name not in manifest["functions"]:
        raise ValueError(f"{folder} holds no function {name!r}, only {', '.join(manifest['functions'])}.")


def _specs(records, **options):
    """Returns the types of arguments, as jax' functions take them."""
    import jax

    return [jax.ShapeDtypeStruct(tuple(one["shape"]), np.dtype(one["dtype"]), **options) for one in records]


def _changed(manifest, name):
    """Returns the indices of the variables that a function changes, without metrics."""
    written = {result["variable"] for result in manifest["functions"][name]["results"] if "variable" in result}
    return {place for place in written if manifest["variables"][place]["kind"] != "metric"}


def _split(manifest, name, values):
    """Returns the values of the variables that a function changes, and those that it only reads, {index: value}."""
    changed = _changed(manifest, name)
    read = {one["variable"] for one in manifest["functions"][name]["arguments"] if "variable" in one}
    return {i: values[i] for i in sorted(changed)}, {i: values[i] for i in sorted(read - changed)}


def initial_values(folder, manifest):
    """Returns the initial values of all variables; without a file, random ones of the same mean and deviation."""
    if VALUES in manifest["files"]:
        return _values(os.path.join(folder, VALUES), manifest, len(manifest["variables"]))
    _show({"weights": "random"})
    rng = np.random.default_rng(0)
    return [_drawn(rng, variable) for variable in manifest["variables"]]


def _values(path, manifest, number):
    """Returns the first `number` variables of a file of values."""
    names = [str(place) for place in range(number)]
    found = _arrays(path, "values of the network, as `run` of a training writes them", *names)
    for name, variable in zip(names, manifest["variables"]):
        if list(found[name].shape) != variable["shape"]:
            raise ValueError(
                f"{path} is of another network: {variable['name']} has the shape {found[name].shape}. Expected: "
                f"{tuple(variable['shape'])}."
            )
    if str(found.get("network", _network(manifest))) != _network(manifest):
        raise ValueError(f"{path} is of another network: {found['network']}. Expected: {_network(manifest)}.")
    return [found[name] for name in names]


def _drawn(rng, variable):
    values = rng.standard_normal(variable["shape"], np.float32) * variable["std"] + variable["mean"]
    return np.asarray(values).astype(variable["dtype"])


def batches(images, labels, batch_size, epochs, seed=0):
    """Yields (images, labels, whether an epoch ends here). Each epoch has another order; the rest is left out.

    Args:
        images: uint8 [n, height, width, channels].
        labels: integers [n].
        batch_size: number of images in a batch, at most n.
        epochs: number of epochs.
        seed: the same seed gives the same order.
    """
    steps = len(images) // batch_size
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(images))
        for step in range(steps):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            yield images[chosen], labels[chosen].astype(np.int32), step == steps - 1


def _compiled(args, platform, **options):
    """Compiles a lowered function. Returns the manifest, what the inputs are, the function, and seconds."""
    import jax

    manifest, function = program(args.folder, args.function, platform)
    specs = dict(enumerate(_specs(manifest["variables"], **options)))
    state, fixed = _split(manifest, args.function, specs)
    records = {one["input"]: one for one in manifest["functions"][args.function]["arguments"] if "input" in one}
    inputs = dict(zip(records, _specs(records.values(), **options)))
    begin = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=0).lower(state, fixed, inputs).compile()
    return manifest, records, compiled, time.perf_counter() - begin


def _show(lines):
    for name, text in lines.items():
        print(f"{name:<28}{text}", flush=True)


def _memory(compiled):
    """Returns what a compiled function needs, {name: MiB}."""
    memory = compiled.memory_analysis()
    needed = {
        "weights, optimizer, batch": memory.argument_size_in_bytes,
        "other outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    return {name: size / 2**20 for name, size in {**needed, "all of it": sum(needed.values())}.items()}


def _show_memory(compiled):
    _show({name: f"{size:10.1f} MiB" for name, size in _memory(compiled).items()})


def _compile(args):
    """Compiles for a TPU that is not there, and prints the memory that the function needs on it."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not query the metadata server of Google Cloud
    import jax
    from jax.experimental import topologies

    device = topologies.get_topology_desc(args.topology, platform="tpu").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    *_, compiled, seconds = _compiled(args, "tpu", sharding=sharding)
    print(f"{args.function} compiles for a {device.device_kind} in {seconds:.0f} s (jax {jax.__version__})")
    _show_memory(compiled)


def _images(args, manifest):
    """Returns (images, labels) to run on; None for random ones."""
    name = IMAGES if args.function in STEPS else ATTACKED
    if not args.images and name not in manifest["files"]:
        return None
    given = _arrays(args.images or os.path.join(args.folder, name), "images (uint8) and labels", "image", "label")
    return given["image"], given["label"]


def batches_in_order(images, labels, batch_size):
    """Yields (images, labels, False) of all images, in their order. The first images fill up the last batch."""
    for at in range(0, len(images), batch_size):
        chosen = np.arange(at, at + batch_size) % len(images)
        yield images[chosen], labels[chosen].astype(np.int32), False


def _batches(args, manifest, found, shape):
    """Returns an iterator of (images, labels, whether an epoch ends here), see `batches`.

    Args:
        found: see `_images`.
        shape: the shape of a batch of images.
    """
    if found is None:
        return itertools.repeat(_random_batch(args.order, shape, manifest["classes"]), args.train_steps or 50)
    images, labels = found
    is_step = args.function in STEPS
    if images.shape[1:] != tuple(shape[1:]) or images.dtype != np.uint8 or (is_step and len(images) < shape[0]):
        raise ValueError(
            f"The function takes batches of uint8 images {shape}. Received: {images.dtype} {images.shape}."
        )
    if not is_step:
        return itertools.islice(batches_in_order(images, labels, shape[0]), args.train_steps)
    epochs = manifest["settings"]["epochs"] if args.epochs is None else args.epochs
    steps = min(len(images) // shape[0] * epochs, args.train_steps or sys.maxsize)
    if steps > manifest["training_steps"]:
        raise ValueError(
            f"The schedule of the learning rate ends after {manifest['training_steps']} steps: lower it for more "
            f"--epochs. Received: {steps} steps."
        )
    return itertools.islice(batches(images, labels, shape[0], epochs, args.order), steps)


def _random_batch(seed, shape, classes):
    """Returns random images and labels that stay on the device, and False, as in `batches`."""
    import jax

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape[0]).astype(np.int32)
    return *jax.device_put((rng.integers(0, 256, shape, np.uint8), labels)), False


def _inputs(manifest, batches, records):
    """Yields the inputs of each step, and whether an epoch ends with it.

    Args:
        batches: see `_batches`.
        records: {name of an input: what the manifest says of it}.
    """
    for number, (images, labels, is_last) in enumerate(batches):
        given = {"images": images, "labels": labels, "seed": np.array([manifest["seed"], number], np.int32)}
        yield {name: given[name] for name in records}, is_last


def _loop(function, state, fixed, steps, keeps_arrays):
    """Runs all steps.

    Args:
        function: the compiled function.
        state, fixed: see `program`; on the device.
        steps: see `_inputs`.
        keeps_arrays: whether to keep the outputs that are no numbers.

    Returns:
        The state, the list of the steps' outputs, and a list of seconds: of a step, in each group of GROUP steps.
    """
    import jax

    outputs, times, epoch = [], [], 0
    begin = time.perf_counter()
    for number, (inputs, is_last) in enumerate(steps, 1):
        state, found = function(state, fixed, inputs)
        outputs.append({name: value for name, value in found.items() if keeps_arrays or not value.ndim})
        if number % GROUP == 0:
            jax.block_until_ready((state, found))
            now = time.perf_counter()
            times.append((now - begin) / GROUP)
            begin = now
        if is_last:
            epoch += 1
            _show({f"epoch {epoch}": _means(outputs[-(number // epoch) :]) or "done"})
    outputs = jax.device_get(outputs)
    times = times or [(time.perf_counter() - begin) / len(outputs)]
    return state, outputs, times[1:] or times  # the first steps load the program


def _means(outputs):
    """Returns the means of numbers over steps, as text."""
    names = [name for name, value in outputs[0].items() if not value.ndim]
    return ", ".join(f"{name} {np.mean([float(one[name]) for one in outputs]):.4f}" for name in names)


def _title(function, manifest):
    """Returns what was lowered, as text."""
    settings = manifest["settings"]
    title = STEPS.get(function, function).format(objective=f"PGD-{settings['steps']}")
    shape = " x ".join(map(str, manifest["functions"][function]["arguments"][0]["shape"]))
    attack = settings["attack_precision"] if function == "step" else None
    precision = settings["precision"] + (f" (attack: {attack})" if attack else "")
    return f"{title}, {settings['model']} ({settings['activation']}), {precision}, {shape}"


def _check_run(args, manifest, images):
    """Raises ValueError before anything is compiled, if a run would measure or write something else than one expects.

    Args:
        images: see `_images`.
    """
    _check_name(args.folder, manifest, args.function)
    if args.function not in STEPS:
        if images is None and not manifest["all_steps"]:
            raise ValueError(
                f"There are no images to attack. On random ones {args.function} ends at once: they are misclassified. "
                "Expected: --images, or a folder that was lowered with --test_split (for timings of PGD: --all_steps)."
            )
        if args.output and manifest["all_steps"]:
            raise ValueError(f"{args.folder} {WEAKER}")
        if images and not args.values:
            raise ValueError("An attack needs a trained network. Expected: --values, what `run --output` wrote.")
    elif args.values:
        raise ValueError("--values is for attacks. A training begins with the initial values.")
    elif images is None and args.output:
        raise ValueError(
            "A training on random images is for timings. Expected: --images, a folder that was lowered with "
            "--with_images, or no --output."
        )
    for path in filter(None, (args.output, args.report)):
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise ValueError(f"The folder of {path} does not exist: make it first.")


def _run(args):
    """Runs a lowered function on the first device, prints time and memory, and writes what --output names."""
    manifest = _manifest(args.folder)
    found = _images(args, manifest)
    _check_run(args, manifest, found)
    import jax

    taken = _batches(args, manifest, found, manifest["functions"][args.function]["arguments"][0]["shape"])
    if args.values:
        values = _values(args.values, manifest, len(manifest["variables"]))
    else:
        values = initial_values(args.folder, manifest)
    device = jax.devices()[0]
    _show({"device": f"{device.device_kind} ({device.platform}), jax {jax.__version__}"})
    _, records, compiled, seconds = _compiled(args, jax.export.default_export_platform())
    _show({"function": _title(args.function, manifest), "compiled in": f"{seconds:.1f} s"})
    state, fixed = jax.device_put(_split(manifest, args.function, dict(enumerate(values))), device)
    is_attack = args.function not in STEPS
    steps = _inputs(manifest, taken, records)
    state, outputs, times = _loop(compiled, state, fixed, steps, is_attack and bool(args.output))
    if args.output:  # first: a device may fail to report its memory
        if is_attack:
            arrays = {name: np.concatenate([one[name] for one in outputs])[: len(found[0])] for name in outputs[0]}
            arrays |= {"attack": args.function, "epsilon": manifest["functions"][args.function]["epsilon"]}
        else:
            arrays = {str(place): np.asarray(value) for place, value in (dict(enumerate(values)) | state).items()}
            arrays |= {"network": _network(manifest), "steps": len(outputs)}
        _write_arrays(args.output, arrays)
    step, images = statistics.median(times), records["images"]["shape"][0] / statistics.median(times)
    _show({"step": f"{1000 * step:.2f} ms ({1000 * min(times):.2f}..{1000 * max(times):.2f})"})
    _show({"images/s": f"{images:.1f}"})
    _show_memory(compiled)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")  # a CPU has none
    if peak:
        _show({"peak of the device": f"{peak / 2**20:10.1f} MiB"})
    if args.report:
        numbers = [{name: float(value) for name, value in one.items() if not value.ndim} for one in outputs]
        report = {"device": device.device_kind, "jax": jax.__version__, "function": args.function}
        report |= {
            "title": _title(args.function, manifest),
            "step_s": step,
            "images_per_s": images,
            "compile_s": seconds,
        }
        report |= {"memory_mib": _memory(compiled), "peak_bytes": peak, "steps": numbers}
        _write_json(args.report, report)


def _write_json(path, value):
    """Writes a JSON file."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
    os.replace(f"{path}.part", path)


def _write_arrays(path, arrays):
    """Writes an .npz file."""
    with open(f"{path}.part", "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(f"{path}.part", path)
    print(f"Written to {path}.")


def _positive(text):
    """Returns an integer >= 1. Raises ArgumentTypeError for another text."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"an integer >= 1 was expected. Received: {text!r}")
    return int(text)


FLAGS = {
    "model": str,
    "form": str,
    "activation": str,
    "dataset": str,
    "data_dir": str,
    "train_split": str,
    "image_size": int,
    "channels": int,
    "epsilon": float,
    "steps": int,
    "step_size": float,
    "clean_start": float,
    "epochs": int,
    "batch_size": int,
    "optimizer": str,
    "learning_rate": float,
    "warmup_epochs": float,
    "weight_decay": float,
    "label_smoothing": float,
    "precision": str,
    "attack_precision": str,
    "seed": int,
}  # of `keras-sat train`, with the same defaults


def parser():
    """Returns the parser of the command line."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True)
    made = {}
    called = {"lower": _lower, "run": _run, "compile": _compile, "judge": _judge, "weights": _weights}
    for name, function in called.items():
        made[name] = commands.add_parser(name, description=function.__doc__)
        made[name].set_defaults(function_of_command=function)
        made[name].add_argument("folder", help="the folder that `lower` writes")
    for name, kind in FLAGS.items():
        made["lower"].add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help="see `keras-sat train -h`")
    lowering = made["lower"].add_argument
    attack = "attacks, as of `keras-sat evaluate`; pgd-50@8 is one with epsilon 8 (default: pgd-10)"
    lowering("--attack", default="pgd-10", help=attack)
    lowering("--attack_batch_size", type=_positive, help="images of a batch of an attack; default: the batch size")
    lowering("--all_steps", action="store_true", help="PGD does not end when all images are misclassified: for timings")
    lowering("--test_split", default="", help=f"also write the images of this split, which are attacked, {ATTACKED}")
    lowering("--classes", type=int, help="number of classes of the network; default: the dataset's")
    lowering("--with_images", action="store_true", help=f"also write the images of the training split, {IMAGES}")
    lowering("--without_weights", action="store_true", help="write no initial values: `run` draws some, for timings")
    for name in ("run", "compile"):
        made[name].add_argument("--function", default="step", help="step (default), plain, or the name of an attack")
    made["compile"].add_argument("--topology", default="v5e:2x2", help="default: v5e:2x2")
    running = made["run"].add_argument
    running("--images", help="an .npz file of image (uint8) and label; default: that of the folder, or random images")
    running("--values", help="of an attack: the .npz file of a training's `run --output`, the network to attack")
    running("--train_steps", type=_positive, help="batches to run; default: all, or 50 with random images")
    running("--epochs", type=_positive, help="epochs over the images; default: those that it was lowered for")
    running("--order", type=int, default=0, help="seed of the order of the images (default: 0)")
    running("--output", help="an .npz file to write: the trained variables; of an attack, the adversarial images")
    running("--report", help="a JSON file to write: times, memory, and loss and metrics of each step")
    judging = made["judge"].add_argument
    judging("adversarial", help="the .npz file that an attack's `run --output` wrote")
    judging("--values", required=True, help="the .npz file that a training's `run --output` wrote")
    judging("--images", help=f"the .npz file of image and label that was attacked; default: {ATTACKED} of the folder")
    judging("--report", help="a JSON file to write: which images are classified correctly, and which are robust")
    made["weights"].add_argument("trained", help="the .npz file that `run --output` wrote")
    made["weights"].add_argument("output", help="the .weights.h5 file to write, or the folder of a run")
    return whole


def main():
    args = parser().parse_args()
    try:
        args.function_of_command(args)
    except ImportError as error:
        sys.exit(
            f"{os.path.basename(__file__)}: {error}. run and compile need jax; lower, judge and weights keras_sat."
        )
    except (ValueError, OSError, argparse.ArgumentTypeError) as error:
        sys.exit(f"{os.path.basename(__file__)}: {error}")


if __name__ == "__main__":
    main()
