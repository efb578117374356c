import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sat
from keras_sat.attacks import PGD, L2Ball, LinfBall
from keras_sat.training import MART, TRADES, AdversarialModel, GradAlign, distribution

FROM_IMAGE = PGD(LinfBall(8), steps=2, random_start=False)
RANDOM = PGD(LinfBall(8), steps=2)


def compiled(model, attack=FROM_IMAGE, jit_compile=False, loss=None, optimizer=None, **options):
    trainer = AdversarialModel(model, attack, **options)
    trainer.compile(
        optimizer or keras.optimizers.SGD(0.1),
        loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    return trainer


def batches(images, labels, batch_size=8):
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size, drop_remainder=True)


def weights(model):
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()])


def test_a_step_is_keras_own_step_on_the_adversarial_batch(tiny_model, images, labels):
    model, reference = tiny_model(), tiny_model()
    trainer = compiled(model)
    logs = trainer.train_on_batch(images, labels, return_dict=True)
    reference.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    expected = reference.train_on_batch(FROM_IMAGE(tiny_model(), images, labels), labels, return_dict=True)
    np.testing.assert_allclose(weights(model), weights(reference), atol=1e-5)
    assert logs.keys() == {"loss", "adversarial_accuracy"}
    assert logs["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert logs["adversarial_accuracy"] == pytest.approx(expected["accuracy"])


def test_accumulated_batches_have_noise_and_schedules_of_their_own(tiny_model, images, labels):
    steps, seeds = [], []
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    trainer = compiled(
        tiny_model(), RANDOM, optimizer=optimizer, epsilon_schedule=lambda step: steps.append(int(step)) or 1.0
    )
    trainer.run_eagerly = True
    attacked = trainer._adversarial
    trainer._adversarial = lambda x, y, seed: seeds.append(tuple(seed.numpy())) or attacked(x, y, seed)
    for _ in range(4):
        trainer.train_on_batch(images, labels)
    assert len(set(seeds)) == 4
    assert steps == [0, 1, 2, 3]  # what a learning rate schedule would get


def test_metrics_on_clean_images_are_not_called_adversarial(tiny_model, images, labels):
    trainer = compiled(tiny_model(), PGD(LinfBall(0), steps=1))
    assert trainer.train_on_batch(images, labels, return_dict=True).keys() == {"loss", "accuracy"}


def test_evaluate_reports_clean_and_robust_accuracy(tiny_model, images):
    model = tiny_model()
    labels = np.argmax(model(images), -1)
    labels[:2] = (labels[:2] + 1) % 4  # two are wrong as they are
    attack = PGD(LinfBall(40), steps=10)
    result = compiled(model, RANDOM, evaluation_attack=attack).evaluate(images, labels, verbose=0, return_dict=True)
    assert result.keys() == {"loss", "accuracy", "robust_accuracy"}
    assert result["accuracy"] == pytest.approx(6 / 8)
    assert result["robust_accuracy"] < 6 / 8
    harmless = compiled(model, RANDOM, evaluation_attack=PGD(LinfBall(0), steps=1))
    assert harmless.evaluate(images, labels, verbose=0, return_dict=True)["robust_accuracy"] == pytest.approx(6 / 8)


class Scaling(keras.Model):
    """Computes with the images as they come: uint8 would wrap around."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(seed=0))

    def call(self, images):
        return self.dense(keras.ops.reshape(2 * images / 255 - 1, (-1, 8 * 8 * 3)))


def test_integer_images_are_cast_wherever_they_reach_the_network(images, labels):
    results = []
    for dtype in (np.float32, np.uint8):
        model = Scaling()
        model(images[:1])
        trainer = compiled(model, RANDOM, objective=TRADES(), optimizer=keras.optimizers.SGD(0.01))
        given = np.round(images).astype(dtype)
        logs = trainer.train_on_batch(given, labels, return_dict=True)
        evaluated = trainer.evaluate(given, labels, verbose=0, return_dict=True)
        results.append(
            [*logs.values(), *evaluated.values(), *trainer.predict(given, verbose=0).ravel(), *weights(model)]
        )
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_the_default_evaluation_attack_never_starts_clean(tiny_model):
    attack = PGD(LinfBall(4), steps=1, clean_start=0.2)
    assert AdversarialModel(tiny_model(), attack).evaluation_attack == dataclasses.replace(attack, clean_start=0.0)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
def test_fit_takes_datasets_and_arrays_and_predict_is_clean(tiny_model, images, labels):
    trainer = compiled(tiny_model(), RANDOM)
    history = trainer.fit(batches(images, labels), validation_data=(images, labels), epochs=2, verbose=0).history
    assert set(history) == {"loss", "adversarial_accuracy", "val_loss", "val_accuracy", "val_robust_accuracy"}
    trainer.fit(images, labels, batch_size=4, verbose=0)
    np.testing.assert_allclose(trainer.predict(images, verbose=0), trainer.classifier(images), atol=1e-4)


def test_integer_and_one_hot_labels_give_the_same_step(tiny_model, images, labels):
    results = []
    one_hot = keras.losses.CategoricalCrossentropy(from_logits=True)
    for y, loss in ((labels, None), (labels[:, None], None), (np.eye(4)[labels], one_hot)):
        model = tiny_model()
        compiled(model, loss=loss).train_on_batch(images, y)
        results.append(weights(model))
    np.testing.assert_allclose(results[1], results[0], atol=1e-6)
    np.testing.assert_allclose(results[2], results[0], atol=1e-6)


class Recording(AdversarialModel):
    """Stores the batches on which it is trained. Needs run_eagerly."""

    seen = ()

    def call(self, inputs, training=False):
        if training:
            self.seen = (*self.seen, inputs)
        return super().call(inputs, training=training)


def test_label_smoothing_is_not_seen_by_the_attack(tiny_model, images, labels):
    """With label smoothing 1, the training loss does not depend on the label; the examples must be as strong."""
    trainer = Recording(tiny_model(), FROM_IMAGE)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=1.0)
    trainer.compile("sgd", loss, run_eagerly=True)
    trainer.train_on_batch(images, np.eye(4)[labels])
    np.testing.assert_allclose(trainer.seen[0], FROM_IMAGE(tiny_model(), images, labels), atol=1e-3)


def test_examples_of_weight_zero_do_not_count(tiny_model, images, labels):
    results = []
    for spoilt in (labels, (labels + [0, 0, 0, 0, 1, 1, 1, 1]) % 4):
        model = tiny_model(batch_norm=False)
        weight = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
        trainer = compiled(model)
        trainer.fit(images, spoilt, sample_weight=weight, batch_size=8, shuffle=False, verbose=0)
        robust = trainer.evaluate(images, spoilt, sample_weight=weight, verbose=0, return_dict=True)["robust_accuracy"]
        results.append([*weights(model), robust])
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def moving_mean(model):
    return next(w for w in model.weights if w.path.endswith("moving_mean")).numpy()


@pytest.mark.parametrize("mode", ["frozen", "batch"])
def test_batch_norm_statistics_move_once_a_step_and_by_the_adversarial_batch(mode, tiny_model, images, labels):
    model = tiny_model()
    trainer = Recording(model, FROM_IMAGE, attack_batch_norm=mode)
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    before, convolution = moving_mean(model), keras.Sequential([keras.Input((8, 8, 3)), *model.layers[:2]])
    initial = [w.numpy() for w in convolution.weights]
    trainer.train_on_batch(images, labels)
    after = moving_mean(model)
    convolution.set_weights(initial)
    features = convolution(trainer.seen[0])
    momentum = model.layers[2].momentum
    np.testing.assert_allclose(after, momentum * before + (1 - momentum) * np.mean(features, (0, 1, 2)), atol=1e-5)


def test_batch_mode_attacks_through_the_statistics_of_the_batch(tiny_model, images, labels):
    model = tiny_model()
    trainer = compiled(model, attack_batch_norm="batch")
    images = tf.cast(images, tf.float32)
    before = weights(model)
    np.testing.assert_allclose(trainer._batch_statistics(images), model(images, training=True), atol=1e-5)
    assert not np.array_equal(weights(model), before)  # that call did update
    before = weights(model)
    trainer._batch_statistics(images)
    np.testing.assert_array_equal(weights(model), before)
    assert not np.allclose(trainer._batch_statistics(images), model(images), atol=1e-3)


@pytest.mark.parametrize("mode", ["frozen", "batch"])
def test_jit_compiled_step_agrees(mode, tiny_model, images, labels):
    results = []
    for jit in (False, True):
        model = tiny_model()
        compiled(model, jit_compile=jit, attack_batch_norm=mode).fit(images, labels, batch_size=8, verbose=0)
        results.append(weights(model))
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, images, labels):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = keras_sat.models.ResNet8(input_shape=(8, 8, 3), classes=4)
    finally:
        keras.config.set_dtype_policy(before)
    trainer = compiled(model, RANDOM)
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    history = trainer.fit(images, labels, epochs=8, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]
    # The network sees quarters of a grey level at 255: bfloat16 images would not.
    bright = np.full((1, 8, 8, 3), 255, np.float32)
    assert np.any(trainer.predict(bright, verbose=0) != trainer.predict(bright - 0.25, verbose=0))


def test_the_attack_alone_in_low_precision(tiny_model, images, labels):
    weights_after = {}
    for precision in (None, "mixed_bfloat16", "mixed_float16"):
        trainer = compiled(tiny_model(), attack_precision=precision)
        trainer.fit(images, labels, batch_size=8, epochs=3, verbose=0)
        assert {layer.compute_dtype for layer in trainer.classifier.layers} == {"float32"}
        weights_after[precision] = weights(trainer.classifier)
    for precision in ("mixed_bfloat16", "mixed_float16"):
        difference = np.abs(weights_after[precision] - weights_after[None])
        assert 0 < difference.max() < 0.05


def test_replicas_draw_different_noise(tiny_model, images):
    images = np.tile(images[:1], (2, 1, 1, 1)).astype(np.float32)
    strategy = distribution.strategy("mirrored")
    with strategy.scope():
        trainer = compiled(tiny_model(), RANDOM)
    noise = strategy.run(lambda: trainer.attack.ball.sample(trainer._replica_seed(7), images[:1]))
    first, second = strategy.experimental_local_results(noise)
    assert np.mean(np.isclose(first, second)) < 0.1
    again = strategy.experimental_local_results(
        strategy.run(lambda: trainer.attack.ball.sample(trainer._replica_seed(7), images[:1]))
    )
    np.testing.assert_array_equal(first, again[0])


def test_same_seed_same_run_and_every_step_its_own_noise(tiny_model, images, labels):
    def run(seed):
        model = tiny_model()
        compiled(model, RANDOM, seed=seed).fit(batches(images, labels), epochs=3, shuffle=False, verbose=0)
        return weights(model)

    np.testing.assert_array_equal(run(1), run(1))
    assert np.any(run(1) != run(2))
    trainer = compiled(tiny_model(), RANDOM)
    assert np.any(trainer._replica_seed(0) != trainer._replica_seed(1))


@pytest.mark.parametrize("place", ["attacker", "optimizer", "both"])
def test_ablation_reaches_the_gradient_it_is_meant_for(place, images, labels):
    def step(spec):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Rescaling(2 / 255, -1.0)(inputs)
        x = keras_sat.activations.layer(spec)(keras.layers.Conv2D(8, 3)(x))
        model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
        trainer = compiled(model, PGD(LinfBall(8), steps=1, random_start=False))
        with keras_sat.activations.training_attack():
            images_ = trainer.attack(lambda x: model(x), images, labels).numpy()
        trainer.train_on_batch(images, labels)
        return images_, weights(model)

    relu_images, relu_weights = step("relu")
    images_, weights_ = step({"name": "relu", "smooth_backward": place})
    assert np.array_equal(images_, relu_images) == (place == "optimizer")
    assert not np.allclose(weights_, relu_weights, atol=1e-6)


def test_nothing_is_jit_compiled_on_a_cpu_unasked(tiny_model):
    trainer = AdversarialModel(tiny_model(), RANDOM)
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert trainer.jit_compile is False


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        "binary_crossentropy",
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        keras.losses.CategoricalFocalCrossentropy(),
        keras.losses.sparse_categorical_crossentropy,
    ],
    ids=["name", "binary", "object", "focal", "function"],
)
def test_a_loss_that_takes_probabilities_is_refused(tiny_model, loss):
    trainer = AdversarialModel(tiny_model(), RANDOM)
    with pytest.raises(ValueError, match="takes probabilities: say from_logits=True"):
        trainer.compile("sgd", loss)
    with pytest.raises(ValueError, match="takes probabilities"):
        trainer.compile("sgd", loss=loss)


def test_other_losses_are_taken(tiny_model):
    for loss in ("mse", keras.losses.CategoricalHinge(), lambda y, logits: logits[:, 0], None):
        AdversarialModel(tiny_model(), RANDOM).compile("sgd", loss)


def test_several_steps_per_execution(tiny_model, images, labels):
    results = []
    for steps in (1, 2):
        model = tiny_model()
        trainer = AdversarialModel(model, RANDOM)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile("sgd", loss, steps_per_execution=steps)
        trainer.fit(batches(images, labels, 2), epochs=1, shuffle=False, verbose=0)
        results.append(weights(model))
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def test_what_is_saved_is_the_classifier(tiny_model, images, tmp_path):
    model = tiny_model()
    compiled(model).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)


def test_refusals(tiny_model, images):
    softmax = keras.Sequential([tiny_model(), keras.layers.Dense(4, activation="softmax")])
    for model in (softmax, keras.Sequential([tiny_model(), keras.layers.Softmax()]), keras.Sequential([softmax])):
        model.build((None, 8, 8, 3))
        with pytest.raises(ValueError, match="ends in probabilities"):
            AdversarialModel(model, RANDOM)
    with pytest.raises(ValueError, match="built Keras classifier"):
        AdversarialModel(keras.Sequential([keras.layers.Dense(3)]), RANDOM)
    with pytest.raises(ValueError, match="built Keras classifier"):
        AdversarialModel(lambda x: x, RANDOM)
    with pytest.raises(ValueError, match='"frozen" or "batch"'):
        AdversarialModel(tiny_model(), RANDOM, attack_batch_norm="eval")
    with pytest.raises(ValueError, match="The precision must be one of"):
        AdversarialModel(tiny_model(), RANDOM, attack_precision="bfloat16")
    with pytest.raises(ValueError, match='for attack_batch_norm="frozen"'):
        AdversarialModel(tiny_model(), RANDOM, attack_batch_norm="batch", attack_precision="mixed_bfloat16")
    with pytest.raises(ValueError, match="need labels"):
        compiled(tiny_model()).fit(images, verbose=0)


@pytest.mark.parametrize("name", ["normalization", "derived", "forgetful", "own convolution", "lora"])
def test_networks_of_others_are_attacked_as_they_are(name, foreign_model, images, labels):
    """The examples of a step are those that the attack finds against the model itself."""
    model = foreign_model(name)
    expected = FROM_IMAGE(foreign_model(name), images, labels)

    class Seeing(AdversarialModel):
        def _adversarial(self, x, labels, seed):
            adversarial = super()._adversarial(x, labels, seed)
            self.seen.assign(adversarial)
            return adversarial

    trainer = Seeing(model, FROM_IMAGE)
    trainer.seen = tf.Variable(tf.zeros(images.shape), trainable=False)
    trainer.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trainer.train_on_batch(images, labels)
    assert np.mean(np.abs(trainer.seen - expected) > 0.01) < 0.01


def test_a_copy_that_is_another_network_is_not_attacked(foreign_model, images, labels):
    """In bfloat16 all layers are copies, so a layer with an incomplete configuration becomes another layer."""
    trainer = AdversarialModel(foreign_model("forgetful"), FROM_IMAGE, attack_precision="mixed_bfloat16")
    trainer.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="is attacked itself.*copy in mixed_bfloat16 has logits that differ") as caught:
        trainer.fit(images, labels, batch_size=4, epochs=2, verbose=0)
    assert len([warning for warning in caught if "attacked itself" in str(warning.message)]) == 1
    assert trainer._low is trainer._folding
    assert trainer._low.is_copy  # with folded batch norms it is the same network


def test_dropout_that_is_always_on_draws_a_new_mask_at_each_step(foreign_model, images, labels):
    trainer = compiled(foreign_model("random"), RANDOM)
    with pytest.warns(UserWarning, match="is attacked itself.*its output is random"):
        trainer.fit(images, labels, verbose=0)

    @tf.function(autograph=False)
    def three(x):
        logits_fn = trainer._frozen(trainer._low)
        begin = (tf.constant(0), tf.TensorArray(tf.float32, 3))
        _, answers = tf.while_loop(lambda n, _: n < 3, lambda n, a: (n + 1, a.write(n, logits_fn(x))), begin)
        return answers.stack()

    answers = three(tf.cast(images, tf.float32))
    assert np.any(answers[0] != answers[1])
    assert np.any(answers[1] != answers[2])


def test_the_first_batch_is_checked_where_xla_leaves_the_checks_out(tiny_model, images, labels):
    for x, y, message in (
        (images / 255, labels, r"LinfBall\(4 / 255, bounds=\(0, 1\)\).*Received values in \[0, 1\]"),
        (images * 2.0, labels, "images must lie within the bounds.*Received values in"),
        (images * np.nan, labels, "images must be finite"),
        (images, labels + 4, r"labels must lie in 0..3. Received values in \[4, 7\]"),
        (images, np.eye(5)[labels], "must have 4 columns.*Received: 5"),
        (np.moveaxis(images, -1, 1), labels, r"takes images of shape \(None, 8, 8, 3\).*Received: \(8, 3, 8, 8\)"),
        (images, np.ones((8, 4)), "Images with several labels"),
    ):
        trainer = compiled(tiny_model(), jit_compile=True)
        for call in (trainer.fit, trainer.evaluate):
            with pytest.raises(ValueError, match=message):
                call(x, y, verbose=0)
        with pytest.raises(ValueError, match=message):
            trainer.train_on_batch(x, y)


def test_a_model_that_does_not_say_what_it_returns_is_judged_by_its_first_batch(tiny_model, images, labels):
    class Own(keras.Model):
        def __init__(self, head):
            super().__init__()
            self.base, self.head = tiny_model(), head

        def call(self, x, training=False):
            return self.head(self.base(x, training=training))

    for head, message in (
        (tf.nn.softmax, "a softmax hides the gradient"),
        (lambda x: x[:, None], "one tensor of shape"),
    ):
        model = Own(head)
        model(images)
        with pytest.raises(ValueError, match=message):
            compiled(model).fit(images, labels, verbose=0)
    model = Own(tf.identity)
    model(images)
    compiled(model).fit(images, labels, verbose=0)


def test_no_batch_is_lost_to_the_check(tiny_model, images, labels):
    def generator():
        for first in range(0, 8, 2):
            yield images[first : first + 2], labels[first : first + 2]

    results = []
    for data in (generator(), batches(images, labels, 2)):
        model = tiny_model()
        compiled(model).fit(data, steps_per_epoch=4, shuffle=False, verbose=0)
        results.append(weights(model))
    np.testing.assert_array_equal(results[0], results[1])


def test_what_would_fail_after_an_epoch_or_never_end_is_refused_before(tiny_model, images, labels):
    trainer = compiled(tiny_model())
    good, bad = batches(images, labels, 2), batches(images, labels + 4, 2)
    for options, message in (
        ({"x": good, "validation_data": bad}, "labels must lie in 0..3"),
        ({"x": good, "validation_data": (images, np.ones((8, 4)))}, "Images with several labels"),
        ({"x": images, "y": np.append(labels[:-1], 9)}, r"Received values in \[0, 9\]"),
        ({"x": images, "y": labels.astype(str)}, "turn names to numbers"),
        ({"x": good.repeat()}, "never ends.*steps_per_epoch"),
        ({"x": good, "validation_data": good.repeat()}, "never ends.*validation_steps"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.fit(**options, batch_size=None if options["x"] is good else 8, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="never ends"):
        trainer.evaluate(good.repeat(), verbose=0)
    trainer.fit(
        good.repeat(), steps_per_epoch=1, validation_data=good.repeat(), validation_steps=1, shuffle=False, verbose=0
    )


def test_a_dark_batch_is_a_batch(tiny_model, images, labels):
    dark = images // 128  # nearly black: levels 0 and 1
    compiled(tiny_model()).fit(dark, labels, verbose=0)
    with pytest.warns(UserWarning, match="Unless these images are nearly black"):  # in float32 nobody can know
        compiled(tiny_model()).fit(dark.astype(np.float32), labels, verbose=0)
    some = np.concatenate([images, dark * 0.9]).astype(np.float32)  # the second batch, after hours
    compiled(tiny_model()).fit(some, np.tile(labels, 2), batch_size=8, shuffle=False, verbose=0)
    standardised = (images / 255 * 2 - 1.1).astype(np.float32)  # below one deviation
    ball = LinfBall(0.1, bounds=(-2.2, 2.7))
    compiled(tiny_model(), PGD(ball, steps=1)).fit(standardised, labels, verbose=0)


def test_logits_that_are_not_finite_are_never_right(tiny_model, images, labels):
    model = keras.Sequential([tiny_model(), keras.layers.Lambda(lambda x: x * float("nan"))])
    model.build((None, 8, 8, 3))
    one_hot = keras.losses.CategoricalCrossentropy(from_logits=True)
    for y, loss in ((0 * labels, None), (np.eye(4)[0 * labels], one_hot)):  # argmax of NaN is 0
        logs = compiled(model, RANDOM, loss=loss).evaluate(images, y, verbose=0, return_dict=True)
        assert (logs["accuracy"], logs["robust_accuracy"]) == (0, 0)
        assert np.isnan(logs["loss"])


def test_one_logit_for_two_classes(images):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    labels = (model(images).numpy()[:, 0] > 0).astype(int)
    two = keras.Sequential([model, keras.layers.Lambda(lambda z: keras.ops.concatenate([-z, z], -1))])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    attack = PGD(LinfBall(2), steps=5)
    one, other = (AdversarialModel(m, attack).evaluation_attack(m, images, labels).numpy() for m in (model, two))
    np.testing.assert_allclose(one, other, atol=1e-4)
    for objective in (keras_sat.training.AdversarialTraining(), keras_sat.training.TRADES()):
        trainer = compiled(model, attack, loss=loss, optimizer=keras.optimizers.Adam(0.01), objective=objective)
        history = trainer.fit(images, labels, epochs=20, verbose=0, validation_data=(images, labels[:, None])).history
        assert history["loss"][-1] < history["loss"][0]
        assert history["val_robust_accuracy"][-1] >= history["val_robust_accuracy"][0]


def test_mixed_precision_and_an_ordinary_head(images, labels):
    """The logits are float16 or bfloat16; the divergence of TRADES and MART is computed in float32."""
    for policy in ("mixed_float16", "mixed_bfloat16"):
        layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
        model = keras.Sequential([*layers, keras.layers.Dense(4, dtype=policy)])
        for objective in (keras_sat.training.TRADES(), keras_sat.training.MART()):
            history = compiled(model, RANDOM, objective=objective).fit(images, labels, epochs=2, verbose=0).history
            assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("quantity", ["lora", "int8"])
def test_lora_and_int8_before_a_batch_norm(quantity, images, labels):
    layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    dense = keras.layers.Dense(16)
    model = keras.Sequential(
        [*layers, dense, keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.Dense(4)]
    )
    dense.enable_lora(2) if quantity == "lora" else dense.quantize("int8")
    trainer = compiled(model, RANDOM)
    trainer.fit(images, labels, verbose=0)
    report = keras_sat.evaluation.evaluate(model, (images, labels), RANDOM, progress=False)
    assert report.results[1].n == 8


def test_it_saves_loads_and_exports_as_its_classifier(tiny_model, images, labels, tmp_path):
    model = tiny_model()
    trainer = compiled(model)
    trainer.fit(images, labels, verbose=0)
    trainer.save_weights(tmp_path / "by_trainer.weights.h5")
    plain = tiny_model(seed=1)
    plain.load_weights(tmp_path / "by_trainer.weights.h5")
    np.testing.assert_array_equal(weights(plain), weights(model))
    plain.save_weights(tmp_path / "by_model.weights.h5")
    other = compiled(tiny_model(seed=2))
    other.load_weights(tmp_path / "by_model.weights.h5")
    np.testing.assert_array_equal(weights(other.classifier), weights(model))
    np.testing.assert_array_equal(int(trainer.optimizer.iterations), 1)
    again = compiled(tiny_model(seed=2))
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "by_trainer.weights.h5")  # the optimizer's state too, as BackupAndRestore needs it
    assert int(again.optimizer.iterations) == 1
    assert not hasattr(model, "optimizer")
    trainer.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(served.serve(tf.cast(images, tf.float32)), model(images), atol=1e-5)
    with pytest.raises(NotImplementedError, match=r"saved as its classifier: call trainer.save\(path\)"):
        keras.models.save_model(trainer, tmp_path / "trainer.keras")


def test_what_is_no_attack_is_refused_when_it_is_made(tiny_model):
    model = tiny_model()
    for options in (
        {"attack": "pgd"},
        {"attack": PGD},
        {"attack": None},
        {"attack": RANDOM, "evaluation_attack": "pgd"},
    ):
        with pytest.raises(ValueError, match="attack must be an attack, such as .* Received"):
            AdversarialModel(model, **options)
    targeted = PGD(LinfBall(8), targeted=True)
    for options in ({"attack": targeted}, {"attack": RANDOM, "evaluation_attack": targeted}):
        with pytest.raises(ValueError, match="PGD-10 is targeted"):
            AdversarialModel(model, **options)


@pytest.mark.parametrize("eagerly", [False, True])
def test_an_epsilon_of_nothing(eagerly, tiny_model, images, labels):
    ramp = keras.optimizers.schedules.PolynomialDecay(0.0, 1000, 1.0)
    for ball, options in ((LinfBall(8), {"epsilon_schedule": ramp}), (L2Ball(0), {})):
        trainer = AdversarialModel(tiny_model(), PGD(ball, steps=2), **options)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile("sgd", loss, run_eagerly=eagerly)
        assert np.isfinite(trainer.fit(images, labels, verbose=0).history["loss"]).all()


def test_trains_on_images_standardised_by_channel(tiny_model, images, labels):
    """With the ball in the unit of these images, the weights equal those of the same training on pixels."""
    mean, deviation = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
    standardised = ((images / 255 - mean) / deviation).astype(np.float32)
    bounds = (-mean / deviation, (1 - mean) / deviation)
    ramp = keras.optimizers.schedules.PolynomialDecay(0.5, 4, 1.0)
    results = []
    for x, ball in ((images, LinfBall(8)), (standardised, LinfBall(8 / 255 / deviation, bounds=bounds))):
        model = tiny_model()
        if x is standardised:
            scale = keras.layers.Normalization(mean=-mean / deviation, variance=1 / (255 * deviation) ** 2)
            model = keras.Sequential([keras.Input((8, 8, 3)), scale, model])
        trainer = compiled(model, PGD(ball, steps=2), epsilon_schedule=ramp)
        trainer.fit(x, labels, batch_size=8, epochs=3, verbose=0)
        results.append(weights(model))
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)


def test_images_in_0_to_1_are_an_error_in_fit(tiny_model, images, labels):
    trainer = compiled(tiny_model())
    for data in ((images / 255, labels), (batches(images / 255, labels),)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"LinfBall\(4 / 255, bounds=\(0, 1\)\)"):
            trainer.fit(*data, shuffle=False, verbose=0)
    trainer.fit(0 * images, labels, verbose=0)  # black images are images
    scaled = compiled(tiny_model(), PGD(LinfBall(8 / 255, bounds=(0, 1)), steps=1))
    scaled.fit(images / 255, labels, verbose=0)


@pytest.mark.parametrize(
    "options", [{"objective": TRADES()}, {"objective": MART()}, {"gradient_alignment": GradAlign()}]
)
def test_a_loss_that_is_no_mean_is_refused_with_a_penalty(options, tiny_model):
    def loss(reduction):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)

    model = tiny_model()
    for reduction in ("sum", None):
        with pytest.raises(ValueError, match=r"adds a mean over the batch.*Crossentropy\(reduction="):
            compiled(model, RANDOM, loss=[loss(reduction)], **options)
        compiled(model, RANDOM, loss=loss(reduction))
    for reduction in ("sum_over_batch_size", "mean", "mean_with_sample_weight"):
        compiled(model, RANDOM, loss=loss(reduction), **options)
