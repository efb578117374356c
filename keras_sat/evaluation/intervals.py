"""Confidence intervals of accuracies and probabilities."""

import math

import tensorflow as tf

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


def clopper_pearson(successes: int, n: int, alpha: float) -> float:
    """Returns the lower bound of a probability of success, which exceeds it with a probability of at most alpha.

    It is the p at which `successes` or more of n trials have the probability alpha (Clopper and Pearson 1934,
    Biometrika 26:404), found by bisection:

        I_p(successes, n - successes + 1) = alpha,    I = the regularised incomplete beta function

    Args:
        successes: number of successes, 0..n.
        n: number of trials, >= 1.
        alpha: between 0 and 1.
    """
    if successes == 0:
        return 0.0
    if successes == n:
        return alpha ** (1 / n)
    a, b = (tf.constant(value, tf.float64) for value in (successes, n - successes + 1))
    low, high = 0.0, successes / n
    for _ in range(60):  # halves the interval to the precision of float64
        middle = (low + high) / 2
        if float(tf.math.betainc(a, b, tf.constant(middle, tf.float64))) <= alpha:
            low = middle
        else:
            high = middle
    return low


def percent(share: float) -> str:
    """Returns a share of 1 as text in percent: "75.2 %"."""
    return f"{100 * share:.1f} %"


def text(interval: tuple[float, float]) -> str:
    """Returns an interval of shares of 1 as text in percent: "73.2 .. 77.0"."""
    low, high = interval
    return f"{100 * low:.1f} .. {100 * high:.1f}"
