"""Scenes of straight domain walls: one for each of the four profiles, in unit cells, with known noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from .kinds import DataError, dataset
from .scenes import scene

__all__ = ["wall_bloch", "wall_first_order", "wall_neel", "wall_second_order"]


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise DataError(f"{name} must be positive, found {value:g}")


def _profile(
    rng: np.random.Generator, mean: np.ndarray, x: np.ndarray, noise: float, **truth: Any
) -> xr.Dataset:
    """A profile (row, x, component) with Gaussian noise and its truth."""
    value = mean + noise * rng.standard_normal(mean.shape)
    names = ["parallel", "perpendicular"][: mean.shape[-1]]
    return dataset(
        "profile",
        value=value,
        x=x,
        component=np.array(names),
        units={"x": "unit cell", "value": "C/m^2"},
        true_noise=noise,
        **{f"true_{name}": value for name, value in truth.items()},
    )


def sech(u: np.ndarray) -> np.ndarray:
    """1 / cosh u, without the overflow far from the wall."""
    decay = np.exp(-np.abs(u))
    return 2 * decay / (1 + decay**2)


def _cells(cells: int) -> np.ndarray:
    if cells < 3:
        raise DataError(f"cells must be at least 3, found {cells}")
    return np.arange(cells) - (cells - 1) / 2


def _rows(profile: np.ndarray, rows: int) -> np.ndarray:
    if rows < 1:
        raise DataError(f"rows must be at least 1, found {rows}")
    return np.broadcast_to(profile, (rows, *profile.shape)).copy()


@scene
def wall_second_order(
    rng: np.random.Generator,
    rows: int = 1,
    cells: int = 21,
    P_s: float = 1.0,
    x0: float = 0.0,
    L_c: float = 2.0,
    noise: float = 0.05,
) -> xr.Dataset:
    """A second-order wall, P_s tanh u."""
    _positive(P_s=P_s, L_c=L_c, noise=noise)
    x = _cells(cells)
    mean = P_s * np.tanh((x - x0) / L_c)[:, None]
    return _profile(rng, _rows(mean, rows), x, noise, P_s=P_s, x0=x0, L_c=L_c)


@scene
def wall_first_order(
    rng: np.random.Generator,
    rows: int = 1,
    cells: int = 21,
    P_s: float = 1.0,
    x0: float = 0.0,
    L_c: float = 2.0,
    eta: float = 3.0,
    noise: float = 0.01,
) -> xr.Dataset:
    """A first-order wall, P_s tanh u / sqrt(eta sech^2 u + 1)."""
    _positive(P_s=P_s, L_c=L_c, eta=eta, noise=noise)
    x = _cells(cells)
    u = (x - x0) / L_c
    mean = (P_s * np.tanh(u) / np.sqrt(eta * sech(u) ** 2 + 1))[:, None]
    return _profile(rng, _rows(mean, rows), x, noise, P_s=P_s, x0=x0, L_c=L_c, eta=eta)


@scene
def wall_bloch(
    rng: np.random.Generator,
    rows: int = 1,
    cells: int = 21,
    P_s: float = 1.0,
    P_B: float = 0.4,
    x0: float = 0.0,
    L_c: float = 2.0,
    noise: float = 0.05,
) -> xr.Dataset:
    """A Bloch wall of two components, P_s tanh u along and P_B sech u across."""
    _positive(P_s=P_s, L_c=L_c, noise=noise)
    x = _cells(cells)
    u = (x - x0) / L_c
    mean = np.stack([P_s * np.tanh(u), P_B * sech(u)], axis=-1)
    return _profile(rng, _rows(mean, rows), x, noise, P_s=P_s, P_B=P_B, x0=x0, L_c=L_c)


@scene
def wall_neel(
    rng: np.random.Generator,
    rows: int = 1,
    cells: int = 21,
    P_s: float = 1.0,
    x0: float = 0.0,
    L_c: float = 1.0,
    R0: float = 4.0,
    noise: float = 0.01,
) -> xr.Dataset:
    """A Neel wall, P_s sinh u / (cosh(R0/L_c) + cosh u)."""
    _positive(P_s=P_s, L_c=L_c, noise=noise)
    if not R0 >= 0:
        raise DataError(f"R0 must not be negative, found {R0:g}")
    x = _cells(cells)
    u, r = (x - x0) / L_c, R0 / L_c
    # The same curve as the sum of its two halves: cosh overflows.
    mean = (0.5 * P_s * (np.tanh((u + r) / 2) + np.tanh((u - r) / 2)))[:, None]
    return _profile(rng, _rows(mean, rows), x, noise, P_s=P_s, x0=x0, L_c=L_c, R0=R0)
