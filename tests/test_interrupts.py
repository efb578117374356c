import signal
import sys
import time
import traceback

import pytest

from keras_sat import interrupts, losses

# Code of another package, which a Ctrl-C must not break off.
FOREIGN = compile(
    """
def work(signals, then):
    for _ in range(signals):
        signal.raise_signal(signal.SIGINT)
    done.append("worked")
    then()
    done.append("after the package")
""",
    "elsewhere.py",
    "exec",
)


@pytest.fixture
def foreign(monkeypatch):
    """Returns the names of the other package, with the handler installed."""
    before, trace = signal.signal(signal.SIGINT, interrupts.handler), sys.gettrace()
    names = {"signal": signal, "done": []}
    exec(FOREIGN, names)
    yield names
    signal.signal(signal.SIGINT, before)
    sys.settrace(trace)


def test_ctrl_c_in_foreign_code_is_raised_at_the_next_line_of_the_package(foreign):
    with pytest.raises(KeyboardInterrupt) as error:
        foreign["work"](1, lambda: losses.check_takes_logits("mse"))
    assert foreign["done"] == ["worked"]
    assert traceback.extract_tb(error.value.__traceback__)[-2].filename == losses.__file__
    time.sleep(1.2)  # and not once more


def test_a_second_ctrl_c_is_raised_at_once(foreign):
    with pytest.raises(KeyboardInterrupt):
        foreign["work"](2, lambda: None)
    assert foreign["done"] == []


def test_ctrl_c_is_raised_after_a_second_without_a_line_of_the_package(foreign):
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        foreign["work"](1, lambda: time.sleep(30))
    assert time.perf_counter() - start < 20
    assert foreign["done"] == ["worked"]
