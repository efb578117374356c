import hashlib

import keras
import numpy as np

from keras_sat import deployed, export, provenance
from keras_sat.version import __version__


def test_the_facts_tell_networks_apart(tiny_model):
    model = tiny_model()
    facts = provenance.facts(model)
    assert list(facts) == ["model", "weights_sha256", "versions"]
    assert facts["model"] == model.name
    assert (facts["versions"]["keras_sat"], facts["versions"]["keras"]) == (__version__, keras.__version__)
    assert facts["weights_sha256"] == provenance.facts(tiny_model())["weights_sha256"]  # of the same values
    assert facts["weights_sha256"] != provenance.facts(tiny_model(seed=1))["weights_sha256"]


def test_the_hash_is_of_the_weights_in_their_order(tiny_model):
    model = tiny_model()
    values = b"".join(np.asarray(weight).tobytes() for weight in model.get_weights())
    assert provenance.weights_sha256(model) == hashlib.sha256(values).hexdigest()


def test_of_an_int8_file_it_is_of_the_file(tiny_model, tmp_path):
    model, path = tiny_model(), tmp_path / "net.tflite"
    export.export_saved_model(model, tmp_path / "saved", signatures=["serving_default"], warmup=False)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.float32)
    export.export_litert(tmp_path / "saved", path, images)
    assert provenance.weights_sha256(deployed.load(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_of_an_export_it_is_of_its_files_and_of_a_function_there_is_none(tiny_model, tmp_path):
    paths = [tmp_path / "one[a]", tmp_path / "other[b]"]
    for seed, path in enumerate(paths):
        export.export_saved_model(tiny_model(seed=seed), path, signatures=[])  # brackets are part of the names
    one, other, again = (provenance.weights_sha256(deployed.load(path)) for path in (*paths, paths[0]))
    assert one == again != other
    assert provenance.facts(deployed.load(paths[0]))["model"] == str(paths[0])

    def network(images):
        return images

    assert provenance.facts(network)["weights_sha256"] is None
    assert provenance.facts(network)["model"] == "network"
