"""Sites: an image, the places where it has columns, and what is known beforehand of its noise and of how columns look.

The noise has variance gain · mean + floor + excess, but at least `least`; excess is what the model of the columns
lacks, pixel by pixel, such as rows that jitter. The background is told at knots, evenly spaced. The places themselves
are found by a model, since finding columns is fitting them.

Example:
    >>> import numpy as np
    >>> pixels = np.arange(16) * 0.02
    >>> image = dataset("image", intensity=np.eye(16), y=pixels, x=pixels, units={"y": "nm", "x": "nm"})
    >>> one = sites(image, np.array([[0.1, 0.1]]), np.array([5.0]), width=0.04, gain=1.0, least=0.05, step=8.0)
    >>> one.attrs["kind"], one.sizes["column"], one.attrs["step"]
    ('sites', 1, 8.0)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset

__all__ = ["pixel_of", "sites"]

# Pixels are square to a thousandth: a column that is round on the specimen is round in pixels.
SQUARE = 1e-3


def pixel_of(data: xr.Dataset) -> float:
    """The distance of an image's pixels, which must be the same all over and along both axes."""
    steps = [np.diff(data[name].values.astype(float)) for name in ("x", "y")]
    every = np.concatenate(steps)
    pixel = float(every.mean())
    if np.ptp(every) > SQUARE * pixel:
        raise DataError(
            f"{data.attrs['kind']}: pixels are {every.min():.4g} to {every.max():.4g} apart; "
            "resample the image to square pixels"
        )
    return pixel


def _check_sites(data: xr.Dataset) -> None:
    pixel_of(data)
    if (data["brightness"].values <= 0).any():
        raise DataError("sites: variable 'brightness' must be positive")
    step = data.attrs.get("step")
    if not isinstance(step, float | int) or not step >= 1:
        raise DataError(f"sites: attrs['step'] must be pixels between knots, found {step!r}")
    for name in ("width", "gain", "least"):
        if name in data and not float(data[name]) > 0:
            raise DataError(f"sites: variable {name!r} must be positive")


add_kind(
    Kind(
        "sites",
        "an image with the places of its columns",
        {
            "intensity": (("y", "x"),),
            "site": (("column", "axis"),),
            "brightness": (("column",),),
            "width": ((),),
            "gain": ((),),
            "floor": ((),),
            "least": ((),),
            "level": ((),),
        },
        {
            "excess": ("y", "x"),
            "background": ("knot_y", "knot_x"),
            "rejected": ("candidate", "axis"),
            "rejected_brightness": ("candidate",),
            "rejected_log_odds": ("candidate",),
        },
        lengths=("y", "x"),
        least={"y": 8, "x": 8},
        unit=("y", "x"),
        block=("y", "x"),
        check=_check_sites,
        derived=True,
    )
)


def sites(
    image: xr.Dataset,
    place: np.ndarray,
    brightness: np.ndarray,
    *,
    width: float,
    gain: float,
    least: float,
    step: float,
    floor: float = 0.0,
    level: float = 0.0,
    attrs: Mapping[str, Any] | None = None,
    **more: Any,
) -> xr.Dataset:
    """An image with the places of its columns.

    Args:
        image: of kind `image`.
        place: of each column, (column, 2), in nm.
        brightness: the sum of each column over the pixels, about.
        width: standard deviation of a column's profile, in nm, about.
        gain: by which the variance of a pixel grows with its mean.
        least: the least variance of a pixel.
        step: pixels between the knots of the background.
        floor: variance of a pixel of mean zero.
        level: of the background, about.
        attrs: further attributes.
        **more: optional variables of the kind.
    """
    unit = str(image["intensity"].attrs.get("units", "1"))
    axis = np.array(["x", "y"])
    lengths = {"x": "nm", "y": "nm", "site": "nm", "width": "nm", "intensity": unit}
    lengths |= {"rejected": "nm"} if "rejected" in more else {}
    return dataset(
        "sites",
        intensity=image["intensity"].values,
        y=image["y"].values,
        x=image["x"].values,
        site=place,
        brightness=brightness,
        width=xr.DataArray(float(width)),
        gain=xr.DataArray(float(gain)),
        floor=xr.DataArray(float(floor)),
        least=xr.DataArray(float(least)),
        level=xr.DataArray(float(level)),
        axis=axis,
        units=lengths | {"brightness": unit},
        attrs={"step": float(step), **(attrs or {})},
        **more,
    )
