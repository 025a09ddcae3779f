"""Point groups of a site: which ones its shells admit, which of them look alike, and the evidence of each.

Neighbour vectors are complex numbers v. A nominal arrangement has them at angles φ in *orbits* of M slots, M the
number of neighbours in the first shell. In the *harmonics* V_h = Σ v exp(-ihφ) / √M of an orbit a rotation by 2π/M
multiplies by exp(2πi(1 - h)/M), and the mirror line at angle kπ/M maps V_h to exp(2πik(1 - h)/M) times the conjugate of
its mirror orbit's. So the group C_n leaves h = 1 (mod n) as it is, and D_n of these the half that is its own mirror
image. The motif itself is real and has h = 1 only; an error of the centre's position has h = 0 only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["ODD", "Arrangement", "Group", "Site", "circle", "distinct_groups", "operations"]

# The outer nodes of Gauss and Hermite's rule of three, and their weights for a plain integral. On a peak of curvature
# 60, as wide as bonds known to an eighth of their length make it, the integral is right to 1e-4.
NODE = math.sqrt(1.5)
OUTER, MIDDLE = math.exp(1.5) / 6 / math.sqrt(math.pi), 2 / 3 / math.sqrt(math.pi)
# The least curvature, as a share of the largest that is possible: two peaks that merge have none.
FLAT = 0.03
NEWTON = 2
# Of an exponent above the peak that was found; neighbours that fit nothing may have a higher one elsewhere.
HIGHEST = 300.0
# Against division by zero; a trace takes what single precision cannot hold for nothing.
TINY = 1e-30
# The name of a site whose neighbours are not this arrangement at all.
ODD = "odd"


@dataclass(frozen=True)
class Group:
    """A hypothesis: one point group in one setting, or two that the shells cannot tell apart.

    Attributes:
        name: such as `C3`, `D1a` or `C3/D3`; `a` has a mirror line through an atom of the first shell, `b` between two.
        order: n, the order of the rotation.
        axes: k of mirror lines at kπ/M that can be told apart only by the slots' numbers; none for C_n.
    """

    name: str
    order: int
    axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Arrangement:
    """Slots of a nominal arrangement.

    Attributes:
        first: M, slots of the first shell.
        second: slots of the second shell, a multiple of M.
        turned: by how much of its step the second shell is turned against the first, 0 or 0.5.
    """

    first: int
    second: int = 0
    turned: float = 0.0

    @classmethod
    def of(cls, shell: np.ndarray, angle: np.ndarray) -> Arrangement:
        """The arrangement of data of kind `shells`."""
        second = int((shell == 1).sum())
        step = 2 * math.pi / max(second, 1)
        turned = float(angle[shell == 1][0] / step) if second else 0.0
        return cls(int((shell == 0).sum()), second, round(2 * turned) / 2 % 1)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self.first + self.second

    @property
    def orbits(self) -> tuple[int, ...]:
        """Number of orbits of every shell."""
        return (1, self.second // self.first) if self.second else (1,)

    @cached_property
    def members(self) -> np.ndarray:
        """Slots of every orbit, (orbit, M)."""
        rows = [np.arange(self.first)]
        count = self.second // self.first
        rows += [self.first + i + count * np.arange(self.first) for i in range(count)]
        return np.stack(rows)

    @cached_property
    def angle(self) -> np.ndarray:
        """Nominal angle of every slot."""
        outer = (np.arange(self.second) + self.turned) / max(self.second, 1)
        return 2 * np.pi * np.concatenate([np.arange(self.first) / self.first, outer])

    @cached_property
    def mirrored(self) -> list[int]:
        """The orbit that the mirror line through slot 0 puts in each orbit's place."""
        starts = self.angle[self.members[:, 0]]
        step = 2 * np.pi / self.first
        apart = np.abs((starts[:, None] + starts[None] + step / 2) % step - step / 2)
        # Orbits of different shells do not replace each other, whatever their angles.
        shell = np.repeat(range(len(self.orbits)), self.orbits)
        apart[shell[:, None] != shell[None]] = np.inf
        return [int(i) for i in apart.argmin(1)]

    @cached_property
    def basis(self) -> np.ndarray:
        """exp(-ihφ) / √M, (orbit, h, slot of the orbit)."""
        angle = self.angle[self.members]
        harmonic = np.arange(self.first)[None, :, None]
        return np.asarray(np.exp(-1j * harmonic * angle[:, None]) / math.sqrt(self.first))

    def kept(self, group: Group) -> np.ndarray:
        """Whether C_n leaves each harmonic as it is."""
        return np.asarray((np.arange(self.first) - 1) % group.order == 0)

    def phases(self, axis: int) -> np.ndarray:
        """What a mirror line at kπ/M multiplies each harmonic's conjugate by."""
        return np.asarray(np.exp(2j * np.pi * axis * (1 - np.arange(self.first)) / self.first))


def operations(arrangement: Arrangement, group: Group, axis: int = 0) -> Iterator[np.ndarray]:
    """Matrices of a group's elements on all neighbour vectors, (2 slots, 2 slots), x before y in each slot.

    Raises:
        ValueError: when an element does not map slots onto slots.
    """
    angle, shell = arrangement.angle, np.repeat([0, 1], [arrangement.first, arrangement.second])
    turns = 2 * np.pi * np.arange(group.order) / group.order
    elements = [(turn, 1) for turn in turns]
    elements += [(turn + 2 * np.pi * axis / arrangement.first, -1) for turn in turns if group.axes]
    for turn, hand in elements:
        apart = np.abs(np.exp(1j * (turn + hand * angle))[:, None] - np.exp(1j * angle)[None])
        apart[shell[:, None] != shell[None]] = np.inf
        if apart.min(1).max() > 1e-6:
            raise ValueError(f"{group.name} does not map these slots onto each other")
        permutation = np.zeros((len(angle), len(angle)))
        permutation[apart.argmin(1), np.arange(len(angle))] = 1
        cos, sin = np.cos(turn), np.sin(turn)
        yield np.kron(permutation, np.array([[cos, -hand * sin], [sin, hand * cos]]))


@lru_cache(maxsize=64)
def distinct_groups(arrangement: Arrangement) -> tuple[Group, ...]:
    """The groups that an arrangement admits, those that look alike as one.

    Two look alike when each can bring about what the other leaves as it is, up to orientation and the numbering of
    slots: that is tested on a random member of either.
    """
    found: list[Group] = []
    for group in _admitted(arrangement):
        twin = next((i for i, g in enumerate(found) if _alike(arrangement, g, group)), None)
        if twin is None:
            found.append(group)
        elif not found[twin].axes:
            # The mirror is for free, since the freedom that C_n has besides is the orientation.
            name = f"{found[twin].name}/{group.name}"
            found[twin] = Group(name, group.order, group.axes)
    return tuple(found)


def _admitted(arrangement: Arrangement) -> Iterator[Group]:
    """Every point group that maps the slots onto themselves, mirror lines through slot 0 first."""
    m = arrangement.first
    orders = [n for n in range(1, m + 1) if _maps(arrangement, Group(f"C{n}", n))]
    yield from (Group(f"C{n}", n) for n in orders)
    for n in orders:
        between = range(m // n)
        settings = [tuple(k for k in between if k % 2 == s) for s in (0, 1)]
        # An odd number of mirror lines between two of the group's own: renumbering the slots reaches them all.
        if (m // n) % 2:
            settings = [tuple(between)]
        for axes, letter in zip(settings, "ab", strict=False):
            yield Group(f"D{n}{letter}" if len(settings) > 1 else f"D{n}", n, axes)


def _maps(arrangement: Arrangement, group: Group) -> bool:
    try:
        return bool(list(operations(arrangement, group)))
    except ValueError:
        return False


def _alike(arrangement: Arrangement, one: Group, other: Group) -> bool:
    """Whether two groups leave the same shells as they are, up to orientation and numbering."""
    rng = np.random.default_rng(0)
    pairs = ((one, other), (other, one))
    return all(_misfit(arrangement, _member(arrangement, a, rng), b) < 1e-9 for a, b in pairs)


def _member(arrangement: Arrangement, group: Group, rng: np.random.Generator) -> np.ndarray:
    """Harmonics (orbit, h) of a random shell with this symmetry."""
    shape = (len(arrangement.members), arrangement.first)
    v = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    v[:, 1] += 10.0
    v = v * arrangement.kept(group)
    if group.axes:
        mirror = arrangement.phases(group.axes[0]) * v[arrangement.mirrored].conj()
        v = 0.5 * (v + mirror)
    return np.asarray(v)


def _misfit(arrangement: Arrangement, v: np.ndarray, group: Group) -> float:
    """Share of a shell's square that is not symmetric, at the best orientation and numbering."""
    kept = arrangement.kept(group)
    total, inside = np.sum(np.abs(v) ** 2), np.sum(np.abs(v[:, kept]) ** 2)
    best = inside
    if group.axes:
        pairs = (v * v[arrangement.mirrored]).sum(0)[kept]
        turned = [abs(np.sum(arrangement.phases(k).conj()[kept] * pairs)) for k in group.axes]
        best = 0.5 * (inside + max(turned))
    return float((total - best) / total)


def circle(b: tuple[Tensor, Tensor], c: tuple[Tensor, Tensor]) -> Tensor:
    """Log of the mean over θ of exp(Re[b exp(-iθ)] + Re[c exp(-2iθ)]), by quadrature on its highest peak.

    Of two peaks, the one opposite weighs exp(-2|b|) and is left out. |b| is the square of the bond over the variance of
    a neighbour: it is small only where neighbours fit no regular arrangement, and there the log is off by that of two.
    """
    (br, bi), (cr, ci) = b, c
    with torch.no_grad():
        u = _peak(br, bi, cr, ci)
    b0, b1, c0, c1 = _seen_from(u, br, bi, cr, ci)
    with torch.no_grad():
        # In s = tan(δ/2), δ being the way from the peak, nodes need no sine.
        width = torch.rsqrt(2 * _curvature(b0, b1, c0, c1))
        s = NODE * width
        scale = 1 / (1 + s * s)
        cos, sin = (1 - s * s) * scale, 2 * s * scale
        cos2, sin2 = cos * cos - sin * sin, 2 * cos * sin
        outer = OUTER * scale
    even = b0 * (cos - 1) + c0 * (cos2 - 1)
    odd = b1 * sin + c1 * sin2
    sides = torch.exp((even + odd).clamp(max=HIGHEST)) + torch.exp((even - odd).clamp(max=HIGHEST))
    return torch.log((MIDDLE + outer * sides) * width) + b0 + c0


def _seen_from(
    u: tuple[Tensor, Tensor], br: Tensor, bi: Tensor, cr: Tensor, ci: Tensor
) -> tuple[Tensor, ...]:
    """Both coefficients turned back by θ, where u = exp(iθ): b exp(-iθ) and c exp(-2iθ)."""
    x, y = u
    x2, y2 = x * x - y * y, 2 * x * y
    return br * x + bi * y, bi * x - br * y, cr * x2 + ci * y2, ci * x2 - cr * y2


def _peak(br: Tensor, bi: Tensor, cr: Tensor, ci: Tensor) -> tuple[Tensor, Tensor]:
    """Where the highest peak is: between the peaks of either term, each pulling with its curvature."""
    size = torch.sqrt(cr * cr + ci * ci) + TINY
    x = torch.sqrt((0.5 + 0.5 * cr / size).clamp(min=0))
    y = torch.copysign(torch.sqrt((0.5 - 0.5 * cr / size).clamp(min=0)), ci)
    # A second term that has no peak near that of the first only widens it.
    agree = cr * (br * br - bi * bi) + 2 * ci * br * bi > 0
    pull = 4 * torch.copysign(size * agree, br * x + bi * y)
    x, y = br + pull * x, bi + pull * y
    scale = torch.rsqrt(x * x + y * y + TINY)
    x, y = x * scale, y * scale
    # What is left is of third order in the angle between the two; each of Newton's steps takes the third power.
    for _ in range(NEWTON):
        b0, b1, c0, c1 = _seen_from((x, y), br, bi, cr, ci)
        t = 0.5 * ((b1 + 2 * c1) / _curvature(b0, b1, c0, c1)).clamp(-0.25, 0.25)
        scale = 1 / (1 + t * t)
        cos, sin = (1 - t * t) * scale, 2 * t * scale
        x, y = x * cos - y * sin, y * cos + x * sin
    return x, y


def _curvature(b0: Tensor, b1: Tensor, c0: Tensor, c1: Tensor) -> Tensor:
    largest = torch.sqrt(b0 * b0 + b1 * b1) + 4 * torch.sqrt(c0 * c0 + c1 * c1)
    return torch.maximum(b0 + 4 * c0, FLAT * largest + FLAT)


@dataclass(frozen=True)
class Site:
    """What all atoms have in common, for the evidence of every group.

    Attributes:
        arrangement: nominal slots.
        radius: nominal distance of each shell, (shell,).
        breath: standard deviation of what every group allows, such as a longer bond, τ₀.
        spread: standard deviation of what a lower group allows besides, τ.
        polar: the same of the first shell as a whole against the centre.
        odd: the same, and much wider, for a site whose neighbours are not this arrangement.
        noise: standard deviation of every position beyond its measurement error.
    """

    arrangement: Arrangement
    radius: Tensor
    breath: Tensor
    spread: Tensor
    polar: Tensor
    odd: Tensor
    noise: Tensor

    def evidence(
        self,
        seen: Tensor,
        back: Tensor,
        centre: Tensor,
        shells: Tensor,
        shift: Tensor | None = None,
        nudge: Tensor | None = None,
    ) -> Tensor:
        """Log evidence of every hypothesis for every atom, (hypothesis, atom), orientation and numbering summed out.

        The template of a site differs from the motif by `breath` in what the highest group allows, and by `spread` in
        what its own group allows besides, by `polar` where the first shell moves as a whole; a turn of all shells
        together is the orientation, and none of that.

        Args:
            seen: neighbour vectors as seen, (atom, slot, 2).
            back: matrices that undo the distortion, (atom, 2, 2) or (1, 2, 2).
            centre: variance of each atom's own position, (atom,).
            shells: variance of its neighbours' positions by shell, (atom, shell).
            shift: of the first shell as a whole as it is seen, (atom, 2).
            nudge: added to the linear term in the orientation, (2, atom); its gradient is the mean of (cos θ, sin θ).
        """
        real, imaginary = self._undone(seen, back)
        if shift is not None:
            # It is the same in all slots, and so a matter of h = 0 alone.
            moved = math.sqrt(self.arrangement.first) * (back @ shift[..., None])[..., 0].mT
            real, imaginary = (_less(p, m) for p, m in zip((real, imaginary), moved, strict=True))
        variance = self.noise**2 + shells.mT
        widths = (0.0, self.breath, self.spread, self.odd)
        told, known, free, loose = (1 / (variance + width**2) for width in widths)
        moving = torch.cat([1 / (variance[:1] + self.polar**2), free[1:]])
        squares = self._by_shell(real**2 + imaginary**2)
        sums = [self._by_shell(part[:, 0]) for part in (real, imaginary)]
        motif = [self._by_shell(part[:, 1]) for part in (real, imaginary)]
        common = self.arrangement.first * (self.noise**2 + centre)
        held, freed, whole, adrift = (
            self._gaussian(p, squares, common, sums) for p in (told, free, moving, loose)
        )
        # Only h = 0 moves a shell as a whole.
        freed = _Gaussian(torch.cat([whole.log[:1], freed.log[1:]]), whole.cross)
        breathing = self._one(known, squares[:, 1]) - held.log[1]
        twist = self._twist(free, motif)
        gain = freed.log - held.log
        pairs = self._pairs(
            (real, imaginary), told, free, moving, known, (freed.cross, held.cross, twist.cross)
        )
        b = self._oriented(known, motif, nudge)
        by_group = self._by_group(gain, breathing, gain[1] + twist.log, b, pairs)
        regular = _added(held.log) + self._motif(known) + by_group
        odd = (
            _added(adrift.log) + self._motif(loose) + _turning(self._oriented(loose, motif, nudge))
        )
        jacobian = self.arrangement.slots * torch.log(torch.abs(_determinant(back)) / (2 * math.pi))
        return torch.cat([regular, odd[None]]) + jacobian

    def _undone(self, seen: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of the harmonics (orbit, h, atom) of vectors without the distortion."""
        shape = self.arrangement
        basis = shape.basis
        cos, sin = torch.as_tensor(basis.real.copy()), torch.as_tensor(basis.imag.copy())
        x, y = seen.movedim(-3, -1)[torch.as_tensor(shape.members)].unbind(2)
        # Of v and of its conjugate, which a matrix mixes: M v = α v + β v*.
        cx, sx, cy, sy = cos @ x, sin @ x, cos @ y, sin @ y
        v, w = (cx - sy, cy + sx), (cx + sy, sx - cy)
        m = back.movedim(-3, -1)
        alpha = 0.5 * (m[0, 0] + m[1, 1]), 0.5 * (m[1, 0] - m[0, 1])
        beta = 0.5 * (m[0, 0] - m[1, 1]), 0.5 * (m[1, 0] + m[0, 1])
        real = alpha[0] * v[0] - alpha[1] * v[1] + beta[0] * w[0] - beta[1] * w[1]
        imaginary = alpha[0] * v[1] + alpha[1] * v[0] + beta[0] * w[1] + beta[1] * w[0]
        return real, imaginary

    def _by_shell(self, values: Tensor) -> Tensor:
        """Sums over the orbits (at axis 0) of every shell."""
        if len(self.arrangement.orbits) == 1:
            return values
        return torch.stack([values[0], _added(values[1:])])

    def _over_orbits(self, values: Tensor) -> Tensor:
        """The sum of what is the same for all orbits of a shell, shells at axis -2."""
        first, *others = values.unbind(-2)
        orbits = self.arrangement.orbits[1:]
        return sum((n * value for n, value in zip(orbits, others, strict=True)), first)

    def _gaussian(
        self, precision: Tensor, squares: Tensor, common: Tensor, sums: list[Tensor]
    ) -> _Gaussian:
        """Log density of every harmonic (h, atom), with a variance that all slots share added to h = 0."""
        log = self._over_orbits(torch.log(precision)) - 0.5 * _added(precision[:, None] * squares)
        # Woodbury's identity for a correction of rank one.
        grown = 1 + common * self._over_orbits(precision)
        kappa = common / grown
        x, y = (_added(precision * part) for part in sums)
        extra = 0.5 * kappa * (x * x + y * y) - torch.log(grown)
        squared = kappa * (x * x - y * y), kappa * 2 * x * y
        return _Gaussian(torch.cat([log[:1] + extra, log[1:]]), squared)

    def _one(self, precision: Tensor, squares: Tensor) -> Tensor:
        """Log density of one harmonic (atom,) by its squares (shell, atom)."""
        return self._over_orbits(torch.log(precision)) - 0.5 * _added(precision * squares)

    def _twist(self, free: Tensor, motif: list[Tensor]) -> _Gaussian:
        """What a group without mirror lines has less than `free`, since the turn of all shells is the orientation."""
        unit = self.radius[:, None] / torch.sqrt(self._over_orbits(self.radius[:, None] ** 2))
        less = self.spread**2 - self.breath**2
        left = 1 - less * self._over_orbits(unit**2 * free)
        gamma = less / left
        weight = free * unit
        x, y = (_added(weight * part) for part in motif)
        log = -torch.log(left) - 0.5 * gamma * (x * x + y * y)
        return _Gaussian(log, (gamma * (x * x - y * y), gamma * 2 * x * y))

    def _pairs(
        self,
        harmonics: tuple[Tensor, Tensor],
        told: Tensor,
        free: Tensor,
        moving: Tensor,
        known: Tensor,
        crosses: tuple[tuple[Tensor, Tensor], ...],
    ) -> tuple[Tensor, Tensor]:
        """A quarter of Σ V V′ of mirror images, each by the precision that its own image loses against the other.

        One row a harmonic for groups with mirror lines, and a last one for those without, where h = 1 may twist.
        """
        real, imaginary = harmonics
        x, y = real[self.arrangement.mirrored], imaginary[self.arrangement.mirrored]
        cross = real * x - imaginary * y, real * y + imaginary * x
        found = []
        for part, one, other, extra in zip(cross, *crosses, strict=True):
            by_shell = self._by_shell(part)
            rows = _added((told - free)[:, None] * by_shell)
            breathing = _added((told - known) * by_shell[:, 1])
            twisting = _added((free - known) * by_shell[:, 1]) + extra
            whole = _added((told - moving) * by_shell[:, 0])[None] + one - other
            parts = [whole, breathing[None], rows[2:], twisting[None]]
            found.append(0.25 * torch.cat(parts))
        return found[0], found[1]

    def _oriented(self, precision: Tensor, motif: list[Tensor], nudge: Tensor | None) -> Tensor:
        """The linear term in the orientation, as (2, atom): the motif against what is seen of it."""
        weight = precision * self.radius[:, None] * math.sqrt(self.arrangement.first)
        b = torch.stack([_added(weight * part) for part in motif])
        return b if nudge is None else b + nudge

    def _motif(self, precision: Tensor) -> Tensor:
        """The motif's own square, by precision."""
        square = self._over_orbits(self.radius[:, None] ** 2 * precision)
        return -0.5 * self.arrangement.first * square

    def _by_group(
        self,
        gain: Tensor,
        breathing: Tensor,
        twisting: Tensor,
        b: Tensor,
        pairs: tuple[Tensor, Tensor],
    ) -> Tensor:
        """What each group gains by what it leaves free, the orientation integrated out, (group, atom)."""
        shape, groups = self.arrangement, distinct_groups(self.arrangement)
        # Of a group with mirror lines half of each harmonic is free; of h = 1 one half is everyone's.
        share = np.stack([shape.kept(g) * (0.5 if g.axes else 1.0) for g in groups])
        share[:, 1] = [0.0 if g.axes else 0.5 for g in groups]
        gain = torch.cat([gain[:1], twisting[None], gain[2:]])
        freed = torch.as_tensor(share) @ gain + 0.5 * breathing
        lines = [shape.phases(k).conj() * shape.kept(g) for g in groups for k in g.axes]
        wheel = np.pad(np.stack(lines), ((0, 1), (0, 1)))
        wheel[-1, -1] = 1.0
        cos, sin = torch.as_tensor(wheel.real.copy()), torch.as_tensor(wheel.imag.copy())
        c = cos @ pairs[0] - sin @ pairs[1], cos @ pairs[1] + sin @ pairs[0]
        *lines, turning = circle((b[0], b[1]), c).split(
            [*(len(g.axes) for g in groups if g.axes), 1]
        )
        mirrored = iter(lines)
        oriented = [_mean(next(mirrored)) if group.axes else turning[0] for group in groups]
        return freed + torch.stack(oriented)


class _Gaussian(NamedTuple):
    """Log densities of the harmonics, and what the common variance adds to V² of h = 0."""

    log: Tensor
    cross: tuple[Tensor, Tensor]


def _added(values: Tensor) -> Tensor:
    """The sum over a short first axis, several times as quick as Torch's own."""
    first, *others = values.unbind(0)
    return sum(others, first)


def _less(harmonics: Tensor, moved: Tensor) -> Tensor:
    """Harmonics without a shift of the first orbit."""
    first = harmonics[:1]
    left = torch.cat([first[:, :1] - moved, first[:, 1:]], 1)
    return torch.cat([left, harmonics[1:]])


def _mean(logs: Tensor) -> Tensor:
    """Log of the mean over the first axis."""
    return logs[0] if len(logs) == 1 else torch.logsumexp(logs, 0) - math.log(len(logs))


def _turning(b: Tensor) -> Tensor:
    """Log of the mean over θ of exp(Re[b exp(-iθ)])."""
    size = torch.sqrt((b * b).sum(0) + TINY)
    return torch.log(torch.special.i0e(size)) + size


def _determinant(back: Tensor) -> Tensor:
    return back[..., 0, 0] * back[..., 1, 1] - back[..., 0, 1] * back[..., 1, 0]
