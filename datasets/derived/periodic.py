"""The Fourier coefficients of a periodic image, on the reduced basis of its own lattice."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset
from ..plane_groups import apart, reduced_basis
from ..waves import Frame, Waves, fit_waves

__all__ = ["periodic"]

# Lattices drawn to see how well the shape is known.
SHAPES = 200


def _check_periodic(data: xr.Dataset) -> None:
    index = data["index"].values
    if data.sizes["part"] != 2 or index.shape[1] != 2 or data["lattice"].shape != (2, 2):
        raise DataError("periodic: 'coefficient' and 'index' need two columns, 'lattice' two rows")
    if index.dtype.kind not in "iu":
        raise DataError(f"periodic: variable 'index' must be whole numbers, found {index.dtype}")
    both = {tuple(h) for h in index.tolist()} | {tuple(h) for h in (-index).tolist()}
    if len(both) < 2 * len(index):
        raise DataError("periodic: 'index' must have one of every pair h and -h, and not (0, 0)")
    if data["noise"].values.min() <= 0:
        raise DataError("periodic: variable 'noise' must be positive")
    if np.linalg.cond(data["lattice"].values) > 1e6:
        raise DataError("periodic: the two vectors of 'lattice' lie on one line")


add_kind(
    Kind(
        "periodic",
        "Fourier coefficients of a periodic image",
        {
            "coefficient": (("reflection", "part"),),
            "noise": (("reflection",),),
            "index": (("reflection", "hk"),),
            "wave_vector": (("reflection", "axis"),),
            "lattice": (("vector", "axis"),),
        },
        {"shape_error": (), "origin": ("axis",)},
        least={"reflection": 3},
        unit=("reflection",),
        block=("reflection",),
        check=_check_periodic,
        derived=True,
    )
)


def periodic(image: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """The lattice of an image and its coefficients.

    Args:
        image: data of kind `image`.
        settings: `misfit`, the error of a coefficient that comes from the scan and not from noise, relative to it;
            `most`, the number of reflections kept at most.

    Returns:
        Data of kind `periodic`, the longest waves first: real and imaginary part of each coefficient about the middle
        of the frame, the standard deviation of each part, the index on the reciprocal of the reduced `lattice`
        (rows are a and b in nm), and its wave vector in 1/nm.
    """
    frame = Frame.of(
        image["intensity"].values.astype(float),
        image["y"].values.astype(float),
        image["x"].values.astype(float),
    )
    waves = fit_waves(frame, most=int(settings["most"]))
    lattice = reduced_basis(np.linalg.inv(waves.lattice).T)
    # h·B is one wave on either basis.
    index = np.rint(waves.vectors @ lattice.T).astype(np.int64)
    first = np.where(index[:, 0] != 0, index[:, 0], index[:, 1])
    sign = np.sign(first)
    value = np.where(sign > 0, waves.value, waves.value.conj())
    vectors = waves.vectors * sign[:, None]
    noise = np.sqrt(waves.noise**2 + 0.5 * (settings["misfit"] * np.abs(value)) ** 2)
    unit = image["y"].attrs["units"]
    return dataset(
        "periodic",
        coefficient=np.stack([value.real, value.imag], 1),
        noise=noise,
        index=index * sign[:, None],
        lattice=lattice,
        wave_vector=vectors,
        shape_error=_shape_error(waves, lattice),
        origin=np.array([image[name].values[[0, -1]].mean() for name in ("x", "y")]),
        part=np.array(["real", "imaginary"]),
        axis=np.array(["x", "y"]),
        vector=np.array(["a", "b"]),
        units={"lattice": unit, "origin": unit, "wave_vector": f"1/{unit}"},
        attrs={
            "left_out": waves.left_out,
            "left_out_why": "reflections shorter than those kept, where noise has taken over",
        },
    )


def _shape_error(waves: Waves, lattice: np.ndarray) -> float:
    """Standard deviation of either component of the lattice's shape, as a step on the plane of shapes."""
    rng = np.random.default_rng(0)
    moved = rng.multivariate_normal(waves.lattice.ravel(), waves.covariance, SHAPES)
    turned = np.rint(lattice @ waves.lattice.T)
    others = turned @ np.linalg.inv(moved.reshape(-1, 2, 2)).transpose(0, 2, 1)
    return float(np.sqrt(np.mean([apart(lattice, other) ** 2 for other in others]) / 2))
