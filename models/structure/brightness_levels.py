"""The posterior of a mixture of levels of brightness, for every number of levels, on any number of columns.

For each number of levels the modes of the posterior are found from several starts on some of the columns, then on all.
A mixture of Student-t distributions around them proposes draws, whose weights correct what is not Gaussian and give
the evidence with its error. Then the numbers of levels are weighed by their evidence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pyro.distributions import Categorical, Dirichlet, Independent
from torch import Tensor

from ..priors import ModelError, Prior

__all__ = ["LEVELS", "Ladder", "Levels", "posterior_of_levels", "smooth"]

LEVELS = 6
# Half waves of the background across the field.
BENDS = 2
# Columns that modes are looked for on; all of them count in the end.
SOME = 500
STARTS, MOST_MODES = 6, 8
# Share of a proposal that is kept when it is taught by its own draws, and how often it is taught.
KEPT, LESSONS = 0.3, 8
# A draw that weighs this much stands for something that the proposal has missed, which then gets this share of it. The
# proposals are good enough when so many draws are effective.
HEAVY, GROWN, ENOUGH = 0.03, 0.2, 5000.0
MOST_COMPONENTS = 12
# Of the proposal: heavy enough to cover shoulders, and thin enough for thirty dimensions.
NU = 4.0
# Scales at which a ladder of known levels is held against the columns, and the best of them to start from.
SCALES, MOST_SCALES = 120, 5
# Draws of the first proposal from which further modes are sought.
SCOUTS = 16
# Least curvature in unconstrained latents, whose priors are about one wide: less is a shoulder, or no mode at all.
FLAT = 0.3
# Steps uphill, and nats below which a step ends a climb: a mode is the middle of a proposal.
STEPS, GAINED = 60, 1e-3
# Elements of the likelihood that are worked out at once, and in all: they bound the draws on many columns.
AT_ONCE, IN_ALL = 500_000, 20_000_000
MOST_DRAWS, FEWEST_DRAWS = 3000, 200
# Numbers of levels whose evidence is further below the best than this (in nats) by Laplace's method are not sampled.
HOPELESS = 12.0


def smooth(place: Tensor) -> Tensor:
    """Slow functions of the place in the field, of zero mean and unit mean square, (column, function)."""
    order = torch.arange(BENDS + 1, dtype=place.dtype)
    waves = torch.cos(math.pi * place[..., None] * order) * torch.where(order > 0, 2**0.5, 1.0)
    products = waves[:, 0, :, None] * waves[:, 1, None, :]
    return products.flatten(1)[:, 1:]


@dataclass(frozen=True)
class Ladder:
    """The parameters of some levels, for a batch of draws.

    Attributes:
        level: (draw, level).
        spread: (draw, level).
        log_share: (draw, level).
        background: coefficients (draw, function).
    """

    level: Tensor
    spread: Tensor
    log_share: Tensor
    background: Tensor

    def log_likelihood(self, intensity: Tensor, waves: Tensor) -> Tensor:
        """Of all columns together, (draw,)."""
        background = self.background @ waves.T
        away = (intensity - background)[:, :, None] - self.level[:, None, :]
        away = away / self.spread[:, None, :]
        weight = self.log_share - self.spread.log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(weight[:, None, :] - 0.5 * away.square(), 2).sum(1)


@dataclass(frozen=True)
class _Part:
    """A latent, or the first of its elements, as a slice of the flat vector."""

    name: str
    prior: Any
    place: slice
    transform: Any

    def value(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The values, and the log density of the prior at them with that of the transform."""
        free = flat[:, self.place]
        value = self.transform(free)
        jacobian = self.transform.log_abs_det_jacobian(free, value)
        base = self.prior.base_dist if isinstance(self.prior, Independent) else self.prior
        if isinstance(self.prior, Independent):
            size = base.batch_shape[0]
            rest = base.sample()[value.shape[1] :].expand(len(value), size - value.shape[1])
            density = base.log_prob(torch.cat([value, rest], 1))[:, : value.shape[1]]
        else:
            density = base.log_prob(value)
        return value, (density + jacobian).sum(1)


class Levels:
    """The joint density of a number of levels, over a flat vector without constraints."""

    def __init__(self, prior: Prior, count: int) -> None:
        self.prior, self.count = prior, count
        self.parts: dict[str, _Part] = {}
        self.dim = 0
        sizes = {"scale": 1, "lowest": 1, "rise": count - 1, "spread": count}
        for name, size in sizes.items():
            self._add(name, size)
        waves = prior.background
        self._add("background", 0 if isinstance(waves, float) else int(waves.event_shape[0]))
        if not isinstance(prior.share, Dirichlet):
            raise ModelError(
                "species weighs shares drawn from a Dirichlet; give one, or take another runner"
            )
        self.concentration = prior.share.concentration[:count]
        self.share = slice(self.dim, self.dim + count - 1)
        self.dim += count - 1

    def _add(self, name: str, size: int) -> None:
        entry = self.prior[name]
        if isinstance(entry, float) or size == 0:
            return
        inner = entry.base_dist if isinstance(entry, Independent) else entry
        if tuple(entry.event_shape) and not (
            isinstance(entry, Independent) and len(inner.batch_shape) == 1
        ):
            raise ModelError(
                f"species wants elements of {name!r} that are independent of one another, "
                "such as LogNormal(0, 1).expand([6]).to_event(1); or take another runner"
            )
        place = slice(self.dim, self.dim + size)
        transform = torch.distributions.biject_to(inner.support)
        self.parts[name] = _Part(name, entry, place, transform)
        self.dim += size

    def values(self, flat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Latents by name, and the log density of the prior in the flat vector, (draw,)."""
        found: dict[str, Tensor] = {}
        total = torch.zeros(len(flat), dtype=flat.dtype)
        for name, part in self.parts.items():
            found[name], density = part.value(flat)
            total = total + density
        for name in ("scale", "lowest"):
            if name not in found:
                found[name] = torch.full((len(flat), 1), float(self.prior[name]), dtype=flat.dtype)
        zero = torch.zeros(len(flat), 1, dtype=flat.dtype)
        found["log_share"] = torch.log_softmax(torch.cat([flat[:, self.share], zero], 1), 1)
        normaliser = torch.lgamma(self.concentration.sum()) - torch.lgamma(self.concentration).sum()
        # The Jacobian of the softmax is the product of the shares.
        total = total + normaliser + (self.concentration * found["log_share"]).sum(1)
        return found, total

    def ladder(self, flat: Tensor) -> tuple[Ladder, Tensor]:
        """The levels, and the log density of the prior."""
        found, density = self.values(flat)
        known = {
            name: torch.full((len(flat), size), float(self.prior[name]), dtype=flat.dtype)
            for name, size in (("rise", self.count - 1), ("spread", self.count))
            if isinstance(self.prior[name], float)
        }
        found = {**known, **found}
        climbed = found["rise"].cumsum(1) if self.count > 1 else found["lowest"][:, :0]
        level = found["scale"] * torch.cat([found["lowest"], found["lowest"] + climbed], 1)
        waves = found.get("background", torch.zeros(len(flat), 0, dtype=flat.dtype))
        return Ladder(
            level, found["scale"] * found["spread"], found["log_share"], found["scale"] * waves
        ), density

    def flat(self, level: np.ndarray, spread: np.ndarray, share: np.ndarray) -> Tensor:
        """A flat vector near to given levels, (1, dim)."""
        start = torch.zeros(1, self.dim, dtype=torch.float64)
        scale = float(self.prior.scale) if isinstance(self.prior.scale, float) else 1.0
        if "scale" in self.parts:
            # Where the scale is unknown, the brightest of the levels is what the prior expects there.
            top = float(
                _middle(self.prior.lowest) + _middle(self.prior.rise)[: self.count - 1].sum()
            )
            scale = float(level[-1]) / top
        given = {
            "scale": np.array([scale]),
            "lowest": level[:1] / scale,
            "rise": np.maximum(np.diff(level), 1e-3 * spread.mean()) / scale,
            "spread": spread / scale,
        }
        for name, value in given.items():
            if name in self.parts:
                part = self.parts[name]
                start[0, part.place] = part.transform.inv(torch.as_tensor(value))
        start[0, self.share] = torch.as_tensor(np.log(share[:-1] / share[-1]))
        return start


def _middle(entry: Any) -> Tensor:
    """The median of a prior, nearly."""
    if isinstance(entry, float):
        return torch.tensor([entry])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.atleast_1d(entry.sample((201,)).median(0).values)


@dataclass(frozen=True)
class _Columns:
    """What is observed."""

    intensity: Tensor
    waves: Tensor

    def some(self, count: int, rng: np.random.Generator) -> tuple[_Columns, float]:
        """Some of the columns, and how many each stands for."""
        if len(self.intensity) <= count:
            return self, 1.0
        chosen = torch.as_tensor(np.sort(rng.choice(len(self.intensity), count, replace=False)))
        return _Columns(self.intensity[chosen], self.waves[chosen]), len(self.intensity) / count


class _Target:
    """The log joint of levels and columns; each column may stand for several."""

    def __init__(self, levels: Levels, columns: _Columns, weight: float = 1.0) -> None:
        self.levels, self.columns, self.weight = levels, columns, weight

    def __call__(self, flat: Tensor) -> Tensor:
        ladder, density = self.levels.ladder(flat)
        columns = self.columns
        waves = columns.waves if ladder.background.shape[1] else columns.waves[:, :0]
        return density + self.weight * ladder.log_likelihood(columns.intensity, waves)

    def in_parts(self, flat: Tensor) -> Tensor:
        """For many draws, some at a time."""
        size = max(1, AT_ONCE // (len(self.columns.intensity) * self.levels.count))
        with torch.no_grad():
            return torch.cat([self(flat[i : i + size]) for i in range(0, len(flat), size)])

    def gradient(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Values (point,) and gradients (point, dim); points know nothing of each other."""
        point = flat.detach().requires_grad_()
        with torch.enable_grad():
            value = self(point)
            (slope,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), slope

    def curvature(self, flat: Tensor, step: float = 1e-5) -> Tensor:
        """Minus the second derivatives at points (point, dim), by differences of the gradient."""
        count, dim = flat.shape
        away = step * torch.eye(dim, dtype=flat.dtype)
        around = torch.stack([flat[:, None] - away, flat[:, None] + away])
        # Points whose likelihoods fit into memory together.
        size = max(1, AT_ONCE // (len(self.columns.intensity) * self.levels.count))
        rows = around.reshape(-1, dim)
        slopes = torch.cat(
            [self.gradient(rows[i : i + size])[1] for i in range(0, len(rows), size)]
        )
        below, above = slopes.reshape(2, count, dim, dim)
        found = (below - above) / (2 * step)
        return 0.5 * (found + found.mT)


def _climb(target: _Target, starts: Tensor) -> Tensor:
    """Modes of the density from starts (start, dim), by Newton's method, in steps that the prior's width bounds."""
    point, value = starts.clone(), target.in_parts(starts)
    shrink = 0.25 ** torch.arange(5, dtype=torch.float64)
    rising = torch.arange(len(point))
    for _ in range(STEPS):
        here = point[rising]
        slope = target.gradient(here)[1]
        level, axes = torch.linalg.eigh(target.curvature(here))
        # Uphill also where the density is not concave.
        along = (axes.mT @ slope[:, :, None])[:, :, 0] / level.abs().clamp(min=FLAT)
        step = (axes @ along[:, :, None])[:, :, 0]
        step = step / step.abs().amax(1, keepdim=True).clamp(min=1.0)
        tried = here + shrink[:, None, None] * step
        values = target.in_parts(tried.flatten(0, 1)).reshape(len(shrink), -1)
        values, best = torch.nan_to_num(values, nan=-torch.inf).max(0)
        gained = (values - value[rising]).clamp(min=0.0)
        better = gained > 0
        point[rising] = torch.where(better[:, None], tried[best, torch.arange(len(here))], here)
        value[rising] += gained
        rising = rising[gained > GAINED]
        if not len(rising):
            break
    return point


def _polish(target: _Target, mode: Tensor, curvature: Tensor) -> Tensor:
    """A mode on all columns from one on some, by Newton's method with one curvature."""
    inverse = torch.linalg.inv(_positive(curvature))
    value, (slope,) = target.gradient(mode)
    for _ in range(12):
        step = inverse @ slope
        if float(step @ slope) < 1e-4:
            break
        for half in range(8):
            moved = mode + step * 0.5**half
            now, (new,) = target.gradient(moved)
            if now >= value:
                mode, value, slope = moved, now, new
                break
        else:
            break
    return mode


def _positive(matrix: Tensor) -> Tensor:
    """A symmetric matrix with no eigenvalue below what is flat to the eye, so that it can be inverted."""
    value, vector = torch.linalg.eigh(matrix)
    return (vector * value.clamp(min=FLAT)) @ vector.T


def _factor(covariance: Tensor) -> Tensor | None:
    """Cholesky factor, in units of its own diagonal; None where draws do not span the space."""
    scale = covariance.diagonal().clamp(min=1e-300).sqrt()
    correlation = covariance / scale / scale[:, None]
    eye = torch.eye(len(scale), dtype=covariance.dtype)
    lower, failed = torch.linalg.cholesky_ex(0.5 * (correlation + correlation.T) + 1e-9 * eye)
    return None if bool(failed) else scale[:, None] * lower


@dataclass(frozen=True)
class _Mode:
    """A mode, the factor of its scale matrix, and the log of its mass by Laplace's method."""

    point: Tensor
    factor: Tensor
    mass: float

    @classmethod
    def at(cls, target: _Target, point: Tensor) -> _Mode:
        value, vector = torch.linalg.eigh(target.curvature(point)[0])
        # By orthogonal steps alone: where a climb has ended on a slope, eigenvalues differ by more than digits hold.
        upper = torch.linalg.qr((vector * value.clamp(min=FLAT).rsqrt()).T).R
        factor = (upper * upper.diagonal().sign()[:, None]).T
        dim = point.shape[1]
        mass = target.in_parts(point)[0] + factor.diagonal().log().sum()
        return cls(point, factor, float(mass) + 0.5 * dim * math.log(2 * math.pi))


@dataclass(frozen=True)
class _Proposal:
    """Student-t distributions around the modes."""

    points: Tensor
    factors: Tensor
    weights: Tensor

    @classmethod
    def around(cls, modes: list[_Mode]) -> _Proposal:
        mass = torch.tensor([mode.mass for mode in modes], dtype=torch.float64)
        # A low mode may stand on a broad shoulder: none gets less than a fifth of an even share.
        weights = torch.softmax(mass, 0).clamp(min=0.2 / len(modes))
        points = torch.cat([mode.point for mode in modes])
        return cls(points, torch.stack([m.factor for m in modes]), weights / weights.sum())

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        which = torch.multinomial(self.weights, count, True, generator=generator)
        dim = self.points.shape[1]
        normal = torch.randn(count, dim, dtype=torch.float64, generator=generator)
        shape = torch.full((count,), NU / 2, dtype=torch.float64)
        gamma = torch._standard_gamma(shape, generator=generator)
        wide = normal * torch.sqrt(NU / 2 / gamma)[:, None]
        return self.points[which] + torch.einsum("nij,nj->ni", self.factors[which], wide)

    def terms(self, flat: Tensor) -> Tensor:
        """Log density of every component, weight included, (component, draw)."""
        dim = self.points.shape[1]
        constant = math.lgamma((NU + dim) / 2) - math.lgamma(NU / 2)
        constant -= dim / 2 * math.log(NU * math.pi)
        found = []
        for point, factor, weight in zip(self.points, self.factors, self.weights, strict=True):
            away = torch.linalg.solve_triangular(factor, (flat - point).T, upper=False)
            tail = (NU + dim) / 2 * torch.log1p(away.square().sum(0) / NU)
            found.append(weight.log() + constant - factor.diagonal().log().sum() - tail)
        return torch.stack(found)

    def log_prob(self, flat: Tensor) -> Tensor:
        """Log density of draws, (draw,)."""
        return torch.logsumexp(self.terms(flat), 0)

    def taught(self, flat: Tensor, log_weight: Tensor) -> _Proposal:
        """Moved to where weighed draws are; of each component's own draws too few are left as they are."""
        dim = self.points.shape[1]
        share = torch.softmax(self.terms(flat), 0) * torch.softmax(log_weight, 0)
        points, factors, weights = [self.points], [self.factors], [KEPT * self.weights]
        for own, factor in zip(share, self.factors, strict=True):
            effective = float(own.sum() ** 2 / own.square().sum().clamp(min=1e-300))
            if effective < 2 * dim:
                continue
            weight = own / own.sum()
            mean = weight @ flat
            away = flat - mean
            spread = (away * weight[:, None]).T @ away
            # Few draws tell a covariance roughly: it is drawn to the old one as if that were worth some draws.
            old = 2 * dim / (2 * dim + effective)
            spread = (1 - old) * spread + old * factor @ factor.T
            lower = _factor(spread)
            if lower is None:
                continue
            points.append(mean[None])
            factors.append(lower[None])
            weights.append((1 - KEPT) * own.sum()[None])
        total = torch.cat(weights)
        kept = total.argsort(descending=True)[:MOST_COMPONENTS]
        total = total[kept]
        return _Proposal(torch.cat(points)[kept], torch.cat(factors)[kept], total / total.sum())

    def grown(self, target: _Target, missed: Tensor) -> _Proposal:
        """With a component where one was missed: at the mode above it, or there where the mode has one."""
        mode = _climb(target, missed)
        known = bool(((self.points - mode).abs().amax(1) < 0.05).any())
        if known:
            nearest = int(self.terms(missed)[:, 0].argmax())
            point, factor = missed, self.factors[nearest]
        else:
            found = _Mode.at(target, mode)
            point, factor = found.point, found.factor
        share = torch.full((1,), GROWN, dtype=torch.float64)
        return _Proposal(
            torch.cat([self.points, point]),
            torch.cat([self.factors, factor[None]]),
            torch.cat([(1 - GROWN) * self.weights, share]),
        )


@dataclass(frozen=True)
class _Weighed:
    """Draws for one number of levels, with their weights."""

    levels: Levels
    flat: Tensor
    log_weight: Tensor
    log_evidence: float
    se: float
    effective: float


def posterior_of_levels(
    intensity: Tensor, place: Tensor, prior: Prior, *, draws: int, seed: int
) -> tuple[dict[str, Tensor], float, float, dict[str, Any]]:
    """Draws of every latent of the story, the log evidence with its error, and figures of the whole.

    Args:
        intensity: of the columns that count.
        place: of each in the field, as fractions.
        prior: of the story.
        draws: how many.
        seed: all depends on it.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    columns = _Columns(intensity, smooth(place))
    few, standing = columns.some(SOME, rng)
    log_prior = _log_prior_of_counts(prior)
    found: dict[int, tuple[_Target, list[_Mode]]] = {}
    below: Ladder | None = None
    for count in range(1, LEVELS + 1):
        if not any(math.isfinite(p) for p in log_prior[count - 1 :]):
            break
        levels = Levels(prior, count)
        target, rough = _Target(levels, columns), _Target(levels, few, standing)
        modes = _modes(rough, below, rng)
        below = levels.ladder(modes[0].point)[0]
        if not math.isfinite(log_prior[count - 1]):
            continue
        if few is not columns:
            modes = [_moved(target, rough, mode) for mode in modes]
        found[count] = target, modes
    laplace = {k: _mass(modes) for k, (_, modes) in found.items()}
    weighed: dict[int, _Weighed] = {}
    best = -math.inf
    # What is weighed decides what is hopeless: a mass by Laplace's method alone may be far too high.
    for count in sorted(found, key=lambda k: -log_prior[k - 1] - laplace[k]):
        if log_prior[count - 1] + laplace[count] > best - HOPELESS:
            weighed[count] = _weigh(*found[count], generator)
            best = max(best, log_prior[count - 1] + weighed[count].log_evidence)
    return _together(weighed, laplace, log_prior, prior, draws, generator)


def _mass(modes: list[_Mode]) -> float:
    return float(torch.logsumexp(torch.tensor([mode.mass for mode in modes]), 0))


def _moved(target: _Target, rough: _Target, mode: _Mode) -> _Mode:
    """A mode on all columns; its width is that on some, each of which stands for several."""
    precision = torch.linalg.inv(mode.factor @ mode.factor.T)
    point = _polish(target, mode.point, precision)
    change = target.in_parts(point)[0] - rough.in_parts(mode.point)[0]
    return _Mode(point, mode.factor, mode.mass + float(change))


def _log_prior_of_counts(prior: Prior) -> list[float]:
    """Log prior of one level, of two, and so on."""
    entry = prior.steps
    if isinstance(entry, float):
        if entry != int(entry) or not 0 <= entry < LEVELS:
            raise ModelError(
                f"steps must be a whole number from 0 to {LEVELS - 1}, found {entry:g}"
            )
        return [0.0 if k == int(entry) else -math.inf for k in range(LEVELS)]
    if not isinstance(entry, Categorical) or len(entry.probs) != LEVELS:
        raise ModelError(f"steps must be a number, or a Categorical of {LEVELS}")
    return [math.log(p) if p > 1e-12 else -math.inf for p in entry.probs.tolist()]


def _modes(target: _Target, below: Ladder | None, rng: np.random.Generator) -> list[_Mode]:
    """The modes of most mass, from starts by expectation maximisation and from those with a level less."""
    values = target.columns.intensity.numpy()
    levels = target.levels
    drawn = [_expectation(values, levels.count, rng, even=k == 0) for k in range(STARTS)]
    drawn.sort(key=lambda found: -found[0])
    starts = [drawn[0][1:]]
    starts += [other[1:] for one, other in pairwise(drawn) if one[0] - other[0] > 0.1]
    if below is not None:
        starts += _one_more(below, len(values) * target.weight)
    if "scale" in levels.parts:
        starts += _at_scales(levels, values)
    found = _new_modes(target, torch.cat([levels.flat(*start) for start in starts]), [])
    # The mass of what is no maximum is anything.
    steep = [
        mode
        for mode in found
        if float(torch.linalg.eigvalsh(target.curvature(mode.point))[0, 0]) > 0
    ]
    found = steep or found
    found.sort(key=lambda mode: -mode.mass)
    # What is left out has less than a hundredth of a thousandth of the first.
    return [mode for mode in found if mode.mass > found[0].mass - 12][:MOST_MODES]


def _at_scales(
    levels: Levels, values: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The prior's own levels at the scales at which they suit the columns best: one rung may pass for the next."""
    prior, count = levels.prior, levels.count
    rung = float(_middle(prior.lowest)) + np.append(
        0.0, _middle(prior.rise).expand(LEVELS - 1).cumsum(0)[: count - 1]
    )
    wide = _middle(prior.spread).expand(LEVELS)[:count].numpy()
    size = np.abs(values).mean()
    found, fits = [], []
    for scale in np.geomspace(0.5 * size / rung[-1], 2 * size / rung[0], SCALES):
        share, spread = np.full(count, 1 / count), 2 * scale * wide
        for _ in range(5):
            away = (values[:, None] - scale * rung) / spread
            log = np.log(share) - np.log(spread) - 0.5 * away**2
            total = np.logaddexp.reduce(log, 1)
            share = (np.exp(log - total[:, None]).sum(0) + 0.1) / (len(values) + 0.1 * count)
        found.append((scale * rung, spread, share))
        fits.append(total.sum())
    fit = np.array([-np.inf, *fits, -np.inf])
    peaks = np.flatnonzero((fit[1:-1] > fit[:-2]) & (fit[1:-1] > fit[2:]))
    return [found[i] for i in sorted(peaks, key=lambda i: -fits[i])[:MOST_SCALES]]


def _new_modes(target: _Target, starts: Tensor, known: list[_Mode]) -> list[_Mode]:
    """Modes above starts (start, dim) that are not among those known."""
    found: list[_Mode] = []
    for point in _climb(target, starts).split(1):
        # A mode found twice is one.
        if all(float((point - other.point).abs().max()) > 0.05 for other in known + found):
            found.append(_Mode.at(target, point))
    return found


def _one_more(below: Ladder, columns: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Levels with one more: one that hardly any column is at, in every gap, or one of them split in two."""
    level, spread = below.level[0].detach().numpy(), below.spread[0].detach().numpy()
    share = below.log_share[0].detach().exp().numpy()
    step = float(np.diff(level).mean()) if len(level) > 1 else 2 * float(spread[0])
    gaps = np.concatenate([[level[0] - step], (level[1:] + level[:-1]) / 2, [level[-1] + step]])
    found = []
    for place, new in enumerate(gaps):
        fewer = np.insert(share, place, 1 / columns)
        found.append(
            (
                np.insert(level, place, new),
                np.insert(spread, place, spread.mean()),
                fewer / fewer.sum(),
            )
        )
    for place in map(int, np.flatnonzero(share * columns > 4)):
        halves = [level[place] - 0.5 * spread[place], level[place] + 0.5 * spread[place]]
        split = np.concatenate([level[:place], halves, level[place + 1 :]])
        order = np.argsort(split)
        widths = np.insert(spread, place, spread[place])
        parts = np.insert(share, place, share[place] / 2)
        parts[place + 1] = share[place] / 2
        found.append((split[order], widths[order], parts[order]))
    return found


def _expectation(
    values: np.ndarray, count: int, rng: np.random.Generator, even: bool, rounds: int = 60
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """A mixture of Gaussians by expectation maximisation, from levels drawn among the values or evenly apart."""
    level = np.sort(rng.choice(values, count, replace=False))
    if even:
        level = values.min() + np.ptp(values) * (np.arange(count) + 0.5) / count
    least = 1e-3 * values.std() + 1e-300
    spread, share = np.full(count, values.std() / count), np.full(count, 1 / count)
    total = 0.0
    for _ in range(rounds):
        log = np.log(share) - np.log(spread) - 0.5 * ((values[:, None] - level) / spread) ** 2
        top = log.max(1, keepdims=True)
        weight = np.exp(log - top)
        norm = weight.sum(1, keepdims=True)
        total = float((np.log(norm) + top).sum())
        weight /= norm
        number = weight.sum(0) + 1e-9
        # A tenth of a column more for each keeps a level from falling onto one column.
        share = (number + 0.1) / (number + 0.1).sum()
        level = (weight * values[:, None]).sum(0) / number
        around = (weight * (values[:, None] - level) ** 2).sum(0)
        spread = np.sqrt((around + values.var() / count**2) / (number + 1)) + least
    order = np.argsort(level)
    return total, level[order], spread[order], share[order]


def _weigh(target: _Target, modes: list[_Mode], generator: torch.Generator) -> _Weighed:
    """Draw around the modes and weigh, then from a proposal that was taught by these, and so on.

    All draws count, each against the mean of all proposals, so that none is forgotten that knew a mode. Where one draw
    weighs much, something was missed, and the next proposal gets a component there.
    """
    elements = len(target.columns.intensity) * target.levels.count
    count = int(np.clip(IN_ALL // elements, FEWEST_DRAWS, MOST_DRAWS))
    lessons = LESSONS if count == MOST_DRAWS else 2 * (count >= MOST_DRAWS // 8)
    first = _Proposal.around(modes)
    if lessons == LESSONS:
        # Draws of little weight lead away from the modes that the starts found, and to others beside them.
        flat = first.sample(count, generator)
        wide = torch.nan_to_num(target.in_parts(flat) - first.log_prob(flat), nan=-math.inf)
        scouts = flat[torch.multinomial(torch.softmax(0.5 * wide, 0), SCOUTS, generator=generator)]
        first = _Proposal.around(modes + _new_modes(target, scouts, modes))
    proposals = [first]
    flat = first.sample(count, generator)
    value, density = target.in_parts(flat), [first.log_prob(flat)]
    while True:
        mean = torch.logsumexp(torch.stack(density), 0) - math.log(len(proposals))
        log_weight = torch.nan_to_num(value - mean, nan=-math.inf)
        weight = torch.softmax(log_weight, 0)
        effective = 1 / float(weight.square().sum())
        if effective > ENOUGH or len(proposals) > lessons:
            break
        heaviest = int(weight.argmax())
        taught = proposals[-1].taught(flat, log_weight)
        if float(weight[heaviest]) > HEAVY:
            taught = taught.grown(target, flat[heaviest : heaviest + 1])
        fresh = taught.sample(count, generator)
        flat, value = torch.cat([flat, fresh]), torch.cat([value, target.in_parts(fresh)])
        density = [
            torch.cat([known, each.log_prob(fresh)])
            for known, each in zip(density, proposals, strict=True)
        ]
        proposals.append(taught)
        density.append(taught.log_prob(flat))
    total = len(flat)
    evidence = float(torch.logsumexp(log_weight, 0)) - math.log(total)
    se = math.sqrt(max(1 / effective - 1 / total, 0.0))
    return _Weighed(target.levels, flat, log_weight, evidence, se, effective)


def _together(
    weighed: Mapping[int, _Weighed],
    laplace: Mapping[int, float],
    log_prior: list[float],
    prior: Prior,
    draws: int,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], float, float, dict[str, Any]]:
    counts = list(weighed)
    joint = torch.tensor(
        [log_prior[k - 1] + weighed[k].log_evidence for k in counts], dtype=torch.float64
    )
    probability = torch.softmax(joint, 0)
    chosen = torch.multinomial(probability, draws, True, generator=generator)
    parts = [
        _draws(weighed[count], int((chosen == place).sum()), prior, generator)
        for place, count in enumerate(counts)
    ]
    values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = torch.randperm(draws, generator=generator)
    values = {name: value[order] for name, value in values.items()}
    errors = torch.tensor([weighed[k].se for k in counts], dtype=torch.float64)
    se = float((probability * errors).square().sum().sqrt())
    evidence = {
        str(k): round(weighed[k].log_evidence if k in weighed else laplace[k], 3) for k in laplace
    }
    attrs = {
        "levels_log_evidence": json.dumps(evidence),
        "levels_probability": json.dumps(
            {str(k): round(float(p), 6) for k, p in zip(counts, probability, strict=True)}
        ),
        "effective_draws": min(each.effective for each in weighed.values()),
    }
    return values, float(torch.logsumexp(joint, 0)), se, attrs


def _draws(
    weighed: _Weighed, count: int, prior: Prior, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draws of all latents; those of levels that are not there come from the prior."""
    weight = torch.softmax(weighed.log_weight, 0)
    rows = torch.multinomial(weight, max(count, 1), True, generator=generator)[:count]
    found, _ = weighed.levels.values(weighed.flat[rows])
    used = weighed.levels.count
    seed = int(torch.randint(2**31, (1,), generator=generator))
    values: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in ("scale", "lowest", "rise", "spread", "background"):
            entry = prior[name]
            if isinstance(entry, float):
                continue
            drawn = entry.sample((count,)).to(torch.float64)
            if name in weighed.levels.parts:
                here = found[name]
                if drawn.dim() == 1:
                    drawn = here[:, 0]
                else:
                    drawn[:, : here.shape[1]] = here
            values[name] = drawn
        concentration = prior.share.concentration
        share = found["log_share"].exp()
        if used < LEVELS:
            whole = concentration[:used].sum()
            rest = concentration[used:]
            there = torch.distributions.Beta(whole, rest.sum()).sample((count,))[:, None]
            others = Dirichlet(rest).sample((count,)) if len(rest) > 1 else torch.ones(count, 1)
            share = torch.cat([there * share, (1 - there) * others], 1)
        values["share"] = share.clamp(min=1e-12)
        values["share"] = values["share"] / values["share"].sum(1, keepdim=True)
    return values
