"""Images by multislice: a beam is sent through the atoms, slice by slice, where abTEM is installed.

A scene that says which atoms stand in its columns can be looked at in this way, with `render=multislice`. Positions and
species, scan, dose and noise are those of the plain image; how a column looks comes out of the simulation:

- `energy` (kV), `convergence` (mrad) and the detector's `inner_angle` and `outer_angle` (mrad) are the microscope. It
  has no aberrations and is focused on the upper face. The probe is blurred by the setting's `source`.
- `vibration` (nm) is the standard deviation of each coordinate of each atom across the beam, one for all elements, and
  `phonons`, a multiple of four, the number of frozen displacements that the image is the mean of. The displacements of
  an atom balance: their mean is zero and their covariance as asked for, so that no column moves. How two atoms of a
  column interfere still depends on the draw: with four, like columns of S2 differ by 6 % in brightness.

`dose` keeps its meaning: the electrons that the detector gets from one column of the scene's first species if it stands
alone, summed over its pixels. `true_intensity` is that of each column, each kind of column being simulated alone; in
the crystal neighbours and channelling change it. `true_beam_electrons` is how many electrons hit a pixel's place.

The crystal is cut to what is seen and wrapped: the probe moves in windows of it, on a grid as fine as the aperture
asks for, between whose points the image is known, not guessed. Time goes with the area, the thickness and `phonons`.

References: J. Madsen and T. Susi, "The abTEM code: transmission electron microscopy from first principles", Open
Research Europe 1, 24 (2021). E. J. Kirkland, "Advanced Computing in Electron Microscopy", Springer.

Example:
    >>> round(Beam(energy=80.0).wavelength, 6)
    0.004176
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .crystals import Crystal, Solid, choose
from .kinds import DataError
from .microscope import Scan

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["Beam", "Exposure", "balanced", "expose", "in_depth"]

MISSING = 'render=multislice needs abTEM: pip install "atomzoo[multislice]"'
# Planck's constant times the speed of light, and the electron's rest energy, in keV nm and keV.
PLANCK_LIGHT, REST = 1.23984198, 510.99895
# abTEM's lengths.
ANGSTROM = 10.0
# Thickest slice in nm: half a cell of a perovskite, one plane of a monolayer.
SLICE = 0.2
# Positions of the probe are that much closer than the aperture asks for, as its edge is soft.
CLOSER = 0.9
# What lies about the frame, and about the probe's places in a window, in nm. A wider halo changes a pixel by 0.2 % of
# the brightest, root mean square.
PAD, HALO = 0.3, 0.4
# Side of a window without its halo: smaller ones have too much halo, larger ones too large a wave.
TILE = 0.5
# A column alone, in nm.
ALONE = 1.0
# A third of a wave's frequencies is kept empty, or products of waves come back at wrong angles; and a little to spare.
EMPTY = 1.5 * 1.03
# Points of the fine grid that values between probe positions are read from, for each position.
FINER = 4
QUIET = {"local_diagnostics.progress_bar": False, "diagnostics.progress_bar": False}
# Waves times slices, several hours of one core.
MOST_WAVES = 10**7


@dataclass(frozen=True)
class Beam:
    """How the image is made, and by what beam; the parameters are told above."""

    render: str = "peaks"
    energy: float = 60.0
    convergence: float = 31.0
    inner_angle: float = 80.0
    outer_angle: float = 200.0
    vibration: float = 0.006
    phonons: int = 4

    def __post_init__(self) -> None:
        choose("render", self.render, ("peaks", "multislice"))
        ranges = {
            "energy": (20, 1000, "kV"),
            "convergence": (1, 100, "mrad"),
            "vibration": (0, 0.03, "nm"),
        }
        for name, (low, high, unit) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise DataError(
                    f"{name} must be from {low:g} to {high:g} {unit}, found {getattr(self, name):g}"
                )
        if not self.convergence < self.inner_angle < self.outer_angle <= 300:
            raise DataError(
                "a dark-field detector must lie outside the beam, convergence < inner_angle < outer_angle <= 300 mrad, "
                f"found {self.convergence:g}, {self.inner_angle:g} and {self.outer_angle:g}"
            )
        if self.phonons < 4 or self.phonons % 4:
            raise DataError(f"phonons must be a multiple of four, found {self.phonons}")

    @property
    def simulated(self) -> bool:
        """Whether the beam is sent through the atoms."""
        return self.render == "multislice"

    @property
    def wavelength(self) -> float:
        """In nm."""
        return float(PLANCK_LIGHT / np.sqrt(self.energy * (2 * REST + self.energy)))

    @property
    def spacing(self) -> float:
        """Distance of probe positions in nm, between which the image is known."""
        return CLOSER * self.wavelength / (4e-3 * self.convergence)


class Exposure(NamedTuple):
    """What the detector gets.

    Attributes:
        electrons: of each column if it stood alone.
        mean: mean number of electrons in each pixel, (y, x).
        peak: that of the brightest pixel of one column of the first species.
        beam: electrons that hit a pixel's place, where that is known.
    """

    electrons: np.ndarray
    mean: np.ndarray
    peak: float
    beam: float | None = None


def expose(
    crystal: Crystal,
    beam: Beam,
    scan: Scan,
    rng: np.random.Generator,
    *,
    dose: float,
    source: float,
) -> Exposure:
    """Send the beam through the crystal and look at it through the scan."""
    abtem = _abtem()
    solid = crystal.solid
    if solid is None:
        raise DataError(
            "this scene does not say which atoms stand in its columns; take render=peaks"
        )
    looked_at = _looked_at(scan)
    low = looked_at.min(0) - PAD
    box = looked_at.max(0) + PAD - low
    places = np.concatenate([crystal.position, solid.unlisted]) - low
    kinds = np.concatenate([solid.kind, np.full(len(solid.unlisted), solid.unlisted_kind)])
    inside = ((places >= 0) & (places < box)).all(1)
    image = _scanned(abtem, in_depth(solid, places[inside], kinds[inside], box), beam, rng)
    # The first kind always, as the dose is about it.
    present = np.union1d(solid.kind[inside[: len(solid.kind)]], [0])
    side = np.full(2, ALONE)
    alone = {
        int(kind): _scanned(
            abtem, in_depth(solid, side[None] / 2, np.array([kind]), side), beam, rng
        )
        for kind in present
    }
    section = np.zeros(len(solid.stacks))
    for kind, picture in alone.items():
        section[kind] = picture.values.mean() * ALONE**2
    shown = dose / section[0]
    area = scan.pixel**2 / abs(float(np.linalg.det(scan.matrix)))
    mean = shown * area * image.at(looked_at - low, source).reshape(len(scan.y), len(scan.x))
    peak = alone[0].at(side[None] / 2, source)[0]
    return Exposure(
        electrons=shown * section[solid.kind],
        # The finest grid rings by a millionth where nothing is.
        mean=np.maximum(mean, 0.0),
        peak=float(shown * area * peak),
        beam=float(shown * area),
    )


def _abtem() -> ModuleType:
    try:
        import abtem
    except ModuleNotFoundError:
        raise DataError(MISSING) from None
    return abtem


def _looked_at(scan: Scan) -> np.ndarray:
    """Where on the specimen each pixel was taken, (pixel, 2)."""
    _, jitter = scan.shifts
    seen = np.broadcast_arrays(scan.x - jitter[:, None], scan.y[:, None])
    return scan.specimen_position(np.stack(seen, -1).reshape(-1, 2))


def in_depth(solid: Solid, places: np.ndarray, kinds: np.ndarray, box: np.ndarray) -> Atoms:
    """Columns of these kinds as atoms in space, in a box that repeats across the beam; ASE's lengths are Å."""
    from ase import Atoms

    numbers, atoms = [np.zeros(0, np.int64)], [np.zeros((0, 3))]
    for kind in np.unique(kinds):
        across = places[kinds == kind]
        for number, height in solid.stacks[kind]:
            for layer in range(solid.layers):
                up = np.full((len(across), 1), height + layer * solid.period)
                atoms.append(np.concatenate([across, up], 1))
                numbers.append(np.full(len(across), number))
    found = np.concatenate(atoms)
    # Half a slice above and below the atoms.
    found[:, 2] += SLICE / 2 - found[:, 2].min(initial=np.inf)
    depth = found[:, 2].max(initial=0.0) + SLICE / 2
    return Atoms(
        np.concatenate(numbers),
        positions=found * ANGSTROM,
        cell=np.array([*box, depth]) * ANGSTROM,
        pbc=(True, True, False),
    )


def balanced(rng: np.random.Generator, atoms: int, phonons: int, vibration: float) -> np.ndarray:
    """Displacements across the beam, (phonon, atom, 2): of each atom their mean is zero, their covariance exact.

    They stand on squares, one for each like share of a normal distribution, turned by an angle of the atom's own and
    taken in an order of its own.
    """
    from scipy.special import xlogy

    squares = phonons // 4
    # Half the square of the radius is distributed as e^-q; its mean between the quantiles that leave p above them.
    p = 1 - np.arange(squares + 1) / squares
    radius = vibration * np.sqrt(-2 * squares * np.diff(p - xlogy(p, p)))
    corner = np.arange(4) * np.pi / 2 + np.arange(squares)[:, None] * np.pi / 4
    angle = corner.ravel() + rng.uniform(0, 2 * np.pi, (atoms, 1))
    steps = np.repeat(radius, 4)[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    order = rng.permuted(np.tile(np.arange(phonons), (atoms, 1)), axis=1)
    return np.take_along_axis(steps, order[:, :, None], axis=1).transpose(1, 0, 2)


class _Picture(NamedTuple):
    """Share of the beam that the detector gets at each position of the probe, over and over in x and y."""

    values: np.ndarray  # (y, x)
    step: np.ndarray  # of x and y, nm

    def at(self, places: np.ndarray, blur: float) -> np.ndarray:
        """The same between the positions, blurred by a source of this standard deviation."""
        from scipy.ndimage import map_coordinates
        from scipy.signal import resample

        values = self.values
        for axis, step in enumerate(self.step[::-1]):
            f = np.fft.fftfreq(values.shape[axis], step)
            seen = np.exp(-2 * (np.pi * blur * f) ** 2)
            spectrum = np.fft.fft(values, axis=axis) * np.expand_dims(seen, 1 - axis)
            values = np.fft.ifft(spectrum, axis=axis).real
            values = resample(values, FINER * values.shape[axis], axis=axis)
        found = (places / self.step * FINER).T[::-1]
        return np.asarray(map_coordinates(values, found, order=5, mode="grid-wrap"))


def _scanned(abtem: ModuleType, atoms: Atoms, beam: Beam, rng: np.random.Generator) -> _Picture:
    """The picture of the atoms in their box."""
    box, depth = np.split(atoms.cell.lengths() / ANGSTROM, [2])
    points = np.ceil(box / beam.spacing).astype(int)
    waves = float(points.prod()) * beam.phonons * np.ceil(depth.item() / SLICE)
    if waves > MOST_WAVES:
        raise DataError(
            f"render=multislice would send {waves:.1e} waves through a slice, above the limit of {MOST_WAVES:g}; "
            "take a smaller field, a thinner crystal or fewer phonons"
        )
    step = box / points
    values = np.zeros(points[::-1])
    for moved in balanced(rng, len(atoms), beam.phonons, beam.vibration):
        shaken = atoms.copy()
        shaken.positions[:, :2] += moved * ANGSTROM
        for window in _windows(points, step, box):
            values[window.rows, window.cols] += _sent(abtem, shaken, window, beam)
    return _Picture(values / beam.phonons, step)


class _Window(NamedTuple):
    """A part of the box, with the positions of the probe in its middle."""

    rows: slice
    cols: slice
    low: np.ndarray
    side: np.ndarray
    step: np.ndarray


def _windows(points: np.ndarray, step: np.ndarray, box: np.ndarray) -> Iterator[_Window]:
    """Windows of one size that together hold every position; they reach round the box."""
    length = np.ceil(points / np.maximum(1, np.rint(box / TILE))).astype(int)
    # All of one size, so that the detector's edge falls on its grid of angles alike.
    side = np.minimum(length * step + 2 * HALO, box)
    for top in range(0, points[1], length[1]):
        for left in range(0, points[0], length[0]):
            yield _Window(
                slice(top, min(top + length[1], points[1])),
                slice(left, min(left + length[0], points[0])),
                np.array([left, top]) * step - HALO,
                side,
                step,
            )


def _sent(abtem: ModuleType, atoms: Atoms, window: _Window, beam: Beam) -> np.ndarray:
    """Share of the beam that the detector gets at the window's positions, (y, x); lengths are in Å here."""
    count = np.array([s.stop - s.start for s in (window.cols, window.rows)])
    box, depth = np.split(atoms.cell.lengths(), [2])
    low, side, step = (ANGSTROM * length for length in window[2:])
    across = (atoms.positions[:, :2] - low) % box
    near = (across < side).all(1)
    if not near.any():
        return np.zeros(count[::-1])
    start = np.array([window.cols.start, window.rows.start]) * step - low
    with abtem.config.set(QUIET):
        potential = _potential(
            abtem,
            atoms.numbers[near],
            across[near],
            atoms.positions[near, 2],
            side,
            depth.item(),
            beam,
        )
        seen = abtem.Probe(energy=beam.energy * 1e3, semiangle_cutoff=beam.convergence).scan(
            potential,
            scan=abtem.GridScan(
                start=tuple(start),
                end=tuple(start + count * step),
                gpts=tuple(count.tolist()),
                endpoint=False,
            ),
            detectors=abtem.AnnularDetector(beam.inner_angle, beam.outer_angle),
            lazy=False,
        )
    return np.asarray(seen.array, dtype=float).T


def _potential(
    abtem: ModuleType,
    numbers: np.ndarray,
    across: np.ndarray,
    up: np.ndarray,
    side: np.ndarray,
    depth: float,
    beam: Beam,
) -> Any:
    """The projected potential of each slice, as the sum of plane waves up to the largest angle that is seen.

    abTEM would put atoms on the nearest points of the grid, and an atom's brightness would depend on where between
    these it stands: by a quarter for carbon, more for heavier atoms. As waves they have no grid; for tungsten the
    higher angles that are left out make its brightness 4 % too large.
    """
    from ase.data import chemical_symbols
    from scipy.fft import next_fast_len

    highest = beam.outer_angle * 1e-3 / (beam.wavelength * ANGSTROM)
    grid = [next_fast_len(int(np.ceil(2 * EMPTY * highest * length))) for length in side]
    kx, ky = (np.fft.fftfreq(n, length / n) for n, length in zip(grid, side, strict=True))
    square = kx[:, None] ** 2 + ky**2
    form = abtem.parametrizations.LobatoParametrization()
    slices = int(np.ceil(depth / (SLICE * ANGSTROM)))
    which = (up / depth * slices).astype(int)
    waves = np.zeros((slices, *grid), dtype=complex)
    for number in np.unique(numbers):
        factor = form.projected_scattering_factor(chemical_symbols[number])(square)
        factor[square > (highest * EMPTY / 1.5) ** 2] = 0.0
        for i in range(slices):
            x, y = across[(numbers == number) & (which == i)].T
            along = np.exp(-2j * np.pi * kx[:, None] * x) @ np.exp(-2j * np.pi * y[:, None] * ky)
            waves[i] += factor * along
    return abtem.potentials.iam.PotentialArray(
        (np.fft.ifft2(waves).real * np.prod(grid) / np.prod(side)).astype(np.float32),
        slice_thickness=depth / slices,
        extent=tuple(side),
    )
