import os
import pathlib
import shutil
import socket
import threading
import time
import urllib.parse

import numpy as np
import pytest

from keras_sat.serving import Server


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def states(ask, server):
    _, answer = ask(server, f"/v1/models/{server.name}")
    return {one["version"]: one["state"] for one in answer["model_version_status"]}


def test_no_request_fails_across_a_switch(ask, publish, exported, pixels, tmp_path):
    """Four clients send requests without a pause while version 2 replaces version 1."""
    folder, models = exported
    expected = [model(pixels).numpy().argmax(-1).tolist() for model in models]
    publish(folder / "1", tmp_path, 1)
    answers, done = [], threading.Event()

    def client():
        while not done.is_set() and len(answers) < 20_000:
            code, answer = ask(server, "/v1/models/net:predict", {"inputs": pixels.tolist()})
            answers.append((code, answer.get("outputs", {}).get("logits")))

    with Server(tmp_path, name="net", rest_port=0, grpc_port=0, poll=0.05) as server:
        clients = [threading.Thread(target=client) for _ in range(4)]
        for one in clients:
            one.start()
        until(lambda: len(answers) > 20)
        publish(folder / "2", tmp_path, 2)
        until(lambda: states(ask, server) == {"2": "AVAILABLE", "1": "END"})
        number = len(answers)
        until(lambda: len(answers) > number + 20)
        done.set()
        for one in clients:
            one.join()
    assert {code for code, _ in answers} == {200}
    served = [expected.index(np.argmax(logits, -1).tolist()) for _, logits in answers]
    assert set(served) == {0, 1}
    assert served[0] == 0
    assert set(served[-5:]) == {1}


def test_half_a_version_leaves_the_one_in_service(ask, publish, exported, pixels, tmp_path):
    folder, _ = exported
    publish(folder / "1", tmp_path, 1)
    with Server(tmp_path, name="net", rest_port=0, grpc_port=0, poll=0.05) as server:
        (tmp_path / "not a version").mkdir()
        (tmp_path / "2").mkdir()
        shutil.copy(folder / "2" / "saved_model.pb", tmp_path / "2")
        until(lambda: states(ask, server).get("2") == "END")
        _, answer = ask(server, "/v1/models/net/versions/2")
        assert answer["model_version_status"][0]["status"]["error_code"] == "UNKNOWN"
        assert ask(server, "/v1/models/net:predict", {"inputs": pixels.tolist()})[0] == 200
        assert ask(server, "/v1/models/net/versions/1:predict", {"inputs": pixels.tolist()})[0] == 200
        for name in ("assets", "assets.extra", "variables"):
            shutil.copytree(folder / "2" / name, tmp_path / "2" / name)
        until(lambda: states(ask, server) == {"2": "AVAILABLE", "1": "END"})
        shutil.rmtree(tmp_path / "2")  # version 1 is served again
        until(lambda: states(ask, server).get("1") == "AVAILABLE")


def test_a_saved_model_is_version_1(ask, exported, pixels):
    with Server(exported[0] / "2", rest_port=0, grpc_port=0) as server:
        assert server.name == "2"
        code, answer = ask(server, "/v1/models/2:predict", {"inputs": pixels.tolist()})
        np.testing.assert_allclose(answer["outputs"]["logits"], exported[1][1](pixels), atol=1e-5)


def test_refusals(ask, exported, tmp_path):
    with pytest.raises(ValueError, match="holds no SavedModel"):
        Server(tmp_path, rest_port=0, grpc_port=0)
    shutil.copytree(exported[0] / "1", tmp_path / "1")
    os.remove(tmp_path / "1" / "variables" / "variables.index")
    with pytest.raises(ValueError, match="version 1: "):
        Server(tmp_path, rest_port=0, grpc_port=0)


@pytest.mark.parametrize("kind", ["rest_port", "grpc_port"])
def test_a_port_in_use_is_one_short_message(exported, capfd, kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"^cannot listen at 127.0.0.1:{port}: \[Errno \d+\] [\w ]*in use$"):
            Server(exported[0], **{"rest_port": 0, "grpc_port": 0, kind: port})
    assert capfd.readouterr() == ("", "")


def test_what_is_the_number_of_a_version(ask, publish, exported, pixels, tmp_path):
    folder, models = exported
    for name in ("99999999999999999999", "9223372036854775808", "1_0", "\u0661", "8.0", "0x9", "9a", "", "-"):
        (tmp_path / name).mkdir(exist_ok=True)
    publish(folder / "1", tmp_path, "-1")
    publish(folder / "1", tmp_path, "007")
    publish(folder / "2", tmp_path, "7")  # two names with the same number: the last is used
    with Server(tmp_path, name="net", rest_port=0, grpc_port=0, poll=0.05) as server:
        assert states(ask, server) == {"7": "AVAILABLE"}
        code, answer = ask(server, "/v1/models/net/versions/7:predict", {"inputs": pixels.tolist()})
        np.testing.assert_allclose(answer["outputs"]["logits"], models[1](pixels), atol=1e-5)
        publish(folder / "1", tmp_path, " +8 ")
        until(lambda: states(ask, server) == {"8": "AVAILABLE", "7": "END"})
        publish(folder / "1", tmp_path, 2**63 - 1)
        until(lambda: states(ask, server).get(str(2**63 - 1)) == "AVAILABLE")


def test_a_negative_version(ask, publish, exported, tmp_path):
    publish(exported[0] / "1", tmp_path, "-3")
    with Server(tmp_path, name="net", rest_port=0, grpc_port=0) as server:
        assert states(ask, server) == {"-3": "AVAILABLE"}


@pytest.mark.parametrize("form", ["~/{}", "~/{}//", "{home}/{}/"])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_paths(ask, publish, exported, tmp_path, monkeypatch, form, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "a [b]* {c}?"
    (tmp_path / name).mkdir()
    publish(exported[0] / "1", tmp_path / name, 1)
    with Server(kind(form.format(name, home=tmp_path)), rest_port=0, grpc_port=0, poll=0.05) as server:
        assert server.name == name
        code, _ = ask(server, f"/v1/models/{urllib.parse.quote(name)}")
        assert code == 200
