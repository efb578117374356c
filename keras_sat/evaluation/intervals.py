"""Confidence intervals of accuracies."""

import math

QUANTILE = 1.959963984540054  # 97.5 % quantile of the normal distribution, for two-sided 95 % intervals


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval (low, high) of the proportion correct / n (Wilson 1927, JASA 22:209).

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),    p = correct / n,    z = 1.96

    Args:
        correct: number of successes, 0..n.
        n: number of trials, >= 1.
    """
    p, z2 = correct / n, QUANTILE**2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = QUANTILE / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def percent(share: float) -> str:
    """Returns a share of 1 as text in percent: "75.2 %"."""
    return f"{100 * share:.1f} %"


def text(interval: tuple[float, float]) -> str:
    """Returns an interval of shares of 1 as text in percent: "73.2 .. 77.0"."""
    low, high = interval
    return f"{100 * low:.1f} .. {100 * high:.1f}"
