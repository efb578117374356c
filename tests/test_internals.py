"""Canary tests of internals.py: they fail if an upgrade breaks a function, or may have made it unnecessary.

The tests named `..._may_go` fail if the library has a new public name that may replace a function of internals.py. Try
it: either it replaces the function, or add it here to the names that are known not to help.
"""

import ast
import gc
import inspect
import pathlib
import socket
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import waitress

from keras_sat import internals
from keras_sat.training import distribution

PACKAGE = pathlib.Path(internals.__file__).parent
PUBLIC_UNDERSCORES = {"_asdict", "_fields", "_replace"}  # of named tuples


def private_uses(path):
    """Yields where a file uses a private attribute of something other than self, or a private module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value.id if isinstance(node.value, ast.Name) else None
            if owner not in ("self", "cls") and node.attr not in PUBLIC_UNDERSCORES:
                yield f"{path.name}:{node.lineno}: {node.attr}"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("getattr", "hasattr", "setattr"):
            name = getattr(node.args[1], "value", None)
            if isinstance(name, str) and name.startswith("_") and not name.startswith("__"):
                yield f"{path.name}:{node.lineno}: {name}"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if any(module.startswith(("keras.src", "tensorflow.python")) for module in modules):
                yield f"{path.name}:{node.lineno}: {modules}"


def test_no_other_file_uses_what_is_private():
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "internals.py"]
    assert [use for path in files for use in private_uses(path)] == []
    assert list(private_uses(PACKAGE / "internals.py"))  # the test finds them


def public(owner, *words):
    """Returns the public names of an object that contain one of the words."""
    return {name for name in dir(owner) if not name.startswith("_") and any(word in name for word in words)}


class Nested(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.listed = [keras.layers.Dense(2), keras.layers.BatchNormalization()]

    def call(self, x):
        return self.listed[1](self.listed[0](x))


def test_all_layers():
    outer, inner = Nested(), keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(outer(inputs)))
    wanted = {model, outer, *outer.listed, inner, inner.layers[0]}
    missing = wanted - set(internals.all_layers(model))
    assert not missing, f"internals.all_layers: Layer._flatten_layers no longer returns {missing}"


def test_all_layers_may_go():
    known = {"layers"}
    new = (public(keras.Model, "layers") | public(keras.layers.Layer, "layers")) - known
    assert not new, f"Keras has {new}: does it return the layers within layers? Then internals.all_layers can go."


def test_without_weights():
    made = []

    def initializer(shape, dtype=None):
        made.append(tf.inside_function())
        return tf.zeros(shape, dtype)

    def build():
        layer = keras.layers.Dense(3, kernel_initializer=initializer)
        layer.build((None, 2))
        return layer

    layer = internals.without_weights(build)
    with keras.StatelessScope():  # at its end Keras initialises what is on its list
        pass
    assert not made, "internals.without_weights: Keras gave weights to a layer that was built in another thread"
    assert layer.kernel.shape == (2, 3)
    values = [tf.ones((2, 3)), tf.zeros(3)]
    outputs, _ = layer.stateless_call(values, [], tf.ones((1, 2)))
    np.testing.assert_array_equal(outputs, [[2, 2, 2]])


def test_without_weights_is_needed():
    """In the same thread, Keras would create the weights at the end of the next scope."""
    with keras.StatelessScope(initialize_variables=False):
        layer = keras.layers.Dense(3)
        layer.build((None, 2))
    count = len(tf_variables())
    with keras.StatelessScope():
        pass
    assert len(tf_variables()) > count, "Keras no longer initialises old variables: internals.without_weights can go"
    assert layer.built


def tf_variables():
    return [thing for thing in gc.get_objects() if isinstance(thing, tf.Variable)]


def test_without_weights_may_go():
    known = {"self", "state_mapping", "collect_losses", "initialize_variables"}
    new = set(inspect.signature(keras.StatelessScope.__init__).parameters) - known
    assert not new, f"StatelessScope has {new}: does it drop variables? Then internals.without_weights can go."


def test_batch_count():
    weight, rates = keras.Variable([1.0]), []

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            rates.append(int(step))
            return 0.1

    inner = keras.optimizers.SGD(Schedule(), gradient_accumulation_steps=2)
    for optimizer in (inner, keras.optimizers.LossScaleOptimizer(inner)):
        assert internals.batch_count(optimizer) is internals.batch_count(inner)
    inner.build([weight])
    for step in range(4):
        assert int(internals.batch_count(inner)) == step, (
            "internals.batch_count: Optimizer._iterations is another number"
        )
        inner.apply([tf.ones(1)], [weight])
    assert int(inner.iterations) == 2, "Optimizer.iterations counts batches now: internals.batch_count can go"
    assert rates == [1, 3], "learning rate schedules no longer get the number of batches"


def test_batch_count_may_go():
    new = public(keras.optimizers.Optimizer, "iteration", "count") - {"iterations"}
    assert not new, f"Optimizer has {new}: does it count batches? Then internals.batch_count can go."


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def dataset(batches=4):
    values = np.arange(2 * batches, dtype=np.float32)
    return tf.data.Dataset.from_tensor_slices((np.stack([values, values], -1), values)).batch(2)


def test_skip_steps(model):
    seen = []

    class Skipping(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 0:
                internals.skip_steps(self.model, 3)

        def on_train_batch_end(self, batch, logs=None):
            seen.append((batch, bool(logs)))

    endless = dataset().repeat().filter(lambda *_: True)
    model.fit(endless, steps_per_epoch=4, epochs=2, shuffle=False, callbacks=[Skipping()], verbose=0)
    taken = int(model.optimizer.iterations)
    assert taken == 5, f"internals.skip_steps: fit took {taken} steps in place of 5; does it use train_function?"
    assert seen == [(step, step == 3) for step in range(4)] + [(step, True) for step in range(4)]


def test_skip_steps_may_go():
    known = {
        *("self", "x", "y", "batch_size", "epochs", "verbose", "callbacks", "validation_split", "validation_data"),
        *("shuffle", "class_weight", "sample_weight", "initial_epoch", "steps_per_epoch", "validation_steps"),
        *("validation_batch_size", "validation_freq"),
    }
    new = set(inspect.signature(keras.Sequential.fit).parameters) - known
    assert not new, f"fit has {new}: can it begin within an epoch? Then internals.skip_steps can go."


class Seeing(internals.FirstBatch, keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.seen = keras.layers.Dense(1), []

    def call(self, x):
        return self.dense(x)

    def see_first_batch(self, batch):
        self.seen.append(np.array(batch[1]).tolist())


def generator():
    for x, y in dataset():
        yield x.numpy(), y.numpy()


def test_first_batch():
    model = Seeing()
    model.compile("sgd", "mse")
    arrays = [np.concatenate(parts) for parts in zip(*generator())]

    def sees(what, call, expected):
        model.seen.clear()
        call()
        message = f"internals.FirstBatch: {what} showed {model.seen} before the first step, not {expected}"
        assert model.seen == expected, message

    fit = {"epochs": 2, "shuffle": False, "verbose": 0}
    sees("fit(dataset)", lambda: model.fit(dataset(), **fit), [[0, 1]])
    sees("fit(arrays)", lambda: model.fit(*arrays, batch_size=2, **fit), [[0, 1]])
    sees("fit(generator)", lambda: model.fit(generator(), steps_per_epoch=4, shuffle=False, verbose=0), [[0, 1]])
    sees("validation", lambda: model.fit(dataset(), validation_data=dataset(1), **fit), [[0, 1], [0, 1]])
    sees("evaluate(dataset)", lambda: model.evaluate(dataset().skip(1), verbose=0), [[2, 3]])
    sees("train_on_batch", lambda: model.train_on_batch(arrays[0][4:], arrays[1][4:]), [[4, 5, 6, 7]])
    sees("test_on_batch", lambda: model.test_on_batch(arrays[0][6:], arrays[1][6:]), [[6, 7]])
    assert int(model.optimizer.iterations) == 2 * 4 + 2 * 4 + 4 + 2 * 4 + 1  # those of the generator too


def test_the_first_step_is_traced_once():
    class Counting(Seeing):
        traces = 0

        def train_step(self, data):
            self.traces += 1
            return super().train_step(data)

    model = Counting()
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(dataset(), shuffle=False, verbose=0)
    message = f"internals.FirstBatch: the step was traced {model.traces} times: Keras made its variables in the first"
    assert model.traces == 1, message


def test_first_batch_of_replicas():
    with distribution.strategy("mirrored").scope():  # a second one in a process would disturb the first
        model = Seeing()
        model.compile("sgd", "mse")
    model.fit(dataset(), epochs=2, validation_data=dataset(), shuffle=False, verbose=0)
    assert model.seen == [[0], [0]], "internals.FirstBatch: not the first replica's part of the first batch"


def test_datasets_that_never_end_are_refused():
    model = Seeing()
    model.compile("sgd", "mse")
    for endless in (lambda: model.fit(dataset().repeat(), shuffle=False), lambda: model.evaluate(dataset().repeat())):
        with pytest.raises(ValueError, match=r"never ends \(.repeat\(\)\): say steps_per_epoch"):
            endless()
    model.fit(dataset().repeat(), steps_per_epoch=2, shuffle=False, verbose=0)


def test_first_batch_may_go():
    known = {"build", "build_from_config", "get_build_config", "built", "quantized_build"}
    known |= {"predict_on_batch", "test_on_batch", "train_on_batch"}
    known |= {f"on_{phase}_batch_{end}" for phase in ("train", "test", "predict") for end in ("begin", "end")}
    known |= {"on_batch_begin", "on_batch_end"}  # they are given the number of the batch, and not its data
    new = (public(keras.Model, "build", "batch") | public(keras.callbacks.Callback, "batch", "data")) - known
    assert not new, f"Keras has {new}: is it given the first batch? Then internals.FirstBatch can go."


def test_close_waitress():
    connections = {}
    listening = socket.create_server(("127.0.0.1", 0))
    server = waitress.create_server(lambda *_: [b""], map=connections, sockets=[listening])
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    internals.close_waitress(server, connections, grace=5)
    thread.join(timeout=10)
    assert not thread.is_alive(), "internals.close_waitress: server.run goes on"
    assert not connections


def test_close_waitress_may_go():
    known = {"close", "handle_close"}
    listening = socket.create_server(("127.0.0.1", 0))
    server = waitress.create_server(lambda *_: [b""], map={}, sockets=[listening])
    new = public(server, "close", "shutdown", "stop") - known
    server.task_dispatcher.shutdown()
    server.close()
    assert not new, f"waitress has {new}: does it end run from another thread? Then internals.close_waitress can go."
