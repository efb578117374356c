"""Measures the times of several functions in turns, so that a slow moment of the machine affects all of them."""

import time

WARM_UP = 2  # turns that are not measured: they trace, and oneDNN chooses its kernels


def race(candidates, repeats):
    """Runs functions in turns; returns {name: [seconds of each turn]}, without the first two turns.

    Args:
        candidates: {name: function without arguments}.
        repeats: number of turns that are measured.
    """
    seconds = {name: [] for name in candidates}
    for turn in range(repeats + WARM_UP):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds
