"""The modes of a posterior: many starts climb together, and every basin that counts is kept."""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import torch
from torch import Tensor

from .density import Density
from .runs import RunError

__all__ = ["Mode", "ascend", "climb", "factor_of", "find_modes", "spread"]

# A basin e^-12 below the best holds less than a draw in a hundred thousand.
NEGLIGIBLE = 12.0
SAME_MODE = 0.5
MOST_ALTERNATIVES = 64
SPREAD_DRAWS = 32
# No step is longer, in units of the prior's spread.
LONGEST = 2.0
# Up to here every climb keeps an inverse Hessian of its own.
DENSE = 50
# Of the climbs' starts: how many times as far from the prior's middle as its draws; and draws to choose from.
WIDER, CANDIDATES = 2.5, 512
# Steps between two looks at the climbs, and the rise in between below which one has settled.
LOOK, SETTLED = 5, 0.05
# Share of the climbs that are not waited for; and share of all starts that lead to basins not seen yet, by what is
# expected of it, below which no more are.
LAGGING, UNSEEN = 0.05, 0.004

Held = dict[str, Tensor]


class Climbed(Protocol):
    """What is climbed: a density, or those of several datasets."""

    @property
    def dim(self) -> int:
        """Length of a flat vector."""
        ...

    def gradient(self, z: Tensor, held: Held | None = None, /) -> tuple[Tensor, Tensor]:
        """Log density (n,) and its gradient (n, dim) at points."""
        ...


# Where it is, its log density, and the Cholesky factor of its covariance.
Mode = tuple[Tensor, float, Tensor]


def find_modes(density: Density, starts: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct modes (k, dim), their log densities (k,) and Cholesky factors of their covariances.

    Climbs from many starts at once, then damped Newton steps from the best of each basin. Where the model has a few
    alternatives for the whole dataset, such as graphs, every one of them has its own mode.
    """
    choices = _alternatives(density)
    found = (
        _modes_of_alternatives(density, choices, seed) if choices else _modes(density, starts, seed)
    )
    best = max(value for _, value, _ in found)
    found = [f for f in found if f[1] > best - NEGLIGIBLE]
    return (
        torch.stack([f[0] for f in found]),
        torch.tensor([f[1] for f in found], dtype=torch.float64),
        torch.stack([f[2] for f in found]),
    )


def _alternatives(density: Density) -> list[Held]:
    """Every combination of the alternatives, none where there are none or too many to climb each."""
    sites = density.alternatives
    if not sites or math.prod(site.size or 1 for site in sites) > MOST_ALTERNATIVES:
        return []
    ranges = [range(site.size or 1) for site in sites]
    return [
        {s.name: torch.full((1, *s.shape), value) for s, value in zip(sites, values, strict=True)}
        for values in itertools.product(*ranges)
    ]


def _modes_of_alternatives(density: Density, choices: list[Held], seed: int) -> list[Mode]:
    each = 3
    first = density.initial(SPREAD_DRAWS, seed)
    scale = spread(first)
    start = first[:each].repeat(len(choices), 1)
    held = {
        name: torch.cat([choice[name] for choice in choices]).repeat_interleave(each, 0)
        for name in choices[0]
    }
    z, _ = climb(density, start, scale, held)
    height = torch.nan_to_num(density.gradient(z, held)[0], nan=-torch.inf).reshape(-1, each)
    best = height.argmax(1) + each * torch.arange(len(choices))
    found = [_newton(density, z[i], scale, choice) for i, choice in zip(best, choices, strict=True)]
    return [mode for mode in found if math.isfinite(mode[1])]


def _modes(density: Density, starts: int, seed: int) -> list[Mode]:
    drawn = density.initial(max(starts, SPREAD_DRAWS), seed)
    scale = spread(drawn)
    z, settled = climb(density, _starts(density, drawn, starts, seed), scale)
    height, _ = density.gradient(z)
    height = torch.nan_to_num(height, nan=-torch.inf)
    height = torch.where(settled, height, -torch.inf) if settled.any() else height
    order = torch.argsort(height, descending=True)
    if not torch.isfinite(height[order[0]]):
        raise RunError(
            "the density is not finite anywhere near draws from the prior; check the prior"
        )
    found: list[Mode] = []
    for i in order.tolist():
        if len(found) == 8 or (found and float(height[i]) < found[0][1] - 3 * NEGLIGIBLE):
            break
        if any(_near(z[i], mode, factor) for mode, _, factor in found):
            continue
        mode, value, factor = _newton(density, z[i], scale)
        if math.isfinite(value) and not any(_near(mode, m, f) for m, _, f in found):
            found.append((mode, value, factor))
    if not found:
        raise RunError("no mode with a finite density was found; check the prior")
    return found


def _starts(density: Density, drawn: Tensor, starts: int, seed: int) -> Tensor:
    """Where to climb from: half of them from further out than the prior, half from where the posterior seems to be."""
    half = starts // 2
    middle = drawn.median(0).values
    # A basin may lie where the prior hardly goes.
    wide = middle + WIDER * (drawn[: starts - half] - middle)
    more = density.initial(CANDIDATES, seed + 1)
    height = density.values(more)
    order = height.argsort(descending=True)
    # One in each stretch of the order, most of them high up: what a tempered posterior would choose, and all apart.
    places = torch.linspace(0, 1, half, dtype=torch.float64).square() * 0.5 * (CANDIDATES - 1)
    return torch.cat([more[order[places.long()]], wide])


def spread(points: Tensor) -> Tensor:
    """Spread of the prior along every axis, so that climbing does not depend on the units."""
    middle = points.median(0).values
    found: Tensor = (points - middle).abs().median(0).values
    return torch.where(found > 0, 1.5 * found, torch.ones_like(found))


def climb(
    density: Climbed,
    z: Tensor,
    scale: Tensor,
    held: Held | None = None,
    *,
    each_counts: bool = False,
) -> tuple[Tensor, Tensor]:
    """Climb from every point at once, in units of the scale; where each came to, and whether it has settled there.

    Those that lag behind are left where the others tell enough, unless each counts. Of n climbs that ended in w basins
    the next one is expected to end in a new one with probability w (w + 1) / (n (n - 1)).

    References: Boender and Rinnooy Kan, Bayesian stopping rules for multistart global optimization methods,
    Mathematical Programming 37 (1987).
    """
    if density.dim <= DENSE:
        return _bfgs(density, z, scale, held, each_counts=each_counts or held is not None)
    return ascend(density, z, scale, held), torch.ones(len(z), dtype=torch.bool)


def _enough(
    place: Tensor, height: Tensor, before: Tensor, inverse: Tensor, each_counts: bool
) -> bool:
    """Whether the climbs that have settled tell where the basins are.

    Of basins those count that reach near the highest. It is not enough while another climb comes near it that is not
    in the bowl of one that has settled.

    Args:
        place: of every climb, in units of the scale.
        height: of every climb.
        before: heights at the last look.
        inverse: every climb's inverse Hessian.
        each_counts: whether hardly any may lag behind, because each may end in a basin of its own.
    """
    settled = height < before + SETTLED
    if each_counts or float((~settled).to(height.dtype).mean()) < LAGGING:
        return float((~settled).to(height.dtype).mean()) < LAGGING
    tops = height[settled].argsort(descending=True)
    rows = torch.nonzero(settled)[tops, 0]
    n = len(rows)
    first = torch.cat([torch.ones(min(n, 1), dtype=torch.bool), height[rows].diff() < -2 * SETTLED])
    basins = rows[first & (height[rows] > height.max() - NEGLIGIBLE)].tolist()
    if n < 2 or len(basins) * (len(basins) + 1) / (n * (n - 1)) > UNSEEN:
        return False
    coming = ~settled & (2 * height - before > height.max() - NEGLIGIBLE)
    for k in basins:
        offset = place - place[k]
        depth = 0.5 * (offset * torch.linalg.solve(inverse[k], offset.T).T).sum(1)
        # In a bowl it is as deep as its distance tells, or a few times less.
        coming &= depth > 4 * (height[k] - height).clamp(min=SETTLED)
    return not coming.any()


def _bfgs(
    density: Climbed,
    z: Tensor,
    scale: Tensor,
    held: Held | None = None,
    steps: int = 100,
    each_counts: bool = False,
) -> tuple[Tensor, Tensor]:
    """BFGS of every point at once, each with its own inverse Hessian and step."""
    n, dim = z.shape
    eye = torch.eye(dim, dtype=z.dtype)
    inverse = eye.repeat(n, 1, 1)
    height, gradient = _sane(density, z, scale, held)
    alpha = torch.ones(n, dtype=z.dtype)
    fresh = torch.ones(n, dtype=torch.bool)
    checked, settled = height, torch.zeros(n, dtype=torch.bool)
    for step in range(1, steps + 1):
        direction = (inverse @ gradient[..., None]).squeeze(-1)
        rise = (direction * gradient).sum(1)
        length = direction.norm(dim=1).clamp(min=1e-300)
        # The first step of a row has no curvature to go by.
        factor = alpha * torch.where(fresh, 0.3 / length, (LONGEST / length).clamp(max=1.0))
        moved = factor[:, None] * direction
        new, slope = _sane(density, z + scale * moved, scale, held)
        better = new >= height + 1e-4 * factor * rise
        change = gradient - slope
        curvature = (change * moved).sum(1)
        update = better & (curvature > 1e-10 * moved.norm(dim=1) * change.norm(dim=1))
        inverse = _updated(inverse, moved, change, curvature, update, fresh)
        rows = better[:, None]
        z = torch.where(rows, z + scale * moved, z)
        gradient = torch.where(rows, slope, gradient)
        height = torch.where(better, new, height)
        fresh = fresh & ~update
        alpha = torch.where(better, 1.0, alpha * 0.3)
        # A direction that leads nowhere is forgotten.
        stuck = alpha < 1e-4
        inverse = torch.where(stuck[:, None, None], eye, inverse)
        fresh, alpha = fresh | stuck, torch.where(stuck, 1.0, alpha)
        if step % LOOK == 0:
            settled = height < checked + SETTLED
            if _enough(z / scale, height, checked, inverse, each_counts):
                break
            checked = height
    return z, settled


def _sane(density: Climbed, z: Tensor, scale: Tensor, held: Held | None) -> tuple[Tensor, Tensor]:
    """Heights and gradients in units of the scale; what is not finite is as low as can be, and flat."""
    height, gradient = density.gradient(z, held)
    fine = torch.isfinite(height) & torch.isfinite(gradient).all(1)
    return torch.where(fine, height, -torch.inf), torch.where(fine[:, None], gradient * scale, 0.0)


def _updated(
    inverse: Tensor, moved: Tensor, change: Tensor, curvature: Tensor, update: Tensor, fresh: Tensor
) -> Tensor:
    """The BFGS update of the rows that may have it; a row's first one also sets its scale."""
    safe = torch.where(update, curvature, 1.0)
    square = change.square().sum(1).clamp(min=1e-300)
    first = (safe / square)[:, None, None] * torch.eye(moved.shape[1], dtype=moved.dtype)
    base = torch.where((fresh & update)[:, None, None], first, inverse)
    pushed = (base @ change[..., None]).squeeze(-1)
    outer = moved[:, :, None] * pushed[:, None, :]
    grown = (1 + (change * pushed).sum(1) / safe) / safe
    new = (
        base
        + grown[:, None, None] * moved[:, :, None] * moved[:, None, :]
        - (outer + outer.transpose(1, 2)) / safe[:, None, None]
    )
    return torch.where(update[:, None, None], new, inverse)


def ascend(
    density: Climbed,
    z: Tensor,
    scale: Tensor,
    held: Held | None = None,
    steps: int = 250,
    rate: float = 0.15,
) -> Tensor:
    """Adam with a decaying rate, until nothing climbs; points whose gradient is not finite stay where they are."""
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    checked = torch.full((len(z),), -torch.inf, dtype=torch.float64)
    for step in range(1, steps + 1):
        height, gradient = density.gradient(z, held)
        if step % 40 == 0:
            # Newton steps finish what is within a tenth of a nat of its mode.
            height = torch.nan_to_num(height, nan=-torch.inf)
            if not (height > checked + 0.1).any():
                break
            checked = torch.maximum(height, checked)
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        gradient = gradient * scale
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        unbiased = (first / (1 - 0.9**step)) / (torch.sqrt(second / (1 - 0.99**step)) + 1e-12)
        z = z + scale * rate * (0.5 + 0.5 * math.cos(math.pi * step / steps)) * unbiased
    return z


def _curvature(
    density: Density, z: Tensor, scale: Tensor, held: Held | None
) -> tuple[Tensor, Tensor]:
    """Eigenvalues of minus the Hessian in units of the scale, made positive, and its eigenvectors."""
    hessian = density.hessian(z, held, 1e-4 * scale) * scale[:, None] * scale
    hessian = torch.nan_to_num(0.5 * (hessian + hessian.T), nan=0.0, posinf=0.0, neginf=0.0)
    values, vectors = torch.linalg.eigh(-hessian)
    # In units of the prior's spread no direction is wider than a few of these.
    return values.abs().clamp(min=1e-2), vectors


def _newton(
    density: Density, z: Tensor, scale: Tensor, held: Held | None = None, steps: int = 12
) -> Mode:
    (value, *_), (gradient, *_) = density.gradient(z[None], held)
    fixed = {k: v.expand(4, *v.shape[1:]) for k, v in (held or {}).items()}
    damping = torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=z.dtype)[:, None]
    for _ in range(steps):
        values, vectors = _curvature(density, z, scale, held)
        step = scale * (vectors @ ((vectors.T @ (gradient * scale)) / values))
        trials = z + damping * step
        heights, gradients = density.gradient(trials, fixed)
        best = int(torch.nan_to_num(heights, nan=-torch.inf).argmax())
        gained = float(heights[best] - value)
        if not gained > 0:
            break
        z, value, gradient = trials[best], heights[best], gradients[best]
        if gained < 1e-9:
            break
    return z, float(value), scale[:, None] * factor_of(*_curvature(density, z, scale, held))


def factor_of(values: Tensor, vectors: Tensor) -> Tensor:
    """Cholesky factor of the inverse of matrices of these eigenvalues and vectors, however far apart they are."""
    upper = torch.linalg.qr((vectors / values.sqrt()[..., None, :]).mT).R
    signs = torch.where(torch.diagonal(upper, dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return upper.mT * signs[..., None, :]


def _near(z: Tensor, mode: Tensor, factor: Tensor) -> bool:
    white = torch.linalg.solve_triangular(factor, (z - mode)[:, None], upper=False)
    return float((white**2).mean()) < SAME_MODE**2
