"""Do amplitudes go with chemistry? A regression on what an atom and its neighbours are, with evidence for each slope.

Amplitudes of neighbouring atoms are alike, and so may be their chemistry. So the error of a slope is that of sums over
square regions, which need not be independent within, and not that of as many independent atoms as there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from .phase_map import blocks

__all__ = ["Slopes", "chemistry", "slopes"]

# Regions along each side of the data, and the least number of regions that give an error.
ALONG, LEAST = (10, 6, 4, 3), 9
# Species beyond so many are not told apart.
MOST_SPECIES = 4


class Slopes(NamedTuple):
    """Of each amplitude on each property in units of its standard deviation.

    Attributes:
        value: (amplitude, property), the posterior mean.
        error: standard deviation.
        probability: that the slope is not zero, one half beforehand.
    """

    value: np.ndarray
    error: np.ndarray
    probability: np.ndarray


def chemistry(data: xr.Dataset) -> dict[str, np.ndarray]:
    """Properties of every atom: its own, the mean of its neighbours, and the dipole of its neighbours.

    Of species where there are any, each against the commonest; else of the intensity.
    """
    way = data["mean_shell"].values
    way = way / np.linalg.norm(way, axis=1).mean()
    found: dict[str, np.ndarray] = {}
    for name, own, others in _properties(data):
        found[f"own_{name}"] = own
        found[f"mean_{name}"] = others.mean(1)
        # Shells that were inverted count in slots like all others, as their displacements do.
        for axis, letter in enumerate("xy"):
            found[f"dipole_{name}_{letter}"] = others @ way[:, axis] / len(way)
    return {
        name: value for name, value in found.items() if value.std() > 1e-9 * (1 + abs(value).max())
    }


def _properties(data: xr.Dataset) -> list[tuple[str, np.ndarray, np.ndarray]]:
    if "species" in data:
        own, others = data["species"].values, data["neighbour_species"].values
        names = list(np.atleast_1d(data.attrs.get("species_names", [])))
        codes, count = np.unique(np.concatenate([own, others.ravel()]), return_counts=True)
        kept = codes[np.argsort(-count)][1 : MOST_SPECIES + 1]
        label = [str(names[c]) if c < len(names) else f"species_{c}" for c in kept]
        return [
            (text, (own == c).astype(float), (others == c).astype(float))
            for text, c in zip(label, kept, strict=True)
        ]
    if "intensity" in data:
        own, others = data["intensity"].values, data["neighbour_intensity"].values
        return [("intensity", own.astype(float), others.astype(float))]
    return []


def slopes(amplitude: np.ndarray, properties: np.ndarray, position: np.ndarray) -> Slopes:
    """Slopes of amplitudes (atom, amplitude) on properties (atom, property), all properties at once.

    A slope is zero, or normal with the spread that one atom's data would leave it (a unit-information prior).
    """
    away = amplitude - amplitude.mean(0)
    standard = (properties - properties.mean(0)) / properties.std(0)
    # Properties that say the same share what they explain.
    inverse = np.linalg.pinv(standard.T @ standard, rcond=1e-8)
    fitted = inverse @ standard.T @ away
    variance = _variance(standard, away - standard @ fitted, inverse, position)
    width = away.var(0)
    prior = np.maximum(width[:, None] * np.ones(len(inverse)), 1e-300)
    square = fitted.T**2
    log_odds = 0.5 * (
        np.log(variance / (variance + prior)) + square / variance - square / (variance + prior)
    )
    shrink = prior / (prior + variance)
    probability = 1 / (1 + np.exp(-np.clip(log_odds, -700, 700)))
    return Slopes(fitted.T * shrink, np.sqrt(variance * shrink), probability)


def _variance(
    standard: np.ndarray, residual: np.ndarray, inverse: np.ndarray, position: np.ndarray
) -> np.ndarray:
    """Variance of each slope, (amplitude, property): the largest that single atoms or regions of any size give.

    Regions must be wider than what is alike in them, and many: neither is known beforehand.
    """
    count, freedom = len(standard), max(1, len(standard) - standard.shape[1] - 1)
    found = residual.var(0)[:, None] * count / freedom * np.diagonal(inverse)
    side = float(np.ptp(position, axis=0).max()) * (1 + 1e-9)
    for along in ALONG:
        region = blocks(position, side / along)
        if int(region.max()) + 1 >= LEAST:
            found = np.maximum(found, _sandwich(standard, residual, inverse, region))
    return np.asarray(found)


def _sandwich(
    standard: np.ndarray, residual: np.ndarray, inverse: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """Variance of each slope where only regions are independent (Liang and Zeger, Biometrika 73 (1986) 13)."""
    regions, found = int(region.max()) + 1, []
    for off in residual.T:
        pull = np.zeros((regions, standard.shape[1]))
        np.add.at(pull, region, standard * off[:, None])
        found.append(np.diagonal(inverse @ (pull.T @ pull) @ inverse) * regions / (regions - 1))
    return np.stack(found)
