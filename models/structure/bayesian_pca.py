"""Principal components with a posterior over their number, their size, their directions and the noise.

Every unit is y = m + Σ a_i z_i u_i + e with z_i standard normal, the u_i an orthonormal frame of which no direction is
preferred, and e normal with covariance s² I + Q, where Q is what the measurement is known to add, unit by unit.

Without Q, the data speak through the eigenvalues t_j of their scatter matrix, and the integral over all frames is

    ∫ exp(½ Σ_i c_i u_iᵀ T u_i) dU,   c_i = λ_i / (v (λ_i + v)),   λ_i = a_i²,   v = s².

It is taken one direction after the other. The i-th gives exp(½ c_i t_i) times a Bingham integral over the sphere with
the weights (c_i - c_j)(t_i - t_j), worked out by a saddle point (Kume and Wood, Biometrika 92 (2005) 465). It is right
for one component and wherever components differ by more than their errors, and it stays right for a component that is
not there, where the usual Laplace approximation (Minka, NIPS 13 (2000) 598) fails. What is left, a density of
(a_1 … a_k, s), is integrated by importance sampling; frames are drawn from the same Bingham distributions by rejection
(Kent, Ganeiban and Mardia, J. Comput. Graph. Stat. 27 (2018) 291), and every draw is weighed by the exact density. So
the answer is exact up to the error of the weights, which is told.

With Q, space is first stretched so that the mean noise is the same in all directions. The same draws are then
proposals, and the weights know the errors of every unit.

Example:
    >>> rng = np.random.default_rng(0)
    >>> truth = np.outer(rng.standard_normal(200), np.eye(6)[0])
    >>> data = Scatter.of(truth + 0.2 * rng.standard_normal((200, 6)))
    >>> half, wide = torch.distributions.HalfNormal(1.0), torch.distributions.Normal(0.0, 1.0)
    >>> learnt = learn(data, LowRank(np.full(4, 0.25), half, half, wide), draws=50, seed=0)
    >>> int(learnt.rank_probability.argmax())
    1
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..priors import ModelError

__all__ = ["Learnt", "LowRank", "Scatter", "learn", "orthonormal"]

PROPOSALS = 1000
# Of a rank that may be the right one, more are drawn until so many count.
ENOUGH, MATTERS, MOST_BATCHES = 200, 1e-2, 10
# Rounds in which the proposal for sizes and noise takes the shape of their density.
ROUNDS = 4
FREEDOM = 5.0
# Numbers worked on at a time.
CHUNK = 2**22
LOG_2PI = float(np.log(2 * np.pi))


def orthonormal(frame: torch.Tensor) -> torch.Tensor:
    """Rows made orthonormal one after the other: of normal rows, a frame that prefers no direction."""
    rows: list[torch.Tensor] = []
    for row in frame.unbind(-2):
        # Twice is enough for all digits.
        for _ in range(2):
            for known in rows:
                row = row - (row * known).sum(-1, keepdim=True) * known
        # A row of zeros, where samplers may start, has no direction and stays what it is.
        rows.append(row / ((row * row).sum(-1, keepdim=True) + 1e-60).sqrt())
    return torch.stack(rows, -2)


@dataclass(frozen=True)
class Scatter:
    """What data say about their mean and covariance, unit by unit or in classes of like measurement error.

    Attributes:
        count: units of each class.
        mean: their mean, (class, feature).
        scatter: sum of squares and products about that mean, (class, feature, feature).
        error: covariance that the measurement adds, (class, feature, feature).
    """

    count: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray
    error: np.ndarray

    @classmethod
    def of(
        cls, values: np.ndarray, error: np.ndarray | None = None, kind: np.ndarray | None = None
    ) -> Scatter:
        """Summarise units (unit, feature).

        Args:
            values: the units.
            error: covariance that the measurement adds, of each kind of unit, (kind, feature, feature).
            kind: of each unit; one where there is no error.
        """
        features = values.shape[1]
        if error is None:
            error = np.zeros((1, features, features))
        if kind is None:
            kind = np.zeros(len(values), np.int64)
        present, kind = np.unique(kind, return_inverse=True)
        return cls(*_moments(values, kind.reshape(-1), len(present)), error[present])

    @property
    def units(self) -> int:
        """How many units there are."""
        return int(self.count.sum())

    @property
    def features(self) -> int:
        """How many features a unit has."""
        return int(self.mean.shape[1])

    @property
    def mean_error(self) -> np.ndarray:
        """Measurement error of the average unit."""
        return np.einsum("c,cij->ij", self.count, self.error) / self.units

    @property
    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean of all units, and their scatter about it."""
        mean = self.count @ self.mean / self.units
        away = self.mean - mean
        between = np.einsum("c,ci,cj->ij", self.count, away, away)
        return mean, self.scatter.sum(0) + between


def _moments(
    values: np.ndarray, member: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    features = values.shape[1]
    count = np.bincount(member, minlength=classes).astype(float)
    mean = np.zeros((classes, features))
    np.add.at(mean, member, values)
    mean /= count[:, None]
    away = values - mean[member]
    scatter = np.zeros((classes, features, features))
    order = np.argsort(member, kind="stable")
    for c, which in enumerate(np.split(order, np.cumsum(count.astype(int))[:-1])):
        scatter[c] = away[which].T @ away[which]
    return count, mean, scatter


@dataclass(frozen=True)
class LowRank:
    """Priors: of the number of components, of each one's amplitude, of noise, and of each feature's mean."""

    rank: np.ndarray
    amplitude: Any
    noise: Any
    mean: Any

    @property
    def most(self) -> int:
        """Largest number of components."""
        return len(self.rank) - 1


@dataclass(frozen=True)
class Learnt:
    """The posterior.

    Attributes:
        rank: number of components, (draw,).
        frame: directions, largest amplitude first, (draw, component, feature); those beyond the rank are of the prior.
        amplitude: standard deviation along each, (draw, component), alike.
        noise: standard deviation of the noise, (draw,).
        mean: (draw, feature).
        log_evidence: of each rank.
        log_evidence_se: their errors.
        effective: how many draws the weighed proposals of each rank are worth.
        rank_probability: posterior of the rank.
    """

    rank: np.ndarray
    frame: np.ndarray
    amplitude: np.ndarray
    noise: np.ndarray
    mean: np.ndarray
    log_evidence: np.ndarray
    log_evidence_se: np.ndarray
    effective: np.ndarray
    rank_probability: np.ndarray

    @property
    def total_evidence(self) -> tuple[float, float]:
        """Logarithm of the evidence over all ranks, and its error."""
        # Weights of the ranks are p(k) Z_k / Z: their errors add in squares.
        with np.errstate(divide="ignore"):
            total = float(np.logaddexp.reduce(self._log_prior + self.log_evidence))
        return total, float(np.sqrt(((self.rank_probability * self.log_evidence_se) ** 2).sum()))

    _log_prior: np.ndarray = field(default_factory=lambda: np.zeros(0))


def learn(data: Scatter, prior: LowRank, *, draws: int, seed: int) -> Learnt:
    """The posterior of components, noise and mean.

    Args:
        data: what the units say.
        prior: priors of all that is learnt.
        draws: how many to give back.
        seed: the draws depend on nothing else.
    """
    if prior.most >= data.features:
        raise ModelError(
            f"{prior.most} components cannot be told from noise in {data.features} features; "
            "allow fewer: the prior of `rank` has one entry more than the most there can be"
        )
    stretched = _Stretched.of(data)
    rng = np.random.default_rng(seed)
    ranks = [_Rank.of(stretched, prior, k, rng) for k in range(prior.most + 1)]
    with np.errstate(divide="ignore"):
        log_prior = np.log(prior.rank / prior.rank.sum())
    found = _refined(ranks, log_prior, rng)
    evidence = np.array([f.log_evidence for f in found])
    weight = _normalised(log_prior + evidence)
    rank = np.sort(rng.choice(len(weight), draws, p=weight / weight.sum()))
    parts = [found[k].draw(data, prior, int((rank == k).sum()), rng) for k in np.unique(rank)]
    order = rng.permutation(draws)
    frame, amplitude, noise, mean = (np.concatenate([p[i] for p in parts])[order] for i in range(4))
    return Learnt(
        rank[order],
        frame,
        amplitude,
        noise,
        mean,
        evidence,
        np.array([f.error for f in found]),
        np.array([f.effective for f in found]),
        weight,
        log_prior,
    )


def _normalised(log_weight: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(log_weight - np.logaddexp.reduce(log_weight)))


def _refined(ranks: list[_Rank], log_prior: np.ndarray, rng: np.random.Generator) -> list[_Weighed]:
    """Weighed draws of every rank, more of them for ranks that matter until enough count."""
    found = [rank.weighed() for rank in ranks]
    for _ in range(MOST_BATCHES - 1):
        weight = _normalised(log_prior + np.array([f.log_evidence for f in found]))
        poor = [k for k, f in enumerate(found) if weight[k] > MATTERS and f.effective < ENOUGH]
        if not poor:
            break
        for k in poor:
            ranks[k].propose(rng)
            found[k] = ranks[k].weighed()
    return found


@dataclass(frozen=True)
class _Stretched:
    """Data in the space where mean noise is alike in all directions, and turned to their principal axes."""

    data: Scatter
    root: np.ndarray  # from that space to the data's own: y = root @ y'
    eigenvalues: np.ndarray  # of the scatter there, largest first
    typical: float  # the noise's variance beyond the measurement, for which it holds
    error: (
        np.ndarray
    )  # eigenvalues of the mean measurement error, for the noise at another variance

    @classmethod
    def of(cls, data: Scatter) -> _Stretched:
        _, scatter = data.pooled
        error = data.mean_error
        # Half of all directions hold noise alone, or nothing is found.
        low = np.linalg.eigvalsh(scatter / data.units - error)
        typical = max(float(np.median(low)), 1e-2 * float(np.trace(error)) / data.features)
        typical = max(typical, 1e-12 * float(np.trace(scatter)) / data.units, 1e-300)
        values, vectors = np.linalg.eigh(error)
        spread = np.sqrt(np.maximum(values, 0.0) + typical)
        inverse = vectors / spread
        own, axes = np.linalg.eigh(inverse.T @ scatter @ inverse)
        root = (vectors * spread) @ axes[:, ::-1]
        return cls(data, root, np.maximum(own[::-1], 0.0), typical, np.maximum(values, 0.0))

    def variance(self, noise: np.ndarray) -> np.ndarray:
        """Mean variance of noise in this space."""
        ratio = (noise[..., None] ** 2 + self.error) / (self.typical + self.error)
        return np.asarray(ratio.mean(-1))

    @property
    def reach(self) -> np.ndarray:
        """Length, in the data's own space, of a step of one along each axis."""
        return np.linalg.norm(self.root, axis=0)


@dataclass(frozen=True)
class _Weighed:
    """Weighed draws of one rank."""

    loading: np.ndarray  # (proposal, feature, component)
    noise: np.ndarray
    weight: np.ndarray
    log_evidence: float
    error: float
    effective: float

    def draw(
        self, data: Scatter, prior: LowRank, count: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Draws with the weights gone, the mean drawn, and components beyond the rank drawn from the prior."""
        # Systematic resampling adds the least noise.
        places = (rng.random() + np.arange(count)) / count
        which = np.searchsorted(np.cumsum(self.weight), places).clip(max=len(self.weight) - 1)
        loading, noise = self.loading[which], self.noise[which]
        rank, features = loading.shape[2], data.features
        directions, sizes, _ = np.linalg.svd(loading, full_matrices=False)
        spare = _from(prior.amplitude, (count, prior.most - rank), rng)
        amplitude = np.concatenate([sizes, spare], 1)
        more = rng.standard_normal((count, features, min(prior.most, features) - rank))
        basis, _ = np.linalg.qr(np.concatenate([directions, more], 2))
        signs = np.sign(np.einsum("nij,nij->nj", basis[:, :, :rank], directions))
        basis[:, :, :rank] *= signs[:, None]
        frame = np.zeros((count, prior.most, features))
        frame[:, : basis.shape[2]] = np.swapaxes(basis, 1, 2)
        return frame, amplitude, noise, _draw_mean(data, prior, loading, noise, rng)


def _from(distribution: Any, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws of a Torch distribution that depend on our generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        return np.asarray(distribution.sample(shape).numpy(), float).reshape(shape)


def _log_density(distribution: Any, at: np.ndarray) -> np.ndarray:
    return np.asarray(distribution.log_prob(torch.as_tensor(at, dtype=torch.float64)).numpy())


@dataclass
class _Rank:
    """Importance sampling of one rank: sizes and noise, then frames, then weights."""

    data: _Stretched
    prior: LowRank
    center: np.ndarray  # of the proposal for log-sizes and log-noise
    factor: np.ndarray
    batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, data: _Stretched, prior: LowRank, rank: int, rng: np.random.Generator) -> _Rank:
        """A proposal that has taken the shape of the density, and one batch of draws."""
        made = cls(data, prior, *_proposal(data, prior, rank, rng))
        made.propose(rng)
        return made

    def propose(self, rng: np.random.Generator) -> None:
        """One more batch of loadings and noise with the logarithm of their weights."""
        at, log_proposal = _student(self.center, self.factor, PROPOSALS, rng)
        at, log_proposal = _ordered(at, log_proposal)
        rank = at.shape[1] - 1
        size, noise = np.exp(at[:, :rank]), np.exp(at[:, rank])
        frame, log_frame = _frames(_spheres(self.data, size, noise), rng)
        loading = self.data.root @ (frame * size[:, None, :])
        log_target = _log_joint(self.data.data, self.prior, loading, noise)
        # Both are densities of the loading W, all turns V of W = U diag(a) Vᵀ being alike.
        stretch = rank * np.linalg.slogdet(self.data.root)[1]
        log_proposal += log_frame - at.sum(1) - _log_volume(size, self.data.data.features) - stretch
        self.batches.append((loading, noise, log_target - log_proposal))

    def weighed(self) -> _Weighed:
        """All batches as one."""
        loading, noise, log_weight = (
            np.concatenate(part) for part in zip(*self.batches, strict=True)
        )
        count = PROPOSALS * len(self.batches)
        log_weight = np.where(np.isfinite(log_weight), log_weight, -np.inf)
        top = float(log_weight.max())
        weight = np.exp(log_weight - top)
        total = weight.sum()
        effective = float(total**2 / (weight**2).sum())
        error = float(np.sqrt(max(1 / effective - 1 / count, 0.0)))
        evidence = top + float(np.log(total / count))
        return _Weighed(loading, noise, weight / total, evidence, error, effective)


def _ordered(at: np.ndarray, log_proposal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those draws whose sizes fall; the others weigh nothing."""
    kept = (np.diff(at[:, :-1], axis=1) < 0).all(1)
    return at[kept], log_proposal[kept]


def _log_volume(size: np.ndarray, features: int) -> np.ndarray:
    """Logarithm of what sizes add to the volume of loadings W = U diag(a) Vᵀ with V any turn.

    Constants that depend on the rank alone are the same in proposal and target, and left out.
    """
    rank = size.shape[1]
    volume = (features - rank) * np.log(size).sum(1)
    first, second = np.triu_indices(rank, 1)
    with np.errstate(divide="ignore"):
        apart = np.log(np.abs(size[:, first] ** 2 - size[:, second] ** 2)).sum(1)
    return np.asarray(volume + apart)


def _log_joint(data: Scatter, prior: LowRank, loading: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Logarithm of likelihood, mean integrated out, times the priors, as a density of loadings."""
    directions, sizes, _ = np.linalg.svd(loading, full_matrices=False)
    rank = sizes.shape[1]
    if data.error.any():
        found = np.empty(len(noise))
        step = max(1, CHUNK // (len(data.count) * data.features**2))
        for start in range(0, len(noise), step):
            part = slice(start, start + step)
            found[part] = _log_likelihood(data, prior, loading[part], noise[part])
    else:
        found = _log_likelihood_alike(data, prior, directions, sizes, noise)
    found += _log_density(prior.noise, noise)
    # Any order of the components is the same loading.
    found += _log_density(prior.amplitude, sizes).sum(1) + np.log(np.arange(1, rank + 1)).sum()
    return found - _log_volume(sizes, data.features)


def _precisions(
    data: Scatter, loading: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Inverse covariance of each class under each draw, (draw, class, feature, feature), and log determinants."""
    low = np.einsum("nik,njk->nij", loading, loading)
    low += noise[:, None, None] ** 2 * np.eye(data.features)
    covariance = low[:, None] + data.error
    return np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1]


def _log_likelihood_alike(
    data: Scatter, prior: LowRank, directions: np.ndarray, sizes: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """The likelihood without measurement errors: only the components' directions differ from all others."""
    center, width = float(prior.mean.loc), float(prior.mean.scale)
    n, features, rank = data.units, data.features, sizes.shape[1]
    mean, scatter = data.pooled
    v = noise[:, None] ** 2
    variance = np.concatenate([sizes**2 + v, v], 1)
    many = np.append(np.ones(rank), features - rank)
    square = np.einsum("nik,ij,njk->nk", directions, scatter, directions, optimize=True)
    square = np.append(square, np.trace(scatter) - square.sum(1, keepdims=True), 1)
    away = np.einsum("nik,i->nk", directions, mean - center) ** 2
    away = np.append(away, ((mean - center) ** 2).sum() - away.sum(1, keepdims=True), 1)
    spread = variance + n * width**2
    terms = (n - 1) * many * np.log(variance) + square / variance
    terms += many * np.log(spread) + n * away / spread
    return np.asarray(-0.5 * (n * features * LOG_2PI + terms.sum(1)))


def _log_likelihood(
    data: Scatter, prior: LowRank, loading: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    precision, log_determinant = _precisions(data, loading, noise)
    center, width = float(prior.mean.loc), float(prior.mean.scale)
    away = data.mean - center
    weighed = np.einsum("ncij,cj->nci", precision, away)
    square = np.einsum("ncij,cij->n", precision, data.scatter)
    square += np.einsum("c,nci,ci->n", data.count, weighed, away)
    # The mean of all, integrated out.
    whole = np.einsum("c,ncij->nij", data.count, precision) + np.eye(data.features) / width**2
    pull = np.einsum("c,nci->ni", data.count, weighed)
    square -= np.einsum("ni,ni->n", pull, np.linalg.solve(whole, pull[:, :, None])[:, :, 0])
    log_mean = np.linalg.slogdet(whole)[1] + 2 * data.features * np.log(width)
    constant = data.units * data.features * LOG_2PI
    return np.asarray(-0.5 * (constant + log_determinant @ data.count + square + log_mean))


def _draw_mean(
    data: Scatter,
    prior: LowRank,
    loading: np.ndarray,
    noise: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    if not len(noise):
        return np.zeros((0, data.features))
    center, width = float(prior.mean.loc), float(prior.mean.scale)
    found = []
    step = max(1, CHUNK // (len(data.count) * data.features**2))
    for start in range(0, len(noise), step):
        part = slice(start, start + step)
        precision, _ = _precisions(data, loading[part], noise[part])
        whole = np.einsum("c,ncij->nij", data.count, precision) + np.eye(data.features) / width**2
        pull = np.einsum("c,ncij,cj->ni", data.count, precision, data.mean) + center / width**2
        covariance = np.linalg.inv(whole)
        factor = np.linalg.cholesky(covariance)
        random = rng.standard_normal((len(pull), data.features))
        found.append(
            np.einsum("nij,nj->ni", covariance, pull) + np.einsum("nij,nj->ni", factor, random)
        )
    return np.concatenate(found)


@dataclass(frozen=True)
class _Spheres:
    """Bingham weights of each direction in turn, (proposal, direction, axis), zero for axes that are used up."""

    weight: np.ndarray
    saddle: np.ndarray  # (proposal, direction)
    log_mean: np.ndarray  # logarithm of the mean of the exponential over each sphere


def _spheres(data: _Stretched, size: np.ndarray, noise: np.ndarray) -> _Spheres:
    count, rank = size.shape
    t, v = data.eigenvalues, data.variance(noise)[:, None]
    pull = size**2 / (v * (size**2 + v))
    every = np.concatenate([pull, np.zeros((count, len(t) - rank))], 1)
    apart = t[:rank, None] - t
    weight = (pull[:, :, None] - every[:, None]) * apart
    weight = np.where(np.arange(len(t)) > np.arange(rank)[:, None], np.maximum(weight, 0.0), 0.0)
    saddle, log_mean = np.empty((count, rank)), np.empty((count, rank))
    for i in range(rank):
        saddle[:, i], log_mean[:, i] = _bingham(weight[:, i, i:])
    return _Spheres(weight, saddle, log_mean)


def _bingham(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Saddle point and logarithm of the mean of exp(-½ Σ w_j x_j²) over the unit sphere, (many, axis) → (many,)."""
    from scipy.special import gammaln

    half, axes = weight / 2, weight.shape[1]
    if axes == 1:
        return np.full(len(weight), 0.5), -half[:, 0]
    u = np.full((len(weight), 1), 0.5)
    # Newton's method climbs to the root of a convex falling function and never passes it.
    for _ in range(60):
        inverse = 1 / (half + u)
        step = (0.5 * inverse.sum(1) - 1) / (0.5 * (inverse**2).sum(1))
        u = u + step[:, None]
        if np.abs(step).max() < 1e-12 * axes:
            break
    inverse = 1 / (half + u)
    second, third, fourth = (c * (inverse**n).sum(1) for c, n in ((0.5, 2), (1.0, 3), (3.0, 4)))
    bend = fourth / (8 * second**2) - 5 * third**2 / (24 * second**3)
    log_mean = (
        gammaln(axes / 2)
        + 0.5 * np.log(inverse).sum(1)
        - 0.5 * np.log(2 * np.pi * second)
        + u[:, 0]
        + bend
    )
    return u[:, 0], log_mean


def _frames(sphere: _Spheres, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames (proposal, axis, direction) and the logarithm of their density against frames without preference."""
    count, rank, axes = sphere.weight.shape
    frame = np.zeros((count, axes, rank))
    turns: list[np.ndarray] = []
    log_density = -sphere.log_mean.sum(1)
    for i in range(rank):
        weight = sphere.weight[:, i, i:]
        x = _draw_bingham(weight, sphere.saddle[:, i], rng)
        log_density -= 0.5 * (weight * x**2).sum(1)
        frame[:, i:, i] = x
        # Earlier directions carry the later ones along, each by the turn that takes its own axis to it.
        for k in range(i - 1, -1, -1):
            frame[:, :, i] = _carried(frame[:, :, i], turns[k], k)
        turns.append(np.pad(x, ((0, 0), (i, 0))))
    return frame, log_density


def _carried(vector: np.ndarray, to: np.ndarray, axis: int) -> np.ndarray:
    """Vectors under the turn that takes an axis to a direction and leaves all that is square to both."""
    middle = to.copy()
    middle[:, axis] += 1.0
    along = (vector * middle).sum(1) / middle[:, axis]
    return np.asarray(vector - along[:, None] * middle + 2 * vector[:, axis, None] * to)


def _draw_bingham(weight: np.ndarray, saddle: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors with density ∝ exp(-½ Σ w_j x_j²), the first component positive."""
    count, axes = weight.shape
    spread = 2 * saddle
    omega = 1 + weight / spread[:, None]
    bound = -(axes - spread) / 2 + axes / 2 * np.log(axes / spread)
    drawn = np.empty((count, axes))
    left = np.arange(count)
    while len(left):
        y = rng.standard_normal((len(left), axes)) / np.sqrt(omega[left])
        x = y / np.linalg.norm(y, axis=1, keepdims=True)
        log_accept = -0.5 * (weight[left] * x**2).sum(1) - bound[left]
        log_accept += axes / 2 * np.log((omega[left] * x**2).sum(1))
        taken = np.log(rng.random(len(left))) < log_accept
        drawn[left[taken]] = x[taken]
        left = left[~taken]
    return drawn * np.where(drawn[:, :1] < 0, -1.0, 1.0)


def _log_sizes(data: _Stretched, prior: LowRank, at: np.ndarray) -> np.ndarray:
    """Logarithm of the density of log-sizes and log-noise, frames integrated out."""
    rank = at.shape[1] - 1
    size, noise = np.exp(at[:, :rank]), np.exp(at[:, rank])
    t, v = data.eigenvalues, data.variance(noise)
    n = data.data.units - 1
    pull = size**2 / (v[:, None] * (size**2 + v[:, None]))
    found = -0.5 * n * ((len(t) - rank) * np.log(v) + np.log(size**2 + v[:, None]).sum(1))
    found += 0.5 * (pull * t[:rank]).sum(1) - 0.5 * t.sum() / v
    found += _spheres(data, size, noise).log_mean.sum(1)
    found += _log_density(prior.noise, noise)
    found += _log_density(prior.amplitude, size * data.reach[:rank]).sum(1) + at.sum(1)
    ordered = (np.diff(size, axis=1) < 0).all(1)
    return np.asarray(np.where(ordered, found, -np.inf))


def _proposal(
    data: _Stretched, prior: LowRank, rank: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Center and factor of a Student distribution for log-sizes and log-noise.

    It is fitted to their density in a few rounds, each from the weighed draws of the last.
    """
    n = max(data.data.units - 1, 1)
    start = np.log(np.maximum(data.eigenvalues[:rank] / n - 1.0, 2.0 / np.sqrt(n)))
    # Started apart, since sizes that are equal have no density.
    start = 0.5 * np.minimum.accumulate(start - 1e-3 * np.arange(rank)) if rank else start
    center = np.append(start, 0.5 * np.log(data.typical))
    spread = np.append(
        np.maximum(0.5 * np.sqrt(2.0 / n), np.exp(-2 * start) / np.sqrt(n)).clip(max=0.5),
        np.sqrt(0.5 / n / len(data.eigenvalues)) + (0.5 if data.error.max() > 0 else 0.02),
    )
    factor = np.diag(spread)
    for _ in range(ROUNDS):
        at, log_proposal = _student(center, factor, PROPOSALS, rng)
        log_weight = _log_sizes(data, prior, at) - log_proposal
        center, factor = _fitted(at, log_weight, center, factor)
    return center, factor


def _fitted(
    at: np.ndarray, log_weight: np.ndarray, center: np.ndarray, factor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Center and width of weighed draws; flattened until enough of them count."""
    if not np.isfinite(log_weight).any():
        return center, factor
    enough = 20 * (at.shape[1] + 1)
    power = 1.0
    while True:
        weight = np.exp(power * (log_weight - log_weight.max()))
        weight /= weight.sum()
        if 1 / (weight**2).sum() >= enough or power < 1e-3:
            break
        power *= 0.7
    center = weight @ at
    away = at - center
    covariance = (weight[:, None] * away).T @ away
    covariance += 1e-10 * np.eye(len(center)) * max(np.trace(covariance), 1e-12)
    return center, np.linalg.cholesky(covariance)


def _student(
    center: np.ndarray, factor: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of a Student distribution and the logarithm of their density."""
    from scipy.special import gammaln

    axes = len(center)
    normal = rng.standard_normal((count, axes))
    scale = np.sqrt(FREEDOM / rng.chisquare(FREEDOM, count))
    standard = normal * scale[:, None]
    log_density = (
        gammaln((FREEDOM + axes) / 2)
        - gammaln(FREEDOM / 2)
        - axes / 2 * np.log(FREEDOM * np.pi)
        - np.log(np.abs(np.diag(factor))).sum()
        - (FREEDOM + axes) / 2 * np.log1p((standard**2).sum(1) / FREEDOM)
    )
    return center + standard @ factor.T, log_density
