"""Posteriors by exact integration: means, spreads, kurtosis and quantiles of every parameter.

All but the Gaussian process come down to normals mixed over one variable: given it, every parameter is normal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import classics
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import norm

__all__ = ["EXACT", "QUANTILES", "exact"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Summary = dict[str, Any]


def exact(name: str) -> tuple[dict[str, Summary], float]:
    """Summaries by parameter, and the largest difference that half the grid makes, in standard deviations."""
    fine, coarse = EXACT[name](2), EXACT[name](1)
    return fine, max(apart(fine[k], coarse[k]) for k in fine)


def apart(one: Summary, other: Summary) -> float:
    """Largest difference of two summaries of a parameter, in standard deviations."""
    pairs = [(one[k], other[k]) for k in ("mean", "sd")]
    pairs += list(zip(one["quantiles"], other["quantiles"], strict=True))
    return max(abs(a - b) for a, b in pairs) / one["sd"]


def summary(mean: float, central: list[float], quantiles: list[float]) -> Summary:
    """What is kept of a parameter, from its mean and its second and fourth central moments."""
    variance, fourth = central
    return {
        "mean": float(mean),
        "sd": float(np.sqrt(variance)),
        "kurtosis": float(fourth / variance**2),
        "quantiles": [float(q) for q in quantiles],
    }


def mixture(weights: np.ndarray, means: np.ndarray, sds: np.ndarray) -> Summary:
    """A mixture of normals."""
    weights, means, sds = (np.ravel(a) for a in np.broadcast_arrays(weights, means, sds))
    weights = weights / weights.sum()
    mean = weights @ means
    off = means - mean
    variance = weights @ (off**2 + sds**2)
    fourth = weights @ (off**4 + 6 * off**2 * sds**2 + 3 * sds**4)

    def below(x: float) -> float:
        return float(weights @ ndtr((x - means) / sds))

    low, high = (means - 40 * sds).min(), (means + 40 * sds).max()
    found = [brentq(lambda x, q=q: below(x) - q, low, high, xtol=1e-13) for q in QUANTILES]
    return summary(mean, [variance, fourth], found)


def gridded(u: np.ndarray, density: np.ndarray, value: Callable[[np.ndarray], Any]) -> Summary:
    """A monotone function of a variable whose density is known on an even grid that holds all of it."""
    fine = np.linspace(u[0], u[-1], 20 * len(u))
    # The logarithm is smoother than the density.
    weights = np.exp(CubicSpline(u, np.log(np.maximum(density, 1e-300)))(fine))
    weights /= weights.sum()
    x = value(fine)
    mean = weights @ x
    central = [weights @ (x - mean) ** 2, weights @ (x - mean) ** 4]
    below = CubicSpline(fine, weights / (fine[1] - fine[0])).antiderivative()
    found = [value(brentq(lambda s, q=q: below(s) - q, u[0], u[-1], xtol=1e-13)) for q in QUANTILES]
    return summary(mean, central, found)


def eight_schools(fineness: int) -> dict[str, Summary]:
    """Given tau, mu is normal; given tau, every theta is linear in mu with normal noise."""
    y, sigma = np.array(classics.SCHOOL_EFFECTS), np.array(classics.SCHOOL_ERRORS)
    u = np.linspace(np.log(1e-9), np.log(1e5), 2000 * fineness + 1)
    tau = np.exp(u)[:, None]
    total = sigma**2 + tau**2
    precision = 1 / 25 + (1 / total).sum(1)
    center = (y / total).sum(1) / precision
    # log N(y; 0, diag(total) + 25) by the matrix determinant lemma, up to a constant.
    fit = -0.5 * (np.log(total) + y**2 / total).sum(1) - 0.5 * np.log(precision)
    fit += 0.5 * precision * center**2
    weights = np.exp(fit - fit.max()) * tau[:, 0] / (1 + (tau[:, 0] / 5) ** 2)
    shrink, raw = sigma**2 / total, tau / total
    found = {
        "mu": mixture(weights, center, precision**-0.5),
        "tau": gridded(u, weights, np.exp),
    }
    for j in range(8):
        mean = shrink[:, j] * center + (1 - shrink[:, j]) * y[j]
        variance = shrink[:, j] ** 2 / precision + shrink[:, j] * tau[:, 0] ** 2
        found[f"theta[{j}]"] = mixture(weights, mean, np.sqrt(variance))
    for j in range(8):
        mean = raw[:, j] * (y[j] - center)
        variance = raw[:, j] ** 2 / precision + shrink[:, j]
        found[f"z[{j}]"] = mixture(weights, mean, np.sqrt(variance))
    return found


def centred(fineness: int) -> dict[str, Summary]:
    """The same schools without the standardised effects."""
    return {k: v for k, v in eight_schools(fineness).items() if not k.startswith("z")}


def normal_grid(sd: float, fineness: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of N(0, sd²), far enough out for the fourth moment of exp(x / 2)."""
    x = np.linspace(-20 * sd, 20 * sd, 4000 * fineness + 1)
    return x, norm.pdf(x, 0, sd)


def funnel(fineness: int) -> dict[str, Summary]:
    """Given v, every x is normal."""
    v, weights = normal_grid(3.0, fineness)
    x = mixture(weights, 0 * v, np.exp(v / 2))
    return {"v": mixture(np.ones(1), np.zeros(1), 3 * np.ones(1))} | {
        f"x[{i}]": x for i in range(9)
    }


def banana(fineness: int) -> dict[str, Summary]:
    """Given a, b is normal."""
    a, weights = normal_grid(10.0, fineness)
    return {
        "a": mixture(np.ones(1), np.zeros(1), 10 * np.ones(1)),
        "b": mixture(weights, classics.BEND * (a**2 - 100), np.ones(1)),
    }


def two_modes(fineness: int) -> dict[str, Summary]:
    """Two normals, whichever the grid."""
    variance = 1 / (1 / 25 + 4)
    away = np.array([-1.0, 1.0]) * classics.OFFSET * 4 * variance
    place = mixture(np.array(classics.WEIGHTS), away, np.sqrt(variance) * np.ones(2))
    return {"place[0]": place, "place[1]": place}


def gp_regression(fineness: int) -> dict[str, Summary]:
    """Quadrature over the logarithms of length, amplitude and noise; one eigendecomposition for each length."""
    whole = [
        (np.log(0.05), np.log(50.0)),
        (np.log(0.01), np.log(40.0)),
        (np.log(0.01), np.log(8.0)),
    ]
    axes = [np.linspace(low, high, 60) for low, high in whole]
    for points in (60, 80 * fineness):
        axes = [_trimmed(u, m, points) for u, m in zip(axes, _gp_marginals(axes), strict=True)]
    marginals = _gp_marginals(axes)
    names = ("length", "amplitude", "noise")
    return {n: gridded(u, m, np.exp) for n, u, m in zip(names, axes, marginals, strict=True)}


def _trimmed(u: np.ndarray, marginal: np.ndarray, points: int) -> np.ndarray:
    """An even grid over what holds all but 1e-12 of a marginal."""
    kept = np.flatnonzero(marginal > 1e-12 * marginal.max())
    low, high = max(kept[0] - 1, 0), min(kept[-1] + 1, len(u) - 1)
    return np.linspace(u[low], u[high], points)


def _gp_marginals(axes: list[np.ndarray]) -> list[np.ndarray]:
    """Marginal densities of the three logarithms on their grids, none normalised."""
    length, amplitude, noise = (np.exp(u) for u in axes)
    y = classics.curve()["value"].values[:, 0]
    squares = np.subtract.outer(classics.INPUTS, classics.INPUTS) ** 2
    signal, error = (amplitude**2)[:, None, None], (noise**2)[None, :, None]
    # Priors times the Jacobians of the logarithms: InverseGamma(5, 5), HalfNormal(2), HalfNormal(1).
    prior = np.log(amplitude)[:, None] - amplitude[:, None] ** 2 / 8 + np.log(noise) - noise**2 / 2
    value = np.empty((len(length), len(amplitude), len(noise)))
    for i, scale in enumerate(length):
        eigenvalues, vectors = np.linalg.eigh(np.exp(-0.5 * squares / scale**2))
        spectrum = signal * eigenvalues.clip(min=0) + error
        fit = -0.5 * (np.log(spectrum) + (vectors.T @ y) ** 2 / spectrum).sum(-1)
        value[i] = fit + prior - 5 * np.log(scale) - 5 / scale
    joint = np.exp(value - value.max())
    return [joint.sum((1, 2)), joint.sum((0, 2)), joint.sum((0, 1))]


EXACT: dict[str, Callable[[int], dict[str, Summary]]] = {
    "eight_schools_centred": centred,
    "eight_schools_noncentred": eight_schools,
    "funnel": funnel,
    "banana": banana,
    "two_modes": two_modes,
    "gp_regression": gp_regression,
}
