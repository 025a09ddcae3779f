"""Which peaks an image has: candidates from scale space, a joint fit, and evidence for each, to a fixed point.

Candidates are maxima of the Laplacian of Gaussians, at a threshold low enough to lose nothing that evidence could keep.
All are fitted together. Whether there is a peak or none is then told by the odds

    log odds = z² / 2 + log(λ · g(r) · 2π √det Σ · p(A) · √(2π) σ_A),

the ratio of the evidence with and without the peak in Laplace's approximation: z = A / σ_A with σ_A at a given place,
Σ the covariance of the place, λ the number of peaks per pixel, p the distribution of their intensities and g how much
rarer they are at a distance r from the nearest other. All are learnt from the peaks themselves, each counting with its
probability. What the residual still shows is tried in the same way, until nothing is added and nothing is dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .peaks import (
    SIGHT,
    Fitted,
    Frame,
    Noise,
    Peaks,
    Pull,
    fit_peaks,
    neighbours,
    row_weights,
    spline_knots,
)
from .population import Population, distances
from .spread import covariances

__all__ = ["Found", "find_peaks", "noise_law"]

# Standard deviations of noise above which a maximum becomes a candidate. Half of all maxima of noise are above 1.3;
# the odds ask for more than 3 wherever peaks are not crowded.
CANDIDATE = 2.0
# Least gain, in standard deviations of the noise: a million steps of it are a Gaussian to a thousandth.
SMALLEST = 1e-3
# Maxima fainter than that, relative to the bright ones, are not tried at first: what is there beside bright peaks is
# seen in the residual.
FAINT = 0.15
# Steps of the first fit, in which the width is found.
FIRST = 8
# Maxima so clear that width and spacing are read off them.
CLEAR = 6.0
# Scales from one to the next, the finest and the coarsest, in pixels.
OCTAVE, FINEST, COARSEST = 2**0.5, 0.7, 24.0
# Side of the part of a large image in which scale and noise are looked for.
SAMPLE = 512
# In medians, how bright a peak may be: loose, but a peak that is hardly in the frame has no other bound.
BRIGHTEST = 10.0
# Knots of the background in spacings, coarsest first; the finer are tried where the residual asks for them.
KNOTS = (5.0, 2.5, 1.5)
# No knots closer than that, in widths: a background that follows the peaks would be one.
LEAST_KNOT = 5.0
# Widths around a place that its level is read off.
LEVEL = 3.0
# Widths outside the frame in which new peaks are tried, less than those of the level.
BEYOND = 2.5
# Least share of what is known of a peak that a level around it may leave.
TOLD = 0.02
# Widths from the frame's edge within which misfit is not looked for.
RIM = 5.0
# Pixels apart up to which noise may be shared.
SHARED_LAGS = 2
# Rounds of adding and dropping. Each candidate is tried twice at most, so that rounds end by themselves.
MOST_ROUNDS = 24
# Widths around a candidate in which peaks are fitted along with it at first.
BESIDE = 7.0
# Precision of what is known.
KNOWN = 1e12
# Share of the peaks still added or dropped from which on what else the residual shares is noise.
FEW = 0.01
# Widths within which two peaks are one if they ended there, and within which one of them at a time is dropped.
MERGED, TOGETHER = 0.5, 2.5
# Widths around a peak in which nothing new is tried, and within which a place counts as tried before.
TRIED = 0.8
# Times that a place has been proposed or rejected from which on it is not tried again: a first try may have come while
# the background at the rim still stood in for columns outside.
AGAIN = 3


@dataclass
class Found:
    """Peaks that are there, the fit, and what became of the candidates.

    Attributes:
        frame: image, noise and splines of the last fit.
        fitted: the last fit.
        covariance: of x, y and intensity of each peak.
        log_odds: for a peak at each place, against none.
        rejected: places tried in vain, with their intensity and log odds, (candidate, 4).
        spacing: median distance to the nearest peak, in pixels.
        jitter: standard deviation of the shift of each row, in pixels.
        misfit: standard deviation of what the model lacks, relative to the peaks.
        correlation: of the residual with its neighbour along x and along y.
        joint: how much more noise a column sees than if pixels shared none; the noise has it.
        rounds: of adding and dropping.
        notes: what a reader should know.
    """

    frame: Frame
    fitted: Fitted
    covariance: Tensor
    log_odds: Tensor
    rejected: np.ndarray
    spacing: float
    jitter: float
    misfit: float
    correlation: tuple[float, float]
    joint: float
    rounds: int
    notes: list[str] = field(default_factory=list)


def noise_law(image: np.ndarray) -> Noise:
    """The law of the noise from differences of neighbouring pixels, at each level of brightness.

    Differences of order n along both axes cancel what is smooth, the better the higher n; noise that pixels do not
    share adds C(2n, n)² of its variance. What is left of the peaks only ever adds, so the least of the orders is right.
    """
    part = _middle(image)
    bins = _levels(part)
    means, variances = [], []
    differences = [(order, _difference(part, order)) for order in (1, 2, 3)]
    for low, high in bins:
        found = []
        for order, (squares, level) in differences:
            here = (level >= low) & (level < high)
            if here.sum() < 50:
                continue
            found.append(float(squares[here].mean()) / math.comb(2 * order, order) ** 2)
            middle = float(level[here].mean())
        if found:
            means.append(middle)
            variances.append(min(found))
    return _straight(np.array(means), np.array(variances), image)


def _difference(image: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares of mixed differences, and the mean of the pixels around each."""
    from scipy.ndimage import uniform_filter

    d = np.diff(np.diff(image, order, axis=0), order, axis=1)
    level = uniform_filter(image, 5)
    shift = order // 2
    return d * d, level[shift : shift + d.shape[0], shift : shift + d.shape[1]]


def _levels(image: np.ndarray) -> list[tuple[float, float]]:
    """Twenty classes of brightness with as many pixels each."""
    from scipy.ndimage import uniform_filter

    edges = np.unique(np.quantile(uniform_filter(image, 5), np.linspace(0, 1, 21)))
    edges[-1] = np.inf
    return list(pairwise(edges))


def _binned(mean: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares in twenty classes of the mean with as many pixels each."""
    order = np.argsort(mean)
    parts = np.array_split(order, min(20, max(1, len(order) // 50)))
    return tuple(np.array([v[p].mean() for p in parts]) for v in (mean, square))  # type: ignore[return-value]


def _straight(
    means: np.ndarray, variances: np.ndarray, image: np.ndarray, counts: bool = True
) -> Noise:
    """A line through variance against mean, weighed by relative error; counts are taken as counts."""
    typical = float(np.median(variances)) if len(variances) else float(image.var())
    least = max(typical * 1e-2, float(image.var()) * 1e-12)
    # Noise that does not grow with the mean is a Poisson law of that many small steps.
    smallest = SMALLEST * math.sqrt(max(typical, least))
    if len(variances) < 3:
        return Noise(smallest, typical, least)
    weight = 1 / np.maximum(variances, least)
    design = np.stack([means, np.ones_like(means)], 1)
    gain, floor = np.linalg.lstsq(design * weight[:, None], variances * weight, rcond=None)[0]
    whole = counts and bool(image.min() >= 0 and np.array_equal(image, np.rint(image)))
    if whole and abs(gain - 1) < 0.25 and abs(floor) < 0.25 * typical + 0.25:
        # A pixel that is expected to hold a twentieth of an electron tells as much by being empty.
        return Noise(1.0, 0.0, 0.05)
    if gain <= smallest:
        return Noise(smallest, typical, least)
    return Noise(float(gain), float(floor), max(least, 0.2 * float(variances.min())))


def _middle(image: np.ndarray) -> np.ndarray:
    """The middle of a large image."""
    top, left = (max(0, (n - SAMPLE) // 2) for n in image.shape)
    return image[top : top + SAMPLE, left : left + SAMPLE]


class _Scales:
    """An image's response to Laplacians of Gaussians, by its Fourier transform."""

    def __init__(self, image: np.ndarray, noise: Noise, coarsest: float) -> None:
        from scipy.fft import next_fast_len, rfft2, rfftfreq

        self.noise, self.shape = noise, image.shape
        # Mirrored at the rim, as far as the coarsest scale sees.
        self.margin = min(math.ceil(4 * coarsest), *(n - 1 for n in image.shape))
        wide = np.pad(image, self.margin, mode="symmetric")
        self.size = tuple(next_fast_len(n, real=True) for n in wide.shape)
        self.spectrum = rfft2(wide, self.size)
        ky = 2 * np.pi * np.fft.fftfreq(self.size[0])
        kx = 2 * np.pi * rfftfreq(self.size[1])
        self.square = ky[:, None] ** 2 + kx**2

    def response(self, scale: float) -> np.ndarray:
        """Minus the Laplacian at a scale, normalised so that a peak answers most at the scale that is its width."""
        return self._filtered(scale**2 * self.square * np.exp(-0.5 * scale**2 * self.square))

    def clearness(self, response: np.ndarray, scale: float) -> np.ndarray:
        """The response in standard deviations of its noise."""
        local = torch.from_numpy(self._filtered(np.exp(-2 * scale**2 * self.square)))
        # The sum of the squares of the filter's weights, for scales of a pixel or more.
        power = 1 / (2 * math.pi * scale**2)
        return np.asarray(response / np.sqrt(self.noise.variance(local).numpy() * power))

    def _filtered(self, gain: np.ndarray) -> np.ndarray:
        from scipy.fft import irfft2

        top = self.margin
        whole = irfft2(self.spectrum * gain, self.size)
        return np.ascontiguousarray(whole[top : top + self.shape[0], top : top + self.shape[1]])


def _maxima(response: np.ndarray, reach: float) -> np.ndarray:
    """Pixels higher than all within a distance."""
    from scipy.ndimage import maximum_filter

    size = 2 * max(1, round(reach)) + 1
    return (response == maximum_filter(response, size, mode="nearest")) & (response > 0)


def estimate_width(image: np.ndarray, noise: Noise, spacing: float = 0.0) -> float:
    """The scale at which blobs answer most: the standard deviation of a peak, in pixels."""
    part = _middle(image)
    coarsest = max(min(spacing / 2, COARSEST) if spacing else COARSEST, 2 * FINEST)
    coarsest = min(coarsest, min(part.shape) / 6)
    count = max(4, math.ceil(math.log(max(coarsest / FINEST, 1.0)) / math.log(OCTAVE)) + 1)
    scales = FINEST * OCTAVE ** np.arange(count)
    space = _Scales(part, noise, float(scales[-1]))
    answers = [space.response(s) for s in scales]
    sizes, clear = [], []
    for k in range(1, count - 1):
        below, here, above = answers[k - 1 : k + 2]
        top = _maxima(here, 1) & (here >= below) & (here >= above)
        # The middle of the parabola through the three scales.
        bend = (below + above - 2 * here)[top]
        offset = 0.5 * (below - above)[top] / np.where(bend < 0, bend, -np.inf)
        sizes.append(scales[k] * OCTAVE**offset)
        clear.append(space.clearness(here, float(scales[k]))[top])
    size, strength = np.concatenate(sizes), np.concatenate(clear)
    if not len(size):
        return float(scales[1])
    threshold = min(CLEAR, float(np.sort(strength)[-min(len(strength), 20)]))
    return float(np.median(size[strength >= threshold]))


def _candidates(
    image: np.ndarray, width: float, noise: Noise
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Places x and y, intensity and clearness of the maxima at the scale of a peak."""
    space = _Scales(image, noise, width)
    response = space.response(width)
    z = space.clearness(response, width)
    row, col = np.nonzero(_maxima(response, 0.8 * width) & (z > CANDIDATE))
    # A peak of the same width answers with A / 4πw².
    intensity = 4 * math.pi * width**2 * response[row, col]
    most = float(np.quantile(intensity, 0.9)) if len(intensity) else 0.0
    bright = intensity > FAINT * most
    row, col, intensity = row[bright], col[bright], intensity[bright]
    table = [col.astype(float), row.astype(float), intensity, z[row, col]]
    x, y, a, s = (torch.from_numpy(np.asarray(t, dtype=np.float64)) for t in table)
    return x, y, a, s


def _spacing(x: Tensor, y: Tensor, width: float) -> float:
    """Median distance to the nearest other peak; of a lonely one, what no two peaks merge in."""
    from scipy.spatial import cKDTree

    if len(x) < 2:
        return 6 * width
    points = torch.stack([x, y], 1).numpy()
    nearest = cKDTree(points).query(points, 2)[0][:, 1]
    return float(np.median(nearest))


def _knots(shape: tuple[int, int], spacing: float, width: float, level: int) -> float:
    return max(KNOTS[level] * spacing, LEAST_KNOT * width)


def _start(image: np.ndarray, step: float, width: float, level: float) -> Peaks:
    """No peaks on a flat background."""
    rows, cols = (len(spline_knots(n, step)) - 4 for n in image.shape)
    coefs = torch.full((rows, cols), level, dtype=torch.float64)
    none = torch.zeros(0, dtype=torch.float64)
    return Peaks(none, none, none, width, coefs)


def find_peaks(image: np.ndarray, *, spacing: float = 0.0, noise: Noise | None = None) -> Found:
    """Peaks of an image, in pixels.

    Args:
        image: pixels, (y, x).
        spacing: distance of neighbouring peaks in pixels where it is known, else 0.
        noise: its law where it is known.
    """
    image = np.ascontiguousarray(image, dtype=np.float64)
    law = noise or noise_law(image)
    width = estimate_width(image, law, spacing)
    x, y, a, z = _candidates(image, width, law)
    clear = z > min(CLEAR, float(z.median()) if len(z) else CLEAR)
    spacing = spacing or _spacing(x[clear], y[clear], width)
    search = _Search(image, law, noise is not None, spacing, width)
    return search.run(x, y, a)


class _Search:
    """The rounds of fitting, adding and dropping."""

    def __init__(
        self, image: np.ndarray, noise: Noise, known: bool, spacing: float, width: float
    ) -> None:
        self.image, self.spacing, self.level = image, spacing, 0
        self.frame = Frame(image, noise, _knots(image.shape, spacing, width, 0))
        self.known, self.counts = known, noise.gain == 1 and noise.floor == 0
        self.low = float(np.quantile(_middle(image), 0.1))
        self.span = float(np.ptp(np.quantile(_middle(image), [0.01, 0.99]))) or 1.0
        self.start = _start(image, self.frame.step, width, self.low)
        self.tried: list[np.ndarray] = []
        self.proposed: list[np.ndarray] = []
        self.jitter = self.misfit = 0.0
        self.joint = 1.0
        self.population: Population | None = None

    def run(self, x: Tensor, y: Tensor, intensity: Tensor) -> Found:
        """All rounds."""
        peaks = self._first(self.start.join(x, y, intensity))
        new = torch.zeros(len(peaks), dtype=torch.bool)
        before: Fitted | None = None
        rounds = 0
        while rounds < MOST_ROUNDS:
            rounds += 1
            fitted, new, changed = self._settled(peaks, new)
            peaks = fitted.peaks
            covariance = covariances(self.frame, fitted.system)
            self.population = Population.learn(peaks, covariance, self.image.shape)
            odds = self.population.log_odds(peaks.intensity, covariance, distances(peaks))
            keep = self._keep(peaks, odds)
            self._reject(peaks, odds, ~keep)
            if before is not None and not changed and _only(keep, ~new, len(before.peaks)):
                # All that were tried are gone again and nothing else has changed: the fit is the one before them, and
                # what that left to try has been tried.
                fitted, peaks, keep, extra = before, before.peaks, keep[keep], None
            else:
                *extra, z = self._residual(fitted)
                # Either may explain what is left: closer knots, or more peaks. What gains more for each parameter is
                # tried first, lest the background hide columns not yet found, or peaks pile up on dirt.
                if self._refine_background(fitted, float(z.square().mean()) / 3 if len(z) else 0.0):
                    peaks, before = self._restarted(peaks.take(keep)), None
                    new = torch.zeros(len(peaks), dtype=torch.bool)
                    continue
            if extra and bool(keep.all()) and len(extra[0]) <= FEW * len(peaks):
                extra = self._likely(fitted, *extra)
            count = (len(extra[0]) if extra else 0) + int((~keep).sum())
            shared = count <= FEW * len(peaks) and self._share_noise(fitted)
            if not count and not shared:
                break
            before = fitted if bool(keep.all()) and not shared else None
            peaks = peaks.take(keep)
            old = len(peaks)
            if extra:
                self.proposed.append(torch.stack(extra[:2], 1).numpy())
                peaks = peaks.join(*extra)
            new = torch.arange(len(peaks)) >= old
        return self._finish(peaks, rounds)

        return self._finish(peaks, rounds)

    def _settled(self, peaks: Peaks, new: Tensor) -> tuple[Fitted, Tensor, bool]:
        """The fit of the peaks, which of them are new, and whether the law of the noise is another now."""
        fitted = self._fit(peaks, 3, 0.1)
        apart = self._apart(fitted.peaks)
        if not bool(apart.all()):
            new = new[apart]
            fitted = self._fit(fitted.peaks.take(apart), 2, 0.1)
        changed = [self._level_noise(fitted), self._allow_for_misfit(fitted)]
        if any(changed):
            fitted = self._fit(fitted.peaks, 3, 0.1)
        return fitted, new, any(changed)

    def _first(self, peaks: Peaks) -> Peaks:
        """A first fit, weighed by the smoothed image: a mean that is far off would weigh the pixels wrongly."""
        from scipy.ndimage import gaussian_filter

        smooth = torch.from_numpy(gaussian_filter(self.image, peaks.width / 2))
        whole = self.frame
        self.frame = _changed(whole, fixed=whole.noise.variance(smooth).reciprocal_())
        found = self._fit(peaks, FIRST, 0.1).peaks
        self.frame = whole
        return found

    def _fit(self, peaks: Peaks, most: int, close: float) -> Fitted:
        """All peaks fitted, each held by its present place as loosely as it is wide, so that the faint do not stray."""
        return fit_peaks(self.frame, peaks, self._pull(peaks), most=most, close=close)

    def _pull(self, peaks: Peaks) -> Pull:
        bright = float(BRIGHTEST * peaks.intensity.median()) if len(peaks) else math.inf
        return Pull(
            peaks.x,
            peaks.y,
            place=peaks.width**-2,
            intensity=bright**-2,
            level=self.low,
            coefs=self.span**-2,
        )

    def _level_noise(self, fitted: Fitted) -> bool:
        """The law of the noise from the residual at each level of the mean; counts need no such thing."""
        noise, system = self.frame.noise, fitted.system
        if self.known or self.counts:
            return False
        inside = _inside(self.frame, fitted.peaks.width)
        mean = (self.frame.image - system.residual)[inside].flatten()
        square = system.residual[inside].square().flatten()
        if self.frame.excess is not None:
            square = square - self.frame.excess[inside].flatten()
        means, squares = _binned(mean.numpy(), square.numpy())
        found = _straight(means, np.maximum(squares, noise.least), self.image, counts=False)
        law = Noise(*(self.joint * v for v in found))
        asked = torch.from_numpy(means)
        if float((law.variance(asked) / noise.variance(asked)).log().abs().max()) < 0.02:
            return False
        self.frame = _changed(self.frame, noise=law)
        return True

    def _share_noise(self, fitted: Fitted) -> bool:
        """Where pixels share noise, make it as much more as it does not average out over a column.

        Only towards the end: columns not yet found look like noise that pixels share.
        """
        if self.known or self.counts or self.joint != 1:
            return False
        system = fitted.system
        inside = _inside(self.frame, fitted.peaks.width)
        dark = system.signal[inside] < 0.1 * system.signal.max()
        residual = system.residual[inside] * system.weights[inside].sqrt()
        joint = _as_one(residual, dark, fitted.peaks.width)
        # Four standard errors of the sum over the pairs of places.
        chance = 4 * 2 * math.sqrt(2 * SHARED_LAGS * (SHARED_LAGS + 1) / max(1, int(dark.sum())))
        if abs(joint - 1) < max(0.03, chance):
            return False
        self.joint = joint
        self.frame = _changed(self.frame, noise=Noise(*(joint * v for v in self.frame.noise)))
        return True

    def _finish(self, peaks: Peaks, rounds: int) -> Found:
        while True:
            fitted = self._fit(peaks, 30, 0.02)
            peaks = fitted.peaks
            covariance = covariances(self.frame, fitted.system)
            population = Population.learn(peaks, covariance, self.image.shape)
            odds = population.log_odds(peaks.intensity, covariance, distances(peaks))
            keep = self._keep(peaks, odds)
            if bool(keep.all()):
                break
            self._reject(peaks, odds, ~keep)
            peaks = peaks.take(keep)
        covariance[:, 0, 0] += self.jitter**2 * row_weights(fitted.system)
        rejected = np.concatenate(self.tried) if self.tried else np.zeros((0, 4))
        x, y = fitted.peaks.x, fitted.peaks.y
        return Found(
            frame=self.frame,
            fitted=fitted,
            covariance=covariance,
            log_odds=odds,
            rejected=rejected,
            spacing=_spacing(x, y, fitted.peaks.width),
            jitter=self.jitter,
            misfit=self.misfit,
            correlation=_correlation(self.frame, fitted),
            joint=self.joint,
            rounds=rounds,
        )

    def _restarted(self, peaks: Peaks) -> Peaks:
        """The peaks on the background's present splines."""
        rows, cols = (len(spline_knots(n, self.frame.step)) - 4 for n in self.image.shape)
        if peaks.coefs.shape == (rows, cols):
            return peaks
        coefs = torch.full((rows, cols), float(peaks.coefs.median()), dtype=torch.float64)
        return replace(peaks, coefs=coefs)

    def _apart(self, peaks: Peaks) -> Tensor:
        """All but the weaker of any two that ended at one place."""
        keep = torch.ones(len(peaks), dtype=torch.bool)
        pairs = neighbours(peaks.x, peaks.y, MERGED * peaks.width)
        if len(pairs):
            a, b = pairs.T
            keep[torch.where(peaks.intensity[a] < peaks.intensity[b], a, b)] = False
        return keep

    def _keep(self, peaks: Peaks, odds: Tensor) -> Tensor:
        """Peaks to keep: of doubtful ones that share a place only the most doubtful goes at a time."""
        doubtful = odds < 0
        pairs = neighbours(peaks.x, peaks.y, TOGETHER * peaks.width)
        both = pairs[doubtful[pairs].all(1)] if len(pairs) else pairs
        spared = torch.zeros_like(doubtful)
        if len(both):
            first = odds[both[:, 0]] < odds[both[:, 1]]
            spared[torch.where(first, both[:, 1], both[:, 0])] = True
        return ~doubtful | spared

    def _reject(self, peaks: Peaks, odds: Tensor, gone: Tensor) -> None:
        if bool(gone.any()):
            table = torch.stack([peaks.x, peaks.y, peaks.intensity, odds], 1)
            self.tried.append(table[gone].numpy())

    def _residual(self, fitted: Fitted) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Places where the residual has a peak that the odds would keep: x, y, intensity and z."""
        from scipy.ndimage import gaussian_filter, uniform_filter

        assert self.population is not None
        peaks, system = fitted.peaks, fitted.system
        w = peaks.width
        # Also of peaks outside the frame, as far out as a level around them is still seen.
        beyond = round(BEYOND * w)
        weights = np.pad(system.weights.numpy(), beyond)
        weighed = np.pad((system.weights * system.residual).numpy(), beyond)
        # Least squares of a peak and a level around it at every pixel: a background that is off is no peak.
        box = 2 * round(LEVEL * w) + 1
        level = uniform_filter(weights, box, mode="constant") * box**2
        shared = gaussian_filter(weights, w, mode="constant")
        shared /= np.maximum(level, 1e-9 * level.max() + 1e-300)
        seen = gaussian_filter(weighed, w, mode="constant")
        seen -= shared * uniform_filter(weighed, box, mode="constant") * box**2
        # The square of a Gaussian is one √2 narrower, of integral 1 / 4πw².
        power = gaussian_filter(weights, w / math.sqrt(2), mode="constant") / (4 * math.pi * w**2)
        apart = power - shared**2 * level
        # Of a peak far outside the image may show too little to tell it from a level.
        told = (apart > TOLD * power) & (power > TOLD**2 * power.max())
        power = np.where(told, apart, np.inf)
        z = seen / np.sqrt(power)
        row, col = np.nonzero(_maxima(z, 0.8 * w) & (z > CANDIDATE))
        clear, sd = z[row, col], 1 / np.sqrt(power[row, col])
        block = np.zeros((len(clear), 3, 3))
        block[:, 0, 0] = block[:, 1, 1] = (w / clear) ** 2
        block[:, 2, 2] = sd**2
        bright = BRIGHTEST * float(peaks.intensity.median()) if len(peaks) else math.inf
        intensity = torch.from_numpy(np.minimum(clear * sd, bright))
        deep = _maxima(-z, 0.8 * w) & (z < -CANDIDATE)
        against = -z[deep] / np.sqrt(power[deep])
        here = np.stack([col, row], 1).astype(float) - beyond
        population = self.population.with_more(intensity.numpy(), against, self.image.size)
        odds = population.log_odds(intensity, torch.from_numpy(block), distances(peaks, here))
        good = odds.numpy() > 0
        if len(here):
            old = np.stack([peaks.x.numpy(), peaks.y.numpy()], 1)
            good &= _near(here, old, TRIED * w) == 0
            before = [*(t[:, :2] for t in self.tried), *self.proposed]
            if before:
                good &= _near(here, np.concatenate(before), TRIED * w) < AGAIN
        x, y = torch.from_numpy(here[good, 0]), torch.from_numpy(here[good, 1])
        return x, y, intensity[torch.from_numpy(good)], torch.from_numpy(clear[good])

    def _likely(self, fitted: Fitted, x: Tensor, y: Tensor, intensity: Tensor) -> list[Tensor]:
        """Of a few candidates those that the odds keep when each is fitted along with its neighbours alone."""
        assert self.population is not None
        good = torch.zeros(len(x), dtype=torch.bool)
        tree = _tree(fitted.peaks)
        for k in range(len(x)):
            around = tree.query_ball_point([float(x[k]), float(y[k])], BESIDE * fitted.peaks.width)
            beside = fitted.peaks.take(torch.tensor(sorted(around), dtype=torch.long))
            one = slice(k, k + 1)
            frame, corner = self._part(fitted, beside, float(x[k]), float(y[k]))
            coefs = torch.zeros([b.shape[1] for b in frame.along], dtype=torch.float64)
            start = replace(beside, coefs=coefs).join(x[one], y[one], intensity[one])
            start = replace(start, x=start.x - corner[0], y=start.y - corner[1])
            pull = replace(self._pull(start), level=0.0, coefs=KNOWN)
            found = fit_peaks(frame, start, pull, fit_width=False, most=6, close=0.1)
            covariance = covariances(frame, found.system)
            apart = distances(found.peaks)
            odds = self.population.log_odds(found.peaks.intensity, covariance, apart)
            good[k] = bool(odds[-1] > 0)
            if not good[k]:
                table = torch.stack([x[k], y[k], found.peaks.intensity[-1], odds[-1]])
                self.tried.append(table[None].numpy())
        return [x[good], y[good], intensity[good]]

    def _part(
        self, fitted: Fitted, beside: Peaks, x: float, y: float
    ) -> tuple[Frame, tuple[int, int]]:
        """The image around a place, without the background and all peaks but those beside it, and its corner."""
        whole, system = self.frame, fitted.system
        half = math.ceil((BESIDE + SIGHT) * fitted.peaks.width)
        left, top = (max(0, min(n, round(c) - half)) for n, c in ((whole.nx, x), (whole.ny, y)))
        here = (slice(top, max(0, round(y) + half + 1)), slice(left, max(0, round(x) + half + 1)))
        residual = system.residual[here]
        rows, cols = residual.shape
        blank = Frame(np.zeros((rows, cols)), whole.noise, max(rows, cols))
        own = blank.signal(replace(beside, x=beside.x - left, y=beside.y - top))
        image = residual + own
        # What is taken off makes noise all the same.
        gain, floor, least = whole.noise
        excess = (gain * (whole.image[here] - image) + floor).clamp_(min=0.0)
        if whole.excess is not None:
            excess = excess + whole.excess[here]
        law = Noise(gain, 0.0, least)
        return Frame(image.numpy(), law, max(rows, cols), excess), (left, top)

    def _allow_for_misfit(self, fitted: Fitted) -> bool:
        """Take what the model lacks into the variance: rows that jitter, and peaks that are not quite Gaussian."""
        system = fitted.system
        jitter, misfit = _lacking(self.frame, fitted)
        changed = abs(jitter - self.jitter) > 0.02 or abs(misfit - self.misfit) > 0.01
        if not changed:
            return False
        self.jitter, self.misfit = jitter, misfit
        slope = _slope(system.signal)
        excess = slope.square_().mul_(jitter**2) + system.signal.square() * misfit**2
        self.frame = _changed(self.frame, excess=excess)
        return True

    def _refine_background(self, fitted: Fitted, other: float) -> bool:
        """Closer knots, where the residual is not noise over half their distance and they gain more than the other."""
        if self.level + 1 >= len(KNOTS):
            return False
        finer = _knots(self.image.shape, self.spacing, fitted.peaks.width, self.level + 1)
        gain, chance = _unevenness(self.frame, fitted)
        if finer >= self.frame.step or gain < max(chance, other):
            return False
        self.level += 1
        self.frame = Frame(self.image, self.frame.noise, finer, self.frame.excess)
        return True


def _only(keep: Tensor, old: Tensor, count: int) -> bool:
    """Whether all the old ones are kept, which were so many, and no other."""
    return torch.equal(keep, old) and int(old.sum()) == count


def _tree(peaks: Peaks) -> Any:
    from scipy.spatial import cKDTree

    return cKDTree(torch.stack([peaks.x, peaks.y], 1).numpy())


def _near(places: np.ndarray, others: np.ndarray, reach: float) -> np.ndarray:
    """How many of the others are near each place."""
    from scipy.spatial import cKDTree

    if not len(others):
        return np.zeros(len(places), dtype=np.int64)
    return np.asarray(cKDTree(others).query_ball_point(places, reach, return_length=True))


def _changed(
    frame: Frame,
    noise: Noise | None = None,
    excess: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Frame:
    """The same image under another law of noise; its splines are kept."""
    law, more = noise or frame.noise, frame.excess if excess is None else excess
    made = Frame(frame.image.numpy(), law, frame.step, more, fixed)
    made.__dict__.update(
        {k: frame.__dict__[k] for k in ("along", "products") if k in frame.__dict__}
    )
    return made


def _slope(signal: Tensor) -> Tensor:
    """Derivative along x."""
    slope = torch.zeros_like(signal)
    slope[:, 1:-1] = (signal[:, 2:] - signal[:, :-2]) / 2
    return slope


def _lacking(frame: Frame, fitted: Fitted) -> tuple[float, float]:
    """Standard deviation of the rows' shifts in pixels, and of the misfit relative to the signal.

    A row's shift is read off the residual along the signal's slope. The places of the peaks take up the mean shift of
    the rows that each stands on, a share of about 1 / (2√π w) · 3/2; the rest is there to see.
    """
    width = fitted.peaks.width
    inside = _inside(frame, width)
    residual, signal = fitted.system.residual[inside], fitted.system.signal[inside]
    pure = 1 / frame.noise.variance(frame.image[inside] - residual)
    slope = _slope(signal)
    seen = (pure * slope * residual).sum(1)
    known = (pure * slope.square()).sum(1)
    taken = min(0.9, 0.75 / (math.sqrt(math.pi) * width))
    # Noise, too, is partly taken up.
    more = float((seen.square() - known * (1 - taken)).sum())
    weight = float(known.square().sum()) * (1 - taken)
    # By how much chance alone lets it exceed zero: two standard errors.
    error = 2 * math.sqrt(2 * weight)
    jitter = math.sqrt(max(0.0, more) / weight) if weight > 0 and more > error else 0.0
    square = residual.square() - 1 / pure - (jitter * slope).square()
    bright = signal.square() * pure
    # Least squares of the excess on the squared signal, each pixel weighed by the variance of its square.
    top = float((square * pure * bright).sum())
    bottom = float((bright.square()).sum())
    error = 2 * math.sqrt(2 * bottom)
    misfit = math.sqrt(top / bottom) if bottom > 0 and top > error else 0.0
    return jitter, misfit


def _inside(frame: Frame, width: float) -> tuple[slice, slice]:
    """The image without its rim, where what lies outside may shine in unseen."""
    rim = min(math.ceil(RIM * width), frame.ny // 4, frame.nx // 4)
    return slice(rim, frame.ny - rim), slice(rim, frame.nx - rim)


def _unevenness(frame: Frame, fitted: Fitted) -> tuple[float, float]:
    """By how much the chi-square of squares of half a knot's distance exceeds one, and what chance would give."""
    size = max(2, round(frame.step / 2))
    inside = _inside(frame, fitted.peaks.width)
    weights, residual = fitted.system.weights[inside], fitted.system.residual[inside]
    rows, cols = (n // size for n in weights.shape)
    if rows * cols < 4:
        return 0.0, 1.0

    def sums(image: Tensor) -> Tensor:
        cut = image[: rows * size, : cols * size]
        return cut.reshape(rows, size, cols, size).sum((1, 3))

    square = sums(weights * residual).square() / sums(weights)
    # Three standard errors of the mean of so many chi-squares of one degree of freedom.
    return float(square.mean()) - 1, 3 * math.sqrt(2 / (rows * cols))


def _as_one(residual: Tensor, dark: Tensor, width: float) -> float:
    """How much more noise a peak sees than if pixels shared none, from how neighbouring dark pixels correlate."""
    total = 1.0
    if int(dark.sum()) < 100:
        return total
    power = float(residual.square()[dark].mean())
    for down in range(SHARED_LAGS + 1):
        for right in range(-SHARED_LAGS, SHARED_LAGS + 1):
            if (down, right) <= (0, 0):
                continue
            one = _shifted(residual, 0, 0, down, right) * _shifted(residual, down, right, 0, 0)
            both = _shifted(dark, 0, 0, down, right) & _shifted(dark, down, right, 0, 0)
            if int(both.sum()) < 100:
                continue
            share = float(one[both].mean()) / power
            # A peak's weights at two places so far apart, relative to those at one.
            total += 2 * share * math.exp(-(down**2 + right**2) / (4 * width**2))
    return max(total, 0.5)


def _shifted(image: Tensor, top: int, left: int, bottom: int, right: int) -> Tensor:
    """The image without so many rows and columns; of those at the left or right by the sign."""
    rows, cols = image.shape
    x0, x1 = max(left, 0) + max(-right, 0), cols - max(right, 0) - max(-left, 0)
    return image[top : rows - bottom, x0:x1]


def _correlation(frame: Frame, fitted: Fitted) -> tuple[float, float]:
    """Correlation of the residual, in units of its own noise, with its neighbour along x and y."""
    inside = _inside(frame, fitted.peaks.width)
    r = (fitted.system.residual * fitted.system.weights.sqrt())[inside]
    power = float(r.square().mean())
    if power == 0:
        return 0.0, 0.0
    across = float((r[:, 1:] * r[:, :-1]).mean()) / power
    down = float((r[1:] * r[:-1]).mean()) / power
    return across, down
