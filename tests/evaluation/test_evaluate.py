import contextlib
import json
import re
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sat
from keras_sat.attacks import APGD, FGSM, PGD, AutoAttack, L2Ball, LinfBall, Transfer
from keras_sat.evaluation import Corruption, audit, evaluate, from_json, merge, sweep
from keras_sat.losses import cross_entropy
from keras_sat.training import distribution


def data(model, images, wrong=2):
    labels = np.argmax(model(images), -1)
    labels[:wrong] = (labels[:wrong] + 1) % 4
    return images, labels


def test_counts_are_what_one_counts_by_hand(tiny_model, images):
    model = tiny_model()
    images, labels = data(model, images)
    attack = FGSM(LinfBall(6))
    report = evaluate(model, (images, labels), attack, batch_size=3, progress=False)
    adversarial = attack(model, images, labels)
    by_hand = (np.argmax(model(images), -1) == labels) & (np.argmax(model(adversarial), -1) == labels)
    assert (report["clean"].n, report["clean"].correct) == (8, 6)
    assert (report["PGD-1"].n, report["PGD-1"].correct) == (8, by_hand.sum())
    assert 0 < by_hand.sum() < 6


def test_several_attacks_and_all_that_is_needed_to_repeat_them(tiny_model, images, capsys):
    model = tiny_model()
    attacks = {"strong": PGD(LinfBall(60), steps=10), "L2": PGD(L2Ball(5), steps=2), "none": PGD(LinfBall(0), steps=1)}
    report = evaluate(model, data(model, images), attacks, seed=3, batch_size=4)
    assert [result.name for result in report.results] == ["clean", "strong", "L2", "none"]
    assert report["none"].correct == report["clean"].correct == 6
    assert report["strong"].correct < 6
    assert report["strong"].settings["step_size"] == 6
    assert report["L2"].settings["norm"] == "l2"
    assert report.context["seed"] == 3
    assert report.context["versions"]["tensorflow"] == tf.__version__
    assert report.context["versions"]["keras_sat"] == keras_sat.__version__
    assert report["strong"].seconds > 0
    assert "strong" in capsys.readouterr().out  # the progress bar


@pytest.mark.filterwarnings("ignore:1 x step_size")
def test_same_seed_same_figures(tiny_model):
    model = tiny_model()
    images = np.random.default_rng(5).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    attack = PGD(LinfBall(3), steps=1, step_size=1e-6)  # noise alone decides
    counts = [
        evaluate(model, data(model, images), attack, seed=s, progress=False)["PGD-1"].correct for s in (0, 0, 1, 2)
    ]
    assert counts[0] == counts[1]
    assert len(set(counts)) > 1


def test_datasets_functions_and_models_with_nothing_right(tiny_model, images):
    model = tiny_model()
    dataset = tf.data.Dataset.from_tensor_slices(data(model, images, wrong=8)).batch(3)
    report = evaluate(lambda x: model(x), dataset, [FGSM(LinfBall(4))], progress=False)
    assert (report["clean"].correct, report["PGD-1"].correct, report["PGD-1"].n) == (0, 0, 8)


def test_one_hot_labels_and_sample_weights(tiny_model, images):
    model = tiny_model()
    x, y = data(model, images)
    attack = FGSM(LinfBall(6))
    plain = evaluate(model, (x, y), attack, progress=False)
    one_hot = evaluate(model, (x, np.eye(4)[y], np.ones(8)), attack, progress=False)
    assert [result.correct for result in plain.results] == [result.correct for result in one_hot.results]


def test_refusals(tiny_model, images):
    model = tiny_model()
    attack = PGD(LinfBall(4), steps=1)
    with pytest.raises(ValueError, match="pass a dict"):
        evaluate(model, data(model, images), [attack, PGD(LinfBall(8), steps=1)], progress=False)
    with pytest.raises(ValueError, match="no images"):
        evaluate(model, (images[:0], np.zeros(0, int)), attack, progress=False)
    with pytest.raises(ValueError, match="configuration.*Received: 'autoattack'"):
        evaluate(model, data(model, images), "autoattack", progress=False)
    with pytest.raises(ValueError, match='"clean"'):
        evaluate(model, data(model, images), {"clean": attack}, progress=False)
    with pytest.raises(ValueError, match="targets= is for targeted attacks"):
        evaluate(model, data(model, images), attack, targets=np.zeros(8, int), progress=False)
    with pytest.raises(ValueError, match=r"epsilons must be a list of numbers, such as \[4, 8\]. Received: 8"):
        sweep(model, data(model, images), attack, 8, progress=False)
    with pytest.raises(ValueError, match="ball must be a LinfBall"):
        audit(model, data(model, images), attack, progress=False)
    with pytest.raises(ValueError, match="softmax hides the gradient"):
        evaluate(lambda x: tf.nn.softmax(model(x)), data(model, images), attack, progress=False)


def test_datasets_that_are_none(tiny_model, images):
    model = tiny_model()
    x, y = data(model, images)
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).repeat()
    for dataset, message in (
        (endless, "never ends"),
        ([(x, np.array(["cat"] * 8))], "turn names to numbers"),
        ((x, np.ones((8, 4))), "Images with several labels"),
        ((x, np.eye(5)[y]), "must have 4 columns"),
        ((np.moveaxis(x, -1, 1), y), r"takes images of shape \(None, 8, 8, 3\).*Received: \(8, 3, 8, 8\)"),
        (iter([(x, y)]), "only once"),
    ):
        for call in (evaluate, lambda *args, **options: sweep(*args, [1], **options)):
            with pytest.raises(ValueError, match=message):
                call(model, dataset, PGD(LinfBall(4), steps=1), progress=False)
    report = evaluate(model, [(x[:5], y[:5]), (x[5:], y[5:])], PGD(LinfBall(4), steps=1), progress=False)
    assert (report["clean"].n, report["clean"].correct) == (8, 6)


@pytest.mark.parametrize("name", ["normalization", "derived", "own convolution", "forgetful", "random", "lora"])
def test_networks_of_others_are_attacked_as_they_are(name, foreign_model):
    """The results with a folded copy are the same as for a function, which has no copy."""
    model = foreign_model(name)
    x = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)
    y = np.argmax(model(x), -1)
    attack = PGD(LinfBall(4), steps=4, random_start=False)
    expected = evaluate(lambda x: model(x), (x, y), attack, progress=False)
    options = {"progress": False, "attack_precision": "mixed_bfloat16" if name != "random" else None}
    differs = {"forgetful", "random"} & {name}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = evaluate(model, (x, y), attack, **options)
        again = evaluate(model, (x, y), attack, progress=False)
    said = [str(w.message) for w in caught if "is attacked itself" in str(w.message)]
    assert len(said) == (0 if not differs else 2 if name == "forgetful" else 1)  # with low precision, one for each copy
    if name != "random":
        assert report["PGD-4"].correct <= expected["PGD-4"].correct == again["PGD-4"].correct
        stages = ["PGD-4"] if differs else ["PGD-4, low precision", "PGD-4"]
        assert list(report["PGD-4"].broken_by) == stages


def test_a_network_that_was_adapted_anew_is_judged_as_it_is_now(images):
    """A function traced in an earlier evaluation contains constants that layers computed from their former weights."""
    layer = keras.layers.Normalization()
    layer.adapt(images.astype(np.float32))
    model = keras.Sequential([keras.Input((8, 8, 3)), layer, keras.layers.Flatten(), keras.layers.Dense(4)])
    for _ in range(2):
        labels = np.argmax(model(images), -1)
        report = evaluate(model, (images, labels), PGD(LinfBall(1), steps=1, random_start=False), progress=False)
        assert report["clean"].correct == 8
        adversarial = PGD(LinfBall(1), steps=1, random_start=False)(lambda x: model(x), images, labels)
        assert report["PGD-1"].correct == np.sum(np.argmax(model(adversarial), -1) == labels)
        layer.adapt(images[:2].astype(np.float32) ** 1.3)


def test_what_is_not_finite_is_not_robust(tiny_model, images):
    model = tiny_model()
    x, y = images, np.argmax(model(images), -1)
    nothing = keras.Sequential([model, keras.layers.Lambda(lambda z: z * float("nan"))])
    nothing.build((None, 8, 8, 3))
    attacks = [PGD(LinfBall(4), steps=2), AutoAttack(LinfBall(4), steps=2, queries=3)]
    report = evaluate(nothing, (x, 0 * y), attacks, progress=False)  # argmax of NaN is 0
    assert [row.correct for row in report.results] == [0, 0, 0]
    assert [row.not_finite for row in report.results] == [8, 8, 8]
    assert "Warning: clean: for 8 of 8 images a logit is NaN or infinite" in report.table()
    json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    def cracked(images):
        levels = tf.reduce_all(images == tf.round(images), axis=(1, 2, 3))
        return tf.where(levels[:, None], model(images), float("nan"))

    report = evaluate(cracked, (x, y), attacks, progress=False)
    assert [row.correct for row in report.results] == [8, 0, 0]
    assert [row.not_finite for row in report.results] == [0, 8, 8]
    assert report.examples["attacks"]["PGD-2"]["margin"] == [None] * 8


def test_targeted_attacks_take_targets_by_name(tiny_model, images, tmp_path):
    model = tiny_model()
    x, y = data(model, images)
    attack = PGD(LinfBall(60), steps=20, targeted=True, keep="first")
    for call in (evaluate, lambda *args, **options: sweep(*args, [1], **options)):
        with pytest.raises(ValueError, match=r"PGD-20 is targeted.*evaluate\(..., targets=...\)"):
            call(model, (x, y), attack, progress=False)
    targets = (y + 1) % 4
    report = evaluate(model, (x, y), [attack], targets=targets, batch_size=3, progress=False)
    right = np.argmax(model(x), -1) == y
    adversarial = attack(model, x[right], targets[right])
    reached = np.argmax(model(adversarial), -1) == targets[right]
    assert report["PGD-20"].reached == reached.sum() > 0
    assert f"PGD-20: {reached.sum()} of 8 images reached their target class." in report.table()
    report.to_json(tmp_path / "report.json")
    assert from_json(tmp_path / "report.json")["PGD-20"].reached == reached.sum()
    for wrong, message in (
        (y, "target of image 0 is its label"),
        (targets[:5], "Received 5"),
        (targets + 4, "in 0..3"),
    ):
        with pytest.raises(ValueError, match=f"targets must .*{message}"):
            evaluate(model, (x, y), attack, targets=wrong, progress=False)


def many(model, n=60):
    images = np.random.default_rng(7).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    labels = np.argmax(model(images), -1)
    labels[::10] = (labels[::10] + 1) % 4
    return images, labels


ATTACKS = {"ensemble": AutoAttack(LinfBall(4), steps=4, queries=20), "PGD": PGD(LinfBall(3), steps=4, keep="first")}
pytestmark = pytest.mark.filterwarnings("ignore:.*target classes")


def by_example(report):
    return {name: row["broken_by"] for name, row in report.examples["attacks"].items()}


@pytest.fixture(scope="module")
def whole():
    """A model, its data, and the report for all data."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(2 / 255, -1.0), keras.layers.Conv2D(8, 3, strides=2)]
    layers += [keras.layers.BatchNormalization(synchronized=True), keras.layers.Activation("silu")]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(4)])
    x, y = many(model)
    return model, (x, y), evaluate(model, (x, y), ATTACKS, seed=3, batch_size=16, progress=False)


def test_each_example_is_accounted_for(whole):
    model, (_, labels), report = whole
    examples = report.examples
    assert examples["index"] == list(range(60))
    assert examples["label"] == labels.tolist()
    assert sum(examples["clean"]) == report["clean"].correct == 54
    row = examples["attacks"]["ensemble"]
    stages = ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert report["ensemble"].broken_by == {stage: row["broken_by"].count(stage) for stage in stages}
    assert row["broken_by"].count("clean") == 6
    assert row["broken_by"].count("") == report["ensemble"].correct
    assert 0 < report["ensemble"].correct < 54
    for broken_by, margin, clean_margin in zip(row["broken_by"], row["margin"], examples["margin"]):
        assert (margin > 0) == (broken_by != "")
        assert margin >= clean_margin
    for index, image, adversarial, predicted in report.pictures["ensemble"]:
        assert row["broken_by"][index] in stages
        assert np.abs(adversarial - image).max() <= 4 + 1e-5
        assert np.argmax(model(adversarial[None])) == predicted != labels[index]


def test_the_batch_size_changes_nothing(whole):
    model, data, report = whole
    other = evaluate(model, data, ATTACKS, seed=3, batch_size=60, progress=False)
    assert by_example(other) == by_example(report)


def test_with_static_shapes_attacks_see_one_size_of_batch(whole):
    model, data, _ = whole  # 54 of the 60 are classified correctly
    sizes = {True: [], False: []}

    class Watched(PGD):
        def __call__(self, logits_fn, images, *more, static_shapes):
            sizes[static_shapes].append(len(images))
            return super().__call__(logits_fn, images, *more, static_shapes=static_shapes)

    reports = {}
    for static_shapes in sizes:
        attack = Watched(LinfBall(3), steps=3, keep="first")
        options = {"batch_size": 24, "progress": False, "static_shapes": static_shapes}
        reports[static_shapes] = evaluate(model, data, {"it": attack}, **options)
        sweep(model, data, attack, [3], **options)
    assert sizes == {True: [24] * 6, False: [24, 24, 6] * 2}
    assert by_example(reports[True]) == by_example(reports[False])


def test_shards_that_differ_in_static_shapes_alone_merge(whole, tmp_path):
    model, data, report = whole
    options = {"seed": 3, "batch_size": 16, "progress": False}
    parts = [
        evaluate(model, data, ATTACKS, **options, shard=(k, 2), static_shapes=bool(k), state=tmp_path / f"{k}.npz")
        for k in range(2)
    ]
    assert by_example(merge(parts)) == by_example(report)
    again = evaluate(model, data, ATTACKS, **options, shard=(1, 2), state=tmp_path / "1.npz")  # of the same state
    assert by_example(again) == by_example(parts[1])


def test_the_context_of_the_caller_is_in_the_report(whole, tmp_path):
    model, data, _ = whole
    context = {"dataset": "noise", "split": "test[:60]"}
    attack = PGD(LinfBall(3), steps=1)
    for report in (
        evaluate(model, data, attack, context=context, progress=False),
        sweep(model, data, attack, [1], context=context, progress=False),
    ):
        assert context.items() <= report.context.items()
        assert report.context["seed"] == 0
        report.to_json(tmp_path / "report.json")
        assert from_json(tmp_path / "report.json").context == report.context
    for wrong, message in (
        ({"weights_sha256": "0"}, "must not contain 'weights_sha256'"),
        ({"step_size": 1, "seed": 2}, "must not contain 'seed', 'step_size'"),
        ({"model": model}, "must not contain 'model'"),
        ({"dataset": tf.data.Dataset}, "plain values"),
        ("test", "context must be a dict"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(model, data, attack, context=wrong, progress=False)


def test_shards_merge_to_the_whole(whole, tmp_path):
    model, data, report = whole
    for k in range(3):
        part = evaluate(model, data, ATTACKS, seed=3, batch_size=16, progress=False, shard=(k, 3))
        assert part["clean"].n == 20
        part.to_json(tmp_path / f"{k}.json")
    parts = [from_json(tmp_path / f"{k}.json") for k in range(3)]
    merged = merge(parts)
    assert by_example(merged) == by_example(report)
    assert [(row.n, row.correct) for row in merged.results] == [(row.n, row.correct) for row in report.results]
    with pytest.raises(ValueError, match="share examples"):
        merge([parts[0], parts[0]])
    with pytest.raises(ValueError, match="Image 1 is in none of the reports: the reports of all shards"):
        merge(parts[:1])
    other = evaluate(model, data, ATTACKS["PGD"], seed=4, progress=False)
    with pytest.raises(ValueError, match="differ in their attacks"):
        merge([parts[0], other])


def test_replicas_share_the_batches(whole):
    model, data, report = whole
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        mirrored = keras.models.clone_model(model)
        mirrored.set_weights(model.get_weights())
        shared = evaluate(mirrored, data, ATTACKS, seed=3, batch_size=17, progress=False)
    assert strategy.num_replicas_in_sync == 2
    assert by_example(shared) == by_example(report)


# TensorFlow is imported once, and starts only in the children.
KILLED = """
import json, os, signal, sys, time
import keras
import numpy as np
from keras_sat.attacks import PGD, LinfBall
from keras_sat.evaluation import evaluate


def child(state, report):
    pid = os.fork()
    if pid:
        return pid
    try:
        keras.utils.set_random_seed(0)
        layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(2 / 255, -1.0), keras.layers.Conv2D(8, 3)]
        model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(4)])
        x = np.random.default_rng(7).integers(0, 256, (120, 8, 8, 3)).astype(np.uint8)
        y = np.argmax(model(x), -1)
        long = {"steps": 40, "keep": "first"}
        attacks = {"a": PGD(LinfBall(3), restarts=3, **long), "b": PGD(LinfBall(2), **long)}
        evaluate(model, (x, y), attacks, seed=1, batch_size=4, progress=False, state=state).to_json(report)
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def changed(path):
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0


state, report, undisturbed = sys.argv[1:]
assert os.waitpid(child(None, undisturbed), 0)[1] == 0
for _ in range(2):
    written, pid = changed(state), child(state, report)
    while changed(state) == written:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.005)
    time.sleep(0.15)
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "it ended before it was killed"
    with np.load(state) as arrays:  # never half a file
        rows = json.loads(str(arrays["meta"]))["rows"]
        print(json.dumps([len(rows), *(row["done"] for row in rows.values())]))
assert not os.path.exists(report)
assert os.waitpid(child(state, report), 0)[1] == 0
"""


def test_goes_on_from_its_state_after_a_kill(tmp_path):
    """A process is killed twice during its work; the last one runs to the end."""
    paths = [tmp_path / name for name in ("state.npz", "report.json", "undisturbed.json")]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, paths)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first < second
    assert by_example(from_json(paths[1])) == by_example(from_json(paths[2]))


def test_the_state_of_another_evaluation_is_refused(whole, tmp_path):
    model, data, _ = whole
    path = str(tmp_path / "state.npz")
    attack = PGD(LinfBall(3), steps=1)
    evaluate(model, data, attack, state=path, progress=False)
    with pytest.raises(ValueError, match="state of another evaluation"):
        evaluate(model, data, attack, state=path, seed=1, progress=False)
    trained = keras.models.clone_model(model)  # the same network with other weights
    with pytest.raises(ValueError, match="state of another evaluation"):
        evaluate(trained, data, attack, state=path, progress=False)
    (tmp_path / "state.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="is not the state of an evaluation"):
        evaluate(model, data, attack, state=path, progress=False)


def test_the_state_of_other_images_or_labels_is_refused(tiny_model, images, tmp_path):
    model, path, attack = tiny_model(), tmp_path / "state.npz", PGD(LinfBall(3), steps=1)
    x, y = data(model, images)
    report = evaluate(model, (x, y), attack, state=path, progress=False)
    changed = x.copy()
    changed[5, 0, 0, 0] ^= 1
    for other in (
        (x[::-1], y[::-1]),
        (x, (y + 1) % 4),
        (x[:4], y[:4]),
        (changed, y),
        (x[[*range(8), 0]], y[[*range(8), 0]]),
    ):
        with pytest.raises(ValueError, match="state of an evaluation on other images or labels: remove it"):
            evaluate(model, other, attack, state=path, progress=False)
    again = evaluate(model, tf.data.Dataset.from_tensor_slices((x, y)).batch(3), attack, state=path, progress=False)
    assert by_example(again) == by_example(report)


def test_images_in_another_range_than_the_ball_are_refused(tiny_model, images):
    model = tiny_model()
    unit, labels = lambda x: model(255 * x), np.argmax(model(images), -1)
    pgd, scaled = PGD(LinfBall(8), steps=1), images / np.float32(255)
    for measure in (
        lambda: evaluate(unit, (scaled, labels), pgd, progress=False),
        lambda: sweep(unit, (scaled, labels), pgd, [4, 8], progress=False),
        lambda: audit(unit, (scaled, labels), LinfBall(8), progress=False),
    ):
        with pytest.raises(ValueError, match=r"images reach from 0 to 1, the bounds of the attack are \(0.0, 255.0\)"):
            measure()


def test_labels_that_cannot_be_right_are_warned_of(tiny_model, images):
    model = tiny_model()
    labels = np.argmax(model(images), -1)
    attack = PGD(LinfBall(1), steps=1)
    table = evaluate(model, (images, (labels + 1) % 4), attack, progress=False).table()
    assert "Warning: no image is classified correctly, so none was attacked. Check the labels" in table
    assert "No sign" not in table

    def constant(x):
        return 5 * tf.one_hot(tf.fill(tf.shape(x)[:1], 2), 4) + 0 * model(x)

    table = evaluate(constant, (images, [2, 2, 0, 1, 2, 3, 0, 1]), attack, progress=False).table()
    assert "Warning: all images of class 2 are classified correctly, and no others" in table


def test_a_row_says_that_its_steps_were_too_short(tiny_model, images):
    model = tiny_model()
    attack = PGD(LinfBall(8), steps=2, step_size=3)
    report = evaluate(model, data(model, images), attack, progress=False)
    assert "Warning: PGD-2: 2 x step_size 3 is less than epsilon 8" in report.table()


def test_a_dataset_that_shuffles_is_refused(whole):
    model, data, _ = whole
    shuffled = tf.data.Dataset.from_tensor_slices(data).shuffle(60, reshuffle_each_iteration=True).batch(8)
    with pytest.raises(ValueError, match="must not shuffle"):
        evaluate(model, shuffled, PGD(LinfBall(3), steps=1), progress=False)


def test_sweep_is_a_curve_that_never_rises(whole):
    model, data, _ = whole
    attack = PGD(LinfBall(1), steps=8, keep="first")
    report = sweep(model, data, attack, [6, 1, 3, 0], batch_size=16, progress=False)
    names = [row.name for row in report.results]
    assert names == ["clean", "epsilon 0", "epsilon 1", "epsilon 3", "epsilon 6"]
    accuracies = [row.accuracy for row in report.results]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == accuracies[1] > accuracies[-1]
    broken = np.array([[stage != "" for stage in row["broken_by"]] for row in report.examples["attacks"].values()])
    assert np.all(broken[:-1] <= broken[1:])  # what a smaller epsilon breaks, a larger one does
    alone = evaluate(model, data, PGD(LinfBall(6), steps=8, keep="first"), batch_size=16, progress=False)
    assert report["epsilon 6"].correct <= alone["PGD-8"].correct + 1  # from where the smaller one ended: no weaker
    with pytest.raises(ValueError, match="at least one"):
        sweep(model, data, attack, [], progress=False)
    with pytest.raises(ValueError, match="with a ball"):
        sweep(model, data, Corruption("contrast"), [1], progress=False)


@pytest.mark.parametrize("ball", [LinfBall(1), L2Ball(10)], ids=["linf", "l2"])
def test_in_a_sweep_fgsm_steps_as_far_as_each_epsilon(ball, whole):
    model, data, _ = whole
    radii = [ball.radius * factor for factor in (1, 3, 8)]
    report = sweep(model, data, FGSM(ball), radii, progress=False)
    alone = [evaluate(model, data, FGSM(ball.with_radius(radius)), progress=False).results[1] for radius in radii]
    assert [row.settings["step_size"] for row in report.results[1:]] == radii
    broken = np.zeros(60, bool)
    for row, one in zip(report.results[1:], alone):
        other = evaluate(model, data, FGSM(ball.with_radius(one.settings["epsilon"])), progress=False)
        broken |= [stage != "" for stage in other.examples["attacks"]["PGD-1"]["broken_by"]]
        assert row.correct == np.sum(~broken)  # broken at this epsilon, or at a smaller one
    explicit = sweep(model, data, PGD(ball, steps=2, step_size=ball.radius / 4), [0, *radii], progress=False)
    assert [row.settings["step_size"] for row in explicit.results[2:]] == [radius / 4 for radius in radii]
    assert explicit.context["step_size"] == "0.25 x epsilon"
    by_rule = sweep(model, data, PGD(ball, steps=1), radii, progress=False)
    assert "step_size" not in by_rule.context  # nobody gave one
    with pytest.raises(ValueError, match="cannot be scaled with epsilon from an epsilon of 0"):
        sweep(model, data, PGD(LinfBall(0), step_size=1), [1], progress=False)


def test_epsilon_and_bounds_of_each_channel(whole, tmp_path):
    model, (x, y), _ = whole
    mean, deviation = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
    standardised = ((x / 255 - mean) / deviation).astype(np.float32)
    scale = keras.layers.Normalization(mean=-mean / deviation, variance=1 / (255 * deviation) ** 2)
    network = keras.Sequential([keras.Input((8, 8, 3)), scale, model])
    ball = LinfBall(3 / 255 / deviation, bounds=(-mean / deviation, (1 - mean) / deviation))
    standardised_report, expected = (
        evaluate(m, images, PGD(b, steps=4, random_start=False), progress=False)
        for m, images, b in ((network, (standardised, y), ball), (model, (x, y), LinfBall(3)))
    )
    assert by_example(standardised_report) == by_example(expected)
    assert "0.0588235/0.0392157/0.0470588" in standardised_report.table()
    standardised_report.to_json(tmp_path / "report.json")
    assert from_json(tmp_path / "report.json").table() == standardised_report.table()
    curve = sweep(network, (standardised, y), PGD(ball, steps=4), [ball.radius, ball.radius / 2], progress=False)
    assert curve.results[1].settings["epsilon"] == pytest.approx([e / 2 for e in ball.epsilon])


def test_one_logit_for_two_classes(whole):
    model, (x, _), _ = whole
    one = keras.Sequential([model, keras.layers.Dense(1)])
    one.build((None, 8, 8, 3))
    labels = (np.array(one(x))[:, 0] > 0).astype(int)
    two = keras.Sequential([one, keras.layers.Lambda(lambda z: keras.ops.concatenate([-z, z], -1))])
    two.build((None, 8, 8, 3))
    attacks = {"PGD": ATTACKS["PGD"], "APGD": APGD(LinfBall(4), steps=4)}
    one_report, expected = (evaluate(m, (x, labels), attacks, progress=False) for m in (one, two))
    assert by_example(one_report) == by_example(expected)
    assert one_report["clean"].accuracy == 1


def test_low_precision_finds_nothing_that_float32_does_not_confirm(whole):
    model, data, _ = whole
    attack = {"PGD": PGD(LinfBall(3), steps=5, keep="first")}
    rows = attack | {"noise": Corruption("gaussian_noise")}
    low = evaluate(model, data, rows, attack_precision="mixed_bfloat16", progress=False)
    assert list(low["noise"].broken_by) == ["gaussian_noise-3"]  # not an attack
    full = evaluate(model, data, attack, progress=False)
    assert list(low["PGD"].broken_by) == ["PGD-5, low precision", "PGD-5"]
    assert low["PGD"].broken_by["PGD-5, low precision"] > 0
    assert low["PGD"].correct <= full["PGD"].correct + 1
    for _, _, adversarial, predicted in low.pictures["PGD"]:
        assert np.argmax(model(adversarial[None])) == predicted


def test_numpys_numbers_are_written_as_json(whole):
    model, data, _ = whole
    attack = PGD(LinfBall(np.float32(3)), steps=np.int64(1))
    assert json.loads(evaluate(model, data, attack, seed=np.int64(1), progress=False).to_json())["context"]["seed"] == 1


def test_progress_tells_the_time_left(whole, capsys):
    model, data, _ = whole
    evaluate(model, data, ATTACKS)
    # A line is written anew at each update, after a carriage return: the last text is what is seen.
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.endswith("compiling the attack first")]
    assert lines[1] == "clean: 60 images, 90.0 % correct"
    still = r"\d+\.\d % of all images still correct"
    assert re.fullmatch(rf"ensemble: APGD-CE: 54 of 54 attacked, {still}(, at most \d+ s left)?", lines[2])
    assert re.fullmatch(rf"PGD: PGD-4: 54 of 54 attacked, {still}", lines[-1])


def test_a_resumed_evaluation_says_where_it_continues(whole, tmp_path, capsys):
    model, data, _ = whole
    is_interrupted = True

    class Interrupted(PGD):
        def perturb(self, *args, **options):
            if is_interrupted:
                raise KeyboardInterrupt
            return super().perturb(*args, **options)

    attacks = {"one": PGD(LinfBall(1), steps=1), "two": Interrupted(LinfBall(2), steps=2)}
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, attacks, state=tmp_path / "state.npz")
    assert "Continuing" not in capsys.readouterr().out
    is_interrupted = False
    evaluate(model, data, attacks, state=tmp_path / "state.npz")
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Continuing an interrupted evaluation of 60 images: clean, one done."
    assert all(line.startswith("two: PGD-2: ") for line in lines[1:])
    assert "54 of 54 attacked" in lines[-1]


class AsTrained(keras.Model):
    """A model that is in training mode unless it is told otherwise."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, images, training=True):
        return self.model(images, training=training)


def test_a_model_is_in_inference_mode_whatever_its_default(tiny_model, images):
    model = tiny_model()
    images, labels = data(model, images)
    attack = PGD(LinfBall(6), steps=2)
    expected = evaluate(model, (images, labels), attack, progress=False)
    found = evaluate(subject := AsTrained(model), (images, labels), attack, progress=False)
    assert [row.correct for row in found.results] == [row.correct for row in expected.results] != [8, 8]
    np.testing.assert_array_equal(attack(subject, images, labels), attack(model, images, labels))
    np.testing.assert_array_equal(model.layers[2].moving_mean, 0)  # of the batch norm


def test_a_function_whose_network_has_changed_is_attacked_as_it_is_now(tiny_model, images):
    network = tiny_model()

    def logits(images):
        return network(images, training=False)

    attack = PGD(LinfBall(6), steps=3)
    evaluate(logits, data(network, images), attack, progress=False)
    network = tiny_model(seed=1)
    subject = data(network, images)
    found = evaluate(logits, subject, attack, progress=False)
    assert found.examples == evaluate(lambda x: network(x), subject, attack, progress=False).examples


def test_a_copy_with_folded_batch_norms_is_of_the_network_as_it_is_now(tiny_model, images):
    model, attack = tiny_model(), PGD(LinfBall(6), steps=3)
    evaluate(model, data(model, images), attack, progress=False)
    model.layers[3].activation = lambda x: tf.sin(3 * x)
    subject = data(model, images)
    found = evaluate(model, subject, attack, progress=False)
    expected = evaluate(lambda x: model(x), subject, attack, progress=False)
    assert [row.correct for row in found.results] == [row.correct for row in expected.results]
    margins = [one.examples["attacks"]["PGD-3"]["margin"] for one in (found, expected)]
    np.testing.assert_allclose(*margins, atol=1e-3)


def test_the_state_of_another_network_or_loss_is_refused(tiny_model, images, tmp_path):
    model, other = tiny_model(), tiny_model("relu")  # of the same weights
    subject, attack = data(model, images), PGD(LinfBall(6), steps=2)
    evaluate(model, subject, attack, state=tmp_path / "keras.npz", progress=False)
    network = model
    evaluate(lambda x: network(x), subject, attack, state=tmp_path / "function.npz", progress=False)
    network = other
    with pytest.raises(ValueError, match="the state of another evaluation"):
        evaluate(other, subject, attack, state=tmp_path / "keras.npz", progress=False)
    with pytest.raises(ValueError, match="the state of another evaluation"):
        evaluate(lambda x: network(x), subject, attack, state=tmp_path / "function.npz", progress=False)
    state = tmp_path / "loss.npz"
    evaluate(model, subject, PGD(LinfBall(6), 2, loss=lambda y, z: cross_entropy(y, z)), state=state, progress=False)
    with pytest.raises(ValueError, match="the state of another evaluation"):
        evaluate(
            model, subject, PGD(LinfBall(6), 2, loss=lambda y, z: -cross_entropy(y, z)), state=state, progress=False
        )


def test_the_state_of_another_surrogate_is_refused(tiny_model, images, tmp_path):
    model = tiny_model()
    for number, seed in enumerate((1, 1, 2)):
        surrogate = tiny_model(seed=seed)
        transfer = Transfer(lambda x, surrogate=surrogate: surrogate(x), PGD(LinfBall(6), steps=2))
        with pytest.raises(ValueError, match="another evaluation") if number == 2 else contextlib.nullcontext():
            evaluate(model, data(model, images), transfer, state=tmp_path / "state.npz", progress=False)


def test_shards_of_two_datasets_or_targets_do_not_merge(tiny_model, images):
    model, attack = tiny_model(), PGD(LinfBall(6), steps=2)
    labels = data(model, images)[1]

    def shard(number, labels=labels, **more):
        return evaluate(model, (images, labels), attack, shard=(number, 2), progress=False, **more)

    assert merge([shard(0), shard(1)])["clean"].n == 8
    with pytest.raises(ValueError, match="differ in their attacks, model, dataset"):
        merge([shard(0), shard(1, (labels + 1) % 4)])
    attack = PGD(LinfBall(6), steps=2, targeted=True)
    with pytest.raises(ValueError, match="differ in their attacks, model, dataset"):
        merge([shard(0, targets=(labels + 1) % 4), shard(1, targets=(labels + 2) % 4)])


def test_images_that_occur_again_are_warned_of(tiny_model, images):
    subject = tf.data.Dataset.from_tensor_slices(data(tiny_model(), images)).batch(4).repeat().take(6)
    with pytest.warns(UserWarning, match="16 of 24 images occur before in the dataset"):
        report = evaluate(tiny_model(), subject, [], progress=False)
    assert report["clean"].n == 24
