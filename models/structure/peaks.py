"""Sums of equal peaks on a smooth background, fitted all at once.

    mean(r) = b(r) + Σ_k A_k exp(−|r − r_k|² / 2w²) / 2πw²,   variance(r) = gain · mean(r) + floor

Lengths are in pixels, r = (0, 0) is the middle of the first pixel, and A_k is the sum of a peak over all pixels. The
background b is a tensor product of cubic B-splines.

Each step is Gauss–Newton for all peaks, the background and the common width together. A peak is seen on the square of
pixels around it, where a Gaussian is an outer product; so gradients and curvatures are moments of small windows,
Σ W(r) g(x) x^i g(y) y^j, two batched matrix products each. The product of two Gaussians is a Gaussian half-way between
them: what neighbours share is a moment of the weights around their middle. The normal equations are then a sparse
matrix of 3×3 blocks, a border for the background and one row for the width. Conjugate gradients solve it, with the
peaks' own blocks and the background's Schur complement as preconditioner.

Weights come from the fitted mean, not from the data, so the fixed point solves the likelihood equations of
Poisson–Gaussian counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Frame",
    "Noise",
    "Peaks",
    "Pull",
    "System",
    "fit_peaks",
    "neighbours",
    "row_weights",
    "scores",
    "spline_basis",
]

# Windows worked on at a time: with 19² pixels each an array is 24 MB.
CHUNK = 8192
# Pixels worked on at a time where many steps follow on each.
IN_CACHE = 1 << 15
# Widths from a peak to the edge of the window in which its gradient is summed. Where peaks stand on a faint background
# the weights around them are a hundred times those on top; at 5 widths 4e-6 of the peak is left.
SIGHT = 5.0
# Widths from the middle of two peaks to the edge of the window of their product, which is √2 narrower than a peak.
MIDDLE = 3.5
# Widths between peaks beyond which they share less than a thousandth of their information.
SHARED = 6.0
# Widths that a peak may lie outside the frame; farther out a ten-thousandth of it is seen at the rim.
OUTSIDE = 4.3
# Largest steps: of a place in widths, of the width relative to itself, of an intensity in medians of all; and the
# least that one step leaves of an intensity.
STEP, STRETCH, BRIGHTER, DIM = 0.5, 0.2, 2.0, 0.1
# Errors by which nearly all peaks may have moved last for the matrix to be used again, and in all for it to be told.
NEAR, FRESH, NEARLY_ALL = 1.0, 0.2, 0.95
# Attempts at one step, in the last two thirds of which all of it is shortened, too.
ATTEMPTS = 9
# Share of its own curvature by which a peak is held back at first where its step has failed, and by how much more each
# time, and by how much less where it has not; and of a place that is at its bound.
HELD, HARDER, EASED, FIXED = 0.1, 10.0, 5.0, 1e6
# Errors below which the cost is a parabola for every peak and its minimum is not missed: such a step is not judged.
SHORT = 0.3
# Widths around a peak in which its step is judged, and a rise of the cost, in logarithms of the likelihood, that is
# none: the ends of the windows cost as much.
HEARD, TOLD_APART = 3.0, 1e-3
# Steps are solved to this fraction; each Gauss–Newton step gains as much.
SOLVED, MOST_SOLVES = 1e-3, 100
# Numbers that no residual of the equations comes near while they are being solved, and whose squares are still numbers.
GREATEST = 1e100
# Relative, in the preconditioner only: splines are taken as planes under a peak, and the difference has no sign.
SLACK = 1e-3


class Noise(NamedTuple):
    """The law of the noise: variance = gain · mean + floor.

    For counts with read-out noise on a dark level, floor = readout² − gain · dark. Where the law would give less than
    `least`, as in a background that the noise has pushed below zero, that is the variance.
    """

    gain: float
    floor: float
    least: float

    def variance(self, mean: Tensor) -> Tensor:
        """Variance of pixels with these means."""
        return (self.gain * mean + self.floor).clamp_(min=self.least)

    def deviance(self, image: Tensor, mean: Tensor, excess: Tensor | None = None) -> Tensor:
        """Half the deviance of each pixel, less what does not depend on the mean.

        Its derivative by the mean is (mean − image) / variance: ∫ (t − image) / V(t) dt from where V leaves `least`.
        """
        low = self.least if excess is None else self.least + excess
        start = (self.least - self.floor) / self.gain
        up, lack = mean - start, image - start
        over = up.clamp(min=0)
        slow = (1 / self.gain) * (
            over - (low / self.gain + lack) * torch.log1p(self.gain * over / low)
        )
        under = up.clamp(max=0)
        found = slow + under * (0.5 * under - lack) / low
        return found if excess is None else torch.where(torch.isinf(excess), 0.0, found)


@dataclass(frozen=True)
class Peaks:
    """Peaks and background.

    Attributes:
        x: places along x, in pixels.
        y: places along y.
        intensity: the sum of each peak over all pixels.
        width: standard deviation of every peak, in pixels.
        coefs: coefficients of the background's splines, (y, x).
    """

    x: Tensor
    y: Tensor
    intensity: Tensor
    width: float
    coefs: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, kept: Tensor) -> Peaks:
        """Some of the peaks, on the same background."""
        return replace(self, x=self.x[kept], y=self.y[kept], intensity=self.intensity[kept])

    def join(self, x: Tensor, y: Tensor, intensity: Tensor) -> Peaks:
        """With more peaks, after those there are."""
        return replace(
            self,
            x=torch.cat([self.x, x]),
            y=torch.cat([self.y, y]),
            intensity=torch.cat([self.intensity, intensity]),
        )


@dataclass(frozen=True)
class Pull:
    """Gaussian priors, or their second-order expansions, by which the posterior's mode differs from the best fit.

    Attributes:
        x: middle of the prior of each place along x.
        y: along y.
        place: precision of the places, 0 for none.
        intensity: precision of the intensities about zero.
        level: middle of the prior of the background's coefficients.
        coefs: their precision.
        log_width: middle of the prior of the logarithm of the width.
        stiffness: its precision.
    """

    x: Tensor
    y: Tensor
    place: float = 0.0
    intensity: float = 0.0
    level: float = 0.0
    coefs: float = 0.0
    log_width: float = 0.0
    stiffness: float = 0.0

    def curvature(self) -> Tensor:
        """Precision of x, y and intensity."""
        return torch.tensor([self.place, self.place, self.intensity], dtype=torch.float64)

    def cost(self, peaks: Peaks) -> tuple[Tensor, float]:
        """Minus the log prior of each peak, and that of background and width."""
        each = (self.x - peaks.x).square() + (self.y - peaks.y).square()
        each = 0.5 * (self.place * each + self.intensity * peaks.intensity.square())
        rest = self.coefs * float((peaks.coefs - self.level).square().sum())
        return each, 0.5 * (rest + self.stiffness * (self.log_width - math.log(peaks.width)) ** 2)

    def gradient(self, peaks: Peaks) -> Tensor:
        """Gradient of the log prior by x, y and intensity, (peak, 3)."""
        return torch.stack(
            [
                self.place * (self.x - peaks.x),
                self.place * (self.y - peaks.y),
                -self.intensity * peaks.intensity,
            ],
            1,
        )


def spline_knots(size: int, step: float) -> np.ndarray:
    """Evenly spaced knots over a line of pixels, three beyond each end."""
    pieces = max(1, round(size / step))
    h = size / pieces
    return np.asarray(-0.5 + h * np.arange(-3, pieces + 4))


def spline_basis(at: np.ndarray, size: int, step: float, nu: int = 0) -> Any:
    """Cubic B-splines at points of a line of pixels, or their derivatives, a sparse (point, spline) array."""
    from scipy.interpolate import BSpline
    from scipy.sparse import csr_array

    knots = spline_knots(size, step)
    inside = np.clip(at, -0.5, size - 0.5)
    if nu == 0:
        return csr_array(BSpline.design_matrix(inside, knots, 3))
    lower = BSpline.design_matrix(inside, knots[1:-1], 2).tocsr()
    h = knots[1] - knots[0]
    count = len(knots) - 4
    # The derivative of a cubic spline is the difference of two quadratic ones.
    eye = csr_array(
        (
            np.concatenate([np.ones(count - 1), -np.ones(count - 1)]) / h,
            (
                np.tile(np.arange(count - 1), 2),
                np.concatenate([np.arange(1, count), np.arange(count - 1)]),
            ),
        ),
        shape=(count - 1, count),
    )
    return csr_array(lower @ eye)


def neighbours(x: Tensor, y: Tensor, reach: float) -> Tensor:
    """Pairs of peaks nearer than a distance, each once, (pair, 2)."""
    from scipy.spatial import cKDTree

    tree = cKDTree(torch.stack([x, y], 1).numpy())
    return torch.from_numpy(tree.query_pairs(reach, output_type="ndarray").astype(np.int64))


class Frame:
    """An image, its noise and the splines of its background.

    Args:
        image: pixels, (y, x).
        noise: the law of the noise.
        step: pixels between the knots of the background.
        excess: further variance of each pixel, such as that of a scan that jitters.
        fixed: weights of the pixels in place of those from the mean, while the mean is not yet worth asking.
    """

    def __init__(
        self,
        image: np.ndarray,
        noise: Noise,
        step: float,
        excess: Tensor | None = None,
        fixed: Tensor | None = None,
    ) -> None:
        self.image = torch.as_tensor(np.ascontiguousarray(image, dtype=np.float64))
        self.noise, self.step, self.excess, self.fixed = noise, step, excess, fixed
        self.ny, self.nx = self.image.shape

    @cached_property
    def along(self) -> tuple[Tensor, Tensor]:
        """The splines at the pixels along y and along x."""
        by = spline_basis(np.arange(self.ny), self.ny, self.step).toarray()
        bx = spline_basis(np.arange(self.nx), self.nx, self.step).toarray()
        return torch.from_numpy(by), torch.from_numpy(bx)

    @cached_property
    def products(self) -> tuple[Any, Any]:
        """Products of neighbouring splines along y and x, sparse (pixel, spline · 4), with offsets 0 to 3."""
        return _products(self.along[0].numpy()), _products(self.along[1].numpy())

    def background(self, coefs: Tensor) -> Tensor:
        """The background at the pixels."""
        by, bx = self.along
        return by @ coefs @ bx.T

    def signal(self, peaks: Peaks, reach: float = 5.0) -> Tensor:
        """The sum of the peaks at the pixels.

        Args:
            peaks: the peaks.
            reach: widths from a peak to where it is cut off: at 5 it is 4e-6 of its height.
        """
        half = math.ceil(reach * peaks.width)
        pad = half + _pad(peaks)
        stride = self.nx + 2 * pad
        out = torch.zeros((self.ny + 2 * pad) * stride, dtype=torch.float64)
        window = torch.arange(-half, half + 1)
        offsets = (window[:, None] * stride + window).flatten()
        norm = 1 / (2 * math.pi * peaks.width**2)
        for part in _chunks(len(peaks)):
            ix, iy, dx, dy = _around(peaks.x[part], peaks.y[part], window)
            ex = torch.exp(dx.square().mul_(-0.5 / peaks.width**2))
            ey = torch.exp(dy.square().mul_(-0.5 / peaks.width**2))
            ey *= (peaks.intensity[part] * norm)[:, None]
            flat = ((iy + pad) * stride + ix + pad)[:, None] + offsets
            out.index_add_(0, flat.flatten(), torch.bmm(ey[:, :, None], ex[:, None, :]).flatten())
        return out.reshape(-1, stride)[pad : pad + self.ny, pad : pad + self.nx]

    def weights(self, mean: Tensor) -> Tensor:
        """The inverse of each pixel's variance."""
        if self.fixed is not None:
            return self.fixed
        variance = self.noise.variance(mean)
        if self.excess is not None:
            variance += self.excess
        return variance.reciprocal_()

    def cost(self, mean: Tensor) -> Tensor:
        """Minus the logarithm of the likelihood of each pixel, whose slope is the weighed residual."""
        if self.fixed is not None:
            return (self.image - mean).square_().mul_(self.fixed).mul_(0.5)
        found = torch.empty_like(mean)
        for rows in self._rows():
            excess = None if self.excess is None else self.excess[rows]
            found[rows] = self.noise.deviance(self.image[rows], mean[rows], excess)
        return found

    def _rows(self) -> Iterator[slice]:
        """Rows at a time, few enough that what is worked out of them stays in the processor's cache."""
        height = max(1, IN_CACHE // self.nx)
        for first in range(0, self.ny, height):
            yield slice(first, first + height)

    def under(self, peaks: Peaks) -> tuple[np.ndarray, Tensor, Tensor]:
        """The sixteen splines that each peak stands on: their numbers, (peak, 16), and as polynomials about the peak.

        The polynomials are those along y and along x, (peak, 4 splines, 4 powers).
        """
        _, bx = self.along
        cols, across = _polynomials(peaks.x.numpy(), self.nx, self.step)
        rows, down = _polynomials(peaks.y.numpy(), self.ny, self.step)
        place = rows[:, :, None] * bx.shape[1] + cols[:, None, :]
        return place.reshape(len(peaks), 16), torch.from_numpy(down), torch.from_numpy(across)


def _polynomials(at: np.ndarray, size: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The four splines at each point of a line, and their polynomials in the distance from it, (point, 4, power)."""
    pieces = max(1, round(size / step))
    h = size / pieces
    t = (at + 0.5) / h
    # Outside the frame the polynomials of its rim go on: what is seen of such a peak is inside.
    first = np.clip(np.floor(t).astype(np.int64), 0, pieces - 1)
    u = t - first
    v = 1 - u
    value = np.stack([v**3, 3 * u**3 - 6 * u**2 + 4, 3 * v**3 - 6 * v**2 + 4, u**3], 1) / 6
    slope = np.stack([-(v**2), 3 * u**2 - 4 * u, 4 * v - 3 * v**2, u**2], 1) / (2 * h)
    bend = np.stack([v, 3 * u - 2, 3 * v - 2, u], 1) / (2 * h**2)
    third = np.broadcast_to(np.array([-1, 3, -3, 1]) / (6 * h**3), value.shape)
    return first[:, None] + np.arange(4), np.stack([value, slope, bend, third], 2)


def _products(basis: np.ndarray) -> Any:
    from scipy.sparse import csr_array

    size, count = basis.shape
    shifted = np.zeros((size, count, 4))
    for k in range(4):
        shifted[:, : count - k, k] = basis[:, : count - k] * basis[:, k:]
    return csr_array(shifted.reshape(size, count * 4))


def _chunks(count: int) -> Iterator[slice]:
    for first in range(0, count, CHUNK):
        yield slice(first, min(first + CHUNK, count))


def _around(x: Tensor, y: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pixel nearest to each place, and how far the pixels of its window are from the place."""
    ix, iy = x.round(), y.round()
    return ix.long(), iy.long(), (ix - x)[:, None] + window, (iy - y)[:, None] + window


def _powers(distance: Tensor, rate: float, order: int) -> Tensor:
    """exp(−rate d²) times the powers of d from 0, (peak, pixel, power)."""
    found = [torch.exp(distance.square().mul_(-rate))]
    for _ in range(order):
        found.append(found[-1] * distance)
    return torch.stack(found, -1)


class _Windows:
    """Moments of an image in windows around places: Σ image(r) exp(−rate |r − r_k|²) (y − y_k)^i (x − x_k)^j."""

    def __init__(self, image: Tensor, half: int, pad: int) -> None:
        self.half, self.margin = half, half + pad
        # Outside the frame nothing is measured.
        self.image = torch.nn.functional.pad(image, (self.margin,) * 4)

    def moments(self, x: Tensor, y: Tensor, rate: float, order: int = 2) -> Tensor:
        """The moments i, j = 0 to `order`, (place, i, j)."""
        size = 2 * self.half + 1
        window = torch.arange(-self.half, self.half + 1)
        views = self.image.unfold(0, size, 1).unfold(1, size, 1)
        found = torch.empty(len(x), order + 1, order + 1, dtype=torch.float64)
        for part in _chunks(len(x)):
            ix, iy, dx, dy = _around(x[part], y[part], window)
            corner = self.margin - self.half
            seen = views[iy + corner, ix + corner]
            found[part] = _powers(dy, rate, order).mT @ (seen @ _powers(dx, rate, order))
        return found

    def row_shares(self, x: Tensor, y: Tensor, width: float) -> Tensor:
        """What part each row has in what is known of a peak's place along x, the weights being the image."""
        size = 2 * self.half + 1
        window = torch.arange(-self.half, self.half + 1)
        views = self.image.unfold(0, size, 1).unfold(1, size, 1)
        found = torch.empty(len(x), size, dtype=torch.float64)
        for part in _chunks(len(x)):
            ix, iy, dx, dy = _around(x[part], y[part], window)
            corner = self.margin - self.half
            across = _powers(dx, width**-2, 2)[:, :, 2:]
            down = torch.exp(dy.square().mul_(-(width**-2)))
            found[part] = (views[iy + corner, ix + corner] @ across)[:, :, 0] * down
        return found / found.sum(1, keepdim=True).clamp(min=1e-300)


@dataclass
class System:
    """The normal equations at some peaks: H u = g for u = (x, y, A of every peak; background; width).

    Attributes:
        peaks: where they were set up.
        pairs: peaks that share pixels, each pair once.
        own: blocks of the peaks, (peak, 3, 3).
        shared: blocks of the pairs, (pair, 3, 3).
        gradient: of the peaks, (peak, 3).
        border: sparse (3 · peak, spline), what peaks and background share.
        ground: sparse (spline, spline), the background's own.
        ground_gradient: its gradient.
        wide: what the width shares with the peaks and the background, one vector.
        width_curvature: the width's own.
        width_gradient: its gradient.
        weights: of the pixels.
        residual: image less mean.
        signal: the peaks' part of the mean.
        pulled: precision that the prior adds to each unknown but the width.
        width_pulled: that of the width.
    """

    peaks: Peaks
    pairs: Tensor
    own: Tensor
    shared: Tensor
    gradient: Tensor
    border: Any
    ground: Any
    ground_gradient: np.ndarray
    wide: np.ndarray
    width_curvature: float
    width_gradient: float
    weights: Tensor
    residual: Tensor
    signal: Tensor
    pulled: np.ndarray
    width_pulled: float = 0.0

    @cached_property
    def blocks(self) -> Any:
        """The peaks' part of H, sparse rows of 3×3 blocks."""
        return block_matrix(len(self.peaks), self.pairs, self.own, self.shared)

    @cached_property
    def own_inverse(self) -> Tensor:
        """Inverses of the peaks' own blocks."""
        scale = self.own.diagonal(dim1=1, dim2=2).clamp(min=1e-300).rsqrt()
        scaled = self.own * scale[:, :, None] * scale[:, None, :]
        ridge = 1e-9 * torch.eye(3, dtype=torch.float64)
        inverse: Tensor = torch.linalg.inv(scaled + ridge) * scale[:, :, None] * scale[:, None, :]
        return inverse

    @cached_property
    def schur(self) -> Any:
        """Solver with the background's Schur complement, peaks taken one by one."""
        from scipy.sparse import csr_array, diags_array

        count = len(self.peaks)
        left = self.ground
        if count:
            left = left - self.turned @ (self._lone @ self.border)
        return solver(csr_array(left) + diags_array(SLACK * self.ground.diagonal()))

    @cached_property
    def crowding(self) -> Tensor:
        """By how much each peak's own block must be raised for the peaks' blocks alone to exceed all they share.

        Then the background's Schur complement is never taken below what it is.
        """
        count = len(self.peaks)
        scale = self.own.diagonal(dim1=1, dim2=2).clamp(min=1e-300).rsqrt()
        found = torch.ones(count, dtype=torch.float64)
        if len(self.pairs):
            a, b = self.pairs.T
            share = (self.shared * scale[a][:, :, None] * scale[b][:, None, :]).abs()
            found.index_add_(0, a, share.sum(2).amax(1))
            found.index_add_(0, b, share.sum(1).amax(1))
        return found

    @cached_property
    def turned(self) -> Any:
        """The border's transpose, its rows sparse."""
        return self.border.T.tocsr()

    def product(self, v: np.ndarray) -> np.ndarray:
        """H v without the width."""
        n = 3 * len(self.peaks)
        head = self.blocks @ v[:n] + self.border @ v[n:]
        return np.concatenate([head, self.turned @ v[:n] + self.ground @ v[n:]])

    def precondition(self, v: np.ndarray) -> np.ndarray:
        """H⁻¹ v as if peaks shared nothing with each other."""
        n = 3 * len(self.peaks)
        head = self._lone @ v[:n]
        tail = self.schur(v[n:] - self.turned @ head)
        return np.concatenate([head - self._lone @ (self.border @ tail), tail])

    @cached_property
    def _lone(self) -> Any:
        """The inverse as if peaks shared nothing with each other."""
        return block_diagonal(self.own_inverse / self.crowding[:, None, None])

    def solve(self, rhs: np.ndarray, tolerance: float = SOLVED) -> np.ndarray:
        """H⁻¹ rhs without the width, by conjugate gradients."""
        x = np.zeros_like(rhs)
        r = rhs.copy()
        z = self.precondition(r)
        p, rz = z, float(r @ z)
        goal = tolerance**2 * rz
        for _ in range(MOST_SOLVES):
            if rz <= goal or rz <= 0:
                break
            hp = self.product(p)
            bend = float(p @ hp)
            # A matrix that rounding has left short of positive definite: as far as it went well.
            if not 0 < bend < GREATEST:
                break
            step = rz / bend
            x += step * p
            r -= step * hp
            if not float(np.abs(r).max()) < GREATEST:
                break
            z = self.precondition(r)
            rz, last = float(r @ z), rz
            p = z + (rz / last) * p
        return x

    @cached_property
    def lean(self) -> np.ndarray:
        """H⁻¹ times what the width shares with the rest: how all else moves with the width."""
        return self.solve(self.wide)

    @cached_property
    def width_precision(self) -> float:
        """Precision of the width, all else unknown: no less than the prior's, nor than what solving can tell."""
        least = max(self.width_pulled, SOLVED**2 * self.width_curvature, 1e-300)
        return max(self.width_curvature - float(self.wide @ self.lean), least)


def block_diagonal(blocks: Tensor) -> Any:
    """A sparse matrix of 3×3 blocks on its diagonal."""
    from scipy.sparse import bsr_array

    count = len(blocks)
    return bsr_array(
        (blocks.numpy(), np.arange(count), np.arange(count + 1)), shape=(3 * count, 3 * count)
    )


def block_matrix(count: int, pairs: Tensor, own: Tensor, shared: Tensor) -> Any:
    """A symmetric sparse matrix of 3×3 blocks from those on the diagonal and those of the pairs."""
    from scipy.sparse import bsr_array

    a, b = pairs.T.numpy() if len(pairs) else (np.zeros(0, int), np.zeros(0, int))
    each = np.arange(count)
    row, col = np.concatenate([each, a, b]), np.concatenate([each, b, a])
    blocks = np.concatenate([own.numpy(), shared.numpy(), shared.mT.numpy()])
    order = np.argsort(row * count + col)
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))])
    return bsr_array((blocks[order], col[order], starts), shape=(3 * count, 3 * count))


# Splines up to which their matrix is inverted as a dense one.
DENSE = 400


def solver(matrix: Any) -> Any:
    """A function that solves with a small dense or a larger sparse positive definite matrix."""
    if matrix.shape[0] <= DENSE:
        from scipy.linalg import lu_factor, lu_solve

        factor = lu_factor(matrix.toarray())
        return lambda v: lu_solve(factor, v)
    from scipy.sparse.linalg import splu

    return splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve


def normal_equations(
    frame: Frame,
    peaks: Peaks,
    pull: Pull | None = None,
    old: System | None = None,
    signal: Tensor | None = None,
) -> System:
    """Set up the normal equations at some peaks.

    Args:
        frame: the image.
        peaks: where.
        pull: priors, if any.
        old: equations near by, whose matrix is used again; only the gradients are worked out.
        signal: the sum of the peaks, where it is known.
    """
    if signal is None:
        signal = frame.signal(peaks)
    mean = frame.background(peaks.coefs) + signal
    weights = frame.weights(mean)
    residual = frame.image - mean
    weighed = weights * residual
    by, bx = frame.along
    gradient, width_gradient = _gradients(_seen(weighed, peaks), peaks)
    now: dict[str, Any] = {
        "peaks": peaks,
        "gradient": gradient,
        "ground_gradient": (by.T @ weighed @ bx).flatten().numpy(),
        "width_gradient": width_gradient,
        "weights": weights,
        "residual": residual,
        "signal": signal,
    }
    if old is None:
        made = System(**now, **_matrix(frame, peaks, weights, signal))
        return _weighed_down(_pulled(made, pull), pull)
    again = replace(old, **now)
    # What was worked out of the matrix holds for the gradients of now.
    again.__dict__.update({k: v for k, v in old.__dict__.items() if k in WORKED_OUT})
    return _pulled(again, pull)


WORKED_OUT = (
    "blocks",
    "own_inverse",
    "crowding",
    "turned",
    "schur",
    "_lone",
    "lean",
    "width_precision",
)


def _matrix(frame: Frame, peaks: Peaks, weights: Tensor, signal: Tensor) -> dict[str, Any]:
    """All second derivatives."""
    pairs = neighbours(peaks.x, peaks.y, SHARED * peaks.width)
    own, shared = _curvatures(weights, peaks, pairs)
    # The heat equation: ∂G/∂w = w ∇²G, the Laplacian by differences, which is good to 1 / 12 w².
    blur = _laplacian(signal) * peaks.width
    weighed_blur = weights * blur
    wide = scores(frame, peaks, weighed_blur)
    return {
        "pairs": pairs,
        "own": own,
        "shared": shared,
        "border": _border(frame, _seen(weights, peaks, 4), peaks),
        "ground": _ground(frame, weights),
        "wide": wide,
        "width_curvature": float((weighed_blur * blur).sum()),
        "pulled": np.zeros(len(wide)),
    }


def scores(frame: Frame, peaks: Peaks, weighed: Tensor) -> np.ndarray:
    """What an image is along the slopes of the mean by peaks and background, its pixels weighed already."""
    by, bx = frame.along
    head = _gradients(_seen(weighed, peaks), peaks)[0]
    return np.concatenate([head.flatten().numpy(), (by.T @ weighed @ bx).flatten().numpy()])


def _pad(peaks: Peaks) -> int:
    # A width that has just shrunk leaves peaks farther out than the present one allows.
    return math.ceil(1.5 * OUTSIDE * peaks.width) + 2


def _pulled(system: System, pull: Pull | None) -> System:
    """The system with the prior's gradient added."""
    if pull is None:
        return system
    peaks = system.peaks
    flat = peaks.coefs.flatten().numpy()
    # The prior's exponent alone: its Jacobian from log w to w is of the order of one peak's part in the width.
    lean = pull.stiffness * (pull.log_width - math.log(peaks.width)) / peaks.width
    system.gradient = system.gradient + pull.gradient(peaks)
    system.ground_gradient = system.ground_gradient + pull.coefs * (pull.level - flat)
    system.width_gradient += lean
    return system


def _weighed_down(system: System, pull: Pull | None) -> System:
    """The system with the prior's curvature added."""
    from scipy.sparse import eye_array

    if pull is None:
        return system
    peaks, coefs = system.peaks, system.peaks.coefs.numel()
    each = np.tile(pull.curvature().numpy(), len(peaks))
    system.pulled = np.concatenate([each, np.full(coefs, pull.coefs)])
    system.own = system.own + torch.diag(pull.curvature())
    system.ground = system.ground + pull.coefs * eye_array(coefs, format="csr")
    system.width_pulled = pull.stiffness / peaks.width**2
    system.width_curvature += system.width_pulled
    return system


def _curvatures(weights: Tensor, peaks: Peaks, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks J Jᵀ W of each peak with itself and with its neighbours, from moments about their middles."""
    each = torch.arange(len(peaks))
    a = torch.cat([each, pairs[:, 0]])
    b = torch.cat([each, pairs[:, 1]])
    x, y, width = peaks.x, peaks.y, peaks.width
    mx, my, rate = (x[a] + x[b]) / 2, (y[a] + y[b]) / 2, 1 / width**2
    m = _Windows(weights, math.ceil(MIDDLE * width), _pad(peaks)).moments(mx, my, rate)
    # Outside the frame the far side of a window is all that is seen: it must be what gradients and border see, or the
    # matrix is not positive.
    last_y, last_x = (n - 1 for n in weights.shape)
    out = ((mx < 0) | (my < 0) | (mx > last_x) | (my > last_y)).nonzero()[:, 0]
    if len(out):
        wide = _Windows(weights, math.ceil(SIGHT * width), _pad(peaks))
        m[out] = wide.moments(mx[out], my[out], rate)
    hx, hy = (x[b] - x[a]) / 2, (y[b] - y[a]) / 2
    norm = (2 * math.pi * width**2) ** -2
    share = norm * torch.exp(-(hx**2 + hy**2) / width**2)
    # Seen from a the middle is at +h, from b at −h: the gradient's (r − r_a) is (s + h), and (r − r_b) is (s − h).
    one, sx, sy = m[:, 0, 0], m[:, 0, 1], m[:, 1, 0]
    sxx, sxy, syy = m[:, 0, 2], m[:, 1, 1], m[:, 2, 0]
    block = torch.stack(
        [
            sxx - hx * hx * one,
            sxy + hx * sy - hy * sx - hx * hy * one,
            sx + hx * one,
            sxy + hy * sx - hx * sy - hx * hy * one,
            syy - hy * hy * one,
            sy + hy * one,
            sx - hx * one,
            sy - hy * one,
            one,
        ],
        -1,
    ).reshape(-1, 3, 3)
    scale = torch.stack([peaks.intensity / width**2] * 2 + [torch.ones_like(x)], 1)
    block = block * share[:, None, None] * scale[a][:, :, None] * scale[b][:, None, :]
    return block[: len(peaks)], block[len(peaks) :]


def _seen(image: Tensor, peaks: Peaks, order: int = 2) -> Tensor:
    """Moments of an image under each peak."""
    windows = _Windows(image, math.ceil(SIGHT * peaks.width), _pad(peaks))
    return windows.moments(peaks.x, peaks.y, 0.5 / peaks.width**2, order)


def _gradients(m: Tensor, peaks: Peaks) -> tuple[Tensor, float]:
    """Gradient by x, y and intensity of each peak, and by the width of all, from moments under the peaks."""
    width = peaks.width
    norm = 1 / (2 * math.pi * width**2)
    slope = peaks.intensity * norm / width**2
    gradient = torch.stack([slope * m[:, 0, 1], slope * m[:, 1, 0], norm * m[:, 0, 0]], 1)
    spread = m[:, 0, 2] + m[:, 2, 0] - 2 * width**2 * m[:, 0, 0]
    return gradient, float((slope / width * spread).sum())


def row_weights(system: System) -> Tensor:
    """Sum of the squared shares of the rows in each peak's place along x.

    Times the variance of the rows' shifts it is what they add to the variance of x.
    """
    peaks = system.peaks
    windows = _Windows(system.weights, math.ceil(MIDDLE * peaks.width), _pad(peaks))
    return windows.row_shares(peaks.x, peaks.y, peaks.width).square().sum(1)


def _border(frame: Frame, m: Tensor, peaks: Peaks) -> Any:
    """What peaks and background share; under a peak a spline is a polynomial, and moments are all that is asked."""
    from scipy.sparse import csr_array

    width, count = peaks.width, len(peaks)
    norm = 1 / (2 * math.pi * width**2)
    slope = (peaks.intensity * norm / width**2)[:, None, None]
    place, down, across = frame.under(peaks)
    parts = [slope * m[:, :4, 1:], slope * m[:, 1:, :4], norm * m[:, :4, :4]]
    values = torch.stack([down @ part @ across.mT for part in parts], 1)
    columns = np.repeat(place[:, None, :], 3, axis=1).ravel()
    starts = np.arange(0, 48 * count + 1, 16)
    by, bx = frame.along
    shape = (3 * count, by.shape[1] * bx.shape[1])
    return csr_array((values.flatten().numpy(), columns, starts), shape=shape)


def _ground(frame: Frame, weights: Tensor) -> Any:
    """The background's own block, Σ W B B' over pairs of splines."""
    from scipy.sparse import coo_array, csr_array

    py, px = frame.products
    by, bx = frame.along
    my, mx = by.shape[1], bx.shape[1]
    table = np.asarray((px.T @ (py.T @ weights.numpy()).T).T).reshape(my, 4, mx, 4)
    i, k, j, m = (g.ravel() for g in np.meshgrid(*map(np.arange, table.shape), indexing="ij"))
    values = table.ravel()
    rows, cols, found = [], [], []
    # Offsets up and down in y, left and right in x; that of zero counts once.
    for sign_y in (1, -1):
        for sign_x in (1, -1):
            y0, y1 = (i, i + k) if sign_y > 0 else (i + k, i)
            x0, x1 = (j, j + m) if sign_x > 0 else (j + m, j)
            keep = (i + k < my) & (j + m < mx)
            keep &= (sign_y > 0) | (k > 0)
            keep &= (sign_x > 0) | (m > 0)
            rows.append((y0 * mx + x0)[keep])
            cols.append((y1 * mx + x1)[keep])
            found.append(values[keep])
    size = my * mx
    made = coo_array(
        (np.concatenate(found), (np.concatenate(rows), np.concatenate(cols))), shape=(size, size)
    )
    return csr_array(made)


def _laplacian(image: Tensor) -> Tensor:
    wide = torch.nn.functional.pad(image[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    across = wide[1:-1, 2:] + wide[1:-1, :-2]
    return across + wide[2:, 1:-1] + wide[:-2, 1:-1] - 4 * image


@dataclass(frozen=True)
class Fitted:
    """Peaks at a fixed point, the equations there, and how the fit went."""

    peaks: Peaks
    system: System
    steps: int
    moved: float


def fit_peaks(
    frame: Frame,
    start: Peaks,
    pull: Pull | None = None,
    *,
    fit_width: bool = True,
    most: int = 30,
    close: float = 0.02,
) -> Fitted:
    """Gauss–Newton until no peak moves by more than a small part of its own error.

    Args:
        frame: the image.
        start: where to begin.
        pull: priors, if any.
        fit_width: whether the common width is fitted too.
        most: steps at most.
        close: the largest last step, in standard deviations.
    """
    steps, moved = 0, math.inf
    longest = torch.full((len(start),), STEP, dtype=torch.float64)
    # Peaks whose steps have failed are held back by so much of their own curvature.
    held = torch.zeros(len(start), dtype=torch.float64)
    last = torch.zeros(len(start), 3, dtype=torch.float64)
    here = _Tried(frame, pull, start)
    system = normal_equations(frame, start, pull, signal=here.signal)
    old, since = False, 0.0
    while moved >= close and steps < most:
        there, step, far, held = _better(frame, system, pull, here, fit_width, longest, held)
        if there is None:
            if old:
                # The matrix may be what failed.
                system = normal_equations(frame, here.peaks, pull, signal=here.signal)
                old, since = False, 0.0
                steps += 1
                continue
            # No step lowers the cost by what can be told: this is the lowest place.
            break
        # Near the goal the matrix of the last step serves as well: each step still gains by how little it has changed.
        moved = _largest(step, system)
        near = far < NEAR and not bool(held.any())
        since = since + far if near else 0.0
        here, old = there, near
        system = normal_equations(frame, here.peaks, pull, system if near else None, here.signal)
        # A faint peak that turns back has stepped too far: Gauss–Newton overlooks how its slopes turn.
        back = (step[:, :2] * last[:, :2]).sum(1) < 0
        longest = torch.where(back, longest / 2, (1.5 * longest).clamp(max=STEP))
        last = step
        steps += 1
    if since >= FRESH:
        system = normal_equations(frame, here.peaks, pull, signal=here.signal)
    return Fitted(here.peaks, system, steps, moved)


@dataclass(frozen=True)
class _Tried:
    """Peaks that were tried, their sum, and what they cost."""

    frame: Frame
    pull: Pull | None
    peaks: Peaks

    @cached_property
    def signal(self) -> Tensor:
        """The sum of the peaks."""
        return self.frame.signal(self.peaks)

    @cached_property
    def pixels(self) -> Tensor:
        """What each pixel costs."""
        return self.frame.cost(self.frame.background(self.peaks.coefs).add_(self.signal))

    @cached_property
    def prior(self) -> tuple[Tensor, float]:
        """What the prior makes of each peak and of the rest."""
        if self.pull is None:
            return torch.zeros_like(self.peaks.x), 0.0
        return self.pull.cost(self.peaks)

    def above(self, other: _Tried) -> tuple[float, Tensor]:
        """By how much these cost more than others, in all and around each of the others."""
        rise = self.pixels - other.pixels
        (each, rest), (each_of_other, rest_of_other) = self.prior, other.prior
        more = each - each_of_other
        total = float(rise.sum() + more.sum()) + rest - rest_of_other
        return total, _around_peaks(rise, other.peaks) + more


def _better(
    frame: Frame,
    system: System,
    pull: Pull | None,
    here: _Tried,
    fit_width: bool,
    longest: Tensor,
    held: Tensor,
) -> tuple[_Tried | None, Tensor, float, Tensor]:
    """A step that does not raise the cost, the step, how far nearly all went, and who is held back how much.

    Where the cost rises around a peak, the peak is held back; where it rises all the same, all are.
    """
    part = 1.0
    for attempt in range(ATTEMPTS):
        step, wider, ground = _step(frame, system, fit_width, longest, held)
        if bool(step.isfinite().all() and ground.isfinite().all()) and math.isfinite(wider):
            placed, step = _placed(frame, system.peaks, part * step, part * wider, part * ground)
            there = _Tried(frame, pull, placed)
            if not bool(held.any()) and _largest(step, system) < SHORT:
                return there, step, _most(step, system), held
            total, local = there.above(here)
            if total <= TOLD_APART:
                calm = torch.where(local > TOLD_APART, held, held / EASED)
                held = torch.where(calm < HELD / 10, 0.0, calm)
                return there, step, _most(step, system), held
            held = torch.where(local <= 0, held, (held * HARDER).clamp(min=HELD))
        if attempt >= ATTEMPTS // 3:
            part /= 4
    return None, torch.zeros(len(held), 3, dtype=torch.float64), 0.0, held


def _around_peaks(rise: Tensor, peaks: Peaks) -> Tensor:
    """The sum of an image over the square within `HEARD` widths of each peak."""
    ny, nx = rise.shape
    sums = torch.nn.functional.pad(rise.cumsum(0).cumsum(1), (1, 0, 1, 0))
    half = math.ceil(HEARD * peaks.width)
    col, row = peaks.x.round().long(), peaks.y.round().long()
    # Of a peak outside, the rim that it shines on.
    col, row = col.clamp(0, nx - 1), row.clamp(0, ny - 1)
    left, right = (col - half).clamp(0, nx), (col + half + 1).clamp(0, nx)
    top, bottom = (row - half).clamp(0, ny), (row + half + 1).clamp(0, ny)
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]


def _most(step: Tensor, system: System) -> float:
    """How far, in its own errors, a peak moved that moved farther than nearly all others."""
    if not len(step):
        return 0.0
    far = _far(step, system)
    rank = max(1, math.ceil(NEARLY_ALL * len(far)))
    return float(far.kthvalue(rank).values.sqrt())


def _far(step: Tensor, system: System) -> Tensor:
    """Squares of the peaks' steps in their own errors, places and intensities together."""
    far: Tensor = (step[:, None] @ system.own @ step[:, :, None])[:, 0, 0].clamp(min=0)
    return far


def _largest(step: Tensor, system: System) -> float:
    """The largest part of a step in errors."""
    if not len(step):
        return 0.0
    return float(_far(step, system).max().sqrt())


def _step(
    frame: Frame, system: System, fit_width: bool, longest: Tensor, held: Tensor
) -> tuple[Tensor, float, Tensor]:
    """One Gauss–Newton step of peaks, width and background, no place moved farther than so many widths."""
    peaks, count = system.peaks, len(system.peaks)
    asked, gradient = _at_the_end(frame, system)
    if bool(held.any()) or asked is not None:
        more = system.own.diagonal(dim1=1, dim2=2) * held[:, None]
        if asked is not None:
            more = more + asked
        system = replace(system, own=system.own + torch.diag_embed(more))
    rhs = np.concatenate([gradient.flatten().numpy(), system.ground_gradient])
    move = system.solve(rhs)
    wider = 0.0
    if fit_width and count:
        width = peaks.width
        wider = (system.width_gradient - float(system.wide @ move)) / system.width_precision
        wider = min(max(wider, -STRETCH * width), STRETCH * width)
        move = move - wider * system.lean
    step = torch.from_numpy(move[: 3 * count]).reshape(count, 3)
    if count:
        # The whole step of a peak is shortened: places and intensities go together.
        reach = longest * peaks.width / step[:, :2].norm(dim=1).clamp(min=1e-300)
        most = peaks.intensity + BRIGHTER * float(peaks.intensity.median())
        step = (
            step * torch.minimum(reach, most / step[:, 2].clamp(min=1e-300)).clamp(max=1)[:, None]
        )
    return step, wider, torch.from_numpy(move[3 * count :]).reshape(peaks.coefs.shape)


def _at_the_end(frame: Frame, system: System) -> tuple[Tensor | None, Tensor]:
    """What holds the places that would leave where peaks may lie, if any, and the gradient without theirs."""
    peaks, slack = system.peaks, OUTSIDE * system.peaks.width
    place = torch.stack([peaks.x, peaks.y], 1)
    last = torch.tensor([frame.nx - 1, frame.ny - 1], dtype=torch.float64) + slack
    push = system.gradient[:, :2]
    stuck = ((place <= -slack) & (push < 0)) | ((place >= last) & (push > 0))
    if not bool(stuck.any()):
        return None, system.gradient
    hold = torch.zeros_like(system.gradient)
    hold[:, :2] = stuck * FIXED * system.own.diagonal(dim1=1, dim2=2)[:, :2]
    gradient = system.gradient.clone()
    gradient[:, :2] = torch.where(stuck, 0.0, push)
    return hold, gradient


def _placed(
    frame: Frame, peaks: Peaks, step: Tensor, wider: float, ground: Tensor
) -> tuple[Peaks, Tensor]:
    """The peaks after a step, and the step that was left of it at the bounds."""
    width = peaks.width + wider
    slack = OUTSIDE * width
    placed = replace(
        peaks,
        x=(peaks.x + step[:, 0]).clamp(-slack, frame.nx - 1 + slack),
        y=(peaks.y + step[:, 1]).clamp(-slack, frame.ny - 1 + slack),
        intensity=torch.maximum(peaks.intensity + step[:, 2], DIM * peaks.intensity),
        width=width,
        coefs=peaks.coefs + ground,
    )
    went = [placed.x - peaks.x, placed.y - peaks.y, placed.intensity - peaks.intensity]
    return placed, torch.stack(went, 1)
