"""Evidence of plane groups from the Fourier coefficients of a cell.

A cell with the symmetry of a group G, its origin at t, is what becomes of any cell when its copies by the operations
of G are laid over each other: with P the mean over the operations, a projector, its coefficients are √|G| P c. With c
independent and normal of standard deviation τ, that of an operation-free cell, and noise of standard deviation σ,

    p(F | G, t) = N(F; 0, |G| τ² P + σ²),

which is the statistics of Wilson: the mean intensity of a reflection goes with the number of operations that leave it
in place. P couples only coefficients of one orbit, where its rank is two, one or, at an absence, none, so the density
is a sum over orbits, in closed form whatever the noise of each coefficient:

    log p = Σ ½ κ x* (P x) − ½ d log(1 + |G| τ² w) + log N(F; 0, σ²),   x = F/σ²,   κ = |G| τ² / (1 + |G| τ² w),

w being the mean of 1/σ² over the orbit and d its rank, shared out among its reflections. As a function of the origin
it is a trigonometric polynomial, so that all origins are searched by one Fourier transform. Reflections of an orbit
that were not measured have x = 0 and take part in nothing else.

A motif of G may nearly have a higher group H of projector Q ≤ P. That is a case of its own: the breaking β, from 0 for
H itself to 1 for what G leaves free, is learnt with the rest,

    p(F | G nearly H, β, t) = N(F; 0, (|H| − β² |G|) τ² Q + β² |G| τ² P + σ²).

Without such cases a broken symmetry would be one broken in earnest, and a motif that breaks H by little more than the
noise would be taken for H though all its constraints together deny it. The inverse goes by layers: first P alone,
which leaves of x what P cannot explain and of w the mean w/(1 + β² |G| τ² w); then Q on what is left.

What is left, the origin, the breaking and the parameters of the envelope and of the noise, is integrated by importance
sampling from Student distributions at the modes, so that every evidence comes with its error.

References: Wilson, The probability distribution of X-ray intensities, Acta Crystallographica 2 (1949); Moeck,
Towards generalized noise-level dependent crystallographic symmetry classifications of more or less periodic crystal
patterns, Symmetry 10 (2018); Kanatani, Comments on "Symmetry as a continuous feature", IEEE Transactions on Pattern
Analysis and Machine Intelligence 19 (1997).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions import MultivariateStudentT
from torch import Tensor
from torch.distributions import biject_to

from ...datasets.plane_groups import SETTINGS, Setting, cases

__all__ = [
    "Envelope",
    "Fitted",
    "Measured",
    "Operations",
    "Priors",
    "Weighed",
    "least_squares",
    "log_density",
    "solve",
    "strengths",
    "transfer",
    "weigh",
]

# Points of the search for the origin along each axis; halves, thirds, quarters and sixths are among them.
GRID = 96
# Origins followed up for each setting, and steps of Newton's method, which near its end doubles the digits.
STARTS, STEPS = 4, 12
# Part of the cell, and nats, by which a step must go or gain to be followed by another: a mode is the middle of a
# proposal, which need be no nearer than a hundredth of its width.
CLOSE, GAINED = 1e-9, 1e-4
# Settings and modes so far below the best, in nats, are not refined: their share is below e^-40 however refined.
HOPELESS, FAINT = 80.0, 25.0
# Motifs nearly of a higher group start from where that group fits best, at these breakings.
BREAKINGS = (0.01, 0.03, 0.1, 0.3, 0.8)
# Cases of a share below e^-12 keep the parabola's evidence, and below a twentieth an eighth of the draws will do.
NO_DRAWS, SMALL, FEWER = 12.0, 0.05, 8
# Draws for each case's evidence, in Student distributions of so many degrees of freedom: heavier tails than any
# posterior of a scale that a hundred coefficients determine.
PROPOSALS, FREEDOM = 1024, 6.0
# Standard deviations that no proposal exceeds: for the origin about that of half a cell, for the envelope a wide prior.
WIDEST_ORIGIN, WIDEST = 0.15, 5.0
# A cell so much stronger than what is seen costs nothing to fit.
LOUD = 1e6


@dataclass(frozen=True)
class Measured:
    """Coefficients with their noise.

    Attributes:
        index: of each reflection on the reciprocal lattice, one of every pair h and -h, (reflection, 2).
        value: real and imaginary part, (reflection, 2).
        noise: standard deviation of each part.
        wave: squares of each wave vector in units of the largest: kx² + ky², kx² − ky², 2 kx ky, (reflection, 3).
        counts: reflections that count.
    """

    index: np.ndarray
    value: Tensor
    noise: Tensor
    wave: Tensor
    counts: Tensor

    @property
    def complex(self) -> Tensor:
        """The coefficients as complex numbers."""
        return torch.complex(self.value[:, 0], self.value[:, 1])


class Operations:
    """What the operations of every setting do to a set of reflections.

    Under the operation x → R x + v the coefficient of h becomes exp(-2πi h·v) F(hR). All settings are padded to the
    same number of operations.

    Attributes:
        own: number of the setting of each case, (case).
        like: number of the higher setting that it nearly is, (case).
        shift: of the setting's origin from that of the higher one, (case, 2).
        nearly: cases in which the higher setting is another one.
        partner: where hR stands in the list (F, F*, 0), (setting, operation, reflection).
        phase: h·v with the origin where the tables have it.
        frequency: h − hR, by which the phase turns with the origin, (setting, operation, reflection, 2).
        share: 1/|G|, 0 where padded, (setting, operation).
        order: |G|.
        rank: of an orbit's projector, shared out among its reflections that are listed, (setting, reflection).
    """

    def __init__(self, index: np.ndarray) -> None:
        most, count = max(s.order for s in SETTINGS), len(index)
        shape = (len(SETTINGS), most, count)
        self.own = torch.tensor([case.setting for case in cases()])
        self.like = torch.tensor([case.like for case in cases()])
        self.shift = torch.tensor([case.shift for case in cases()], dtype=torch.float64)
        self.nearly = self.own != self.like
        partner, phase = np.full(shape, 2 * count), np.zeros(shape)
        frequency, share = np.zeros((*shape, 2)), np.zeros(shape[:2])
        place = {tuple(h): i for i, h in enumerate(index.tolist())}
        place |= {tuple(-x for x in h): i + count for h, i in list(place.items())}
        for i, setting in enumerate(SETTINGS):
            for j, (rotation, translation) in enumerate(
                zip(setting.rotation, setting.translation, strict=True)
            ):
                image = index @ rotation
                partner[i, j] = [place.get(tuple(h), 2 * count) for h in image.tolist()]
                phase[i, j] = index @ translation
                frequency[i, j] = index - image
                share[i, j] = 1 / setting.order
        self.partner = torch.as_tensor(partner)
        self.phase, self.share = torch.as_tensor(phase), torch.as_tensor(share)
        self.frequency = torch.as_tensor(frequency)
        self.order = torch.as_tensor([float(s.order) for s in SETTINGS], dtype=torch.float64)
        self.listed = (self.partner < 2 * count) * self.share[..., None]
        still = self.partner == torch.arange(count)
        turned = torch.cos(2 * torch.pi * self.phase) * self.share[..., None]
        trace = 2 * (still * turned).sum(1)
        self.rank = trace / self.listed.sum(1)

    def over_orbit(self, setting: Tensor, of_each: Tensor) -> Tensor:
        """Mean over the operations of something real, (..., reflection), that is 0 where a reflection is not listed."""
        padded = torch.cat([of_each, of_each, torch.zeros_like(of_each[..., :1])], -1)
        return (_gather(padded, self.partner[setting]) * self.share[setting][..., None]).sum(-2)

    def project(self, setting: Tensor, origin: Tensor, coefficients: Tensor) -> Tensor:
        """P c with a group's origin at a place of the cell, (..., reflection).

        Args:
            setting: which one, (...).
            origin: (..., 2).
            coefficients: complex, (..., reflection).
        """
        turn = self.phase[setting] + (self.frequency[setting] * origin[..., None, None, :]).sum(-1)
        nothing = torch.zeros_like(coefficients[..., :1])
        padded = torch.cat([coefficients, coefficients.conj(), nothing], -1)
        copies = _gather(padded, self.partner[setting]) * torch.exp(-2j * torch.pi * turn)
        return (copies * self.share[setting][..., None]).sum(-2)

    @cached_property
    def moves(self) -> np.ndarray:
        """Which axes the origin must be sought along, (setting, 2); along the others nothing changes."""
        return np.array([_moves(setting) for setting in SETTINGS])

    @cached_property
    def lines(self) -> np.ndarray:
        """Steps of the origin along which nothing changes, (setting, 2, 2), zero where there are fewer than two."""
        return np.array([_lines(setting) for setting in SETTINGS])

    @cached_property
    def same(self) -> list[np.ndarray]:
        """Shifts of the origin that change nothing, in points of the grid, among those along which it is sought."""
        return [_same(s, moves) for s, moves in zip(SETTINGS, self.moves, strict=True)]


def _gather(values: Tensor, partner: Tensor) -> Tensor:
    """Entries of values (..., n) at places (..., operation, reflection)."""
    if values.dim() == 1:
        return values[partner]
    shape = torch.broadcast_shapes(values.shape[:-1], partner.shape[:-2])
    places = partner.expand(*shape, *partner.shape[-2:]).flatten(-2)
    found = values.expand(*shape, values.shape[-1]).gather(-1, places)
    return found.reshape(*shape, *partner.shape[-2:])


def _moves(setting: Setting) -> tuple[bool, bool]:
    turned = np.concatenate(np.eye(2, dtype=np.int64) - setting.rotation)
    if np.linalg.matrix_rank(turned) != 1:
        both = bool(turned.any())
        return both, both
    # The axis of which a step is the least change, so that one turn around it meets every origin equally often.
    sizes = np.abs(turned).sum(0)
    first = sizes[0] > 0 and (sizes[1] == 0 or sizes[0] <= sizes[1])
    return bool(first), not first


def _lines(setting: Setting) -> np.ndarray:
    turned = np.concatenate(np.eye(2, dtype=np.int64) - setting.rotation)
    if not turned.any():
        return np.eye(2)
    if np.linalg.matrix_rank(turned) == 2:
        return np.zeros((2, 2))
    row = next(row for row in turned.tolist() if any(row))
    step = np.array([-row[1], row[0]]) // np.gcd(*row)
    return np.stack([step, np.zeros(2)])


def _same(setting: Setting, moves: np.ndarray) -> np.ndarray:
    steps = np.arange(0, GRID, GRID // 12)
    grids = [steps if move else np.array([0]) for move in moves]
    shifts = np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, 2)
    moved = shifts @ (np.eye(2, dtype=np.int64) - setting.rotation).transpose(0, 2, 1)
    return shifts[(moved % GRID == 0).all((0, 2))]


class Envelope(NamedTuple):
    """What is learnt besides the group, each (...).

    Attributes:
        scale: τ of the longest waves, τ = scale · exp(−decay · (kx² + ky²)).
        decay: how τ falls off.
        noise: factor of the stated noise.
        blur: of the instrument along x against y, exp(−blur · (kx² − ky²) − blur_diagonal · 2 kx ky).
        blur_diagonal: of the instrument along one diagonal against the other.
        breaking: β of a motif that nearly has a higher group.
    """

    scale: Tensor
    decay: Tensor
    noise: Tensor
    blur: Tensor
    blur_diagonal: Tensor
    breaking: Tensor


POINT = 2 + len(Envelope._fields)


def strengths(
    operations: Operations, case: Tensor, wave: Tensor, envelope: Envelope
) -> tuple[Tensor, Tensor]:
    """√(|H| − β² |G|) τ of the higher group and β √|G| τ of the group itself, (..., reflection).

    τ is taken at the mean wave of each orbit of the higher group.
    """
    square, like = wave[:, 0], operations.like[case]
    mean = operations.over_orbit(like, square) / operations.over_orbit(
        like, torch.ones_like(square)
    )
    tau = envelope.scale[..., None] * torch.exp(-envelope.decay[..., None] * mean)
    breaking = torch.where(operations.nearly[case], envelope.breaking, 0.0)[..., None]
    part = breaking * operations.order[operations.own[case]][..., None].sqrt()
    return (operations.order[like][..., None] - part**2).sqrt() * tau, part * tau


def transfer(wave: Tensor, envelope: Envelope) -> Tensor:
    """What a blur that differs between directions leaves of each coefficient, (..., reflection)."""
    along = envelope.blur[..., None] * wave[:, 1] + envelope.blur_diagonal[..., None] * wave[:, 2]
    return torch.exp(-along)


def log_density(
    operations: Operations,
    case: Tensor,
    origin: Tensor,
    measured: Measured,
    envelope: Envelope,
) -> Tensor:
    """Log of p(F | case, t, envelope), the motif integrated out.

    Args:
        operations: of all settings.
        case: which one, (...).
        origin: of the higher setting, (..., 2).
        measured: the coefficients.
        envelope: each parameter (...).
    """
    x, weight = _weighted(measured, envelope)
    layers = _Layers(operations, case, origin, measured, envelope, weight)
    sigma = envelope.noise[..., None] * measured.noise
    alone = measured.value.square().sum(-1) / sigma**2 + 2 * torch.log(2 * torch.pi * sigma**2)
    return 0.5 * (layers.explained(x) - measured.counts * alone).sum(-1)


def solve(
    operations: Operations,
    case: Tensor,
    origin: Tensor,
    measured: Measured,
    envelope: Envelope,
    values: Tensor,
) -> Tensor:
    """Coefficients (..., reflection) through the inverse of their covariance, as the motif has them before the blur."""
    _, weight = _weighted(measured, envelope)
    layers = _Layers(operations, case, origin, measured, envelope, weight)
    return layers.solve(values * weight / transfer(measured.wave, envelope))


class _Layers:
    """The covariance of a case: first of the group alone, if it is one that nearly is another, then of the higher."""

    def __init__(
        self,
        operations: Operations,
        case: Tensor,
        origin: Tensor,
        measured: Measured,
        envelope: Envelope,
        weight: Tensor,
    ) -> None:
        whole, part = strengths(operations, case, measured.wave, envelope)
        self.operations, self.weight = operations, weight
        self.own, self.like = operations.own[case], operations.like[case]
        self.origin, self.shifted = origin, origin + operations.shift[case]
        self.both = bool(operations.nearly[case].any())
        left = weight
        if self.both:
            mean = operations.over_orbit(self.own, weight)
            self.first, self.first_cost = _gain(part**2, mean)
            # What is not listed of an orbit weighs as much as the rest of it.
            listed = operations.listed[self.own].sum(-2)
            left = mean / (1 + part**2 * mean) / listed
        self.second, self.second_cost = _gain(whole**2, operations.over_orbit(self.like, left))

    def _kept(self, x: Tensor) -> Tensor:
        return self.first * self.operations.project(self.own, self.shifted, x)

    def explained(self, x: Tensor) -> Tensor:
        """What the motif takes off minus twice the log density, less what its freedom costs, (..., reflection)."""
        rank = self.operations.rank
        total = torch.zeros((), dtype=torch.float64)
        if self.both:
            kept = self._kept(x)
            total = (x.conj() * kept).real - rank[self.own] * self.first_cost
            x = x - self.weight * kept
        seen = self.second * self.operations.project(self.like, self.origin, x)
        return total + (x.conj() * seen).real - rank[self.like] * self.second_cost

    def solve(self, x: Tensor) -> Tensor:
        """(1 + weight · covariance)⁻¹ x."""
        if self.both:
            x = x - self.weight * self._kept(x)
        seen = self.weight * self.second * self.operations.project(self.like, self.origin, x)
        if self.both:
            seen = seen - self.weight * self._kept(seen)
        return x - seen


def _gain(power: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """What is kept of coefficients over their variance, and the cost in nats of being free to."""
    return power / (1 + power * mean), torch.log1p(power * mean)


def _weighted(measured: Measured, envelope: Envelope) -> tuple[Tensor, Tensor]:
    """Coefficients over their variance, and one over it, as the motif has them before the blur."""
    passed = transfer(measured.wave, envelope)
    weight = measured.counts * passed / (envelope.noise[..., None] * measured.noise) ** 2
    return measured.complex * weight, weight * passed


class Priors:
    """Priors of the envelope's parameters on the whole line; a parameter that is known stays what it is."""

    def __init__(self, entries: Sequence[Any]) -> None:
        self.entries = tuple(entries)
        self.bend = [None if isinstance(e, float) else biject_to(e.support) for e in self.entries]
        self.free = torch.tensor([bend is not None for bend in self.bend])

    def envelope(self, z: Tensor) -> Envelope:
        """Parameters of points (..., parameter) of the line."""
        return Envelope(
            *(
                torch.full_like(z[..., i], entry) if bend is None else bend(z[..., i])
                for i, (entry, bend) in enumerate(zip(self.entries, self.bend, strict=True))
            )
        )

    def log_prob(self, z: Tensor, counts: Tensor) -> Tensor:
        """Log density of points of the line, of the parameters that count."""
        total = z.new_zeros(z.shape[:-1])
        for i, (entry, bend) in enumerate(zip(self.entries, self.bend, strict=True)):
            if bend is not None:
                value = bend(z[..., i])
                jacobian = bend.log_abs_det_jacobian(z[..., i], value)
                total = total + torch.where(counts[..., i], entry.log_prob(value) + jacobian, 0.0)
        return total

    def middle(self) -> Tensor:
        """A point of the line to start from: the median of 255 draws of each."""
        start = torch.zeros(len(self.entries), dtype=torch.float64)
        for i, (entry, bend) in enumerate(zip(self.entries, self.bend, strict=True)):
            if bend is not None:
                start[i] = bend.inv(entry.sample((255,)).median())
        return start


class Weighed(NamedTuple):
    """What is known of every case.

    Attributes:
        log_evidence: log p(F | case), the origin and the envelope integrated out, (case).
        error: its standard error; nothing where the case was hopeless and no draw was spent on it.
        case: of each draw from the posterior, (draw).
        origin: (draw, 2).
        envelope: each parameter (draw).
    """

    log_evidence: np.ndarray
    error: np.ndarray
    case: Tensor
    origin: Tensor
    envelope: Envelope


class Problem(NamedTuple):
    """Everything that the log joint of a point (origin, z) needs; the origin's prior is uniform over the cell."""

    operations: Operations
    measured: Measured
    priors: Priors

    def log_joint(self, case: Tensor, point: Tensor) -> Tensor:
        """Log of p(F, envelope | G, t) at points (..., coordinate), the origin first."""
        z = point[..., 2:]
        of_data = log_density(
            self.operations, case, point[..., :2], self.measured, self.priors.envelope(z)
        )
        return of_data + self.priors.log_prob(z, self.moving(case)[..., 2:])

    def moving(self, case: Tensor) -> Tensor:
        """Coordinates that matter, (..., coordinate): nothing is seen of a breaking where there is none."""
        moves = torch.as_tensor(self.operations.moves)[self.operations.like[case]]
        free = self.priors.free.expand(*case.shape, -1).clone()
        free[..., -1] &= self.operations.nearly[case]
        return torch.cat([moves, free], -1)


def weigh(
    operations: Operations,
    measured: Measured,
    priors: Priors,
    log_prior: np.ndarray,
    *,
    draws: int,
    seed: int,
    proposals: int = PROPOSALS,
) -> Weighed:
    """Evidence of every case, and draws of case, origin and envelope.

    Args:
        operations: of all settings.
        measured: the coefficients.
        priors: of the envelope.
        log_prior: log probability of each case before the coefficients are seen.
        draws: draws of the posterior.
        seed: of the draws.
        proposals: draws spent on the evidence of a case.
    """
    problem = Problem(operations, measured, priors)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        modes = _modes(problem, torch.as_tensor(log_prior))
        return _sampled(problem, modes, log_prior, draws, proposals)


def _starts(problem: Problem, start: Tensor) -> tuple[Tensor, Tensor]:
    """For each setting the best origins, with the envelope as it is at a point."""
    settings, points = [], []
    for setting in range(len(SETTINGS)):
        origins = _origins(problem, setting, problem.priors.envelope(start[2:]))
        settings += [setting] * len(origins)
        rest = start[2:].expand(len(origins), POINT - 2)
        points.append(torch.cat([torch.as_tensor(origins), rest], 1))
    return torch.tensor(settings), torch.cat(points)


def _origins(problem: Problem, setting: int, envelope: Envelope) -> np.ndarray:
    """The highest local maxima over the origin, one of each set that the cell repeats, (origin, 2)."""
    operations = problem.operations
    moves, repeats = operations.moves[setting], operations.same[setting]
    if not moves.any():
        return np.zeros((1, 2))
    waves = _origin_waves(problem, setting, envelope)
    density = np.fft.fft2(waves).real
    peak = np.ones(density.shape, bool)
    for step in product(*[(-1, 0, 1) if move else (0,) for move in moves]):
        peak &= density >= np.roll(density, step, (0, 1))
    places = np.argwhere(peak)
    places = places[np.argsort(-density[peak], kind="stable")]
    kept: list[np.ndarray] = []
    taken: set[tuple[int, ...]] = set()
    for place in places:
        if tuple(place) not in taken:
            kept.append(place)
            taken |= {tuple(p) for p in ((place + repeats) % GRID).tolist()}
        if len(kept) == STARTS:
            break
    return _uphill(waves, np.array(kept) / GRID, moves)


def _origin_waves(problem: Problem, setting: int, envelope: Envelope) -> np.ndarray:
    """Fourier coefficients of the log density over the origin, up to a constant; its transform is the density.

    Along an axis that does not matter there is one entry.
    """
    operations, measured = problem.operations, problem.measured
    which = torch.tensor(setting)
    power = strengths(operations, which, measured.wave, envelope)[0] ** 2
    weighted, weight = _weighted(measured, envelope)
    gain = (power / (1 + power * operations.over_orbit(which, weight))).numpy()
    x = weighted.numpy()
    padded = np.concatenate([x, x.conj(), [0.0]])[operations.partner[setting].numpy()]
    turn = np.exp(-2j * np.pi * operations.phase[setting].numpy())
    terms = 0.5 * gain * x.conj() * padded * turn * operations.share[setting].numpy()[:, None]
    frequency = operations.frequency[setting].numpy().astype(np.int64) % GRID
    waves = np.zeros((GRID, GRID), complex)
    np.add.at(waves, (frequency[..., 0], frequency[..., 1]), terms)
    for axis, moves in enumerate(operations.moves[setting]):
        if not moves:
            waves = waves.sum(axis, keepdims=True)
    return waves


def _uphill(waves: np.ndarray, origin: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Newton's method from points of the grid to the maxima beside them."""
    place = np.argwhere(waves)
    frequency = np.where(place > GRID // 2, place - GRID, place)[:, moves]
    terms = waves[tuple(place.T)]
    origin = origin.copy()
    bend = -4 * np.pi**2 * np.einsum("fi,fj->fij", frequency, frequency)
    for _ in range(STEPS):
        phased = np.exp(-2j * np.pi * origin[:, moves] @ frequency.T) * terms
        slope = (2 * np.pi * phased.imag) @ frequency
        level, axes = np.linalg.eigh(np.einsum("of,fij->oij", phased.real, bend))
        along = np.einsum("oij,oi->oj", axes, slope) / np.maximum(np.abs(level), 1e-12)
        step = np.einsum("oij,oj->oi", axes, along)
        # The maximum is nearer than the next point of the grid.
        step /= np.maximum(np.abs(step).max(1, keepdims=True) * 2 * GRID, 1.0)
        origin[:, moves] += step
        if np.abs(step).max() < CLOSE:
            break
    return origin


def _climb(
    problem: Problem, case: Tensor, point: Tensor, moving: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's method along the coordinates that move: the points reached, their log joints and Hessians."""
    point, value = point.clone(), problem.log_joint(case, point)
    hessian = torch.zeros(len(point), POINT, POINT, dtype=torch.float64)
    shrink = 0.5 ** torch.arange(0, 10, 2, dtype=torch.float64)
    # Half a point of the grid, and a factor of e: farther the parabola is not believed.
    most = torch.tensor([0.5 / GRID] * 2 + [1.0] * (POINT - 2), dtype=torch.float64)
    rising = torch.arange(len(point))
    for _ in range(STEPS):
        here, which = point[rising], case[rising]
        gradient, curved = _derivatives(problem, which, here)
        gradient = torch.where(moving[rising], gradient, 0.0)
        hessian[rising] = _only(curved, moving[rising])
        level, axes = torch.linalg.eigh(hessian[rising])
        # Uphill also where the density is not concave.
        along = (axes.mT @ gradient[..., None])[..., 0] / level.abs().clamp(min=1e-3)
        step = (axes @ along[..., None])[..., 0]
        step = step / (step.abs() / most).amax(-1, keepdim=True).clamp(min=1.0)
        tried = here + shrink[:, None, None] * step
        values = problem.log_joint(which.expand(len(shrink), -1), tried)
        values, best = torch.nan_to_num(values, nan=-torch.inf).max(0)
        better = values > value[rising]
        gained = torch.where(better, values - value[rising], 0.0)
        point[rising] = torch.where(better[:, None], tried[best, torch.arange(len(here))], here)
        value[rising] += gained
        rising = rising[gained >= GAINED]
        if not len(rising):
            break
    return point, value, hessian


def _derivatives(problem: Problem, case: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the log joint at each point; points know nothing of each other."""
    with torch.enable_grad():
        at = point.detach().requires_grad_()
        total = problem.log_joint(case, at).sum()
        (gradient,) = torch.autograd.grad(total, at, create_graph=True)
        columns = [
            torch.autograd.grad(column.sum(), at, retain_graph=True)[0]
            for column in gradient.unbind(-1)
        ]
    return gradient.detach(), torch.stack(columns, -1)


def _only(matrix: Tensor, moving: Tensor) -> Tensor:
    """A Hessian without the coordinates that stand still, which are given one of minus one."""
    alone = torch.diag_embed((~moving).to(matrix.dtype))
    return torch.where(moving[:, :, None] & moving[:, None, :], matrix, 0.0) - alone


class _Modes(NamedTuple):
    """Places of high density: which case, the point, the log joint and its Hessian there."""

    case: Tensor
    point: Tensor
    value: Tensor
    hessian: Tensor

    def take(self, which: Tensor) -> _Modes:
        return _Modes(*(part[which] for part in self))

    def best(self) -> Tensor:
        """The highest log joint of each case, (case)."""
        lowest = torch.full((len(cases()),), -torch.inf, dtype=torch.float64)
        return lowest.scatter_reduce(0, self.case, self.value, "amax")


def _modes(problem: Problem, log_prior: Tensor) -> _Modes:
    """Modes of each case, best first; those that matter refined in all coordinates."""
    envelope = torch.cat([torch.zeros(2, dtype=torch.bool), problem.priors.free])
    envelope[-1] = False
    middle = torch.cat([torch.zeros(2, dtype=torch.float64), problem.priors.middle()])
    start, _, _ = _climb(problem, torch.zeros(1, dtype=torch.long), middle[None], envelope[None])
    plain = _refined(problem, _at(problem, *_starts(problem, start[0])), log_prior, HOPELESS)
    nearly = _nearly(problem, plain, log_prior)
    worth = nearly.best() + log_prior >= (plain.best() + log_prior).max() - FAINT
    others = _refined(problem, nearly.take(worth[nearly.case]), log_prior, FAINT)
    return _apart(problem, _joined(plain, others, nearly.take(~worth[nearly.case])))


def _at(problem: Problem, case: Tensor, point: Tensor) -> _Modes:
    return _Modes(case, point, problem.log_joint(case, point), _shallow(point))


def _joined(*modes: _Modes) -> _Modes:
    return _Modes(*(torch.cat(parts) for parts in zip(*modes, strict=True)))


def _refined(problem: Problem, found: _Modes, log_prior: Tensor, hopeless: float) -> _Modes:
    """The same, those refined that may matter; faint ones beside better ones of their case are left out."""
    if not len(found.case):
        return found
    best = found.best()
    hopeful = (best + log_prior >= (best + log_prior).max() - hopeless)[found.case]
    worth = hopeful & (found.value >= best[found.case] - FAINT)
    case = found.case[worth]
    climbed = _climb(problem, case, found.point[worth], problem.moving(case))
    return _joined(_Modes(case, *climbed), found.take(~hopeful))


def _nearly(problem: Problem, plain: _Modes, log_prior: Tensor) -> _Modes:
    """Cases of a broken higher group, from where that one fits best; those that the lattice forbids are left out."""
    operations, order = problem.operations, torch.argsort(plain.value, descending=True)
    first = torch.zeros(len(SETTINGS), dtype=torch.long)
    first[plain.case[order].flip(0)] = order.flip(0)
    chosen = torch.nonzero(operations.nearly & (log_prior >= log_prior.max() - HOPELESS))[:, 0]
    point = plain.point[first[operations.like[chosen]]]
    bend = problem.priors.bend[-1]
    if bend is None:
        return _at(problem, chosen, point)
    levels = bend.inv(torch.tensor(BREAKINGS, dtype=torch.float64))
    tried = point.repeat(len(levels), 1, 1)
    tried[..., -1] = levels[:, None]
    value = problem.log_joint(chosen.expand(len(levels), -1), tried).argmax(0)
    return _at(problem, chosen, tried[value, torch.arange(len(chosen))])


def _shallow(point: Tensor) -> Tensor:
    """Hessians of no use but that they are there, for settings that have no chance."""
    return -torch.eye(POINT, dtype=torch.float64).expand(len(point), POINT, POINT)


def _apart(problem: Problem, modes: _Modes) -> _Modes:
    """Each mode once, best first: two starts may have climbed one hill, or hills that the cell repeats."""
    modes = modes.take(torch.argsort(modes.value, descending=True))
    kept: list[int] = []
    for i, case in enumerate(modes.case.tolist()):
        others = [j for j in kept if int(modes.case[j]) == case]
        repeats = torch.as_tensor(problem.operations.same[cases()[case].like] / GRID)
        off = modes.point[others, None, :2] + repeats - modes.point[i, :2]
        if not others or (off - off.round()).abs().amax(-1).min() > 0.5 / GRID:
            kept.append(i)
    return modes.take(torch.tensor(kept))


class _Proposal:
    """Student distributions around the modes of one case, wrapped around what the cell repeats of the origin."""

    def __init__(self, problem: Problem, modes: _Modes) -> None:
        self.problem, self.case = problem, modes.case[0]
        like = int(problem.operations.like[self.case])
        self.moves = torch.as_tensor(problem.operations.moves[like])
        self.free = problem.moving(self.case)
        self.point, self.known = modes.point[:, self.free], modes.point[0]
        self.repeats = problem.operations.same[like] / GRID
        narrow = torch.tensor([WIDEST_ORIGIN**-2] * 2 + [0.0] * (POINT - 2), dtype=torch.float64)
        precision = (torch.diag(narrow) - modes.hessian)[:, self.free][:, :, self.free]
        level, axes = torch.linalg.eigh(precision)
        level = level.clamp(min=WIDEST**-2)
        covariance = (axes / level[:, None, :]) @ axes.mT
        self.student = MultivariateStudentT(
            torch.full((len(modes.value),), FREEDOM, dtype=torch.float64),
            self.point,
            torch.linalg.cholesky(covariance),
        )
        size = float(self.free.sum())
        normal = 0.5 * size * np.log(2 * np.pi) - 0.5 * level.log().sum(-1)
        self.rough = modes.value + normal + np.log(len(self.repeats))

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Points, and the logs of their weights, whose mean is the evidence."""
        if not self.free.any():
            point = self.known.expand(count, -1)
            return point, self.problem.log_joint(self.case.expand(count), point)
        chosen = torch.multinomial(torch.softmax(self.rough, 0), count, replacement=True)
        moved = self.student.sample((count,))[torch.arange(count), chosen]
        point = self.known.repeat(count, 1)
        point[:, self.free] = moved
        told = self.problem.log_joint(self.case.expand(count), point)
        return point, told + np.log(len(self.repeats)) - self._log_prob(moved)

    def _log_prob(self, moved: Tensor) -> Tensor:
        axes = int(self.moves.sum())
        cells = np.array(list(product((-1, 0, 1), repeat=axes)), dtype=float)
        shifts = cells[:, None] + self.repeats[:, self.moves.numpy()]
        shift = torch.zeros(shifts.shape[0] * shifts.shape[1], moved.shape[1], dtype=torch.float64)
        shift[:, :axes] = torch.as_tensor(shifts.reshape(len(shift), axes))
        each = self.student.log_prob((moved[:, None] + shift)[:, :, None])
        share = torch.log_softmax(self.rough, 0)
        return torch.logsumexp(torch.logsumexp(each, 1) + share, -1)


def _sampled(
    problem: Problem, modes: _Modes, log_prior: np.ndarray, draws: int, proposals: int
) -> Weighed:
    """Evidence by importance sampling around the modes, and draws from what was sampled."""
    evidence, error = np.full(len(cases()), -np.inf), np.full(len(cases()), np.nan)
    proposal = {
        i: _Proposal(problem, modes.take(modes.case == i)) for i in modes.case.unique().tolist()
    }
    for i, one in proposal.items():
        evidence[i] = float(torch.logsumexp(one.rough, 0))
    worth = evidence + log_prior
    share = worth - np.logaddexp.reduce(worth)
    pools: dict[int, tuple[Tensor, Tensor]] = {}
    for i in np.flatnonzero(share >= -NO_DRAWS).tolist():
        count = proposals if share[i] > np.log(SMALL) else proposals // FEWER
        point, weight = proposal[i].sample(count)
        weights = torch.softmax(weight, 0)
        evidence[i] = float(torch.logsumexp(weight, 0) - np.log(count))
        error[i] = float((weights.square().sum() - 1 / count).clamp(min=0.0).sqrt())
        pools[i] = point, weights
    case, point = _chosen(pools, evidence + log_prior, draws)
    origin = _spread_out(problem.operations, case, point[:, :2])
    envelope = problem.priors.envelope(point[:, 2:])
    return Weighed(evidence, error, case, origin, _blind(problem, case, envelope))


def _blind(problem: Problem, case: Tensor, envelope: Envelope) -> Envelope:
    """A breaking as the prior has it where there is none."""
    entry = problem.priors.entries[-1]
    if isinstance(entry, float):
        return envelope
    drawn = entry.sample(case.shape)
    return envelope._replace(
        breaking=torch.where(problem.operations.nearly[case], envelope.breaking, drawn)
    )


def _chosen(
    pools: dict[int, tuple[Tensor, Tensor]], worth: np.ndarray, draws: int
) -> tuple[Tensor, Tensor]:
    """Cases by their probability, and for each a point of its pool by its weight."""
    names = torch.tensor(list(pools))
    share = torch.softmax(torch.as_tensor(worth)[names], 0)
    case = names[torch.multinomial(share, draws, replacement=True)]
    point = torch.empty(draws, POINT, dtype=torch.float64)
    for i, (points, weights) in pools.items():
        here = case == i
        if here.any():
            picked = torch.multinomial(weights, int(here.sum()), replacement=True)
            point[here] = points[picked]
    return case, point


def _spread_out(operations: Operations, case: Tensor, origin: Tensor) -> Tensor:
    """Origins all over the cell: those that it repeats are as probable, and along some lines nothing changes."""
    found = torch.empty_like(origin)
    like = operations.like[case]
    for i in like.unique().tolist():
        here = like == i
        repeats = torch.as_tensor(operations.same[i] / GRID)
        again = repeats[torch.randint(len(repeats), (int(here.sum()),))]
        lines = torch.as_tensor(operations.lines[i], dtype=torch.float64)
        along = torch.rand(int(here.sum()), 2, dtype=torch.float64) @ lines
        found[here] = origin[here] + again + along
    return found - found.floor()


class Fitted(NamedTuple):
    """What least squares leave of the coefficients, without any prior of the motif.

    Attributes:
        misfit: sum of the squares of what the group cannot explain, over the variance, at the best origin, (setting).
        free: parameters of the motif and of its origin, (setting).
    """

    misfit: np.ndarray
    free: np.ndarray


def least_squares(operations: Operations, measured: Measured, envelope: Envelope) -> Fitted:
    """The residual of each setting, with the noise and the blur of an envelope.

    The geometric criterion of Akaike is misfit + 2 free.
    """
    flat = envelope._replace(
        scale=LOUD * measured.value.abs().max(), decay=torch.zeros_like(envelope.decay)
    )
    problem = Problem(operations, measured, Priors([float(value) for value in flat]))
    start = torch.zeros(POINT, dtype=torch.float64)
    with torch.no_grad():
        setting, point = _starts(problem, start)
        x, weight = _weighted(measured, flat)
        explained = (x.conj() * operations.project(setting, point[:, :2], x)).real
        mean = operations.over_orbit(setting, weight)
        explained = torch.where(mean > 0, explained / mean, 0.0).sum(-1)
        best = torch.zeros(len(SETTINGS), dtype=torch.float64)
        best = best.scatter_reduce(0, setting, explained, "amax", include_self=False)
        sigma = envelope.noise * measured.noise
        total = (measured.counts[:, None] * (measured.value / sigma[:, None]) ** 2).sum()
        seen = operations.over_orbit(torch.arange(len(best)), measured.counts) > 0
        free = (operations.rank * seen).sum(1).numpy() + operations.moves.sum(1)
    return Fitted((total - best).clamp(min=0.0).numpy(), free)
