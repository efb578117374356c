"""The command `keras-sat list`."""

import json
import re


def test_list(run):
    known = json.loads(run("list", "--json").stdout)
    assert "ResNet50" in known["models"]
    assert "smooth_relu" in known["activations"]
    assert known["datasets"] == ["fashion_mnist_mini"]
    assert {"tag", "model", "clean", "robust", "under", "source"} <= set(known["weights"][0])
    text = run("list").stdout
    assert all(name in text for kind, names in known.items() if kind != "weights" for name in names)
    assert re.search(r"sat-imagenet-380 +ResNeXt152_32x8d +silu +380 +122372392 +78.0 +51.0", text)
