"""How templates are laid over patterns of neighbours, and how likely a pattern is then.

A template's points t_k are turned by θ, each is seen with probability p, and clutter is strewn between. With an
assignment a that says which m of the n neighbours are which points, all atoms moved by v in each coordinate (the one in
the middle too, which moves the whole pattern), and y the neighbours with the scan's distortion M taken out,

    ∫ dθ/2π p(y, a | θ) = p^m (1 − p)^(K − m) λ^(n − m) e^(−λ|D|) |M|^(−m) (2πv)^(−m) (m + 1)^(−1)
                          · exp(−(S_yy + S_tt)/2v) I₀(|z|/v),   z = S_yt,

is exact: S are the sums of squares and products of the matched points about their means, a mean over m + 1 with the
middle counted as zero. What is left is the sum over assignments. Those that matter are found once, for they hardly
depend on the parameters; each then is a handful of numbers, and the likelihood a smooth function of the parameters.
The sum is a lower bound, and short of the whole only by what noise near half the distance of neighbours would add.

Points near the rim of the disc D may fall out of it, and points beyond it may fall in. For those within a sixth of the
radius from the rim p is lowered by the chance of that, on average over these points inside, and over those beyond.

Brightness: of m neighbours with a mark b_j, most differ from the template's β_j by a scatter s and by what the atom in
the middle differs from its like, of standard deviation `MIDDLE`. One in twenty is of another kind; its mark, and that
of clutter, is normal about zero with standard deviation `STRANGE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..priors import ModelError
from .templates import Library, Template

__all__ = [
    "Layout",
    "Overlay",
    "Parameters",
    "Table",
    "as_tensors",
    "first_contrast",
    "first_guess",
    "first_noise",
    "log_classes",
    "log_i0e",
    "log_strange",
    "overlay",
    "parameters",
]

# Scatter of log brightness of the atoms in the middle, and of neighbours that are none of the template's kind.
MIDDLE, STRANGE = 0.3, 1.0
# Powers of the templates' brightness that are tried, the plain one first.
CONTRASTS = (1.0, 0.4, 0.55, 0.75, 1.35, 1.8, 2.4, 3.3)
ODD = 0.05
# Points within this share of the radius from the rim may cross it; farther out they are not seen.
RIM = 1 / 6
# Where assignments are looked for: the chance to see a neighbour, and clutter relative to the neighbours' own density.
SEEN, STREWN = 0.98, 0.02
# Noise of an atom relative to the nearest distance, with which a sample of the patterns tells what it really is; at
# twice that patterns dissolve.
COARSE, SAMPLE = 0.12, 512
# A neighbour is given to a point nearer than this share of the nearest distance, if to any.
NEAR = 0.8
# Candidates beyond one for each class and terms kept for every atom, and how far they may be below the best, in natural
# logarithms: before anything is fitted, and after.
MORE, TERMS = 30, 12
ROUGHLY, FAR, NEGLIGIBLE = 12.0, 20.0, 12.0
# Angles that are tried, and what they must be apart (radians) to count as two; the step moves a neighbour at the rim of
# three shells by less than a tenth of the nearest distance.
ANGLES, DISTINCT = np.arange(60) * (2 * math.pi / 60), 0.25
# Angles that are kept for every template, and more for those of few points. Up to how many points that is.
WAYS, WAYS_OF_FEW, FEW = 2, 4, 6
# A map reaches so far, in radii.
REACH = 1.25
# Cells of a map along each axis; and, where patterns are turned, rings and directions, a few of them to a step. What is
# lost in these is small against how far candidates may be below the best.
CELLS = 160
RINGS, DIRECTIONS = 48, 180
# A scale or distortion farther from one is not believed when candidates are looked for, nor that of few patterns.
MOST_DISTORTED, ENOUGH = 0.25, 30
# Atoms and templates that are worked on together.
CHUNK, TEMPLATES = 1024, 16
# Of what counts as nothing: a number that single precision holds too, which compiled constants may have.
TINY, NOTHING, FAR_AWAY = 1e-30, -1e5, 1e6
# What is known of a term, in this order: sums of squares and products, what does not change, points that were seen,
# and the same of brightness.
FIGURES = (
    "yy_xx", "yy_xy", "yy_yy", "yt_xx", "yt_xy", "yt_yx", "yt_yy", "tt",
    "constant", "sure", "inner", "outer", "tolerance",
    "marks", "bb", "b_beta", "beta_beta", "b_mean", "beta_mean",
)  # fmt: skip
SQUARES, CONSTANT, SEEN_IN, TOLERANCE, MARKS = slice(0, 8), 8, slice(9, 12), 12, 13


@dataclass(frozen=True, eq=False)
class Layout:
    """The templates of a library as arrays, mirror images of chiral ones beside them.

    Attributes:
        radius: of the disc, in units of the templates.
        classes: number of classes that have templates.
        motif: class of every template.
        points: (template, point, 2), NaN where there is none.
        brightness: log, (template, point).
        tolerance: (template,).
        share: log of a template's share in its class.
        symmetry: order of its rotations.
        shape_symmetry: the same if all neighbours were equally bright.
        first: distances of the first shell of the first template.
    """

    radius: float
    classes: int
    motif: np.ndarray
    points: np.ndarray
    brightness: np.ndarray
    tolerance: np.ndarray
    share: np.ndarray
    symmetry: np.ndarray
    shape_symmetry: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, library: Library, radius: float) -> Layout:
        """Arrays of a library, without points that are never in the disc."""
        rows: list[tuple[int, Template, float]] = []
        for i, motif in enumerate(library.motifs):
            variants = [t for t in library.templates if t.motif == motif]
            for template in variants:
                images = [template, template.mirrored()] if template.chiral else [template]
                rows += [(i, image, -math.log(len(variants) * len(images))) for image in images]
        seen = [np.linalg.norm(t.points, axis=1) < radius * (1 + RIM) for _, t, _ in rows]
        most = max(int(s.sum()) for s in seen)
        if not all(s.any() for s in seen):
            bare = next(t.motif for (_, t, _), s in zip(rows, seen, strict=True) if not s.any())
            raise ModelError(
                f"no neighbour of the template {bare!r} of {library.name} is within the radius, {radius:.3g} in its "
                "units; take a larger radius, or give the unit of its lengths"
            )
        points = np.full((len(rows), most, 2), np.nan)
        brightness = np.zeros((len(rows), most))
        for row, ((_, template, _), s) in enumerate(zip(rows, seen, strict=True)):
            points[row, : s.sum()] = template.points[s]
            brightness[row, : s.sum()] = template.brightness[s]
        return cls(
            radius,
            len(library.motifs),
            np.array([i for i, _, _ in rows]),
            points,
            brightness,
            np.array([t.tolerance for _, t, _ in rows]),
            np.array([share for _, _, share in rows]),
            np.array([t.symmetry for _, t, _ in rows]),
            np.array([t.plain.symmetry for _, t, _ in rows]),
            library.templates[0].first_shell,
        )

    @cached_property
    def distance(self) -> np.ndarray:
        """Of every point from the middle, infinite where there is none."""
        return np.nan_to_num(np.linalg.norm(self.points, axis=2), nan=np.inf)

    @cached_property
    def complex(self) -> np.ndarray:
        """The points as complex numbers, far away where there is none."""
        return np.nan_to_num(self.points @ [1, 1j], nan=FAR_AWAY)

    @cached_property
    def nearest(self) -> np.ndarray:
        """Nearest point to every cell of a map, (template, cell)."""
        line = ((np.arange(CELLS) + 0.5) / CELLS * 2 - 1) * REACH * self.radius
        grid = (line + 1j * line[:, None]).ravel()
        found = [np.abs(grid[:, None] - points).argmin(1) for points in self.complex]
        return np.array(found)

    @cached_property
    def zones(self) -> np.ndarray:
        """Which points are well inside the disc, near its rim inside, and outside, (3, template, point)."""
        relative = self.distance / self.radius
        inside, sure, seen = relative < 1, relative <= 1 - RIM, relative < 1 + RIM
        return np.stack([sure, inside & ~sure, seen & ~inside])


class Templates(NamedTuple):
    """A layout as tensors; see there."""

    motif: Tensor
    points: Tensor
    distance: Tensor
    brightness: Tensor
    tolerance: Tensor
    share: Tensor
    zones: Tensor


@lru_cache(64)
def as_tensors(layout: Layout, device: torch.device) -> Templates:
    """The templates as tensors, made once for every device; points that are not there are far away."""
    arrays = (
        layout.motif,
        np.nan_to_num(layout.points, nan=FAR_AWAY),
        np.minimum(layout.distance, FAR_AWAY),
        layout.brightness,
        layout.tolerance,
        layout.share,
        layout.zones.astype(float),
    )
    return Templates(*(torch.tensor(array, device=device) for array in arrays))


@dataclass(frozen=True, eq=False)
class Overlay:
    """The terms of the sum over assignments, for every atom those that matter.

    Attributes:
        template: of every term, (atom, term).
        figures: its numbers, (atom, term, figure); the constant is `NOTHING` where there is no term.
        count: neighbours of every atom.
        angle: orientation of the template, (atom, term), in radians.
    """

    template: np.ndarray
    figures: np.ndarray
    count: np.ndarray
    angle: np.ndarray


@dataclass(frozen=True)
class _Patterns:
    """Neighbours as complex numbers.

    Attributes:
        raw: in nm, (atom, slot), zero where there is none.
        way: in units of the templates, distortion taken out.
        there: which slots are filled.
        marks: log brightness, where it counts.
        density: of neighbours, in units of the templates.
    """

    raw: np.ndarray
    way: np.ndarray
    there: np.ndarray
    marks: np.ndarray | None
    density: float

    def take(self, rows: Any) -> _Patterns:
        """Some of them."""
        marks = None if self.marks is None else self.marks[rows]
        return _Patterns(self.raw[rows], self.way[rows], self.there[rows], marks, self.density)


def first_guess(data: xr.Dataset, layout: Layout) -> np.ndarray:
    """Scale and distortion of the patterns relative to the templates, from their mean size and roundness."""
    unit = float(data["radius"]) / layout.radius
    ways = data["neighbour"].values[..., :2]
    there = (ways != 0).any(-1)
    distance = np.linalg.norm(ways, axis=-1)
    shell = distance[there.sum(1) >= len(layout.first), : len(layout.first)]
    scale = unit
    if len(shell) >= ENOUGH:
        found = float(np.median(shell.mean(1)) / layout.first.mean())
        scale = found if abs(math.log(found / unit)) < MOST_DISTORTED else unit
    square = np.einsum("nsi,nsj->ij", ways, ways)
    upper = np.eye(2)
    if len(shell) >= ENOUGH and np.linalg.det(square) > 0:
        square /= math.sqrt(np.linalg.det(square))
        c = math.sqrt(square[1, 1])
        b = square[0, 1] / c
        upper = np.array([[math.sqrt(max(square[0, 0] - b**2, 0.0)), b], [0.0, c]])
    if np.abs(upper - np.eye(2)).max() > MOST_DISTORTED:
        upper = np.eye(2)
    return scale * upper


def first_noise(data: xr.Dataset, layout: Layout) -> float:
    """About how far atoms are off their places in each coordinate, in nm."""
    guess = first_guess(data, layout)
    square = _noise(_undistorted(data, guess), layout, guess) * np.linalg.det(guess)
    return math.sqrt(abs(square))


def first_contrast(data: xr.Dataset, layout: Layout) -> float:
    """About what power of the templates' brightness the neighbours show."""
    guess = first_guess(data, layout)
    return _contrast(_undistorted(data, guess), layout, guess)


def overlay(data: xr.Dataset, layout: Layout) -> Overlay:
    """Lay every template over every pattern and keep what may matter."""
    guess = first_guess(data, layout)
    seen = _undistorted(data, guess)
    variance, contrast = _noise(seen, layout, guess), _contrast(seen, layout, guess)
    # A template lies up to half a step of the angle off.
    step = (layout.radius * ANGLES[1]) ** 2 / 24
    candidates = _candidates(seen, layout, variance + step)
    starts = range(0, len(seen.way), CHUNK)
    ends = np.searchsorted(candidates.atom, [*starts, len(seen.way)])
    parts = []
    for start, first, last in zip(starts, ends[:-1], ends[1:], strict=True):
        here = seen.take(slice(start, start + CHUNK))
        found = _placed(here, layout, guess, candidates.take(slice(first, last)).from_atom(start))
        found = _gated(here, layout, guess, variance, found)
        parts.append(_kept(here, layout, guess, variance, contrast, found))
    return Overlay(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _placed(seen: _Patterns, layout: Layout, guess: np.ndarray, rough: _Rough) -> _Candidates:
    """Candidates with neighbours given to points, at the angle that is best then."""
    atom, template, angle = rough.atom, rough.template, rough.angle
    given = _nearest(seen, layout, atom, template, angle, np.zeros(len(atom)))
    angle, offset = _pose(seen, layout, atom, template, given)
    given = _nearest(seen, layout, atom, template, angle, offset)
    figures = _figures(seen, layout, atom, template, given)
    # That nothing is matched is a term of its own, which needs no search.
    found = _Candidates(atom, template, given, figures, np.angle(_overlap(guess, figures)))
    return found.take(np.flatnonzero(found.matched))


def _pose(
    seen: _Patterns, layout: Layout, atom: np.ndarray, template: np.ndarray, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Angle and offset at which templates lie best on what is matched; the offset is that of the atom in the middle."""
    matched = given >= 0
    t = np.where(matched, layout.complex[template[:, None], given], 0)
    y = np.where(matched, seen.way[atom], 0)
    share, sum_t, sum_y = 1 / (matched.sum(1) + 1), t.sum(1), y.sum(1)
    angle = np.angle((y * np.conj(t)).sum(1) - share * sum_y * np.conj(sum_t))
    return angle, share * (sum_y * np.exp(-1j * angle) - sum_t)


def _undistorted(data: xr.Dataset, matrix: np.ndarray) -> _Patterns:
    features = data["neighbour"].values
    raw = features[..., :2]
    y = raw @ np.linalg.inv(matrix).T
    return _Patterns(
        raw[..., 0] + 1j * raw[..., 1],
        y[..., 0] + 1j * y[..., 1],
        (raw != 0).any(-1),
        features[..., 2] if features.shape[-1] == 3 else None,
        float(data["density"]) * abs(float(np.linalg.det(matrix))),
    )


def _worth(variance: Any, density: float) -> Any:
    """Log of what it is worth to explain a neighbour by a point that it is on, and not by clutter."""
    return np.log(SEEN / ((1 - SEEN) * STREWN * density * 4 * math.pi * variance))


@dataclass(frozen=True)
class _Rough:
    """Templates on patterns before anything is fitted, in order of the atoms: which, how turned, about what worth."""

    atom: np.ndarray
    template: np.ndarray
    angle: np.ndarray
    score: np.ndarray

    def take(self, rows: Any) -> _Rough:
        """Some of them."""
        return _Rough(*(part[rows] for part in vars(self).values()))

    def from_atom(self, first: int) -> _Rough:
        """The same with atoms counted from another one."""
        return replace(self, atom=self.atom - first)


def _candidates(seen: _Patterns, layout: Layout, variance: float) -> _Rough:
    """Which templates at which angles may explain which atoms, and about what they are worth.

    A map of each template says what a neighbour is worth that lies here or there, for every step that it may be turned
    by; a pattern is worth the sum over its neighbours.
    """
    maps = _Maps.of(layout, variance, _worth(variance, seen.density))
    place = torch.as_tensor(np.where(seen.there, _bin(seen.way, layout), RINGS * DIRECTIONS))
    scores, angles, which = [], [], []
    for start in range(0, len(layout.motif), TEMPLATES):
        some = np.arange(start, min(start + TEMPLATES, len(layout.motif)))
        turned = maps.turned(some)
        parts = [_few_best(maps, some, turned, part) for part in place.split(CHUNK)]
        scores.append(np.concatenate([score for score, _ in parts]))
        angles.append(np.concatenate([angle for _, angle in parts]))
        which += [t for way in range(int(maps.kept[some].max())) for t in some]
    return _best(
        np.concatenate(scores, 1), np.concatenate(angles, 1), np.array(which), layout.motif
    )


def _bin(way: np.ndarray, layout: Layout) -> np.ndarray:
    """Bin of a polar map that a place lies in."""
    ring = np.minimum(np.abs(way) * (RINGS / (REACH * layout.radius)), RINGS - 1).astype(np.int64)
    turn = np.angle(way) / (2 * math.pi) % 1.0
    return np.asarray(
        ring * DIRECTIONS + np.minimum(turn * DIRECTIONS, DIRECTIONS - 1).astype(np.int64)
    )


def _cell(x: np.ndarray, y: np.ndarray, reach: float) -> np.ndarray:
    """Cell of a map that a place lies in."""
    step = np.float32(0.5 * CELLS / reach)
    half = np.float32(0.5 * CELLS)
    col = np.clip(x * step + half, 0, CELLS - 1).astype(np.int32)
    row = np.clip(y * step + half, 0, CELLS - 1).astype(np.int32)
    return np.asarray(row * CELLS + col)


@dataclass(frozen=True)
class _Maps:
    """Maps of the templates.

    Attributes:
        worth: of a neighbour in each bin, (template, ring, direction).
        nothing: what each template is worth without neighbours.
        fold: order of its rotations.
        kept: angles that are kept: brightness may tell apart what places do not.
    """

    worth: np.ndarray
    nothing: np.ndarray
    fold: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(cls, layout: Layout, variance: float, worth: float) -> _Maps:
        """Maps of the points that are in the disc."""
        ring = (np.arange(RINGS) + 0.5) / RINGS * REACH * layout.radius
        turn = (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS * 2 * math.pi
        grid = ring[:, None] * np.exp(1j * turn)
        inside = layout.distance < layout.radius
        square = np.full((len(layout.motif), *grid.shape), np.inf)
        for point, seen in zip(layout.complex.T, inside.T, strict=True):
            away = grid - point[:, None, None]
            far = np.where(seen[:, None, None], away.real**2 + away.imag**2, np.inf)
            np.minimum(square, far, out=square)
        count = inside.sum(1)
        # A template of few points, some of them unseen, may lie in many ways.
        ways = np.where(count <= FEW, WAYS_OF_FEW // layout.symmetry, WAYS)
        alike = layout.shape_symmetry // layout.symmetry
        return cls(
            np.maximum(worth - square / (4 * variance), 0.0).astype(np.float32),
            count * math.log(1 - SEEN) + layout.share,
            layout.symmetry,
            np.maximum(np.maximum(ways, alike), 1),
        )

    def turned(self, some: np.ndarray) -> Tensor:
        """Maps of some templates turned by every angle, (bin, template × angle); the last bin is for none."""
        step = DIRECTIONS // len(ANGLES) * np.arange(len(ANGLES))
        place = (np.arange(DIRECTIONS)[:, None] - step) % DIRECTIONS
        every = self.worth[some][:, :, place].transpose(1, 2, 0, 3)
        flat = every.reshape(RINGS * DIRECTIONS, -1)
        return torch.as_tensor(np.concatenate([flat, np.zeros_like(flat[:1])]))


def _few_best(
    maps: _Maps, some: np.ndarray, turned: Tensor, place: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """The best angles of some templates on each pattern and what they are worth, (atom, way × template)."""
    steps = -(-len(ANGLES) // maps.fold[some])[:, None]
    angle = np.arange(len(ANGLES))
    apart = np.abs(angle[:, None] - angle)
    near = np.minimum(apart, steps[:, :, None] - apart) * ANGLES[1] < DISTINCT
    start = np.where(angle < steps, maps.nothing[some, None], -np.inf)
    score = torch.nn.functional.embedding_bag(place, turned, mode="sum")
    score = score.reshape(len(place), len(some), -1) + torch.as_tensor(start, dtype=score.dtype)
    close, rows = torch.as_tensor(near), torch.arange(len(some))
    tops, bests = [], []
    for way in range(int(maps.kept[some].max())):
        top, best = score.max(2)
        few = torch.as_tensor(maps.kept[some] <= way)
        tops.append(top.masked_fill(few, -torch.inf))
        bests.append(best)
        score.masked_fill_(close[rows, best], -torch.inf)
    return torch.cat(tops, 1).numpy(), ANGLES[torch.cat(bests, 1).numpy()]


def _best(score: np.ndarray, angle: np.ndarray, template: np.ndarray, motif: np.ndarray) -> _Rough:
    """The best candidates of each pattern, in rows: the best of every class, and some more."""
    near = score > score.max(1, keepdims=True) - ROUGHLY
    rank = np.where(near, score, -np.inf)
    for own in (np.flatnonzero(motif[template] == k) for k in range(motif.max() + 1)):
        first = own[rank[:, own].argmax(1)]
        # Far above what is no class's best.
        rank[np.arange(len(rank)), first] += 2 * ROUGHLY
    most = min(motif.max() + 1 + MORE, score.shape[1])
    order = np.argpartition(-rank, most - 1, axis=1)[:, :most]
    atom, place = np.nonzero(np.isfinite(np.take_along_axis(rank, order, 1)))
    row = order[atom, place]
    return _Rough(atom, template[row], angle[atom, row], score[atom, row])


def _nearest(
    seen: _Patterns,
    layout: Layout,
    atom: np.ndarray,
    template: np.ndarray,
    angle: np.ndarray,
    offset: np.ndarray,
) -> np.ndarray:
    """The point that each neighbour is given to, -1 for none, where the template lies at an angle and an offset.

    Of several neighbours that are nearest to one point the nearest is given to it, the others to points that are free.
    """
    turned = seen.way[atom] * np.exp(-1j * angle)[:, None] - offset[:, None]
    cell = _cell(turned.real, turned.imag, REACH * layout.radius)
    point = layout.nearest[template[:, None], cell]
    away = turned - layout.complex[template[:, None], point]
    far = np.where(seen.there[atom], away.real**2 + away.imag**2, np.inf)
    given = np.where(far < (NEAR * layout.distance.min()) ** 2, point, -1)
    ordered = np.sort(given, axis=1)
    shared = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1)
    rows = np.flatnonzero(shared)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        given[some] = _in_rounds(turned[some], seen.there[atom[some]], layout, template[some])
    return given


def _in_rounds(
    turned: np.ndarray, there: np.ndarray, layout: Layout, template: np.ndarray
) -> np.ndarray:
    """Neighbours given to points that are each other's nearest, then those that are left, three times."""
    away = turned[:, :, None] - layout.complex[template][:, None, :]
    square = away.real**2 + away.imag**2
    square[~there] = np.inf
    square[square > (NEAR * layout.distance.min()) ** 2] = np.inf
    given = np.full(turned.shape, -1)
    slots = np.arange(turned.shape[1])
    for _ in range(3):
        point = square.argmin(2)
        mine = np.take_along_axis(square.argmin(1), point, 1) == slots
        mine &= np.isfinite(np.take_along_axis(square, point[:, :, None], 2)[:, :, 0])
        given[mine] = point[mine]
        row, slot = np.nonzero(mine)
        square[row, slot] = np.inf
        square[row, :, point[row, slot]] = np.inf
    return given


def _figures(
    seen: _Patterns, layout: Layout, atom: np.ndarray, template: np.ndarray, given: np.ndarray
) -> np.ndarray:
    """Sums of squares and products of what is matched, about means in which the middle counts as zero."""
    matched = given >= 0
    count = matched.sum(1)
    t = np.where(matched, layout.complex[template[:, None], given], 0)
    d = np.where(matched, seen.raw[atom], 0)
    share = 1 / (count + 1)
    sum_d, sum_t = d.sum(1), t.sum(1)
    dd = (d * d).sum(1) - share * sum_d**2
    d2 = (d.real**2 + d.imag**2).sum(1) - share * np.abs(sum_d) ** 2
    back = (d * np.conj(t)).sum(1) - share * sum_d * np.conj(sum_t)
    forth = (d * t).sum(1) - share * sum_d * sum_t
    found = np.zeros((len(atom), len(FIGURES)))
    found[:, 0], found[:, 1], found[:, 2] = (d2 + dd.real) / 2, dd.imag / 2, (d2 - dd.real) / 2
    found[:, 3], found[:, 6] = (back.real + forth.real) / 2, (back.real - forth.real) / 2
    found[:, 4], found[:, 5] = (forth.imag - back.imag) / 2, (forth.imag + back.imag) / 2
    found[:, 7] = (t.real**2 + t.imag**2).sum(1) - share * np.abs(sum_t) ** 2
    zones = [(zone[template[:, None], given] & matched).sum(1) for zone in layout.zones]
    found[:, SEEN_IN] = np.stack(zones, 1)
    found[:, TOLERANCE] = layout.tolerance[template] ** 2
    found[:, CONSTANT] = layout.share[template] + np.log(layout.symmetry[template])
    found[:, CONSTANT] -= np.log(count + 1) + count * math.log(2 * math.pi)
    return found


def _overlap(guess: np.ndarray, figures: np.ndarray) -> np.ndarray:
    """z, whose angle is the best orientation."""
    (a, b), (c, d) = np.linalg.inv(guess)
    xx, xy, yx, yy = figures[:, 3:7].T
    real, imaginary = a * xx + b * yx + c * xy + d * yy, c * xx + d * yx - a * xy - b * yy
    return np.asarray(real + 1j * imaginary)


@dataclass(frozen=True)
class _Candidates:
    """Templates on patterns: which, the point that each neighbour is given to, the figures of that, the angle."""

    atom: np.ndarray
    template: np.ndarray
    given: np.ndarray
    figures: np.ndarray
    angle: np.ndarray

    @property
    def matched(self) -> np.ndarray:
        """Number of neighbours that are given to a point."""
        return np.asarray((self.given >= 0).sum(1))

    def take(self, rows: np.ndarray) -> _Candidates:
        """Some of them."""
        return _Candidates(*(part[rows] for part in vars(self).values()))


def _noise(seen: _Patterns, layout: Layout, guess: np.ndarray) -> float:
    """Variance of an atom's place, in units of the templates, from what the best candidate of most of a sample leaves.

    It is only to say what is negligible: not too little, then, and more where few atoms tell it.
    """
    floor = (0.03 * layout.distance.min()) ** 2
    seen = seen.take(slice(None, None, -(-len(seen.way) // SAMPLE)))
    rough = _candidates(seen, layout, (COARSE * layout.distance.min()) ** 2)
    order = np.lexsort((-rough.score, rough.atom))
    first = order[np.unique(rough.atom[order], return_index=True)[1]]
    best = _placed(seen, layout, guess, rough.take(first))
    inverse = np.linalg.inv(guess)
    g = inverse.T @ inverse
    xx, xy, yy = best.figures[:, :3].T
    square = g[0, 0] * xx + 2 * g[0, 1] * xy + g[1, 1] * yy
    rest = square + best.figures[:, 7] - 2 * np.abs(_overlap(guess, best.figures))
    freedom = 2 * best.matched - 1
    enough = freedom > 1
    if not enough.any():
        return float(floor)
    doubtful = 1 + 8 / int(enough.sum())
    return float(max(doubtful * np.median(rest[enough] / freedom[enough]), floor))


def _contrast(seen: _Patterns, layout: Layout, guess: np.ndarray) -> float:
    """About what power of the templates' brightness makes most neighbours of a sample typical of a template."""
    if seen.marks is None or not layout.brightness.any():
        return 1.0
    seen = seen.take(slice(None, None, -(-len(seen.way) // SAMPLE)))
    rough = _candidates(seen, layout, (COARSE * layout.distance.min()) ** 2)
    found = _placed(seen, layout, guess, rough)
    alike = []
    for contrast in CONTRASTS:
        off, middle = _marks_off(seen, layout, contrast, found)
        near = np.maximum(1 - ((off - middle[:, None]) / (0.5 * STRANGE)) ** 2, 0).sum(1)
        best = np.zeros(len(seen.way))
        np.maximum.at(best, found.atom, near)
        alike.append(best.sum())
    return CONTRASTS[int(np.argmax(alike))]


def _gated(
    seen: _Patterns, layout: Layout, guess: np.ndarray, variance: float, found: _Candidates
) -> _Candidates:
    """Candidates with all that is near matched, and without what is too far off for the noise, or for twice that."""
    value = np.maximum(
        *(_height(seen, layout, guess, wider * variance, found) for wider in (1.0, 4.0))
    )
    top = np.full(len(seen.way), -np.inf)
    np.maximum.at(top, found.atom, value)
    # Without its misfits a candidate can gain what it is worth to explain a few neighbours.
    found = found.take(np.flatnonzero(value > top[found.atom] - FAR))
    away = _away(seen, layout, found.atom, found.template, found.given, found.angle)
    # All that is matched is off together, because the atom in the middle is off its place.
    off = away - (np.where(found.given >= 0, away, 0).sum(1) / (found.matched + 1))[:, None]
    far = off.real**2 + off.imag**2
    parts = [found]
    for wider in (1.0, 4.0):
        v = wider * (variance + layout.tolerance[found.template] ** 2)
        limit = 4 * v * np.maximum(_worth(v, seen.density), 0.0)
        given = np.where(far < limit[:, None], found.given, -1)
        count = (given >= 0).sum(1)
        fresh = np.flatnonzero((count < found.matched) & (count > 0))
        few = found.take(fresh)
        figures = _figures(seen, layout, few.atom, few.template, given[fresh])
        angle = np.angle(_overlap(guess, figures))
        parts.append(_Candidates(few.atom, few.template, given[fresh], figures, angle))
    every = [
        np.concatenate(column) for column in zip(*(vars(p).values() for p in parts), strict=True)
    ]
    return _Candidates(*every)


def _marks_off(
    seen: _Patterns, layout: Layout, contrast: float, found: _Candidates
) -> tuple[np.ndarray, np.ndarray]:
    """How far brightness is from the templates', infinite where nothing is matched, and the median of that."""
    assert seen.marks is not None
    matched = found.given >= 0
    beta = layout.brightness[found.template[:, None], found.given]
    off = np.where(matched, seen.marks[found.atom] - contrast * beta, np.inf)
    middle = np.sort(off, axis=1)[np.arange(len(off)), np.maximum(matched.sum(1) - 1, 0) // 2]
    return off, middle


def _mark(seen: _Patterns, layout: Layout, contrast: float, found: _Candidates) -> None:
    """Add the figures of brightness; neighbours that are far from the template's are of another kind."""
    assert seen.marks is not None
    there, matched = seen.there[found.atom], found.given >= 0
    b = np.where(there, seen.marks[found.atom], 0.0)
    beta = np.where(matched, layout.brightness[found.template[:, None], found.given], 0.0)
    off, middle = _marks_off(seen, layout, contrast, found)
    typical = matched & (np.abs(off - middle[:, None]) < 0.5 * STRANGE)
    count = typical.sum(1)
    share = 1 / np.maximum(count, 1)
    b_mean, beta_mean = (np.where(typical, q, 0).sum(1) * share for q in (b, beta))
    db = np.where(typical, b - b_mean[:, None], 0)
    dbeta = np.where(typical, beta - beta_mean[:, None], 0)
    odd = (matched & ~typical).sum(1)
    strange = np.where(there & ~typical, _log_strange(b), 0).sum(1)
    f = found.figures
    columns = count, (db**2).sum(1), (db * dbeta).sum(1), (dbeta**2).sum(1), b_mean, beta_mean
    f[:, MARKS:] = np.stack(columns, 1)
    f[:, CONSTANT] += strange + count * math.log(1 - ODD) + odd * math.log(ODD)
    f[:, CONSTANT] -= 0.5 * np.log(np.maximum(count, 1)) + 0.5 * count * math.log(2 * math.pi)


def _log_strange(marks: Any) -> Any:
    """Log density of the brightness of a neighbour that is of no template's kind."""
    return -0.5 * (marks / STRANGE) ** 2 - math.log(STRANGE) - 0.5 * math.log(2 * math.pi)


def _away(
    seen: _Patterns,
    layout: Layout,
    atom: np.ndarray,
    template: np.ndarray,
    given: np.ndarray,
    angle: np.ndarray,
) -> np.ndarray:
    """From the point that each neighbour is given to, to where it is, once the pattern is turned back."""
    points = layout.complex[template[:, None], given]
    return np.asarray(seen.way[atom] * np.exp(-1j * angle)[:, None] - points)


def _kept(
    seen: _Patterns,
    layout: Layout,
    guess: np.ndarray,
    variance: float,
    contrast: float,
    found: _Candidates,
) -> tuple[np.ndarray, ...]:
    """The terms that are not negligible, in a table with as many places for every atom."""
    if seen.marks is not None:
        _mark(seen, layout, contrast, found)
    atom = found.atom
    height = np.full(len(atom), -np.inf)
    for wider in (1.0, 4.0):
        value = _height(seen, layout, guess, wider * variance, found, contrast)
        top = np.full(len(seen.way), -np.inf)
        np.maximum.at(top, atom, value)
        height = np.maximum(height, value - top[atom])
    kept = (height > -NEGLIGIBLE) & ~_repeated(layout, found)
    chosen = np.flatnonzero(kept)
    chosen = chosen[np.lexsort((-height[chosen], atom[chosen]))]
    place = np.arange(len(chosen)) - np.searchsorted(atom[chosen], atom[chosen])
    chosen, place = chosen[place < TERMS], place[place < TERMS]
    shape = (len(seen.way), TERMS)
    table = np.zeros((*shape, len(FIGURES)))
    # Where there is no term there is one that is worth nothing, with figures that do no harm.
    table[..., CONSTANT], table[..., 7], table[..., 9] = NOTHING, 1.0, 1.0
    which, turned = np.zeros(shape, np.int64), np.zeros(shape)
    at = atom[chosen], place
    table[at], which[at], turned[at] = (
        found.figures[chosen],
        found.template[chosen],
        found.angle[chosen],
    )
    return which, table, seen.there.sum(1), turned


def _repeated(layout: Layout, found: _Candidates) -> np.ndarray:
    """Terms that were there before: an assignment and its image under a rotation of the template."""
    telling = found.figures[:, [0, 1, 2, 7, *range(SEEN_IN.start, SEEN_IN.stop)]]
    rounded = np.rint(telling / (np.abs(telling).max(0, initial=0.0) + TINY) * 1e7)
    turned = np.exp(1j * layout.symmetry[found.template] * found.angle)
    turned = np.rint(1e5 * np.stack([turned.real, turned.imag], 1))
    keys = np.column_stack([found.atom, found.template, rounded, turned]).astype(np.int64)
    mixed = np.zeros(len(keys), np.uint64)
    for column in keys.T:
        mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    again = np.ones(len(keys), bool)
    again[np.unique(mixed, return_index=True)[1]] = False
    return again


def _height(
    seen: _Patterns,
    layout: Layout,
    guess: np.ndarray,
    variance: float,
    found: _Candidates,
    contrast: float = 1.0,
) -> np.ndarray:
    """About how much each term gives, with the parameters that candidates are looked for with."""
    square = abs(float(np.linalg.det(guess)))
    told = {
        "noise": math.sqrt(square * variance),
        "matrix": guess,
        "detection": SEEN,
        "clutter": STREWN * seen.density / square,
        "contrast": contrast,
        "spread": 0.15,
    }
    given = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in told.items()}
    made = parameters(layout, given, torch.zeros(()), layout.radius * math.sqrt(square))
    figures = torch.as_tensor(found.figures)
    count = torch.as_tensor(seen.there.sum(1)[found.atom], dtype=torch.float64)
    heights = log_terms(
        made,
        figures,
        which_seen(made, figures, torch.as_tensor(found.template)),
        torch.zeros(len(count), dtype=count.dtype),
        count,
    )
    return np.asarray(heights.numpy())


def log_i0e(x: Tensor) -> Tensor:
    """log(e^(−x) I₀(x)) for x ≥ 0."""
    return torch.log(torch.special.i0e(x))


class Parameters(NamedTuple):
    """The parameters, made ready for terms.

    Attributes:
        inverse: of the matrix of scale and distortion.
        det: its determinant.
        noise: variance of an atom's place in nm², beside that of its measurement.
        tolerance: variance of the templates' points, in their units.
        gain: log of what it is worth that a point is seen, in the three zones of a template, (3, template).
        empty: log of the chance that none of a template's points is seen.
        clutter: log of its density per nm².
        strewn: clutter expected in a disc.
        contrast: power of the templates' brightness.
        spread: scatter of log brightness.
    """

    inverse: Tensor
    det: Tensor
    noise: Tensor
    tolerance: Tensor
    gain: Tensor
    empty: Tensor
    clutter: Tensor
    strewn: Tensor
    contrast: Tensor
    spread: Tensor


def parameters(
    layout: Layout, given: Mapping[str, Tensor], variance: Tensor, radius: float | Tensor
) -> Parameters:
    """Make ready the parameters.

    Args:
        layout: the templates.
        given: `noise` in nm, `matrix` (nm per unit of the templates), `detection`, `clutter` per nm², `contrast`,
            `spread`.
        variance: mean measurement variance of an atom's coordinates, nm².
        radius: of the disc, nm.
    """
    (a, b), (c, d) = given["matrix"]
    det = a * d - b * c
    inverse = torch.stack([torch.stack([d, -b]), torch.stack([-c, a])]) / det
    templates = as_tensors(layout, det.device)
    tolerance = templates.tolerance**2
    noise = given["noise"] ** 2
    typical = (noise + variance) / det + tolerance
    zones, distance = templates.zones, templates.distance
    inside = torch.special.ndtr(
        (radius / torch.sqrt(det) - distance) / torch.sqrt(2 * typical)[:, None]
    )
    number = zones.sum(2)
    chance = (zones * inside).sum(2) / number.clamp(min=1)
    # Well inside nothing is lost over the rim.
    chance = torch.cat([torch.ones_like(chance[:1]), chance[1:]])
    p = given["detection"]
    miss = torch.log1p(-p * chance)
    return Parameters(
        inverse,
        det,
        noise,
        tolerance,
        torch.log(p) - miss,
        (number * miss).sum(0),
        torch.log(given["clutter"]),
        given["clutter"] * math.pi * radius**2,
        given["contrast"],
        given["spread"],
    )


def log_terms(
    told: Parameters, figures: Tensor, seen: Tensor, variance: Tensor, count: Tensor
) -> Tensor:
    """Log of the terms of the sum over assignments.

    Args:
        told: the parameters.
        figures: of every term, (..., figure).
        seen: log of what it is worth which of the template's points are seen and which are not.
        variance: measurement variance of a coordinate, nm².
        count: neighbours.
    """
    (a, b), (c, d) = told.inverse
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    # Sum of squares, and real and imaginary part of z, from the sums of products.
    rows = [
        [a**2 + c**2, zero, zero],
        [2 * (a * b + c * d), zero, zero],
        [b**2 + d**2, zero, zero],
        [zero, a, c],
        [zero, c, -a],
        [zero, b, d],
        [zero, d, -b],
        [one, zero, zero],
    ]
    products = figures[..., SQUARES] @ torch.stack([torch.stack(row) for row in rows])
    square, real, imaginary = products.unbind(-1)
    z = torch.sqrt(real**2 + imaginary**2 + TINY)
    v = (told.noise + variance) / told.det + figures[..., TOLERANCE]
    matched = figures[..., SEEN_IN].sum(-1)
    rest = (z - 0.5 * square) / v + log_i0e(z / v) - matched * torch.log(v)
    clutter = (count - matched) * told.clutter - told.strewn - matched * torch.log(told.det)
    total = figures[..., CONSTANT] + seen + rest + clutter
    if figures.shape[-1] > MARKS:
        total = total + _log_marks(told, figures[..., MARKS:])
    return total


def _log_marks(told: Parameters, figures: Tensor) -> Tensor:
    """Log density of the typical neighbours' brightness, but for what does not change."""
    m, bb, b_beta, beta_beta, b_mean, beta_mean = figures.unbind(-1)
    s, k = told.spread, told.contrast
    common = MIDDLE**2 + s**2 / m.clamp(min=1)
    within = bb - 2 * k * b_beta + k**2 * beta_beta
    normal = -0.5 * within / s**2 - (m - 1) * torch.log(s)
    normal = normal - 0.5 * (b_mean - k * beta_mean) ** 2 / common - 0.5 * torch.log(common)
    return (m > 0).to(m.dtype) * normal


def which_seen(told: Parameters, figures: Tensor, template: Tensor) -> Tensor:
    """Log of what it is worth which points of a template are seen and which are not."""
    gained = told.gain[:, template].movedim(0, -1) * figures[..., SEEN_IN]
    return told.empty[template] + gained.sum(-1)


def log_strange(marks: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Log density of the brightness of all neighbours where none is of a template's kind."""
    return np.asarray(np.where(there, _log_strange(marks), 0.0).sum(-1))


class Table(NamedTuple):
    """An overlay as tensors, with what else is known of every atom.

    Attributes:
        figures: of every term, (atom, term, figure).
        seen: template of every term as zeros and a one, and this times the points seen in the inner and in the outer
            zone, (atom, term, 3 × template).
        motif: class of every term as zeros and a one, (atom, term, class).
        known: (atom, 3): number of neighbours, log density of their brightness if all are strange, and variance.
        angle: orientation of the template of every term, (atom, term), in radians.
    """

    figures: Tensor
    seen: Tensor
    motif: Tensor
    known: Tensor
    angle: Tensor

    @classmethod
    def of(cls, layout: Layout, laid: Overlay, strange: np.ndarray, variance: np.ndarray) -> Table:
        """From an overlay, and what brightness and measurement say of every atom."""
        template = np.eye(len(layout.motif))[laid.template]
        inner, outer = laid.figures[..., SEEN_IN][..., 1:2], laid.figures[..., SEEN_IN][..., 2:3]
        arrays = (
            laid.figures,
            np.concatenate([template, inner * template, outer * template], -1),
            np.eye(layout.classes)[layout.motif[laid.template]],
            np.stack([laid.count, strange, variance], 1),
            laid.angle,
        )
        return cls(*(torch.as_tensor(array) for array in arrays))

    @property
    def template(self) -> Tensor:
        """Template of every term."""
        return self.seen[..., : self.seen.shape[-1] // 3].argmax(-1)

    def terms(self, told: Parameters) -> Tensor:
        """Log of every term, (atom, term)."""
        count, _, variance = self.known[:, None].unbind(-1)
        seen = self.seen @ torch.cat([told.empty, told.gain[1], told.gain[2]])
        # Well inside the disc it is worth the same for every template.
        seen = seen + self.figures[..., SEEN_IN.start] * told.gain[0, 0]
        return log_terms(told, self.figures, seen, variance, count)


def log_classes(
    layout: Layout, table: Table, told: Parameters, density: Tensor, disc: Tensor
) -> Tensor:
    """Log likelihood of every pattern under every class, the last that of what no template explains, (class, atom).

    Args:
        layout: the templates.
        table: the terms.
        told: the parameters.
        density: of the neighbours of what no template explains, per nm².
        disc: area in which neighbours are seen, nm².
    """
    count, strange, _ = table.known.unbind(-1)
    terms = table.terms(told)
    templates = as_tensors(layout, terms.device)
    # Nothing of the template seen, all clutter.
    own = templates.motif == torch.arange(layout.classes, device=terms.device)[:, None]
    empty = torch.logsumexp(torch.where(own, told.empty + templates.share, -torch.inf), 1)
    clutter = count * told.clutter - told.strewn + strange
    top = torch.maximum(terms.detach().amax(1), (clutter + empty.max()).detach())
    matched = (torch.exp(terms - top[:, None])[:, None] @ table.motif)[:, 0]
    nothing = torch.exp(clutter - top)[:, None] * torch.exp(empty)
    told_by = torch.log(matched + nothing + TINY) + top[:, None]
    other = count * torch.log(density) - density * disc + strange
    return torch.cat([told_by.T, other[None]])
