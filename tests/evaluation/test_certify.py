"""Certificates by randomised smoothing."""

import json
import math
import statistics

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sat import evaluation
from keras_sat.evaluation import CertificationReport, certification, certify, intervals
from keras_sat.evaluation import _certify as certify_lib

SIGMA, N = 40.0, 20_000
WEIGHTS = np.random.default_rng(0).normal(size=(4 * 4 * 3, 1)).astype(np.float32)
LIMIT = 40.0  # of the linear network: class 1 above it


@pytest.fixture
def linear():
    """A linear classifier of two classes with one logit: its smoothed classifier is the classifier itself."""
    inputs = keras.Input((4, 4, 3))
    dense = keras.layers.Dense(1)
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    dense.set_weights([WEIGHTS / np.linalg.norm(WEIGHTS), np.array([-LIMIT], np.float32)])
    return model


@pytest.fixture
def pictures():
    return np.random.default_rng(1).integers(0, 256, (12, 4, 4, 3)).astype(np.uint8)


def distances(pictures):
    """The exact radii: the signed distances to the plane that separates the classes of the linear network."""
    return pictures.reshape(len(pictures), -1) @ (WEIGHTS[:, 0] / np.linalg.norm(WEIGHTS)) - LIMIT


def test_a_linear_network_has_its_exact_radius(linear, pictures):
    exact = distances(pictures)
    report = certify(linear, (pictures, (exact > 0).astype(int)), SIGMA, n=N, n0=50, batch_size=5000, progress=False)
    radii, predicted = np.array(report.examples["radius"]), np.array(report.examples["predicted"])
    certain = predicted >= 0
    assert np.array_equal(predicted[certain], (exact > 0)[certain])
    assert (radii <= np.abs(exact)).all()  # each with a probability of 0.999
    # The radius that the bound gives if the share of the votes is the class' true probability.
    shares = [statistics.NormalDist().cdf(at / SIGMA) for at in np.abs(exact)]
    expected = np.array([certification.radius(round(N * share), N, 0.001, SIGMA) or 0.0 for share in shares])
    assert radii == pytest.approx(expected, abs=0.12 * SIGMA)
    near = np.abs(exact) < 2.5 * SIGMA
    assert near.sum() > 6
    assert (radii > np.abs(exact) - 0.2 * SIGMA)[near].all()
    assert report.accuracy(0.0) == np.mean(radii > 0)
    assert report.accuracy(30.0) == np.mean(radii >= 30)
    assert report.average_radius == pytest.approx(radii.mean())


def test_the_bound_covers_and_is_tight():
    """Binomials of a fixed seed: the bound is above the true probability in at most alpha of the draws."""
    n, alpha, repeats = 1000, 0.05, 20_000
    for p in (0.6, 0.9, 0.99):
        draws = np.random.default_rng(0).binomial(n, p, repeats)
        values, times = np.unique(draws, return_counts=True)
        above = sum(count for value, count in zip(values, times) if intervals.clopper_pearson(value, n, alpha) > p)
        assert 0.4 * alpha * repeats < above < (alpha + 4 * math.sqrt(alpha / repeats)) * repeats


@pytest.mark.parametrize(("successes", "n"), [(5, 10), (90, 100), (51_000, 100_000), (99_000, 100_000)])
def test_the_bound_is_where_the_tail_has_the_probability_alpha(successes, n):
    p, alpha = intervals.clopper_pearson(successes, n, 0.001), 0.001
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(successes, n + 1)
    ]
    assert sum(map(math.exp, logs)) == pytest.approx(alpha, rel=1e-6)
    assert intervals.clopper_pearson(0, n, alpha) == 0
    assert intervals.clopper_pearson(n, n, alpha) ** n == pytest.approx(alpha)


def test_it_abstains_without_a_majority(pictures):
    """A network that ignores the image and follows one pixel of noise: each of two classes has half of the votes."""

    def coin(images):
        return tf.stack([images[:, 0, 0, 0], 254.0 - images[:, 0, 0, 0]], axis=1)

    report = certify(coin, (np.full_like(pictures, 127), np.zeros(12, int)), SIGMA, n0=20, n=500, progress=False)
    assert report.abstained == 1
    assert set(report.examples["predicted"]) == {-1}
    assert report.accuracy(0.0) == report.average_radius == 0
    votes = np.array(report.examples["successes"])
    assert abs(votes.mean() / 500 - 0.5) < 4 * 0.5 / math.sqrt(500 * 12)
    assert len(set(votes)) > 4  # the images have noise of their own


def test_logits_that_are_not_finite_count_for_no_class(pictures):
    def fragile(images):
        return tf.where(images[:, :1, 0, 0] > 130, [[np.nan, 0.0]], [[1.0, 0.0]])

    grey = np.full_like(pictures[:2], 127)
    report = certify(fragile, (grey, [0, 0]), SIGMA, n0=20, n=200, progress=False)
    finite = statistics.NormalDist().cdf(3 / SIGMA)
    assert np.array(report.examples["successes"]) == pytest.approx(200 * finite, abs=30)
    assert all(22 < bad < 220 for bad in report.examples["not_finite"])
    assert "Warning: for 2 images a logit" in report.table()


def test_batch_size_shards_and_an_interruption_change_nothing(
    shared_model, images, labels, tmp_path, monkeypatch, capsys
):
    options = {"sigma": 60.0, "n0": 30, "n": 245, "progress": False, "context": {"dataset": "random"}}
    whole = certify(shared_model, (images, labels), batch_size=400, **options)
    assert set(whole.examples["predicted"]) - {-1}
    assert certify(shared_model, (images, labels), batch_size=3, **options).examples == whole.examples
    assert certify(shared_model, (images, labels), seed=1, **options).examples != whole.examples
    shards = [certify(shared_model, (images, labels), shard=(k, 2), **options) for k in (1, 0)]
    assert CertificationReport.merge(shards) == whole
    with pytest.raises(ValueError, match="share images"):
        CertificationReport.merge([whole, whole])

    state = tmp_path / "state.json"
    monkeypatch.setattr(certify_lib, "SAVE_EVERY", 0.0)
    calls = []

    def killed(self):
        calls.append(self.done)
        self.save()
        if len(calls) == 17:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(certify_lib._Counts, "save_now_and_then", killed)
        certify(shared_model, (images, labels), batch_size=40, state=state, **options)
    saved = json.loads(state.read_text())
    assert 0 < saved["done"] < 275
    assert 0 < len(saved["rows"]) < 8
    capsys.readouterr()
    again = certify(shared_model, (images, labels), batch_size=100, state=state, **options | {"progress": True})
    assert again == whole
    before = f"{len(saved['rows'])} images certified, and {saved['done']} noisy images of the next one classified"
    assert f"Continuing an interrupted certification: {before}." in capsys.readouterr().out
    with pytest.raises(ValueError, match="dataset has changed"):
        certify(shared_model, (images, (labels + 1) % 4), state=state, **options)
    with pytest.raises(ValueError, match="dataset has changed"):
        certify(shared_model, (images[::-1], labels), state=state, **options)
    state.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="dataset has changed"):  # within an image
        place = len(saved["rows"])
        certify(shared_model, (np.concatenate([images[:place], 255 - images[place:]]), labels), state=state, **options)
    with pytest.raises(ValueError, match="another certification"):
        certify(shared_model, (images, labels), state=state, **options | {"n": 100})
    state.write_text("{}")
    with pytest.raises(ValueError, match="not the state of a certification"):
        certify(shared_model, (images, labels), state=state, **options)


def test_the_report(tmp_path):
    settings = {"sigma": 63.75, "n0": 100, "n": 1000, "alpha": 0.001, "bounds": [0.0, 255.0]}
    rows = [[0, 3, 3, 1000, 0], [1, 2, 2, 900, 0], [2, 1, 0, 1000, 0], [3, 1, 1, 520, 0]]
    report = CertificationReport.of(settings, {"seed": 0}, rows)
    assert report.examples["predicted"] == [3, 2, 0, -1]
    radii = report.examples["radius"]
    assert radii[0] == radii[2] == report.largest_radius == pytest.approx(63.75 * 2.4624, rel=1e-3)
    assert radii[3] == 0
    assert [report.accuracy(at) for at in (0, radii[1], radii[1] + 0.1, radii[0], 200)] == [0.5, 0.5, 0.25, 0.25, 0]
    assert report.abstained == 0.25
    assert report.average_radius == pytest.approx((radii[0] + radii[1]) / 4)
    assert report.table([0, 63.75]).splitlines()[:3] == [
        "L2 radius  radius / 255  images  certified accuracy  95 % interval",
        "0          0.000         4       50.0 %              15.0 .. 85.0",
        "63.75      0.250         4       50.0 %              15.0 .. 85.0",
    ]
    assert len(report.radii()) == 5  # 0, sigma / 2, ..., 2 sigma
    assert report.to_json(tmp_path / "report.json") == (tmp_path / "report.json").read_text()
    assert CertificationReport.from_json(tmp_path / "report.json") == report
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ValueError, match="does not hold the report of a certification"):
        CertificationReport.from_json(tmp_path / "report.json")
    with pytest.raises(ValueError, match="radius must be"):
        report.accuracy(-1.0)


def test_refusals(shared_model, images, labels):
    def refused(match, dataset=(images, labels), model=shared_model, **options):
        with pytest.raises(ValueError, match=match):
            evaluation.certify(model, dataset, **{"sigma": 60.0, "n": 20, "progress": False} | options)

    refused("sigma must be a positive number.*Received: 0", sigma=0)
    refused("sigma must be a positive number.*nan", sigma=float("nan"))
    refused("n must be an integer >= 1. Received: 0", n=0)
    refused("n0 must be an integer >= 1. Received: 1.5", n0=1.5)
    refused("alpha must be between 0 and 1.*Received: 1", alpha=1)
    refused("bounds must be two numbers", bounds=(1, 0))
    refused("The images reach from 0 to 1", (images / 255.0, labels))
    refused(r"finite and within the bounds \(0.0, 1.0\)", bounds=(0, 1))
    refused("finite and within", (np.where(images > 250, np.nan, images), labels))
    refused("takes images of shape", (images[:, :4], labels))
    refused("has no images", [])
    refused(
        "returns one probability, and one logit was expected",
        (images, labels % 2),
        keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(1, "sigmoid")]),
    )
    refused("labels", (images, labels + 4))
    refused("shard must be", shard=(2, 2))
    refused("context must not contain 'seed'", context={"seed": 1})
    with pytest.warns(UserWarning, match="less than one level"):
        certify(shared_model, (images[:1], labels[:1]), 0.25, n0=1, n=1, progress=False)


def test_no_label_is_out_of_range_in_any_batch(shared_model, images, labels):
    labels = np.where(np.arange(8) < 6, labels, -1)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    with pytest.raises(ValueError, match=r"labels must lie in 0..3. Received values in \[-1,"):
        certify(shared_model, dataset, 20.0, n0=20, n=20, batch_size=20, progress=False)
    merged = {name: [0] for name in certification.COLUMNS} | {"label": [-1], "predicted": [-1]}
    settings = {"sigma": 1.0, "n0": 1, "n": 1, "alpha": 0.1, "bounds": [0, 255]}
    assert CertificationReport(settings, {}, merged).accuracy(0) == 0  # an abstention is no label
