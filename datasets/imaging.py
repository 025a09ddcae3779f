"""Scenes of columns of atoms under a microscope: what all of them have in common.

A scene says which columns there are; `imaged` adds the parameters of specimen and microscope, which are the same for
every scene, takes the picture and writes down the truth. With `gives=image` a scene gives the image, with `gives=atoms`
the columns as the best measurement of that image would find them, with their covariance. It is the same crystal.

The parameters of specimen and microscope are told in `setting`. A scene that knows the atoms in its columns can be
looked at by a simulated beam, `render=multislice`, whose parameters are told in `multislice`.

Truth: every number among the parameters as `true_<parameter>`; of each column in the frame `true_position`, where the
image shows it, jitter left out; `true_specimen_position`, where it is; `true_lattice_position`, its place on the
undistorted lattice; `true_intensity` in electrons; `true_species` and `true_site`, named by
`attrs["species_names"]` and `attrs["site_names"]`. Columns just outside the frame that shine into it are
`true_outside_*`, vacant places `true_missing_*`. The scan is `true_scan_matrix`, `true_scan_centre`, and
`true_row_drift` and `true_row_jitter` at `true_row_y`. An image has `true_mean`, the electrons expected at each pixel,
and `true_haze`, what of these is background and dirt. With the mean, `microscope.measure` gives the Cramér-Rao bound of
every column. Atoms have `true_intensity_error`, that bound for their electrons.

With `render=multislice` places and species are the same, and `true_mean` is still what the counts are drawn from.
`probe`, `tail`, `tail_width`, `spread` and `z_power` have no meaning and are refused, as is `gives=atoms`: columns have
shapes of their own, for which there is no bound. `true_intensity` is that of the column alone, `true_beam_electrons`
the electrons that hit a pixel's place. The beam is in the attributes, by the names of its parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any

import numpy as np
import xarray as xr

from .crystals import Crystal
from .kinds import DataError, dataset
from .microscope import Scan, measure, render
from .multislice import Beam, Exposure, expose
from .setting import Setting

__all__ = ["imaged"]

# Nanometres that the crystal goes on beyond what is seen.
MARGIN = 0.5
# Of peaks that are drawn.
DRAWN = ("probe", "tail", "tail_width", "spread", "z_power")


def imaged(
    beam: Beam | None = None, **defaults: Any
) -> Callable[[Callable[..., Crystal]], Callable[..., xr.Dataset]]:
    """Make a scene of a function that grows a crystal, with its own defaults for the setting.

    The function is `grow(rng, radius, **parameters)`: the columns within a radius of the origin, at least. Where it
    asks for `z_power`, it gets that of the setting. Where it says which atoms stand in its columns, `beam` has the
    defaults for `render=multislice`.
    """
    setting = Setting(**defaults)
    common, of_beam = _parameters(setting), _parameters(beam) if beam else {}

    def decorate(grow: Callable[..., Crystal]) -> Callable[..., xr.Dataset]:
        signature = inspect.signature(grow)
        rng_first, _, *asked = signature.parameters.values()
        own = {
            p.name: p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in asked
            if p.name not in common
        }
        shared = [p.name for p in asked if p.name in common]

        @wraps(grow)
        def make(rng: np.random.Generator, **given: Any) -> xr.Dataset:
            chosen = replace(setting, **{k: v for k, v in given.items() if k in common})
            values = {name: given.get(name, p.default) for name, p in own.items()}
            values |= {name: getattr(chosen, name) for name in shared}
            sent = beam and replace(beam, **{k: v for k, v in given.items() if k in of_beam})
            if sent and sent.simulated:
                _check_simulated(chosen, given)
            return _picture(rng, grow, chosen, sent, values)

        parameters = [rng_first, *own.values(), *common.values(), *of_beam.values()]
        # What `inspect` reads first; the type of functions does not tell of it.
        make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return make

    return decorate


def _parameters(parts: Setting | Beam) -> dict[str, inspect.Parameter]:
    return {
        f.name: inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=getattr(parts, f.name)
        )
        for f in fields(parts)
    }


def _check_simulated(setting: Setting, given: dict[str, Any]) -> None:
    if setting.gives != "image":
        raise DataError("render=multislice gives an image only; take gives=image")
    drawn = [name for name in DRAWN if name in given]
    if drawn:
        raise DataError(
            f"{', '.join(drawn)} is of peaks that are drawn and means nothing with render=multislice; leave it out"
        )


def _picture(
    rng: np.random.Generator,
    grow: Callable[..., Crystal],
    setting: Setting,
    beam: Beam | None,
    values: dict[str, Any],
) -> xr.Dataset:
    """What there is to see, what the instrument makes of it, and the truth of both."""
    look = _look(rng, grow, setting, beam, values)
    names = {
        "species_names": list(look.crystal.species_names),
        "site_names": list(look.crystal.site_names),
    }
    words = {name: value for name, value in values.items() if isinstance(value, str)}
    if beam:
        words |= vars(beam) if beam.simulated else {"render": beam.render}
    take = _take_image if setting.gives == "image" else _take_atoms
    return take(rng, look, setting, attrs={**names, **words}, **_truth(look, setting, values))


@dataclass(frozen=True)
class _Look:
    """What there is to see: a crystal, its electrons, the scan and the haze, and where the columns are seen.

    Where the beam is simulated, `beam` is how many electrons hit a pixel's place.
    """

    crystal: Crystal
    electrons: np.ndarray
    scan: Scan
    haze: np.ndarray
    seen: np.ndarray
    inside: np.ndarray
    mean: np.ndarray
    beam: float | None


def _look(
    rng: np.random.Generator,
    grow: Callable[..., Crystal],
    setting: Setting,
    beam: Beam | None,
    values: dict[str, Any],
) -> _Look:
    """Crystal, scan and haze, each with a generator of its own, so that one does not move the other."""
    of_crystal, of_scan, of_haze = (
        np.random.default_rng(rng.integers(2**63, size=2)) for _ in range(3)
    )
    scan, probe = setting.scan(of_scan), setting.optics
    corners = np.array([[x, y] for x in scan.x[[0, -1]] for y in scan.y[[0, -1]]])
    away = np.linalg.norm(scan.specimen_position(corners) - scan.centre, axis=1).max()
    reach = scan.half(probe) * setting.pixel + np.abs(scan.shifts[0]).max()
    # Whole nanometres, so that a little more drift or a wider probe leaves the crystal as it is.
    crystal = grow(of_crystal, float(np.ceil(away + reach + MARGIN)), **values)
    crystal = crystal.turned(setting.rotation, scan.centre)
    moved = setting.disorder * of_crystal.standard_normal(crystal.position.shape)
    crystal = replace(crystal, position=crystal.position + moved)
    seen = scan.image_position(crystal.position)
    inside = np.flatnonzero(_inside(seen, scan))
    if not len(inside):
        raise DataError("there is no column in the frame; take a larger field")
    # From top to bottom, so that the order tells nothing of the species.
    inside = inside[np.lexsort((seen[inside, 0], seen[inside, 1]))]
    if beam and beam.simulated:
        shown = expose(crystal, beam, scan, of_crystal, dose=setting.dose, source=setting.source)
    else:
        shown = _drawn(crystal, setting, scan, of_crystal)
    haze = shown.peak * setting.haze(scan, of_haze)
    return _Look(crystal, shown.electrons, scan, haze, seen, inside, haze + shown.mean, shown.beam)


def _drawn(crystal: Crystal, setting: Setting, scan: Scan, rng: np.random.Generator) -> Exposure:
    """The sum of the columns' peaks."""
    # Exponential, so that no column turns negative.
    varied = np.exp(setting.spread * rng.standard_normal(len(crystal.position)))
    electrons = setting.dose * crystal.intensity * varied
    mean = render(crystal.position, electrons, setting.optics, scan)
    return Exposure(electrons, mean, setting.unit_peak)


def _take_image(rng: np.random.Generator, look: _Look, setting: Setting, **more: Any) -> xr.Dataset:
    """The image: counts, and the detector's own noise."""
    counts = rng.poisson(look.mean)
    return dataset(
        "image",
        intensity=counts + setting.readout * rng.standard_normal(counts.shape),
        y=look.scan.y,
        x=look.scan.x,
        units={"y": "nm", "x": "nm", "intensity": "electrons"},
        true_mean=_electrons(look.mean),
        true_haze=_electrons(look.haze),
        **more,
    )


def _corners(scan: Scan) -> list[float]:
    """What was looked at: x and y of the first and of the last pixel's outer corner."""
    half = scan.pixel / 2
    return [
        float(c) for c in (scan.x[0] - half, scan.y[0] - half, scan.x[-1] + half, scan.y[-1] + half)
    ]


def _electrons(image: np.ndarray) -> xr.DataArray:
    return xr.DataArray(image, dims=("y", "x"), attrs={"units": "electrons"})


def _take_atoms(
    rng: np.random.Generator, look: _Look, setting: Setting, attrs: dict[str, Any], **more: Any
) -> xr.Dataset:
    """The columns, with the least error that the image allows and that of the jitter, or with `precision`."""
    inside, count = look.inside, len(look.inside)
    electrons = look.electrons[inside]
    found = measure(
        look.crystal.position[inside],
        electrons,
        setting.optics,
        look.scan,
        look.mean + setting.readout**2,
    )
    factor = np.linalg.cholesky(found.covariance)
    error = np.einsum("nij,nj->ni", factor, rng.standard_normal((count, 3)))
    covariance = found.covariance[:, :2, :2].copy()
    if setting.precision > 0:
        covariance[:] = np.eye(2) * setting.precision**2
        error[:, :2] = setting.precision * rng.standard_normal((count, 2))
    else:
        covariance[:, 0, 0] += setting.jitter**2 * found.row_weight
        error[:, 0] += found.row_shift
    return dataset(
        "atoms",
        position=look.seen[inside] + error[:, :2],
        intensity=electrons + error[:, 2],
        covariance=covariance,
        axis=np.array(["x", "y"]),
        units={"position": "nm", "intensity": "electrons", "covariance": "nm^2"},
        attrs={**attrs, "frame": _corners(look.scan)},
        true_intensity_error=xr.DataArray(
            np.sqrt(found.covariance[:, 2, 2]), dims="atom", attrs={"units": "electrons"}
        ),
        **more,
    )


def _inside(position: np.ndarray, scan: Scan, margin: float = 0.0) -> np.ndarray:
    low, high = np.array([scan.x[0], scan.y[0]]), np.array([scan.x[-1], scan.y[-1]])
    inside = (position >= low - margin) & (position <= high + margin)
    return inside[:, 0] & inside[:, 1]


def _truth(look: _Look, setting: Setting, values: dict[str, Any]) -> dict[str, xr.DataArray]:
    """All that the data came from, as `true_*`."""
    crystal, scan, seen = look.crystal, look.scan, look.seen
    kept, (drift, jitter) = crystal.take(look.inside), scan.shifts
    # Columns outside whose light falls into the frame.
    reached = _inside(seen, scan, scan.half(setting.optics) * setting.pixel)
    outside = np.flatnonzero(reached & ~_inside(seen, scan))
    missing = scan.image_position(crystal.missing)
    vacant = _inside(missing, scan)
    truth: dict[str, tuple[tuple[str, ...], Any, str]] = {
        name: ((), float(value), "1")
        for name, value in {**vars(setting), **values}.items()
        if not isinstance(value, str)
    }
    truth |= {name: ((), float(value), "1") for name, value in crystal.facts.items()}
    if look.beam is not None:
        truth = {name: value for name, value in truth.items() if name not in DRAWN}
        truth["beam_electrons"] = ((), look.beam, "electrons")
    truth |= {
        "position": (("atom", "axis"), seen[look.inside], "nm"),
        "specimen_position": (("atom", "axis"), kept.position, "nm"),
        "lattice_position": (("atom", "axis"), kept.lattice, "nm"),
        "intensity": (("atom",), look.electrons[look.inside], "electrons"),
        "species": (("atom",), kept.species, "1"),
        "site": (("atom",), kept.site, "1"),
        "outside_position": (("outside", "axis"), seen[outside], "nm"),
        "outside_intensity": (("outside",), look.electrons[outside], "electrons"),
        "missing_position": (("missing", "axis"), missing[vacant], "nm"),
        "missing_species": (("missing",), crystal.missing_species[vacant], "1"),
        "scan_matrix": (("axis", "axis2"), scan.matrix, "1"),
        "scan_centre": (("axis",), scan.centre, "nm"),
        "row_y": (("row",), scan.y, "nm"),
        "row_drift": (("row", "axis"), drift, "nm"),
        "row_jitter": (("row",), jitter, "nm"),
    }
    for name, column in {**kept.columns, **kept.vectors}.items():
        dims = ("atom", "axis")[: column.ndim]
        truth[name] = (dims, column, "1" if column.dtype.kind in "iu" else crystal.units[name])
    return {
        f"true_{name}": xr.DataArray(array, dims=dims, attrs={} if unit == "1" else {"units": unit})
        for name, (dims, array, unit) in truth.items()
    }
