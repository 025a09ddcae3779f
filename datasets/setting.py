"""Specimen and microscope: the parameters that every scene of columns has.

Lengths are in nm:

- `field` and `pixel`: the side of the square frame, and the distance of pixels;
- `dose`: electrons that a column of intensity one sends to the detector, summed over its pixels;
- `probe`, `source`: standard deviations of the probe and of the source (2.355 times smaller than full widths);
  `tail` is the fraction of the electrons in a tail of standard deviation `tail_width`;
- `background`: at the middle of the frame, in units of the peak of a column of intensity one, uneven by a quarter;
- `contamination`: the highest that a blotch of dirt can be, in the same units;
- `readout`: standard deviation of the detector's own noise, in electrons a pixel;
- `disorder`: standard deviation of each coordinate of each column about its place; `spread`: relative standard
  deviation of the intensities of like columns; `z_power`: the power of the atomic number that an atom's intensity goes
  with; `rotation`: of the crystal, in degrees, from x towards y;
- `scale`, `stretch`, `shear`: M = scale · ((1, shear), (0, stretch)) is the scan's error, see `microscope`;
  `drift`: root mean square of the slow drift; `jitter`: standard deviation of the shift of each row;
- `precision`: the standard error of positions under `gives=atoms`; 0 for the least that the dose allows.

Example:
    >>> setting = Setting(dose=1000.0, probe=0.03, source=0.04)
    >>> round(setting.optics.core, 3)
    0.05
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .crystals import choose
from .kinds import DataError
from .microscope import Probe, Scan
from .scenes import MOST_ELEMENTS

__all__ = ["Setting"]

POSITIVE = ("field", "pixel", "dose", "probe", "scale", "stretch")
# A wider relative range is a slip of units, not a scan.
LARGEST_DISTORTION = 0.5
# Slope of the drift down the frame; at 1 rows are seen twice.
STEEPEST = 0.5
# Poisson numbers beyond it are not drawn exactly.
LARGEST_DOSE = 1e12
# Blotches of dirt: nm² for each, and the range of their standard deviations in nm.
BLOTCH_AREA, BLOTCH_WIDTHS = 8.0, (0.4, 1.2)


@dataclass(frozen=True)
class Setting:
    """What the parameters are is told above."""

    gives: str = "image"
    field: float = 8.0
    pixel: float = 0.015
    dose: float = 2000.0
    probe: float = 0.04
    source: float = 0.015
    tail: float = 0.0
    tail_width: float = 0.12
    background: float = 0.05
    contamination: float = 0.0
    readout: float = 0.0
    disorder: float = 0.003
    spread: float = 0.02
    z_power: float = 1.7
    rotation: float = 0.0
    scale: float = 1.0
    stretch: float = 1.0
    shear: float = 0.005
    drift: float = 0.01
    jitter: float = 0.002
    precision: float = 0.0

    def __post_init__(self) -> None:
        choose("gives", self.gives, ("image", "atoms"))
        for name, value in vars(self).items():
            if name in ("gives", "shear", "rotation"):
                continue
            if name in POSITIVE and not value > 0:
                raise DataError(f"{name} must be positive, found {value:g}")
            if not value >= 0:
                raise DataError(f"{name} must not be negative, found {value:g}")
        for name, value in vars(self).items():
            if name != "gives" and not np.isfinite(value):
                raise DataError(f"{name} must be finite, found {value:g}")
        self._check_ranges()

    def _check_ranges(self) -> None:
        if self.tail >= 1 or (self.tail > 0 and not self.tail_width > 0):
            raise DataError(
                f"tail must be below 1 and have a tail_width, found {self.tail:g} of {self.tail_width:g} nm"
            )
        for name in ("scale", "stretch", "shear"):
            off = getattr(self, name) - (name != "shear")
            if abs(off) > LARGEST_DISTORTION:
                raise DataError(
                    f"{name}={getattr(self, name):g} distorts by more than {LARGEST_DISTORTION:.0%}"
                )
        if self.dose > LARGEST_DOSE:
            raise DataError(f"dose must be at most {LARGEST_DOSE:g} electrons, found {self.dose:g}")
        if not 8 * self.pixel <= self.field:
            raise DataError(
                f"field must be at least 8 pixels of {self.pixel:g} nm, found {self.field:g}"
            )
        if (self.field / self.pixel) ** 2 > MOST_ELEMENTS:
            raise DataError(
                f"a field of {self.field:g} nm has more than {MOST_ELEMENTS:g} pixels of {self.pixel:g} nm; "
                "take a smaller field or larger pixels"
            )
        if self.pixel > 2 * self.optics.core:
            raise DataError(
                f"pixel={self.pixel:g} nm is too coarse for a probe of {self.optics.core:g} nm; "
                "take pixels of at most twice its standard deviation"
            )
        for name, part in (("drift", 50), ("jitter", 20)):
            if getattr(self, name) > self.field / part:
                raise DataError(
                    f"{name} must be at most a {part}th of the field, found {getattr(self, name):g} nm"
                )

    @property
    def optics(self) -> Probe:
        """The probe as the source blurs it."""
        core, tail = np.hypot([self.probe, self.tail_width], self.source)
        return Probe(float(core), self.tail, float(tail))

    @property
    def unit_peak(self) -> float:
        """Electrons in the brightest pixel of a column of intensity one."""
        return self.dose * self.pixel**2 * self.optics.peak

    def scan(self, rng: np.random.Generator) -> Scan:
        """The scan: drift of the first three Legendre polynomials along the frame, and jitter."""
        points = np.arange(round(self.field / self.pixel)) * self.pixel
        t = np.linspace(-1, 1, len(points))
        shapes = np.stack([t, 1.5 * t**2 - 0.5, 2.5 * t**3 - 1.5 * t])
        # The mean square of the n-th is 1 / (2n + 1): these are shares of 0.6, 0.3 and 0.1.
        sizes = self.drift * np.sqrt([3 * 0.6, 5 * 0.3, 7 * 0.1])
        slope = np.inf
        # What would nearly fold the image is drawn anew; at the largest drift allowed that is one in twenty.
        while slope > STEEPEST:
            drift = ((sizes * rng.standard_normal((2, 3))) @ shapes).T
            slope = np.abs(np.diff(drift[:, 1])).max() / self.pixel
        matrix = self.scale * np.array([[1.0, self.shear], [0.0, self.stretch]])
        return Scan(points, points, matrix, drift, self.jitter * rng.standard_normal(len(points)))

    def haze(self, scan: Scan, rng: np.random.Generator) -> np.ndarray:
        """Background and dirt, in units of the peak of a column of intensity one."""
        x, y = scan.x - scan.centre[0], scan.y - scan.centre[1]
        u, v = x / self.field * 2, (y / self.field * 2)[:, None]
        slopes = rng.standard_normal(3)
        slopes *= 0.25 / np.abs(slopes).sum()
        haze = self.background * (1 + slopes[0] * u + slopes[1] * v + slopes[2] * u * v)
        blotches = max(1, round(self.field**2 / BLOTCH_AREA))
        place = rng.uniform(-0.6, 0.6, (2, blotches, 1)) * self.field
        width = rng.uniform(*BLOTCH_WIDTHS, (blotches, 1))
        height = rng.uniform(0.2, 1.0, (blotches, 1))
        if self.contamination > 0:
            across = height * np.exp(-0.5 * ((x - place[0]) / width) ** 2)
            down = np.exp(-0.5 * ((y - place[1]) / width) ** 2)
            dirt = down.T @ across
            # Where blotches overlap they add up, and the highest is what was asked for.
            haze = haze + self.contamination * dirt / max(1.0, dirt.max())
        return np.asarray(haze)
