"""The waves of a periodic image: its reciprocal lattice, its Fourier coefficients, and the noise beneath them.

A periodic image is I(r) = Σ F_h exp(2πi (h B)·r), h two whole numbers and B the reciprocal vectors as rows. The lattice
is guessed from the peaks of the spectrum, by the odds that so many of them would lie on its nodes by chance; then B and
all coefficients are fitted to the pixels by least squares. The window need not hold a whole number of cells: the
overlap of waves in it is known in closed form.

Lengths are in nm, r = (x, y) from the middle of the frame, waves in 1/nm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np

from .kinds import DataError
from .plane_groups import reduced_basis

__all__ = ["Frame", "Waves", "fit_waves"]

# A peak of the spectrum stands so far above the median about it; noise alone does once in e^20 points.
STANDS_OUT = 20.0
# Peaks looked at, and the strongest of them whose sums and differences may be the lattice's vectors.
MOST_PEAKS, SEEDS = 40, 12
# Frames that a cell must fit into; with fewer repeats nothing is seen to be periodic.
LEAST_REPEATS = 1.8
# Error of a peak's place, in waves per frame, and share of the peaks that belong to no lattice.
PEAK_ERROR, STRAY = 0.2, 0.05
# Waves by which the lattice is fitted, the longest first: of a few the phases are known from the peaks.
SOME_WAVES = (40, 100)
# Rounds of least squares for the lattice, and steps (relative) that end them.
ROUNDS, CLOSE = 12, 1e-7
# Lattices refined and scored anew.
REFINED = 40
# Share of the waves that the pixels can hold which are fitted: near the last one the pixels alias.
FINEST = 0.9
# Spectrum points that the level around a reflection counts for as much as that of all waves as long.
PRIOR_POINTS = 30
# Parts of the reciprocal cell along each axis that are looked through for a superlattice; halves and thirds are among
# them. It must show by so many standard deviations, and stand above what is beside it by such a factor.
PARTS, SHOWS, STEEP = 24, 6.0, 1.3
# How much farther, in mean square, than the crystal's own power the waves of a superlattice are looked for.
SHARPER = 4.0


@dataclass(frozen=True)
class Frame:
    """An image with its pixels' places from its middle."""

    values: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @cached_property
    def steps(self) -> np.ndarray:
        """Distance of pixels along x and along y."""
        return np.array([np.ptp(axis) / (len(axis) - 1) for axis in (self.x, self.y)])

    @cached_property
    def sides(self) -> np.ndarray:
        """Length along x and along y."""
        return self.steps * [len(self.x), len(self.y)]

    @cached_property
    def finest(self) -> float:
        """Largest wave number fitted."""
        return float(FINEST * 0.5 / self.steps.max())

    @classmethod
    def of(cls, values: np.ndarray, y: np.ndarray, x: np.ndarray) -> Frame:
        """The frame of an image, its pixels evenly spaced."""
        for name, axis in (("y", y), ("x", x)):
            steps = np.diff(axis)
            if np.ptp(steps) > 1e-3 * steps.mean():
                raise DataError(f"image: {name} is not evenly spaced; resample the image first")
        frame = cls(values, y - (y[0] + y[-1]) / 2, x - (x[0] + x[-1]) / 2)
        return replace(frame, values=frame.levelled(values))

    def levelled(self, values: np.ndarray) -> np.ndarray:
        """Values less the parabola that fits them best."""
        x, y = self.x / self.sides[0], self.y / self.sides[1]
        rows = np.stack([y**0, y, y**2], 1)
        cols = np.stack([x**0, x, x**2], 1)
        inside = np.linalg.pinv(rows) @ values @ np.linalg.pinv(cols).T
        inside[np.add.outer(range(3), range(3)) > 2] = 0.0
        return np.asarray(values - rows @ inside @ cols.T)

    def turns(self, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """exp(2πi k·r) as factors along y (row, wave) and along x (wave, col)."""
        along_y = np.exp(2j * np.pi * np.outer(self.y, waves[:, 1]))
        return along_y, np.exp(2j * np.pi * np.outer(waves[:, 0], self.x))

    def overlap(self, waves: np.ndarray) -> np.ndarray:
        """Sum over the pixels of exp(-2πi (k − k')·r), which is real about the middle."""
        total = np.ones((len(waves), len(waves)))
        for axis, count in ((0, len(self.x)), (1, len(self.y))):
            apart = np.subtract.outer(waves[:, axis], waves[:, axis]) * self.steps[axis]
            sine = np.sin(np.pi * apart)
            near = np.abs(sine) < 1e-12
            total *= np.where(
                near, count, np.sin(np.pi * count * apart) / np.where(near, 1.0, sine)
            )
        return total


@dataclass(frozen=True)
class Waves:
    """The waves of a frame.

    Attributes:
        lattice: reciprocal vectors as rows, in 1/nm.
        index: h of each wave, one of every pair h and -h, (wave, 2).
        value: complex coefficients.
        noise: standard deviation of the real and of the imaginary part.
        covariance: of the four numbers of the lattice, (4, 4).
        left_out: waves that the pixels could hold and that noise has taken over.
    """

    lattice: np.ndarray
    index: np.ndarray
    value: np.ndarray
    noise: np.ndarray
    covariance: np.ndarray
    left_out: int

    @property
    def vectors(self) -> np.ndarray:
        """Wave vectors in 1/nm, (wave, 2)."""
        return np.asarray(self.index @ self.lattice)


def fit_waves(frame: Frame, most: int) -> Waves:
    """The lattice of an image, its coefficients as far as they rise above the noise, and their errors.

    Args:
        frame: the image.
        most: waves kept at most, the longest first.
    """
    lattice = _guess(frame)
    for _ in range(3):
        lattice = _refine(frame, lattice)
        larger = _enlarged(frame, lattice)
        if larger is None:
            break
        lattice = larger
    index = _within(lattice, frame.finest)
    if not len(index):
        raise DataError("image: its pixels are too coarse for its lattice; take smaller pixels")
    fit = _fit(frame, lattice, index[: 2 * most])
    kept = min(_rising(fit, _level(frame, fit)), most)
    fit = _fit(frame, lattice, index[:kept])
    level = _level(frame, fit)
    noise = np.sqrt(level * fit.spread / 2)
    slopes = _slopes(frame, fit)
    covariance = float(np.mean(level)) * np.linalg.inv(slopes @ slopes.T)
    return Waves(lattice, fit.nodes, fit.value, noise, covariance, len(index) - kept)


class _Fit(NamedTuple):
    """Coefficients by least squares: their waves, what is left of the image, and the inverse overlap of each."""

    lattice: np.ndarray
    nodes: np.ndarray
    value: np.ndarray
    rest: np.ndarray
    spread: np.ndarray


def _fit(frame: Frame, lattice: np.ndarray, index: np.ndarray) -> _Fit:
    half = index @ lattice
    waves = np.concatenate([np.zeros((1, 2)), half, -half])
    along_y, along_x = frame.turns(half)
    inverse = np.linalg.inv(frame.overlap(waves))
    values = frame.values
    count = len(half)
    # Background and waves in turn: a parabola and waves of a few cells hardly overlap.
    for _ in range(3):
        seen = np.einsum("yh,hy->h", along_y.conj(), along_x.conj() @ values.T)
        right = np.concatenate([[values.sum()], seen, seen.conj()])
        value = (inverse @ right)[1 : count + 1]
        shown = 2 * ((along_y * value) @ along_x).real
        background = frame.values - shown - frame.levelled(frame.values - shown)
        values = frame.values - background
    return _Fit(lattice, index, value, values - shown, np.diag(inverse)[1 : count + 1])


def _slopes(frame: Frame, fit: _Fit) -> np.ndarray:
    """Derivatives of the fitted image by the four numbers of the lattice, (4, pixel)."""
    along_y, along_x = frame.turns(fit.nodes @ fit.lattice)
    found = []
    for i in (0, 1):
        image = 2 * ((along_y * (2j * np.pi * fit.nodes[:, i] * fit.value)) @ along_x).real
        found += [(image * frame.x).ravel(), (image * frame.y[:, None]).ravel()]
    return np.stack(found)


def _refine(frame: Frame, lattice: np.ndarray) -> np.ndarray:
    """Least squares for the lattice, in which every wave weighs as much as it is strong."""
    for most in SOME_WAVES:
        index = _within(lattice, frame.finest)[:most]
        for _ in range(ROUNDS):
            fit = _fit(frame, lattice, index)
            slopes = _slopes(frame, fit)
            step = np.linalg.solve(slopes @ slopes.T, slopes @ fit.rest.ravel()).reshape(2, 2)
            # No farther than a quarter of a turn at the edge of the frame.
            most = 0.25 / frame.sides.max()
            step *= min(1.0, most / max(np.abs(step).max(), 1e-300))
            lattice = lattice + step
            if np.abs(step).max() < CLOSE * np.abs(lattice).max():
                break
    return lattice


def _within(lattice: np.ndarray, reach: float) -> np.ndarray:
    """Indices of the waves up to a number, longest waves first, one of each pair."""
    span = int(np.ceil(reach * np.linalg.norm(np.linalg.inv(lattice), axis=0).max())) + 1
    grid = np.arange(-span, span + 1)
    index = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    index = index[(index[:, 0] > 0) | ((index[:, 0] == 0) & (index[:, 1] > 0))]
    length = np.linalg.norm(index @ lattice, axis=1)
    order = np.argsort(length, kind="stable")
    return np.asarray(index[order][length[order] <= reach])


def _level(frame: Frame, fit: _Fit) -> np.ndarray:
    """Power of what is left, per pixel, around each reflection.

    It is the mean around the reflection, drawn towards that of all waves as long: a crystal's disorder leaves more
    between strong reflections than the noise of the pixels does.
    """
    power, free, (kx, ky) = _left(frame, fit)
    length = np.hypot(kx, ky)
    reach = 0.5 * np.linalg.norm(reduced_basis(fit.lattice), axis=1).min()
    found = np.empty(len(fit.nodes))
    for i, wave in enumerate(fit.nodes @ fit.lattice):
        ring = free & (np.abs(length - np.linalg.norm(wave)) < reach)
        near = free & (np.hypot(kx - wave[0], ky - wave[1]) < reach)
        whole = power[ring].mean() if ring.any() else power.mean()
        found[i] = (power[near].sum() + PRIOR_POINTS * whole) / (near.sum() + PRIOR_POINTS)
    return found


def _left(frame: Frame, fit: _Fit) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Spectrum of what is left, where it can be read, and its waves: at the nodes the fit has taken power away."""
    power = np.abs(np.fft.fft2(fit.rest)) ** 2 / fit.rest.size
    kx = np.fft.fftfreq(len(frame.x), frame.steps[0])
    ky = np.fft.fftfreq(len(frame.y), frame.steps[1])[:, None]
    node = np.stack(np.broadcast_arrays(kx, ky), -1) @ np.linalg.inv(fit.lattice)
    off = np.abs((node - np.rint(node)) @ fit.lattice) * frame.sides
    free = (off.max(-1) >= 1.0) & (np.hypot(kx, ky) > 1 / frame.sides.min())
    return power, free, (kx, ky)


def _rising(fit: _Fit, level: np.ndarray) -> int:
    """How many waves, longest first, until noise takes over: the last dozen that rises above it."""
    power = np.abs(fit.value) ** 2 / (level * fit.spread)
    window = min(12, len(power))
    mean = np.convolve(power, np.ones(window) / window, "valid")
    # Of noise alone the mean of a dozen is 1 ± 1/√12.
    above = np.flatnonzero(mean > 1 + 4 / np.sqrt(window))
    last = above[-1] + window if len(above) else window
    single = np.flatnonzero(power > STANDS_OUT)
    return int(max(last, single[-1] + 1 if len(single) else 0))


def _enlarged(frame: Frame, lattice: np.ndarray) -> np.ndarray | None:
    """The reciprocal lattice of a cell two or three times as large, where the spectrum shows it.

    What is left of the spectrum is summed over all nodes, moved by each part of the reciprocal cell. A superlattice
    is a summit at a half or a third; streaks and diffuse scattering are as high beside it.
    """
    index = _within(lattice, frame.finest)[: SOME_WAVES[-1]]
    folded = _folded(frame, _fit(frame, lattice, index))
    grid = np.arange(PARTS) / PARTS
    part = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    away = np.linalg.norm((part - np.rint(part)) @ lattice * frame.sides, axis=-1)
    usual = np.median(folded[away > 1.5])
    width = 1.5 * np.median(np.abs(folded[away > 1.5] - usual))
    best, chosen = 0.0, None
    for times, ways in ((2, ((1, 0), (0, 1), (1, 1))), (3, ((1, 0), (0, 1), (1, 1), (1, 2)))):
        for way in ways:
            finer = reduced_basis(_with_vector(lattice, np.array(way) @ lattice / times))
            if np.linalg.svd(finer * frame.sides, compute_uv=False).min() < LEAST_REPEATS:
                continue
            place = np.array(way) * PARTS // times % PARTS
            off = part - place / PARTS
            off = np.linalg.norm((off - np.rint(off)) @ lattice * frame.sides, axis=-1)
            beside = folded[(off > 1.5) & (off < 4) & (away > 1.5)]
            summit = folded[tuple(place)]
            higher = not beside.size or summit > STEEP * beside.max()
            if higher and summit > usual + SHOWS * width and summit > best:
                best, chosen = float(summit), finer
    return chosen


def _folded(frame: Frame, fit: _Fit) -> np.ndarray:
    """Mean power of what is left at all nodes, over the median of waves as long, by part of the cell they are moved.

    Waves weigh less where the crystal's own have died away: a superlattice is seldom sharper than its crystal, and the
    noise of a hundred waves hides what a dozen show.
    """
    power, free, (kx, ky) = _left(frame, fit)
    length = np.hypot(kx, ky)
    reach = 0.5 * np.linalg.norm(reduced_basis(fit.lattice), axis=1).min()
    ring = (length / reach).astype(np.int64)
    medians = np.array(
        [
            np.median(power[free & (ring == i)]) if (free & (ring == i)).any() else np.inf
            for i in range(int(ring.max()) + 1)
        ]
    )
    relative = power / medians[ring]
    grid = np.arange(PARTS) / PARTS
    part = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    # The two of a pair move to different waves.
    nodes = np.concatenate([fit.nodes, -fit.nodes, np.zeros((1, 2))])
    waves = (nodes + part[:, :, None]) @ fit.lattice
    place = np.rint(waves * frame.sides).astype(np.int64)
    found = relative[place[..., 1] % len(frame.y), place[..., 0] % len(frame.x)]
    strength = np.abs(fit.value) ** 2
    own = strength @ ((fit.nodes @ fit.lattice) ** 2).sum(1) / strength.sum()
    weight = np.exp(-(waves**2).sum(-1) / (SHARPER * own))
    return np.asarray((found * weight).sum(-1) / weight.sum(-1))


def _with_vector(lattice: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """A basis of the lattice that a vector, a fraction of one of the lattice's, makes of it."""
    candidates = [*lattice, vector, lattice[0] + vector, lattice[1] + vector]
    pairs = [np.stack(pair) for pair in combinations([vector, *candidates], 2)]
    areas = np.array([abs(np.linalg.det(pair)) for pair in pairs])
    areas[areas < 1e-6 * areas.max()] = np.inf
    return pairs[int(np.argmin(areas))]


def _guess(frame: Frame) -> np.ndarray:
    """The lattice on which the peaks of the spectrum lie, and not by chance."""
    peaks = _peaks(frame)
    seeds = [peaks]
    strongest = peaks[:SEEDS]
    for one, other in combinations(strongest, 2):
        seeds.append(np.stack([one - other, one + other]))
    vectors = np.concatenate(seeds)
    vectors = vectors[np.linalg.norm(vectors * frame.sides, axis=1) > LEAST_REPEATS]
    first, second = np.triu_indices(len(vectors), 1)
    bases = np.stack([vectors[first], vectors[second]], 1)
    area = np.abs(np.linalg.det(bases))
    bases = bases[area * frame.sides.prod() > LEAST_REPEATS**2]
    if not len(bases):
        raise DataError(
            "image: its spectrum shows no lattice of two directions; take a larger patch, or one of a crystal"
        )
    # Chance matches of a bad basis are weighed again once it has been fitted to what it matches.
    score = _odds(frame, bases, peaks, 2 * PEAK_ERROR)
    best = bases[np.argsort(-score, kind="stable")[:REFINED]]
    fitted = np.stack([_to_peaks(frame, basis, peaks) for basis in best])
    return reduced_basis(fitted[np.argmax(_odds(frame, fitted, peaks, PEAK_ERROR))])


def _odds(frame: Frame, bases: np.ndarray, peaks: np.ndarray, error: float) -> np.ndarray:
    """Log odds of each lattice: its peaks near its nodes against anywhere in a cell."""
    found = []
    for part in np.array_split(bases, max(1, len(bases) // 500)):
        area = np.abs(np.linalg.det(part)) * frame.sides.prod()
        node = np.einsum("pi,bij->bpj", peaks, np.linalg.inv(part))
        whole = np.rint(node)
        off = np.einsum("bpi,bij->bpj", node - whole, part) * frame.sides / error
        density = np.exp(-0.5 * (off**2).sum(-1)) / (2 * np.pi * error**2)
        density *= np.abs(whole).max(-1) > 0
        odds = STRAY + (1 - STRAY) * area[:, None] * density
        odds_of_all = np.log(odds).sum(1)
        small = np.linalg.svd(part * frame.sides, compute_uv=False).min(1) < 1
        found.append(np.where(small, -np.inf, odds_of_all))
    return np.concatenate(found)


def _to_peaks(frame: Frame, basis: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """A lattice fitted to the peaks that lie near its nodes."""
    basis = reduced_basis(basis)
    for tolerance in (3 * PEAK_ERROR, 2.5 * PEAK_ERROR, 2.5 * PEAK_ERROR):
        node = np.rint(peaks @ np.linalg.inv(basis))
        off = np.abs((peaks - node @ basis) * frame.sides).max(1)
        near = (off < tolerance) & (np.abs(node).max(1) > 0)
        if np.linalg.matrix_rank(node[near]) < 2:
            return basis
        basis = np.linalg.lstsq(node[near], peaks[near], rcond=None)[0]
    return basis


def _peaks(frame: Frame) -> np.ndarray:
    """Waves at which the spectrum peaks, strongest first, one of each pair, to a fraction of its resolution."""
    from scipy.ndimage import maximum_filter

    taper = np.outer(np.hanning(len(frame.y) + 2)[1:-1], np.hanning(len(frame.x) + 2)[1:-1])
    shape = [2 * n for n in frame.values.shape]
    power = np.abs(np.fft.fft2(frame.values * taper, shape)) ** 2
    kx = np.fft.fftfreq(shape[1], frame.steps[0])
    ky = np.fft.fftfreq(shape[0], frame.steps[1])[:, None]
    length = np.hypot(kx * frame.sides[0], ky * frame.sides[1])
    ring = (length / 2).astype(np.int64)
    order = np.argsort(ring, axis=None, kind="stable")
    parts = np.split(power.ravel()[order], np.cumsum(np.bincount(ring.ravel()))[:-1])
    # Where half of a ring is lattice its median is not noise; longer waves have no less.
    median = np.array([np.median(part) if part.size else np.inf for part in parts]) / np.log(2)
    smooth = np.array([np.median(median[max(0, i - 2) : i + 3]) for i in range(len(median))])
    peak = (power == maximum_filter(power, 5, mode="wrap")) & (power > STANDS_OUT * smooth[ring])
    peak &= (length > LEAST_REPEATS) & (np.hypot(kx, ky) < frame.finest)
    peak &= (ky > 0) | ((ky == 0) & (kx > 0))
    found = np.argwhere(peak)
    found = found[np.argsort(-power[peak], kind="stable")][:MOST_PEAKS]
    if len(found) < 2:
        raise DataError(
            "image: its spectrum shows no lattice; take a patch of a crystal with three cells or more across"
        )
    offset = np.stack([_summit(power, found, axis) for axis in (1, 0)], 1)
    place = np.stack([kx[found[:, 1]], ky[found[:, 0], 0]], 1)
    return np.asarray(place + offset / (2 * frame.sides))


def _summit(power: np.ndarray, found: np.ndarray, axis: int) -> np.ndarray:
    """How far, in points, the summit is from a local maximum: a parabola through the logs of three points."""
    size = power.shape[axis]
    rows, cols = found.T
    logs = []
    for step in (-1, 0, 1):
        at = [rows, cols]
        at[axis] = (at[axis] + step) % size
        logs.append(np.log(power[at[0], at[1]] + 1e-300))
    below, top, above = logs
    return np.asarray(np.clip(0.5 * (below - above) / (below - 2 * top + above), -0.5, 0.5))
