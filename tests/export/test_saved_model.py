import json
import os
import pathlib
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from keras_sat import data, deployed, evaluation, models, provenance
from keras_sat.attacks import FGSM, PGD, LinfBall
from keras_sat.export import SIGNATURES, export_litert, export_saved_model, reload, verify
from keras_sat.preprocessing import CROPS, ROBUSTBENCH, Preprocessing
from keras_sat.training import AdversarialModel, Free

LABELS = [f"class {number}" for number in range(10)]
CARD = pathlib.Path("assets", "robustness_card.json")


def resnet(activation="silu", **kwargs):
    keras.utils.set_random_seed(0)
    return models.ResNet8(**{"input_shape": (28, 28, 1), "classes": 10, "activation": activation} | kwargs)


def pixels(number=5, shape=(28, 28, 1)):
    return np.random.default_rng(0).integers(0, 256, (number, *shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return resnet()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "1"
    export_saved_model(model, folder, labels=LABELS)
    return folder


@pytest.fixture(scope="module")
def loaded(saved):
    return tf.saved_model.load(saved)


def test_every_signature_agrees_in_a_process_without_keras(saved, model):
    differences = verify(saved, model)
    assert set(differences) == set(SIGNATURES)
    assert set(differences["serving_bytes"]) == {"logits", "probabilities", "classes"}


def relu_with_smooth_gradient():
    return resnet({"name": "relu", "smooth_backward": "both"})


def function_of_its_own():
    return resnet(lambda x: x * tf.sigmoid(1.5 * x))


def mirrored_and_mixed():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            return resnet("smooth_relu", input_shape=(None, None, 3))
    finally:
        keras.config.set_dtype_policy("float32")


def averaged():
    trainer = AdversarialModel(resnet("gelu"), PGD(LinfBall(4)))
    trainer.compile(
        keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    trainer.fit(pixels(8), np.arange(8), batch_size=4, epochs=2, verbose=0)
    averages = [keras.ops.convert_to_numpy(v) for v in trainer.optimizer._model_variables_moving_average]
    for average, weight in zip(averages, trainer.classifier.trainable_weights):
        np.testing.assert_array_equal(average, keras.ops.convert_to_numpy(weight))
    return trainer


@pytest.mark.parametrize("build", [relu_with_smooth_gradient, function_of_its_own, mirrored_and_mixed, averaged])
def test_becomes_plain_float32(build, tmp_path):
    model = build()
    classifier = getattr(model, "classifier", model)
    export_saved_model(model, tmp_path / "saved", image_size=28, signatures=["serving_uint8"])
    loaded = tf.saved_model.load(tmp_path / "saved")
    assert {variable.dtype for variable in loaded.variables} <= {tf.float32, tf.int64, tf.uint32}
    images = pixels(shape=(28, 28, classifier.inputs[0].shape[-1]))
    plain = models.classifier.in_precision(classifier, "float32")
    for dtype, name in ((np.float32, "serving_default"), (np.uint8, "serving_uint8")):
        logits = loaded.signatures[name](images=tf.constant(images.astype(dtype)))["logits"]
        np.testing.assert_allclose(logits, plain(images), atol=1e-4 * np.ptp(plain(images)))


def test_bfloat16(model, loaded, tmp_path):
    export_saved_model(model, tmp_path / "low", precision="bfloat16")
    assert set(verify(tmp_path / "low", model)) == set(SIGNATURES)
    images = tf.constant(pixels(), tf.float32)
    low, high = (
        each.signatures["serving_default"](images=images)["logits"]
        for each in (tf.saved_model.load(tmp_path / "low"), loaded)
    )
    assert low.dtype == tf.float32
    assert 0 < np.max(np.abs(low - high)) < 0.1 * np.ptp(high)


def test_image_files_of_any_size_and_format(loaded, model):
    wide, grey = pixels(1, (40, 60, 3))[0], pixels(1, (28, 28, 1))[0]
    files = [tf.io.encode_jpeg(wide).numpy(), tf.io.encode_png(grey).numpy(), tf.io.encode_png(wide).numpy()]
    expected = [Preprocessing(28, 28, 1)(tf.constant(file)) for file in files]
    outputs = loaded.signatures["serving_bytes"](image_bytes=tf.constant(files))
    np.testing.assert_allclose(outputs["logits"], model(tf.stack(expected)), atol=1e-5)
    np.testing.assert_array_equal(outputs["classes"], np.argmax(outputs["logits"], -1))


SIZES = {crop: (size, size) for crop, (size, *_) in ROBUSTBENCH.items()}  # the other crops have any size
PREPROCESSINGS = {
    f"{channels}-{crop}": Preprocessing(*SIZES.get(crop, (12, 16)), channels, crop)
    for channels in (1, 3)
    for crop in CROPS
    if channels == 3 or crop not in ROBUSTBENCH
}
RELOAD = f"""
import runpy, sys
main = runpy.run_path({reload.__file__!r})["main"]
for arguments in zip(*[iter(sys.argv[1:])] * 3):
    main(*arguments)
"""


@pytest.fixture(scope="module")
def photos(image_files, tmp_path_factory):
    """A folder of two classes with a picture in every kind of image file, as a source."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (name, file) in enumerate(image_files.items()):
        ending = name.split(" with")[0].split(" of")[0].split()[-1].lower()
        path = folder / "test" / "ab"[number % 2] / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    source = data.source(folder)
    assert len(source.examples("test")) == len(image_files)
    return source


@pytest.fixture(scope="module")
def served(photos, tmp_path_factory):
    """Exports a network for each preprocessing, which returns its pixels as logits.

    Returns {name: (the export, logits of serving_bytes for the photos)}. One process without keras answers for all.
    """
    folder, arguments = tmp_path_factory.mktemp("served"), []
    files = np.array([pathlib.Path(path).read_bytes() for path, _ in photos.examples("test")], object)
    np.savez(folder / "files.npz", **{"serving_bytes/image_bytes": files})
    for name, how in PREPROCESSINGS.items():
        inputs = keras.Input(how.shape)
        network = keras.Model(inputs, keras.layers.Flatten()(inputs))
        export_saved_model(network, folder / name, preprocessing=how, signatures=["serving_bytes"])
        arguments += [folder / name, folder / "files.npz", folder / f"{name}.npz"]
    subprocess.run([sys.executable, "-c", RELOAD, *map(str, arguments)], check=True, capture_output=True)
    return {name: (folder / name, np.load(folder / f"{name}.npz")["serving_bytes/logits"]) for name in PREPROCESSINGS}


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_serving_bytes_makes_the_pixels_of_evaluation(name, photos, served):
    path, logits = served[name]
    assert deployed.preprocessing_of(str(path)) == PREPROCESSINGS[name]
    ((evaluated, _),) = data.load(photos, "test", 99, preprocessing=PREPROCESSINGS[name])
    np.testing.assert_array_equal(logits, tf.reshape(evaluated, (len(evaluated), -1)))


def test_paths_with_brackets_spaces_and_the_home_folder(tiny_model, images, tmp_path, monkeypatch):
    """TensorFlow's loader interprets brackets as a pattern."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model = tiny_model()
    export_saved_model(model, "~/my models [1]/net/")
    assert set(verify("~/my models [1]/net", model)) == set(SIGNATURES)
    loaded = deployed.load(tmp_path / "my models [1]" / "net")
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-5)
    export_litert("~/my models [1]/net", "~/my models [1]/net.tflite", images)
    assert deployed.preprocessing_of(str(tmp_path / "my models [1]" / "net.tflite")) == loaded.preprocessing


def test_a_preprocessing_of_another_shape_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"gives images of \(14, 14, 1\); the network takes \(28, 28, 1\)"):
        export_saved_model(model, tmp_path / "saved", preprocessing=Preprocessing(14, 14, 1))
    assert not (tmp_path / "saved").exists()


def test_damaged_images_are_named(loaded):
    good = tf.io.encode_jpeg(pixels(1, (64, 64, 1))[0]).numpy()
    files = [good, b"no image", good, good[: len(good) // 2], b""]
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"no JPEG, PNG, GIF, BMP or WebP image at index\] \[1 3 4\]"
    ):
        loaded.signatures["serving_bytes"](image_bytes=tf.constant(files))
    assert loaded.signatures["serving_bytes"](image_bytes=tf.constant([good]))["logits"].shape == (1, 10)


def test_a_trainer_of_free_adversarial_training_is_exported_with_what_it_did(tmp_path):
    trainer = AdversarialModel(resnet("silu"), FGSM(LinfBall(4)), objective=Free(replays=2))
    export_saved_model(trainer, tmp_path / "saved", signatures=["serving_default"], warmup=False)
    training = json.loads((tmp_path / "saved" / CARD).read_text())["training"]
    assert training["objective"] == {"objective": "Free", "replays": 2}
    assert training["attack"] == json.loads(json.dumps(FGSM(LinfBall(4)).settings()))
    assert training["attack_batch_norm"] == "batch"


def test_features_and_input_gradients(loaded, model):
    images, labels = tf.constant(pixels(), tf.float32), tf.range(5, dtype=tf.int64)
    features = loaded.signatures["features"](images=images)["features"]
    dense = model.layers[-1]
    np.testing.assert_allclose(features @ dense.kernel.value + dense.bias.value, model(images), atol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images))
    outputs = loaded.signatures["input_gradient"](images=images, labels=labels)
    np.testing.assert_allclose(outputs["loss"], loss, rtol=1e-5)
    gradient = tape.gradient(loss, images)
    np.testing.assert_allclose(outputs["gradient"], gradient, atol=1e-5 * np.abs(gradient).max())


TRAIN_WITHOUT_KERAS = """
import sys
sys.modules.update({"keras": None, "keras_sat": None})
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
images, labels = tf.constant(np.load(sys.argv[2]), tf.float32), tf.constant([0, 1, 2, 3, 4])
before = [variable.numpy() for variable in loaded.variables]
losses = []
for _ in range(12):
    with tf.GradientTape() as tape:
        logits = loaded(images, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    for variable, gradient in zip(loaded.trainable_variables, tape.gradient(loss, loaded.trainable_variables)):
        variable.assign_sub(0.5 * gradient)
    losses.append(float(loss))
assert losses[-1] < 0.5 * losses[0], losses
assert len(loaded.variables) > len(loaded.trainable_variables) > 0
for variable, was in zip(loaded.variables, before):  # the statistics of batch norm too
    assert np.any(variable.numpy() != was)
classes = loaded.signatures["serving_default"](images=images)["classes"]
np.testing.assert_array_equal(classes, np.argmax(loaded(images), -1))
"""


def test_trains_in_a_process_without_keras(saved, tmp_path):
    np.save(tmp_path / "images.npy", pixels())
    command = [sys.executable, "-c", TRAIN_WITHOUT_KERAS, saved, tmp_path / "images.npy"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_assets(saved, model, tmp_path):
    assert (saved / "assets" / "labels.txt").read_text().splitlines() == LABELS
    card = json.loads((saved / CARD).read_text())
    assert card["weights_sha256"] == provenance.weights_sha256(model)
    assert (card["precision"], card["images"]) == ("float32", {"height": 28, "width": 28, "channels": 1})
    report = evaluation.evaluate(model, (pixels(), np.arange(5)), PGD(LinfBall(4), steps=2), progress=False)
    trainer = AdversarialModel(model, PGD(LinfBall(4), steps=3), attack_batch_norm="batch")
    export_saved_model(trainer, tmp_path / "saved", signatures=["features"], report=report, card={"licence": "mine"})
    card = json.loads((tmp_path / "saved" / CARD).read_text())
    assert card["training"]["attack"]["steps"] == 3
    assert (card["training"]["attack_batch_norm"], card["licence"]) == ("batch", "mine")
    assert card["training"]["objective"] == {"objective": "AdversarialTraining"}
    clean, attacked = card["measured"]["accuracy"]
    assert (clean["name"], clean["n"], attacked["settings"]["epsilon"]) == ("clean", 5, 4)
    assert card["measured"]["batch_norm"] == "frozen"
    assert set(tf.saved_model.load(tmp_path / "saved").signatures) == {"serving_default", "features"}


def test_the_card_says_what_the_report_was_measured_on(tiny_model, images, labels, tmp_path):
    """The folder of a run is left out, because it exists on one machine only."""
    model, context = tiny_model(), {"dataset": "cifar10", "split": "test", "sensor": "B"}
    attack = PGD(LinfBall(4), steps=1)
    report = evaluation.evaluate(model, (images, labels), attack, context=context, progress=False)
    report.context["run"] = "/home/me/runs/mine"  # as the command adds it
    export_saved_model(model, tmp_path / "saved", report=report, signatures=[], precision="bfloat16")
    card = json.loads((tmp_path / "saved" / CARD).read_text())
    assert (card["precision"], card["measured"]["precision"]) == ("bfloat16", "float32")
    assert context.items() <= card["measured"].items()
    assert card["measured"].keys() & {"run", "model", "weights_sha256", "versions"} == set()
    assert (card["measured"]["seed"], card["measured"]["batch_norm"]) == (0, "frozen")
    with pytest.raises(ValueError, match="the model's weights, but other outputs"):
        export_saved_model(tiny_model("relu"), tmp_path / "other", report=report, signatures=[])
    assert not (tmp_path / "other").exists()


def test_warm_up_requests_are_answered(saved, loaded, model, tmp_path):
    records = tf.data.TFRecordDataset(str(saved / "assets.extra" / "tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    assert {log.predict_log.request.model_spec.signature_name for log in logs} == set(SIGNATURES)
    for log in logs:
        request = log.predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        outputs = loaded.signatures[request.model_spec.signature_name](**inputs)
        assert all(np.all(np.isfinite(value)) for value in outputs.values())
    export_saved_model(model, tmp_path / "none", warmup=False, signatures=[])
    assert not (tmp_path / "none" / "assets.extra").exists()
    export_saved_model(model, tmp_path / "own", warmup=pixels(3), signatures=[])
    (record,) = tf.data.TFRecordDataset(str(tmp_path / "own" / "assets.extra" / "tf_serving_warmup_requests"))
    (proto,) = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request.inputs.values()
    np.testing.assert_array_equal(tf.make_ndarray(proto), pixels(3))


def test_any_image_size_and_gradients(tmp_path):
    model = resnet(input_shape=(None, None, 3), classes=4)
    export_saved_model(model, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    assert set(loaded.signatures) == set(SIGNATURES) - {"serving_bytes"}
    for size in (8, 13):
        x = tf.random.uniform((2, size, size, 3), 0, 255)
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = loaded.signatures["serving_default"](images=x)["logits"]
        np.testing.assert_allclose(logits, model(x), atol=1e-5)
        assert np.any(tape.gradient(logits, x) != 0)


def test_the_c_loader_runs_every_signature(saved, loaded, tmp_path):
    """TF Serving uses the same C++ loader and session, without Python."""
    graph = saved_model_pb2.SavedModel.FromString((saved / "saved_model.pb").read_bytes()).meta_graphs[0]
    images = pixels(3)
    files = np.array([tf.io.encode_png(image).numpy() for image in images], object)
    damaged = files.copy()
    damaged[1] = b"no image"
    inputs = {"float": images.astype(np.float32), "uint8": images, "bytes": files, "damaged": damaged}
    np.savez(tmp_path / "inputs.npz", labels=np.arange(3), **inputs)
    given = {"serving_default": {"images": "float"}, "serving_uint8": {"images": "uint8"}}
    given |= {"serving_bytes": {"image_bytes": "bytes"}, "features": {"images": "float"}}
    given |= {"input_gradient": {"images": "float", "labels": "labels"}}
    calls = [call(graph.signature_def[name], name, arrays) for name, arrays in given.items()]
    calls.append(call(graph.signature_def["serving_bytes"], "not", {"image_bytes": "damaged"}))
    (tmp_path / "calls.json").write_text(json.dumps(calls))
    script = pathlib.Path(__file__).with_name("c_loader.py")
    library = pathlib.Path(tf.__file__).with_name("libtensorflow_cc.so.2")
    arguments = [script, library, saved, *(tmp_path / name for name in ("calls.json", "inputs.npz", "outputs.npz"))]
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "outputs.npz") as outputs:
        for name, arrays in given.items():
            values = {"labels": np.arange(3), **inputs}
            expected = loaded.signatures[name](**{key: tf.constant(values[a]) for key, a in arrays.items()})
            for output, value in expected.items():
                np.testing.assert_allclose(outputs[f"{name}/{output}"], value, atol=1e-6)
        assert "at index] [1]" in str(outputs["error"])
        assert "not/logits" not in outputs


def call(signature, name, arrays):
    return {
        "inputs": {array: signature.inputs[key].name for key, array in arrays.items()},
        "outputs": {f"{name}/{key}": tensor.name for key, tensor in signature.outputs.items()},
    }


def test_another_runtime_agrees(saved, model, tmp_path):
    openvino = pytest.importorskip("openvino")
    images = pixels().astype(np.float32)
    core = openvino.Core()
    # By itself it computes in bfloat16 on a CPU that can.
    compiled = core.compile_model(core.read_model(str(saved)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = {output.any_name: value for output, value in compiled(images).items()}
    logits = model(images).numpy()
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4 * np.ptp(logits))
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(logits), atol=1e-4)


def test_onnx_through_keras_agrees(model, tmp_path):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    images = pixels().astype(np.float32)
    logits = model(images).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras' own, of NumPy 2
        model.export(str(tmp_path / "model.onnx"), format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (answer,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(answer, logits, atol=1e-4 * np.ptp(logits))


def subclassed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(2)

        def call(self, x):
            return self.layer(keras.ops.mean(x, (1, 2)))

    model = Own()
    model(np.zeros((1, 8, 8, 3), np.float32))
    return model


def test_a_subclassed_model_exports_in_a_sequential(tmp_path):
    inner = subclassed()
    model = keras.Sequential([keras.Input((8, 8, 3)), inner])
    export_saved_model(model, tmp_path / "saved")
    images = tf.random.uniform((2, 8, 8, 3))
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded(images), inner(images), atol=1e-6)
    assert "features" not in loaded.signatures


def of_no_image_size(model):
    return keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 5), keras.layers.GlobalMaxPool2D()])


def test_refusals_write_nothing(tiny_model, tmp_path):
    export_saved_model(tiny_model(), tmp_path / "saved", signatures=[])
    before = sorted(os.listdir(tmp_path / "saved"))
    softmax = keras.Sequential([tiny_model(), keras.layers.Softmax()])
    softmax.build((None, 8, 8, 3))
    any_size = models.ResNet8(input_shape=(None, None, 3), classes=4)
    report = evaluation.evaluate(
        tiny_model(seed=1), (np.zeros((2, 8, 8, 3), np.uint8), [0, 1]), PGD(LinfBall(4)), progress=False
    )
    tiny = tiny_model()
    for model, arguments, message in (
        (tiny, {"path": tmp_path / "saved"}, "exists"),
        (softmax, {}, "probabilities"),
        (keras.Sequential([keras.layers.Dense(2)]), {}, "built"),
        (subclassed(), {}, r"wrap it, as in keras.Sequential"),
        (tiny, {"image_size": 9}, "takes images of 8 x 8. Received: image_size=9"),
        (tiny, {"image_size": 0}, "integers >= 1"),
        (tiny, {"image_size": (8, 8, 3)}, "one or two integers"),
        (of_no_image_size(tiny), {"image_size": 3}, "takes no images of 3 x 3 x 3"),
        (any_size, {"signatures": ["serving_bytes"]}, "image_size is not given"),
        (tiny, {"signatures": "features"}, "signatures must be names"),
        (tiny, {"signatures": ["serve"]}, "serving_default, serving_uint8"),
        (tiny, {"labels": ["a", "b"]}, "labels must be 4 names"),
        (tiny, {"labels": ["a", "b", "b", "c"]}, "different names. Received more than once: b"),
        (tiny, {"labels": ["a", "b", "c", "d\ne"]}, "each one line"),
        (tiny, {"warmup": np.zeros((1, 9, 9, 3))}, r"shape \(n, \*\(8, 8, 3\)\)"),
        (tiny, {"precision": "int8"}, "float32, bfloat16"),
        (tiny, {"report": report}, "other weights"),
    ):
        with pytest.raises(ValueError, match=message):
            export_saved_model(model, **{"path": tmp_path / "other"} | arguments)
    assert os.listdir(tmp_path) == ["saved"]
    assert sorted(os.listdir(tmp_path / "saved")) == before


def test_a_full_disk_leaves_nothing(tiny_model, tmp_path):
    """The kernel refuses to let a file grow beyond 20 kB, in the middle of the export."""
    code = f"""
import resource, keras
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from keras_sat import export, models
model = models.ResNet8(input_shape=(8, 8, 3), classes=4)
export.export_saved_model(model, {str(tmp_path / "saved")!r}, signatures=[])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert os.listdir(tmp_path) == []


def test_one_logit_for_two_classes(images, tmp_path):
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    export_saved_model(model, tmp_path / "saved", labels=["no", "yes"])
    verify(tmp_path / "saved", model)
    answer = tf.saved_model.load(tmp_path / "saved").signatures["serving_default"](images=tf.cast(images, tf.float32))
    np.testing.assert_allclose(answer["probabilities"][:, 1:], keras.ops.sigmoid(model(images)), atol=1e-6)
    np.testing.assert_array_equal(answer["classes"], model(images)[:, 0] > 0)
