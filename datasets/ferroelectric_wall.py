"""A polarization map across a ferroelectric wall as a scanning transmission electron microscope gives it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .kinds import DataError, dataset
from .scenes import scene
from .walls import sech

__all__ = ["ferroelectric_wall"]


@scene
def ferroelectric_wall(
    rng: np.random.Generator,
    rows: int = 24,
    cells: int = 25,
    P_s: float = 0.75,
    x0: float = 0.6,
    L_c: float = 1.6,
    eta: float = 3.0,
    P_B: float = 0.0,
    tilt: float = 1.2,
    bow: float = -0.6,
    noise: float = 0.045,
    row_noise: float = 0.01,
) -> xr.Dataset:
    """A map of a first-order wall: both components, the wall leaning and bowed, column noise and scan noise.

    `row_noise` is the jitter of the scan's flyback, in unit cells: it moves the wall of every row by itself. Set
    `eta` to 0 for a second-order wall, `P_B` for a component that turns.
    """
    if rows < 2 or cells < 3:
        raise DataError(f"needs rows >= 2 and cells >= 3, found {rows} and {cells}")
    if not (P_s > 0 and L_c > 0 and noise > 0 and eta >= 0 and row_noise >= 0):
        raise DataError("P_s, L_c and noise must be positive, eta and row_noise not negative")
    x = np.arange(cells) - (cells - 1) / 2
    t = np.linspace(-1, 1, rows)
    place = x0 + tilt * t + bow * (t**2 - np.mean(t**2)) + row_noise * rng.standard_normal(rows)
    u = (x - place[:, None]) / L_c
    mean = P_s * np.tanh(u) / np.sqrt(eta * sech(u) ** 2 + 1)
    mean = np.stack([mean, P_B * sech(u)], axis=-1)
    value = mean + noise * rng.standard_normal(mean.shape)
    return dataset(
        "profile",
        value=value,
        x=x,
        component=np.array(["parallel", "perpendicular"]),
        row=np.arange(rows),
        units={"x": "unit cell", "value": "C/m^2"},
        true_P_s=P_s,
        true_x0=x0,
        true_L_c=L_c,
        true_eta=eta,
        true_P_B=P_B,
        true_tilt=tilt,
        true_bow=bow,
        true_noise=noise,
        true_row_noise=row_noise,
    )
