"""Closed forms of linear regression on Gaussian inputs: risk of least norm, of ridge, and norms.

Hastie, Montanari, Rosset and Tibshirani, "Surprises in high-dimensional ridgeless least squares
interpolation" (arXiv:1903.08560). Rows x of p independent standard normal numbers, n of them,
y = x . beta + noise, |beta|^2 = signal, variance of the noise = noise; gamma = p / n. Risk is the
excess risk E (x . b - E[y | x])^2 = E |b - beta|^2, without the noise of the row that is predicted.

The asymptotic forms hold as n and p grow at fixed gamma; the exact ones at finite n, from the mean
of an inverse Wishart matrix, E (X^T X)^-1 = I / (n - p - 1) (for p > n with the two exchanged).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Model(NamedTuple):
    """What targets are made of.

    Attributes:
        signal: |beta|^2, unseen inputs included.
        noise: variance of the noise.
        decay: a of the misspecified model; nan where all inputs are seen.
    """

    signal: float
    noise: float = 1.0
    decay: float = float("nan")


def unseen_share(gamma: ArrayLike, decay: float) -> Floats:
    """Return 1 - kappa = (1 + gamma)^-decay, the share of the signal that is not in the inputs.

    Section 5.3 of the paper (polynomial approximation bias). Zero where `decay` is nan.
    """
    ratio = np.asarray(gamma, dtype=np.float64)
    share: Floats = np.zeros_like(ratio) if np.isnan(decay) else (1.0 + ratio) ** -decay
    return share


def ridgeless(gamma: ArrayLike, model: Model) -> Floats:
    """Return the asymptotic risk of the minimum-norm fit.

    Section 3: noise gamma / (1 - gamma) for gamma < 1, and signal (1 - 1 / gamma) +
    noise / (gamma - 1) for gamma > 1; misspecified (section 5): what is unseen adds to the noise of
    the rows, and to the risk itself. Infinite at gamma = 1.
    """
    ratio = np.asarray(gamma, dtype=np.float64)
    unseen = model.signal * unseen_share(ratio, model.decay)
    noise = model.noise + unseen
    with np.errstate(divide="ignore", invalid="ignore"):
        under = noise * ratio / (1.0 - ratio)
        over = (model.signal - unseen) * (1.0 - 1.0 / ratio) + noise / (ratio - 1.0)
    risk: Floats = unseen + np.where(ratio < 1, under, over)
    return risk


def ridgeless_exact(n: ArrayLike, p: ArrayLike, model: Model) -> Floats:
    """Return the mean risk of the minimum-norm fit at finite n and p; nan where it is infinite.

    noise p / (n - p - 1) for p < n - 1, and signal (1 - n / p) + noise n / (p - n - 1) for
    p > n + 1; the mean is infinite for p in {n - 1, n, n + 1}.
    """
    rows, dim = np.asarray(n, dtype=np.float64), np.asarray(p, dtype=np.float64)
    unseen = model.signal * unseen_share(dim / rows, model.decay)
    noise = model.noise + unseen
    risk: Floats = unseen + _sides(
        rows,
        dim,
        lambda gap: noise * dim / gap,
        lambda gap: (model.signal - unseen) * (1.0 - rows / dim) + noise * rows / gap,
    )
    return risk


def norm_exact(n: ArrayLike, p: ArrayLike, model: Model) -> Floats:
    """Return the mean of |b|^2 of the minimum-norm fit at finite n and p; nan where infinite.

    signal + noise p / (n - p - 1), and signal n / p + noise n / (p - n - 1): the projection of beta
    on n random directions of p keeps n / p of its square.
    """
    rows, dim = np.asarray(n, dtype=np.float64), np.asarray(p, dtype=np.float64)
    unseen = model.signal * unseen_share(dim / rows, model.decay)
    seen, noise = model.signal - unseen, model.noise + unseen
    return _sides(
        rows,
        dim,
        lambda gap: seen + noise * dim / gap,
        lambda gap: seen * rows / dim + noise * rows / gap,
    )


def best_ridge(gamma: ArrayLike, model: Model) -> Floats:
    """Return the ridge of least risk, noise gamma / signal, beside |y - X b|^2 / n (section 6)."""
    ridge: Floats = model.noise * np.asarray(gamma, dtype=np.float64) / model.signal
    return ridge


def ridge(gamma: ArrayLike, penalty: ArrayLike, model: Model) -> Floats:
    """Return the asymptotic risk of ridge regression with any penalty > 0, well specified.

    Section 6: penalty^2 signal m'(-penalty) + noise gamma (m(-penalty) - penalty m'(-penalty)),
    where m(z) is the Stieltjes transform of the Marchenko-Pastur law of ratio gamma: with
    root = sqrt((1 - gamma + penalty)^2 + 4 gamma penalty),
    m(-penalty) = (root - (1 - gamma + penalty)) / (2 gamma penalty). At the best penalty this is
    noise gamma m(-penalty).
    """
    ratio = np.asarray(gamma, dtype=np.float64)
    weight = np.asarray(penalty, dtype=np.float64)
    linear = 1.0 - ratio + weight
    root = np.sqrt(linear**2 + 4.0 * ratio * weight)
    m = (root - linear) / (2.0 * ratio * weight)
    # d root / d penalty = (linear + 2 gamma) / root, and m'(-penalty) = -d m(-penalty) / d penalty.
    slope = m / weight - ((linear + 2.0 * ratio) / root - 1.0) / (2.0 * ratio * weight)
    bias = weight**2 * model.signal * slope
    risk: Floats = bias + model.noise * ratio * (m - weight * slope)
    return risk


def best_ratio(model: Model) -> float:
    """Return where risk is least right of gamma = 1: sqrt(SNR) / (sqrt(SNR) - 1), SNR > 1.

    Section 3.2, well specified. Infinite for a signal-to-noise ratio of at most 1: risk then falls
    all the way to the null risk |beta|^2.
    """
    root = float(np.sqrt(model.signal / model.noise))
    return root / (root - 1.0) if root > 1.0 else float("inf")


def _sides(
    rows: Floats,
    dim: Floats,
    under: Callable[[Floats], Floats],
    over: Callable[[Floats], Floats],
) -> Floats:
    low, high = rows - dim - 1.0, dim - rows - 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        right = np.where(high > 0, over(high), np.nan)
        result: Floats = np.where(low > 0, under(low), right)
    return result
