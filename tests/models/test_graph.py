import keras
import numpy as np

from keras_sat.models import graph


def test_calls_are_those_that_lead_to_the_output():
    inputs = keras.Input((4,))
    shared, unused = keras.layers.Dense(4, name="shared"), keras.layers.Dense(2)
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="inner")
    x = shared(shared(inputs)) + inputs
    unused(x)
    model = keras.Model(inputs, inner(x))
    nodes = shared.output, inner.layers[0].output
    calls = graph.calls(model)
    assert [call.operation for call in calls][:2] == [shared, shared]
    assert calls[-1].operation is inner
    assert len(calls) == 4
    first, second, addition, last = calls
    assert second.inputs[0] is first.outputs[0]
    assert [id(tensor) for tensor in addition.inputs] == [id(second.outputs[0]), id(first.inputs[0])]
    assert last.outputs[0].shape == (None, 3)
    assert (shared.output, inner.layers[0].output) == nodes


def test_what_has_no_graph_has_no_calls():
    for model in (keras.Sequential([keras.layers.Dense(3)]), keras.layers.Dense(3), lambda x: x):
        assert graph.calls(model) == []
        assert not graph.is_functional(model)


def test_a_rebuilt_model_shares_the_layers_and_has_the_changes():
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4)
    model = keras.Model(inputs, shared(keras.layers.Activation("relu")(shared(inputs))), name="net")
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    same = graph.rebuild(model, {})
    np.testing.assert_array_equal(same(x), model(x))
    assert (same.name, same.compiled) == ("net", False)
    linear = graph.rebuild(model, {1: graph.skip}, name="linear")
    assert linear.name == "linear"
    np.testing.assert_allclose(linear(x), shared(shared(x)), rtol=1e-5)
    shared.kernel.assign(2 * shared.kernel)
    np.testing.assert_array_equal(same(x), model(x))
