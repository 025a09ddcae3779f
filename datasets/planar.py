"""Atoms in the plane, as data that are made of them need them: positions, errors, and what rides along."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .kinds import DataError, validate

__all__ = ["planar", "variances", "with_what_rides"]


def planar(data: xr.Dataset, asked_by: str) -> np.ndarray:
    """Positions (atom, 2), where atoms lie in a plane."""
    position = data["position"].values.astype(float)
    if position.shape[1] != 2:
        raise DataError(
            f"{asked_by}: atoms must lie in a plane, these have {position.shape[1]} axes"
        )
    return position


def variances(data: xr.Dataset) -> np.ndarray:
    """The measurement error of every atom as one variance, zero where none is known."""
    if "covariance" not in data:
        return np.zeros(data.sizes["atom"])
    # The mean of the two eigenvalues; the covariance of an atom is nearly round.
    half: np.ndarray = np.trace(data["covariance"].values, axis1=1, axis2=2) / 2
    return half


def with_what_rides(made: xr.Dataset, data: xr.Dataset, atoms: np.ndarray) -> xr.Dataset:
    """What was made of some atoms, with their truth and all else that is carried along unused."""
    ride = {
        str(name): array.isel(atom=atoms)
        for name, array in data.data_vars.items()
        if str(name).startswith(("true_", "aux_")) and array.dims[:1] == ("atom",)
    }
    return validate(made.assign(ride))
