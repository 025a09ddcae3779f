"""A patch of wallpaper: a periodic motif of any of the seventeen plane groups, seen through noise."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .kinds import DataError, dataset
from .plane_groups import GROUPS, SETTINGS, Setting, reduced_basis
from .scenes import MOST_ELEMENTS, scene

__all__ = ["wallpaper"]

# Shapes of a cell that belongs to no higher system: ratio of its sides, and its angle in degrees.
RATIOS, ANGLES = (1.15, 1.6), (66.0, 82.0)
# Widths of blobs, in units of the side of a square as large as what the group leaves free, and their brightness.
WIDTHS, BRIGHTNESS = (0.12, 0.3), (0.4, 1.6)
# A blob is nothing where its transform is e^-20.
DARK = 20.0


@scene
def wallpaper(
    rng: np.random.Generator,
    group: str = "p4m",
    snr: float = 5.0,
    cells: float = 6.0,
    pixels: int = 96,
    cell: float = 0.5,
    rotation: float | None = None,
    blobs: int = 3,
    ratio: float | None = None,
    angle: float | None = None,
    stretch: float = 1.0,
    shear: float = 0.0,
) -> xr.Dataset:
    """A patch with a motif of Gaussian blobs repeated by a plane group.

    `blobs` of them are drawn in the part of the cell that the group leaves free, each with a place, width and
    brightness of its own, and the group's operations do the rest: no symmetry but the group's is put in. `cells` is the
    side of the frame in units of the square root of the cell's area, `cell` that root in nm. `ratio` b/a and `angle`
    (degrees) are the shape of the conventional cell, where the group leaves it free; drawn when not given, as is
    `rotation` (degrees). `snr` is the standard deviation of the motif over that of the noise of a pixel.
    `stretch` and `shear` distort the scan as in `setting`.

    `true_group` counts from zero in `attrs["group_names"]`; `true_lattice` has the reduced vectors as rows, as the scan
    shows them; `true_origin` is where the tables put the group's origin; `true_mean` is the image without noise.
    """
    if group not in GROUPS:
        raise DataError(f"there is no plane group {group!r}; there are {', '.join(GROUPS)}")
    _check(
        snr=snr, cells=cells, cell=cell, blobs=float(blobs), pixels=pixels - 7.0, stretch=stretch
    )
    if pixels**2 > MOST_ELEMENTS:
        raise DataError(f"pixels={pixels}: that is more than {MOST_ELEMENTS:g} in all")
    setting = next(s for s in SETTINGS if s.group == group)
    basis = _basis(rng, setting, cell, ratio, angle, rotation)
    basis = basis @ np.array([[1.0, shear], [0.0, stretch]]).T
    origin = rng.random(2) @ basis
    points = (np.arange(pixels) - (pixels - 1) / 2) * (cells * cell / pixels)
    index, value = _motif(rng, setting, basis, blobs, 0.5 / (cells * cell / pixels))
    waves = index @ np.linalg.inv(basis).T
    value = value * np.exp(-2j * np.pi * waves @ origin)
    down = np.exp(2j * np.pi * np.outer(points, waves[:, 1]))
    across = np.exp(2j * np.pi * np.outer(waves[:, 0], points))
    mean = ((down * value) @ across).real
    mean /= mean.std()
    noise = 1 / snr
    start = points[0]
    return dataset(
        "image",
        intensity=mean + noise * rng.standard_normal(mean.shape),
        y=points - start,
        x=points - start,
        units={"y": "nm", "x": "nm"},
        attrs={"group_names": list(GROUPS), "group": group},
        true_group=xr.DataArray(GROUPS.index(group)),
        true_mean=xr.DataArray(mean, dims=("y", "x")),
        true_noise=xr.DataArray(noise),
        true_lattice=xr.DataArray(reduced_basis(basis), dims=("vector", "axis")),
        true_origin=xr.DataArray(origin - start, dims="axis"),
    )


def _check(**positive: float) -> None:
    for name, value in positive.items():
        if not (np.isfinite(value) and value > 0):
            raise DataError(f"{name} is too small or no number; see the scene's defaults")


def _basis(
    rng: np.random.Generator,
    setting: Setting,
    cell: float,
    ratio: float | None,
    angle: float | None,
    rotation: float | None,
) -> np.ndarray:
    """Vectors of the primitive cell as rows; the conventional one has the shape that the group asks for."""
    drawn = rng.uniform(*RATIOS), rng.uniform(*ANGLES), rng.uniform(0, 360)
    ratio = drawn[0] if ratio is None else ratio
    angle = drawn[1] if angle is None else angle
    turn = np.deg2rad(drawn[2] if rotation is None else rotation)
    if setting.lattice != "oblique":
        angle = 120.0 if setting.lattice == "hexagonal" else 90.0
    if setting.lattice in ("square", "hexagonal"):
        ratio = 1.0
    _check(ratio=ratio, angle=angle)
    if angle >= 180:
        raise DataError(f"angle must be below 180 degrees, found {angle:g}")
    gamma = np.deg2rad(angle)
    conventional = np.array([[1.0, 0.0], [ratio * np.cos(gamma), ratio * np.sin(gamma)]])
    basis = np.linalg.inv(setting.cell) @ conventional
    basis *= cell / np.sqrt(abs(np.linalg.det(basis)))
    c, s = np.cos(turn), np.sin(turn)
    return np.asarray(basis @ np.array([[c, s], [-s, c]]))


def _motif(
    rng: np.random.Generator, setting: Setting, basis: np.ndarray, blobs: int, finest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Waves of a motif and their coefficients, none finer than the pixels can hold."""
    place = rng.random((blobs, 2))
    free = np.sqrt(abs(np.linalg.det(basis)) / setting.order)
    width = rng.uniform(*WIDTHS, blobs) * free
    bright = rng.uniform(*BRIGHTNESS, blobs)
    reach = min(finest, float(np.sqrt(DARK / (2 * np.pi**2)) / width.min()))
    span = int(np.ceil(reach * np.linalg.norm(basis, axis=1).max())) + 1
    grid = np.arange(-span, span + 1)
    index = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    square = ((index @ np.linalg.inv(basis).T) ** 2).sum(1)
    keep = (square > 0) & (square < reach**2)
    index, square = index[keep], square[keep]
    copies = np.einsum("gij,bj->gbi", setting.rotation, place) + setting.translation[:, None]
    phase = np.exp(-2j * np.pi * np.einsum("hi,gbi->hgb", index, copies)).sum(1)
    fall = np.exp(-2 * np.pi**2 * np.outer(square, width**2))
    return index, (phase * fall) @ bright
