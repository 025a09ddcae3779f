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

What is left, the origin and the parameters of the envelope and of the noise, is integrated by importance sampling
from Student distributions at the modes, so that every evidence comes with its error.

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

from ...datasets.plane_groups import SETTINGS, Setting

__all__ = [
    "Envelope",
    "Fitted",
    "Measured",
    "Operations",
    "Priors",
    "Weighed",
    "least_squares",
    "log_density",
    "spread",
    "transfer",
    "weigh",
]

# Points of the search for the origin along each axis; halves, thirds, quarters and sixths are among them.
GRID = 96
# Origins followed up for each setting, and steps of Newton's method, which near its end doubles the digits.
STARTS, STEPS = 4, 12
# Nats, or part of the cell, by which a step must gain or go to be followed by another.
CLOSE = 1e-9
# Settings and modes so far below the best, in nats, are not refined: their share is below e^-40 however refined.
HOPELESS, FAINT = 80.0, 25.0
# Draws for each setting's evidence, in Student distributions of so many degrees of freedom: heavier tails than any
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
        partner: where hR stands in the list (F, F*, 0), (setting, operation, reflection).
        phase: h·v with the origin where the tables have it.
        frequency: h − hR, by which the phase turns with the origin, (setting, operation, reflection, 2).
        share: 1/|G|, 0 where padded, (setting, operation).
        order: |G|.
        rank: of an orbit's projector, shared out among its reflections that are listed, (setting, reflection).
    """

    def __init__(self, index: np.ndarray, settings: tuple[Setting, ...] = SETTINGS) -> None:
        most, count = max(s.order for s in settings), len(index)
        shape = (len(settings), most, count)
        self.settings, self.count = settings, count
        partner, phase = np.full(shape, 2 * count), np.zeros(shape)
        frequency, share = np.zeros((*shape, 2)), np.zeros(shape[:2])
        place = {tuple(h): i for i, h in enumerate(index.tolist())}
        place |= {tuple(-x for x in h): i + count for h, i in list(place.items())}
        for i, setting in enumerate(settings):
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
        self.order = torch.as_tensor([float(s.order) for s in settings], dtype=torch.float64)
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
        return np.array([_moves(setting) for setting in self.settings])

    @cached_property
    def lines(self) -> np.ndarray:
        """Steps of the origin along which nothing changes, (setting, 2, 2), zero where there are fewer than two."""
        return np.array([_lines(setting) for setting in self.settings])

    @cached_property
    def same(self) -> list[np.ndarray]:
        """Shifts of the origin that change nothing, in points of the grid, among those along which it is sought."""
        return [_same(s, moves) for s, moves in zip(self.settings, self.moves, strict=True)]


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
    """

    scale: Tensor
    decay: Tensor
    noise: Tensor
    blur: Tensor
    blur_diagonal: Tensor


POINT = 2 + len(Envelope._fields)


def spread(operations: Operations, setting: Tensor, wave: Tensor, envelope: Envelope) -> Tensor:
    """√|G| τ at the mean wave of each orbit, (..., reflection)."""
    square = wave[:, 0]
    ones = torch.ones_like(square)
    mean = operations.over_orbit(setting, square) / operations.over_orbit(setting, ones)
    tau = envelope.scale[..., None] * torch.exp(-envelope.decay[..., None] * mean)
    return operations.order[setting][..., None].sqrt() * tau


def transfer(wave: Tensor, envelope: Envelope) -> Tensor:
    """What a blur that differs between directions leaves of each coefficient, (..., reflection)."""
    along = envelope.blur[..., None] * wave[:, 1] + envelope.blur_diagonal[..., None] * wave[:, 2]
    return torch.exp(-along)


def log_density(
    operations: Operations,
    setting: Tensor,
    origin: Tensor,
    measured: Measured,
    envelope: Envelope,
) -> Tensor:
    """Log of p(F | G, t, envelope), the motif integrated out.

    Args:
        operations: of all settings.
        setting: which one, (...).
        origin: (..., 2).
        measured: the coefficients.
        envelope: each parameter (...).
    """
    power = spread(operations, setting, measured.wave, envelope) ** 2
    x, weight = _weighted(measured, envelope)
    mean = operations.over_orbit(setting, weight)
    gain = power / (1 + power * mean)
    explained = (x.conj() * operations.project(setting, origin, x)).real
    cost = operations.rank[setting] * torch.log1p(power * mean)
    sigma = envelope.noise[..., None] * measured.noise
    alone = measured.value.square().sum(-1) / sigma**2 + 2 * torch.log(2 * torch.pi * sigma**2)
    return 0.5 * (gain * explained - cost - measured.counts * alone).sum(-1)


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

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of points of the line."""
        total = z.new_zeros(z.shape[:-1])
        for i, (entry, bend) in enumerate(zip(self.entries, self.bend, strict=True)):
            if bend is not None:
                value = bend(z[..., i])
                jacobian = bend.log_abs_det_jacobian(z[..., i], value)
                total = total + entry.log_prob(value) + jacobian
        return total

    def middle(self) -> Tensor:
        """A point of the line to start from: the median of 255 draws of each."""
        start = torch.zeros(len(self.entries), dtype=torch.float64)
        for i, (entry, bend) in enumerate(zip(self.entries, self.bend, strict=True)):
            if bend is not None:
                start[i] = bend.inv(entry.sample((255,)).median())
        return start


class Weighed(NamedTuple):
    """What is known of every setting.

    Attributes:
        log_evidence: log p(F | setting), the origin and the envelope integrated out, (setting).
        error: its standard error; nothing where the setting was hopeless and no draw was spent on it.
        setting: of each draw from the posterior, (draw).
        origin: (draw, 2).
        envelope: each parameter (draw).
    """

    log_evidence: np.ndarray
    error: np.ndarray
    setting: Tensor
    origin: Tensor
    envelope: Envelope


class Problem(NamedTuple):
    """Everything that the log joint of a point (origin, z) needs; the origin's prior is uniform over the cell."""

    operations: Operations
    measured: Measured
    priors: Priors

    def log_joint(self, setting: Tensor, point: Tensor) -> Tensor:
        """Log of p(F, envelope | G, t) at points (..., coordinate), the origin first."""
        z = point[..., 2:]
        of_data = log_density(
            self.operations, setting, point[..., :2], self.measured, self.priors.envelope(z)
        )
        return of_data + self.priors.log_prob(z)


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
    """Evidence of every setting, and draws of setting, origin and envelope.

    Args:
        operations: of all settings.
        measured: the coefficients.
        priors: of the envelope.
        log_prior: log probability of each setting before the coefficients are seen.
        draws: draws of the posterior.
        seed: of the draws.
        proposals: draws spent on the evidence of a setting.
    """
    problem = Problem(operations, measured, priors)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        modes = _modes(problem, torch.as_tensor(log_prior))
        return _sampled(problem, modes, log_prior, draws, proposals)


def _starts(problem: Problem, start: Tensor) -> tuple[Tensor, Tensor]:
    """For each setting the best origins, with the envelope as it is at a point."""
    settings, points = [], []
    for setting in range(len(problem.operations.settings)):
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
    power = spread(operations, which, measured.wave, envelope) ** 2
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
    problem: Problem, setting: Tensor, point: Tensor, moving: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's method along the coordinates that move: the points reached, their log joints and Hessians."""
    value = problem.log_joint(setting, point)
    shrink = 0.5 ** torch.arange(0, 10, 2, dtype=torch.float64)
    # Half a point of the grid, and a factor of e: farther the parabola is not believed.
    most = torch.tensor([0.5 / GRID] * 2 + [1.0] * (POINT - 2), dtype=torch.float64)
    for _ in range(STEPS):
        gradient, hessian = _derivatives(problem, setting, point)
        gradient = torch.where(moving, gradient, 0.0)
        level, axes = torch.linalg.eigh(_only(hessian, moving))
        # Uphill also where the density is not concave.
        along = (axes.mT @ gradient[..., None])[..., 0] / level.abs().clamp(min=1e-3)
        step = (axes @ along[..., None])[..., 0]
        step = step / (step.abs() / most).amax(-1, keepdim=True).clamp(min=1.0)
        tried = point + shrink[:, None, None] * step
        values = problem.log_joint(setting.expand(len(shrink), -1), tried)
        values, which = torch.nan_to_num(values, nan=-torch.inf).max(0)
        better = values > value
        point = torch.where(better[:, None], tried[which, torch.arange(len(point))], point)
        gained = torch.where(better, values - value, 0.0)
        value = value + gained
        if gained.max() < CLOSE:
            break
    return point, value, _only(_derivatives(problem, setting, point)[1], moving)


def _derivatives(problem: Problem, setting: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the log joint at each point; points know nothing of each other."""
    with torch.enable_grad():
        at = point.detach().requires_grad_()
        total = problem.log_joint(setting, at).sum()
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
    """Places of high density: which setting, the point, the log joint and its Hessian there."""

    setting: Tensor
    point: Tensor
    value: Tensor
    hessian: Tensor

    def take(self, which: Tensor) -> _Modes:
        return _Modes(*(part[which] for part in self))


def _modes(problem: Problem, log_prior: Tensor) -> _Modes:
    """Modes of each setting, best first; those that matter refined in all coordinates."""
    envelope = torch.cat([torch.zeros(2, dtype=torch.bool), problem.priors.free])
    middle = torch.cat([torch.zeros(2, dtype=torch.float64), problem.priors.middle()])
    start, _, _ = _climb(problem, torch.zeros(1, dtype=torch.long), middle[None], envelope[None])
    setting, point = _starts(problem, start[0])
    moves = torch.as_tensor(problem.operations.moves)[setting]
    found = _Modes(setting, point, problem.log_joint(setting, point), _shallow(point))
    best = torch.full((len(log_prior),), -torch.inf, dtype=torch.float64)
    best = best.scatter_reduce(0, setting, found.value, "amax")
    hopeful = (best + log_prior >= (best + log_prior).max() - HOPELESS)[setting]
    worth = hopeful & (found.value >= best[setting] - FAINT)
    every = torch.cat([moves, problem.priors.free.expand(len(moves), -1)], 1)[worth]
    good = _Modes(setting[worth], *_climb(problem, setting[worth], found.point[worth], every))
    pairs = zip(good, found.take(~hopeful), strict=True)
    return _apart(problem, _Modes(*(torch.cat(pair) for pair in pairs)))


def _shallow(point: Tensor) -> Tensor:
    """Hessians of no use but that they are there, for settings that have no chance."""
    return -torch.eye(POINT, dtype=torch.float64).expand(len(point), POINT, POINT)


def _apart(problem: Problem, modes: _Modes) -> _Modes:
    """Each mode once, best first: two starts may have climbed one hill, or hills that the cell repeats."""
    modes = modes.take(torch.argsort(modes.value, descending=True))
    kept: list[int] = []
    for i, setting in enumerate(modes.setting.tolist()):
        others = [j for j in kept if int(modes.setting[j]) == setting]
        repeats = torch.as_tensor(problem.operations.same[setting] / GRID)
        off = modes.point[others, None, :2] + repeats - modes.point[i, :2]
        if not others or (off - off.round()).abs().amax(-1).min() > 0.5 / GRID:
            kept.append(i)
    return modes.take(torch.tensor(kept))


class _Proposal:
    """Student distributions around the modes of one setting, wrapped around what the cell repeats of the origin."""

    def __init__(self, problem: Problem, modes: _Modes) -> None:
        self.problem, self.setting = problem, int(modes.setting[0])
        self.moves = torch.as_tensor(problem.operations.moves[self.setting])
        self.free = torch.cat([self.moves, problem.priors.free])
        self.point, self.known = modes.point[:, self.free], modes.point[0]
        self.repeats = problem.operations.same[self.setting] / GRID
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
            return point, self.problem.log_joint(torch.tensor(self.setting).expand(count), point)
        chosen = torch.multinomial(torch.softmax(self.rough, 0), count, replacement=True)
        moved = self.student.sample((count,))[torch.arange(count), chosen]
        point = self.known.repeat(count, 1)
        point[:, self.free] = moved
        told = self.problem.log_joint(torch.tensor(self.setting).expand(count), point)
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
    count = len(problem.operations.settings)
    evidence, error = np.full(count, -np.inf), np.full(count, np.nan)
    proposal = {
        i: _Proposal(problem, modes.take(modes.setting == i))
        for i in modes.setting.unique().tolist()
    }
    for i, one in proposal.items():
        evidence[i] = float(torch.logsumexp(one.rough, 0))
    worth = evidence + log_prior
    pools: dict[int, tuple[Tensor, Tensor]] = {}
    for i in np.flatnonzero(worth >= worth.max() - FAINT).tolist():
        point, weight = proposal[i].sample(proposals)
        share = torch.softmax(weight, 0)
        evidence[i] = float(torch.logsumexp(weight, 0) - np.log(proposals))
        error[i] = float((share.square().sum() - 1 / proposals).clamp(min=0.0).sqrt())
        pools[i] = point, share
    setting, point = _chosen(pools, evidence + log_prior, draws)
    origin = _spread_out(problem.operations, setting, point[:, :2])
    return Weighed(evidence, error, setting, origin, problem.priors.envelope(point[:, 2:]))


def _chosen(
    pools: dict[int, tuple[Tensor, Tensor]], worth: np.ndarray, draws: int
) -> tuple[Tensor, Tensor]:
    """Settings by their probability, and for each a point of its pool by its weight."""
    names = torch.tensor(list(pools))
    share = torch.softmax(torch.as_tensor(worth)[names], 0)
    setting = names[torch.multinomial(share, draws, replacement=True)]
    point = torch.empty(draws, POINT, dtype=torch.float64)
    for i, (points, weights) in pools.items():
        here = setting == i
        if here.any():
            picked = torch.multinomial(weights, int(here.sum()), replacement=True)
            point[here] = points[picked]
    return setting, point


def _spread_out(operations: Operations, setting: Tensor, origin: Tensor) -> Tensor:
    """Origins all over the cell: those that it repeats are as probable, and along some lines nothing changes."""
    found = torch.empty_like(origin)
    for i in setting.unique().tolist():
        here = setting == i
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
        best = torch.zeros(len(operations.settings), dtype=torch.float64)
        best = best.scatter_reduce(0, setting, explained, "amax", include_self=False)
        sigma = envelope.noise * measured.noise
        total = (measured.counts[:, None] * (measured.value / sigma[:, None]) ** 2).sum()
        seen = operations.over_orbit(torch.arange(len(best)), measured.counts) > 0
        free = (operations.rank * seen).sum(1).numpy() + operations.moves.sum(1)
    return Fitted((total - best).clamp(min=0.0).numpy(), free)
