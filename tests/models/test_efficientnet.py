import keras
import numpy as np
import pytest

from keras_sat import activations, models

# Trainable parameters at 1000 classes, added up over the variables of the authors' code (B0 to B7: as published).
PARAMETERS = {
    "EfficientNetB0": 5_288_548,
    "EfficientNetB1": 7_794_184,
    "EfficientNetB2": 9_109_994,
    "EfficientNetB3": 12_233_232,
    "EfficientNetB4": 19_341_616,
    "EfficientNetB5": 30_389_784,
    "EfficientNetB6": 43_040_704,
    "EfficientNetB7": 66_347_960,
    "EfficientNetB8": 87_413_142,
    "EfficientNetL1": 272_630_564,
    "EfficientNetL2": 480_309_308,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name, without_weights):
    with without_weights():
        model = models.BUILDERS[name]()
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == PARAMETERS[name]


def test_every_nonlinearity_follows_the_activation_but_the_gate():
    model = models.EfficientNetB0(activation={"name": "parametric_softplus", "alpha": 3})
    chosen = [layer for layer in model.layers if isinstance(layer, activations.ParametricSoftplus)]
    assert len(chosen) == 1 + 16 * 2 - 1 + 16 + 1  # stem; expansion (but in block 0) and depthwise; inner SE; head
    gates = [layer for layer in model.layers if isinstance(layer, keras.layers.Activation)]
    assert [gate.activation for gate in gates] == [keras.activations.sigmoid] * 16


def test_stochastic_depth_rises_over_the_blocks_and_drops_whole_blocks():
    model = models.EfficientNetB0()
    drops = {layer.name: layer for layer in model.layers if layer.name.endswith("_drop")}
    assert [drops[f"blocks_{i}_drop"].rate for i in (2, 14)] == pytest.approx([0.2 * 2 / 16, 0.2 * 14 / 16])
    assert "blocks_0_drop" not in drops  # the first block changes the filters: it has no shortcut
    x = np.ones((400, 2, 2, 3), np.float32)
    kept = drops["blocks_14_drop"](x, training=True).numpy().reshape(400, -1)
    assert set(np.ptp(kept, axis=1)) == {0.0}
    assert 0.7 < np.mean(kept > 0) < 0.95


def test_default_sizes_and_any_size():
    assert models.EfficientNetB3(include_top=False).input_shape == (None, 300, 300, 3)
    model = models.EfficientNetB0(input_shape=(None, None, 1), classes=5)
    for size in (32, 33):
        images = np.random.default_rng(0).integers(0, 256, (2, size, size, 1)).astype(np.uint8)
        assert model(images).shape == (2, 5)


def test_batch_norm_is_the_releases():
    norms = [layer for layer in models.EfficientNetB0().layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1.001e-5)}
