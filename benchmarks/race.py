"""Takes the times of what is compared: in turns, so that a slow moment of the machine meets all of them."""

import time

WARM_UP = 2  # turns: tracing, and oneDNN's choice of kernels


def race(candidates, repeats):
    """Returns {name: seconds of each turn} of {name: function}; the first two turns only warm up."""
    seconds = {name: [] for name in candidates}
    for turn in range(repeats + WARM_UP):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds
