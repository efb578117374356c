"""Runs scripts in forks of this process, which has imported TensorFlow without keras: no script need import it anew.

Each line of the input is a JSON list: a script and its arguments. Each line of the output is the exit status.
"""

import json
import os
import runpy
import sys

sys.modules["keras"] = None

import tensorflow  # noqa: E402, F401

for line in sys.stdin:
    sys.argv = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        finally:
            os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
