"""A crystal under a known strain: waves, a misfitting inclusion, or a pair of dislocations."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from .crystals import Crystal, cells_within, choose, turn
from .derived.phases import strain_of
from .imaging import imaged
from .kinds import DataError
from .microscope import Scan
from .scenes import scene

__all__ = ["strained"]

SHAPES = ("waves", "inclusion", "dislocations")
# Waves of a random field: enough that it is nearly Gaussian.
WAVES = 40
# Points of the maps along each axis.
MAP = 121
# Rounds in which the place is found that a strained point comes from; each leaves a small part of the last.
ROUNDS, CLOSE_NM = 60, 1e-9
STEEPEST = 0.2
# Nanometres by which displacement may bring columns into the frame.
MARGIN = 1.5


class _Field(NamedTuple):
    """A displacement of the points of a lattice, and its gradient ∂w_i/∂X_j."""

    displacement: Callable[[np.ndarray], np.ndarray]
    gradient: Callable[[np.ndarray], np.ndarray]


def _waves(rng: np.random.Generator, strain: float, size: float) -> _Field:
    """A random field whose gradient has components of this root mean square and changes over a length."""
    waves = rng.standard_normal((WAVES, 2)) / size
    phase = rng.uniform(0, 2 * np.pi, WAVES)
    height = rng.standard_normal((WAVES, 2)) * strain * size * np.sqrt(2 / WAVES)

    def displacement(at: np.ndarray) -> np.ndarray:
        moved: np.ndarray = np.sin(at @ waves.T + phase) @ height
        return moved

    def gradient(at: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.einsum(
            "nk,ki,kj->nij", np.cos(at @ waves.T + phase), height, waves, optimize=True
        )
        return found

    return _Field(displacement, gradient)


def _inclusion(strain: float, size: float) -> _Field:
    """A disc that would be larger than its place, with a soft rim: w = f(r) r, f falling as 1/r² outside."""
    reach = size / 2

    def profile(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f(r²) and its derivative by r²: strain within the disc, strain reach²/r² without, joined smoothly."""
        ratio = square / reach**2
        smooth = (1 + ratio**4) ** -0.25
        return strain * smooth, -strain * ratio**3 * smooth / (1 + ratio**4) / reach**2

    def displacement(at: np.ndarray) -> np.ndarray:
        factor, _ = profile((at**2).sum(1))
        moved: np.ndarray = factor[:, None] * at
        return moved

    def gradient(at: np.ndarray) -> np.ndarray:
        factor, slope = profile((at**2).sum(1))
        outer = 2 * at[:, :, None] * at[:, None, :]
        found: np.ndarray = factor[:, None, None] * np.eye(2) + slope[:, None, None] * outer
        return found

    return _Field(displacement, gradient)


def _dislocations(burgers: float, size: float, poisson: float) -> _Field:
    """Two edge dislocations on one slip plane, their Burgers vectors along x and opposite (isotropic elasticity)."""
    # Between two rows and two columns of atoms.
    middle = burgers / 2
    places = np.array([[middle + size / 2, middle], [middle - size / 2, middle]])
    signs = (burgers, -burgers)
    part = 1 / (4 * (1 - poisson))

    def displacement(at: np.ndarray) -> np.ndarray:
        moved = np.zeros_like(at)
        for place, b in zip(places, signs, strict=True):
            x, y = (at - place).T
            square = np.maximum(x**2 + y**2, 1e-12)
            along = np.arctan2(y, x) + 2 * part * x * y / square
            across = part * ((1 - 2 * poisson) * np.log(square) + (x**2 - y**2) / square)
            moved += b / (2 * np.pi) * np.stack([along, -across], 1)
        return moved

    return _Field(displacement, lambda at: _slopes(displacement, at, burgers))


def _slopes(
    displacement: Callable[[np.ndarray], np.ndarray], at: np.ndarray, jump: float
) -> np.ndarray:
    """Gradient by central differences; where the displacement jumps by a whole vector the lattice does not."""
    step = 1e-5
    columns = []
    for axis in np.eye(2):
        change = displacement(at + step * axis) - displacement(at - step * axis)
        change[:, 0] -= jump * np.rint(change[:, 0] / jump)
        columns.append(change / (2 * step))
    return np.stack(columns, -1)


def _field(
    shape: str, strain: float, size: float, spacing: float, poisson: float, pattern: int
) -> _Field:
    if shape == "waves":
        return _waves(np.random.default_rng(pattern), strain, size)
    if shape == "inclusion":
        return _inclusion(strain, size)
    return _dislocations(spacing, size, poisson)


def _mapped(make: Callable[..., xr.Dataset]) -> Callable[..., xr.Dataset]:
    """Add the maps of strain to a scene of a strained crystal; draw which random field it is where none is given."""
    from inspect import signature

    defaults = {name: p.default for name, p in signature(make).parameters.items()}

    @wraps(make)
    def made(rng: np.random.Generator, **given: Any) -> xr.Dataset:
        pattern = int(rng.integers(2**31))
        if given.get("pattern", -1) < 0:
            given = {**given, "pattern": pattern}
        picture = make(rng, **given)
        values = {**defaults, **given}
        names = ("shape", "strain", "size", "spacing", "poisson", "pattern")
        field = _field(*(values[name] for name in names))
        return picture.assign(_maps(picture, field, float(values["rotation"])))

    return made


def _maps(picture: xr.Dataset, field: _Field, rotation: float) -> dict[str, Any]:
    """Strain and rotation of the specimen against the undistorted lattice, at points of the frame."""
    rows = picture["true_row_y"].values
    matrix, drift = (picture[f"true_{name}"].values for name in ("scan_matrix", "row_drift"))
    scan = Scan(rows, rows, matrix, drift)
    along = np.linspace(rows[0], rows[-1], MAP)
    points = np.stack([a.ravel() for a in np.meshgrid(along, along)], 1)
    home = turn(scan.specimen_position(points) - scan.centre, -rotation)
    local = np.eye(2) + field.gradient(_origin(field, home))
    basis = turn(np.eye(2), -rotation)
    found: dict[str, Any] = {
        f"true_map_{axis}": (f"map_{axis}", along, {"units": "nm"}) for axis in ("x", "y")
    }
    for name, value in strain_of(basis @ local @ basis.T).items():
        unit = {"units": "degrees"} if name == "rotation" else {}
        title = "true_local_rotation" if name == "rotation" else f"true_{name}"
        found[title] = (("map_y", "map_x"), value.reshape(MAP, MAP), unit)
    return found


def _origin(field: _Field, at: np.ndarray) -> np.ndarray:
    """The points of the lattice that are displaced to these."""
    found = at
    for _ in range(ROUNDS):
        last, found = found, at - field.displacement(found)
        if np.abs(found - last).max() < CLOSE_NM:
            break
    return found


@scene
@_mapped
@imaged(field=15.0, pixel=0.02, dose=3000.0, rotation=7.0, shear=0.0, drift=0.0, jitter=0.0)
def strained(
    rng: np.random.Generator,
    radius: float,
    shape: str = "waves",
    strain: float = 0.01,
    size: float = 3.0,
    spacing: float = 0.39,
    middle: float = 0.4,
    poisson: float = 0.3,
    pattern: int = -1,
) -> Crystal:
    """A square lattice, displaced by random waves, by an inclusion that does not fit, or by two dislocations.

    `spacing` is the lattice constant, `middle` the intensity of the column in the middle of each cell. `shape` is
    `waves`: every derivative of the displacement has root mean square `strain` and changes over `size` (nm), `pattern`
    says which random field, -1 for another with every seed; `inclusion`: a disc of diameter `size`, larger by `strain`;
    `dislocations`: two edge dislocations `size` apart, their Burgers vectors one lattice vector along x and opposite,
    in an isotropic crystal of Poisson ratio `poisson`. All are in the axes of the crystal, before it is turned.

    `true_exx`, `true_eyy`, `true_exy` and `true_local_rotation` (degrees) are maps of the specimen at `true_map_x` and
    `true_map_y`, against the undistorted lattice: local lattice vectors are (1 + ε) R times those of the lattice, R a
    rotation. The scan is without error unless told else.
    """
    choose("shape", shape, SHAPES)
    if not (0 < spacing < 10 and size > 0 and 0 <= poisson < 0.5 and middle >= 0):
        raise DataError(
            "strained: spacing and size must be positive, poisson from 0 to 0.5, middle not negative"
        )
    if not 0 <= abs(strain) <= STEEPEST:
        raise DataError(f"strain must be at most {STEEPEST:g}, found {strain:g}")
    field = _field(shape, strain, size, spacing, poisson, max(pattern, 0))
    cells = cells_within(radius + MARGIN, spacing * np.eye(2)[0], spacing * np.eye(2)[1])
    corners = cells * spacing
    place = np.concatenate([corners, corners + spacing / 2] if middle > 0 else [corners])
    kind = np.repeat([0, 1], len(corners))[: len(place)]
    return Crystal(
        position=place + field.displacement(place),
        lattice=place,
        species=kind,
        species_names=("corner", "middle"),
        site=kind,
        site_names=("corner", "middle"),
        intensity=np.where(kind == 0, 1.0, middle),
    )
