"""Has the data changed? Three tests of a live sample against a reference, by hand in NumPy.

A test of drift compares numbers that a service sees anyway: statistics of its images, its
confidences, its logits. None of them needs a label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shipyard.errors import MonitoringError

STATISTICS = ("brightness", "contrast", "sharpness", "colourfulness")


@dataclass(frozen=True)
class Comparison:
    """The size of a difference, and how often chance alone makes one as large."""

    statistic: float
    p_value: float


def shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The share of ``values`` (n,) in each of len(edges) + 1 bins; the outer ones are open."""
    places = np.searchsorted(edges, values, side="right")
    return np.bincount(places, minlength=len(edges) + 1) / len(values)


def population_stability_index(
    reference: np.ndarray, live: np.ndarray, bins: int = 10, floor: float = 1e-4
) -> float:
    """Σ (q − p) ln(q / p) over bins that each hold 1 / bins of the reference.

    p and q are the shares of reference and live sample in a bin, at least ``floor`` each, so that
    an empty bin does not cost infinity. It is the symmetric Kullback–Leibler divergence of the
    two histograms. Banks call less than 0.1 calm and more than 0.25 a change; chance alone gives
    about (bins − 1)(1/n + 1/m).

    Args:
        reference, live: (n,) and (m,), numbers of one kind.

    Source: B. Yurdakul and J. Naranjo, "Statistical properties of the population stability
    index", Journal of Risk Model Validation 14(4), 2020.
    """
    reference, live = _sample(reference, "reference"), _sample(live, "live")
    edges = np.quantile(reference, np.arange(1, bins) / bins)  # (bins - 1,)
    p = np.maximum(shares(reference, edges), floor)
    q = np.maximum(shares(live, edges), floor)
    return float(((q - p) * np.log(q / p)).sum())


def kolmogorov_smirnov(reference: np.ndarray, live: np.ndarray) -> Comparison:
    """D = max |F − G|, the largest gap between two empirical distributions, and its p value.

    The p value is Kolmogorov's limit 2 Σ (−1)^(k−1) exp(−2 k² λ²) at λ = D √(n m / (n + m)):
    good from some dozen values on, and a little too large where values repeat.

    Args:
        reference, live: (n,) and (m,), numbers of one kind.

    Source: N. Smirnov, "Table for estimating the goodness of fit of empirical distributions",
    Annals of Mathematical Statistics 19(2), 1948.
    """
    x, y = np.sort(_sample(reference, "reference")), np.sort(_sample(live, "live"))
    places = np.concatenate([x, y])
    F = np.searchsorted(x, places, side="right") / len(x)
    G = np.searchsorted(y, places, side="right") / len(y)
    D = float(np.abs(F - G).max())
    return Comparison(D, kolmogorov_survival(D * math.sqrt(len(x) * len(y) / (len(x) + len(y)))))


def kolmogorov_survival(λ: float) -> float:
    """P(K > λ) = 2 Σ (−1)^(k−1) exp(−2 k² λ²) for Kolmogorov's K, from 0 to 1."""
    if λ < 0.2:  # the sum converges slowly here, and its value is 1 to twelve digits
        return 1.0
    k = np.arange(1, 101)
    return float(np.clip(2 * ((-1.0) ** (k - 1) * np.exp(-2 * k**2 * λ**2)).sum(), 0, 1))


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i − y_j|² for x (n, d) and y (m, d): (n, m)."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None, :]
    return np.maximum(squares - 2 * x @ y.T, 0)


def median_heuristic(x: np.ndarray) -> float:
    """The median distance between two different rows of x (n, d): a width for the kernel."""
    distances = squared_distances(x, x)[np.triu_indices(len(x), k=1)]
    return float(np.median(np.sqrt(distances))) or 1.0


def rbf_kernel(x: np.ndarray, y: np.ndarray, width: float) -> np.ndarray:
    """k(x, y) = exp(−|x − y|² / (2 width²)): (n, m)."""
    return np.exp(-squared_distances(x, y) / (2 * width**2))


def maximum_mean_discrepancy(
    reference: np.ndarray, live: np.ndarray, permutations: int = 200, seed: int = 0
) -> Comparison:
    """MMD² between two samples of vectors without bias, and its p value by permutation.

    MMD² = mean of k(x, x′) + mean of k(y, y′) − 2 · mean of k(x, y), each over pairs of different
    rows; k is the RBF kernel, and its width is the median distance in both samples together. If
    both come from one distribution, the labels "reference" and "live" mean nothing: the p value
    is the share of random relabellings with an MMD² as large, the real one counted in.

    Args:
        reference, live: (n, d) and (m, d). Time and memory grow as (n + m)².

    Source: A. Gretton et al., "A kernel two-sample test", JMLR 13, 2012, equation 3.
    """
    x, y = _sample(reference, "reference", 2), _sample(live, "live", 2)
    n, m = len(x), len(y)
    both = np.concatenate([x, y])
    K = rbf_kernel(both, both, median_heuristic(both))
    np.fill_diagonal(K, 0)  # a row is no pair with itself
    is_live = np.zeros((permutations + 1, n + m))
    is_live[:, n:] = 1
    is_live[1:] = np.random.default_rng(seed).permuted(is_live[1:], axis=1)
    within_live = ((is_live @ K) * is_live).sum(1)
    across = ((is_live @ K) * (1 - is_live)).sum(1)
    within_reference = K.sum() - 2 * across - within_live
    mmd2 = within_reference / (n * (n - 1)) + within_live / (m * (m - 1)) - 2 * across / (n * m)
    as_large = int((mmd2[1:] >= mmd2[0]).sum())
    return Comparison(float(mmd2[0]), (1 + as_large) / (1 + permutations))


def image_statistics(images: np.ndarray) -> np.ndarray:
    """Four numbers of each picture, as `STATISTICS` names them: (n, 4), from 0 to about 1.

    Mean and standard deviation of the grey picture, the mean size of its Laplacian (what is left
    of a pixel after the mean of its four neighbours), and the mean spread of the three channels.

    Args:
        images: uint8 (n, 3, height, width).
    """
    pixels = np.asarray(images, dtype=np.float32) / 255
    grey = pixels.mean(1)  # (n, height, width)
    middle = grey[:, 1:-1, 1:-1]
    sides = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    sharpness = np.abs(middle - sides / 4).mean((1, 2))
    colour = pixels.std(1).mean((1, 2))
    return np.stack([grey.mean((1, 2)), grey.std((1, 2)), sharpness, colour], axis=1)


def _sample(values: np.ndarray, name: str, axes: int = 1) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != axes or len(values) < 2 or not np.isfinite(values).all():
        wanted = "(n,)" if axes == 1 else "(n, d)"
        raise MonitoringError(
            f"{name} has shape {values.shape}, or holds nan or ∞; expected finite numbers of "
            f"shape {wanted}, at least 2 of them. Leave out what was not measured."
        )
    return values
