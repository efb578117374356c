"""The command `keras-sat serve`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request

COMMAND = os.path.join(os.path.dirname(sys.executable), "keras-sat")


def test_serve(exported, tmp_path):
    shutil.copytree(exported[0], tmp_path / "net" / "1")
    command = [COMMAND, "serve", str(tmp_path / "net"), "--rest_port=0", "--grpc_port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        address = lines[2].split()[-1]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert json.load(answer)["model_version_status"][0]["state"] == "AVAILABLE"
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert error == ""
