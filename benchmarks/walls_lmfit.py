"""The peer: the four walls fitted by least squares with lmfit, chosen between by AIC or BIC.

This is what a careful microscopist does today. Every curve is fitted from several starts, since a single one ends in a
side minimum now and then, and its best fit counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lmfit
import numpy as np
import xarray as xr

__all__ = ["CONFIDENT", "CURVES", "expected_gain", "least_squares", "mean"]

# Least difference to the next that is called clear: AIC 10, "essentially no support" (Burnham and Anderson 2002);
# BIC 6, "strong" evidence (Kass and Raftery 1995).
CONFIDENT = {"aic": 10.0, "bic": 6.0}
SHAPES = {"wall_first_order": "eta", "wall_neel": "R0", "wall_bloch": "P_B"}
WIDTHS = (0.5, 1.0, 2.0, 4.0)
STARTS = {"eta": (0.3, 3.0, 30.0), "R0": (0.5, 2.0, 5.0), "P_B": (0.1, -0.1)}


def sech(u: np.ndarray) -> np.ndarray:
    decay = np.exp(-np.abs(u))
    return 2 * decay / (1 + decay**2)


def second_order(u: np.ndarray, v: dict[str, float]) -> tuple[np.ndarray, Any]:
    return v["P_s"] * np.tanh(u), 0.0


def first_order(u: np.ndarray, v: dict[str, float]) -> tuple[np.ndarray, Any]:
    return v["P_s"] * np.tanh(u) / np.sqrt(v["eta"] * sech(u) ** 2 + 1), 0.0


def neel(u: np.ndarray, v: dict[str, float]) -> tuple[np.ndarray, Any]:
    r = v["R0"] / v["L_c"]
    return 0.5 * v["P_s"] * (np.tanh((u + r) / 2) + np.tanh((u - r) / 2)), 0.0


def bloch(u: np.ndarray, v: dict[str, float]) -> tuple[np.ndarray, Any]:
    return v["P_s"] * np.tanh(u), v["P_B"] * sech(u)


CURVES: dict[str, Callable[..., tuple[np.ndarray, Any]]] = {
    "wall_second_order": second_order,
    "wall_first_order": first_order,
    "wall_neel": neel,
    "wall_bloch": bloch,
}


def mean(name: str, values: dict[str, float], data: xr.Dataset) -> np.ndarray:
    """The curve on the data's grid, (row, x, component)."""
    rows, _, components = data.value.shape
    t = np.linspace(-1, 1, rows)[:, None] if rows > 1 else np.zeros((1, 1))
    bow = t**2 - np.mean(t**2)
    place = values["x0"] + values.get("tilt", 0.0) * t + values.get("bow", 0.0) * bow
    along, across = CURVES[name]((data.x.values - place) / values["L_c"], values)
    return np.stack([along, across + 0 * along], -1)[..., :components]


def _starts(name: str, data: xr.Dataset) -> list[lmfit.Parameters]:
    value = data.value.values[..., 0].mean(0)
    x = data.x.values
    crossing = float(x[np.argmin(np.abs(np.cumsum(value) - np.cumsum(value).min()))])
    shape = SHAPES.get(name)
    found = []
    for width in WIDTHS:
        for start in STARTS[shape] if shape else (None,):
            parameters = lmfit.Parameters()
            parameters.add("P_s", float(np.abs(value).max()), min=0)
            parameters.add("x0", crossing)
            parameters.add("L_c", width, min=1e-3)
            if data.sizes["row"] > 1:
                parameters.add("tilt", 0.0)
                parameters.add("bow", 0.0)
            if shape and start is not None:
                parameters.add(shape, start, min=-np.inf if shape == "P_B" else 0)
            found.append(parameters)
    return found


def _fit(name: str, data: xr.Dataset) -> Any:
    seen = data.value.values

    def residual(parameters: lmfit.Parameters) -> np.ndarray:
        return (mean(name, parameters.valuesdict(), data) - seen).ravel()

    fits = [lmfit.minimize(residual, start) for start in _starts(name, data)]
    return min(fits, key=lambda fit: fit.chisqr)


def least_squares(data: xr.Dataset, names: tuple[str, ...]) -> dict[str, Any]:
    """AIC and BIC of every curve, and the processor time it took."""
    started = time.process_time()
    fits = {name: _fit(name, data) for name in names}
    return {
        "aic": {name: float(fit.aic) for name, fit in fits.items()},
        "bic": {name: float(fit.bic) for name, fit in fits.items()},
        "seconds": time.process_time() - started,
    }


def expected_gain(clean: xr.Dataset, rival: str, noise: float) -> float:
    """Log likelihood that the best curve of a rival loses on data without noise: SSE / 2σ²."""
    return float(_fit(rival, clean).chisqr) / (2 * noise**2)
