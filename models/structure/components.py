"""What stories of a few common components share: how they are drawn, learnt, and told of every unit.

The story is that of `bayesian_pca`: a mean, a number of components, an orthonormal frame, an amplitude along each of
its directions, and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pyro.distributions import Normal, TorchDistribution, constraints

from ..model import sample
from ..priors import ModelError, Prior
from .bayesian_pca import Learnt, LowRank, Scatter, learn, orthonormal

__all__ = ["Components", "Measured", "Scores", "components", "learnt_from", "story_draws"]

# Draws that scores are averaged over.
SCORE_DRAWS = 48
HALF_LOG_2PI = 0.5 * float(np.log(2 * np.pi))
# Draws that are told where there are many units; each is weighed by all of them afterwards.
MOST_DRAWS, UNITS_OF_MOST = 400, 5e5


class Components(TorchDistribution):
    """Normal vectors with covariance Σ a_i² u_i u_iᵀ + s² I, the u_i orthonormal.

    Args:
        mean: of every feature, (feature,).
        frame: the u_i as rows, (component, feature).
        amplitude: the a_i, (..., component).
        noise: s.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 1)

    def __init__(
        self,
        mean: torch.Tensor,
        frame: torch.Tensor,
        amplitude: torch.Tensor,
        noise: torch.Tensor,
        batch_shape: torch.Size | None = None,
    ) -> None:
        self.mean_of_all, self.frame, self.amplitude, self.noise = mean, frame, amplitude, noise
        super().__init__(
            amplitude.shape[:-1] if batch_shape is None else batch_shape,
            mean.shape[-1:],
            validate_args=False,
        )

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Components:
        """The same for many units."""
        return Components(
            self.mean_of_all, self.frame, self.amplitude, self.noise, torch.Size(batch_shape)
        )

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Along each component its own variance, and that of the noise in all other directions."""
        away = value - self.mean_of_all
        along = away @ self.frame.mT
        ratio = (self.amplitude / self.noise[..., None]) ** 2
        square = (away * away).sum(-1) - (along * along * (ratio / (1 + ratio))).sum(-1)
        found = -0.5 * (square / self.noise**2 + torch.log1p(ratio).sum(-1))
        return found - value.shape[-1] * (torch.log(self.noise) + HALF_LOG_2PI)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Components and noise, drawn."""
        shape = torch.Size(sample_shape) + self.batch_shape
        strength = torch.randn((*shape, self.frame.shape[-2]), dtype=torch.float64)
        noise = torch.randn((*shape, self.frame.shape[-1]), dtype=torch.float64)
        seen: torch.Tensor = self.mean_of_all + (strength * self.amplitude) @ self.frame
        return seen + self.noise[..., None] * noise


class Measured(Components):
    """What an instrument shows of such vectors, with an error of known covariance for each kind of unit.

    Args:
        hidden: the vectors.
        error: the covariances, (kind, feature, feature).
        units: units of each kind, by index.
    """

    def __init__(
        self,
        hidden: Components,
        error: torch.Tensor,
        units: Sequence[torch.Tensor],
        batch_shape: torch.Size | None = None,
    ) -> None:
        self.hidden, self.error, self.units = hidden, error, units
        count = sum(len(u) for u in units)
        shape = torch.Size((*hidden.batch_shape[:-1], count))
        super().__init__(
            hidden.mean_of_all,
            hidden.frame,
            hidden.amplitude,
            hidden.noise,
            shape if batch_shape is None else batch_shape,
        )

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Measured:
        """The same for more."""
        return Measured(self.hidden, self.error, self.units, torch.Size(batch_shape))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Each kind of unit has a covariance of its own."""
        loading = self.frame.mT * self.amplitude[..., None, :]
        features = value.shape[-1]
        own = loading @ loading.mT
        own = own + self.noise[..., None, None] ** 2 * torch.eye(features, dtype=value.dtype)
        away = value - self.mean_of_all
        parts = []
        for kind, units in enumerate(self.units):
            # The batch of the covariance ends with a dimension of the units.
            factor = torch.linalg.cholesky(own + self.error[kind])
            some = away[..., units, :]
            flat = factor.squeeze(-3) if factor.dim() > 2 else factor
            white = torch.linalg.solve_triangular(flat, some.mT, upper=False)
            square = (white * white).sum(-2)
            log_root = torch.log(torch.diagonal(factor, dim1=-2, dim2=-1)).sum(-1)
            parts.append(-0.5 * square - log_root - features * HALF_LOG_2PI)
        order = torch.argsort(torch.cat(list(self.units)))
        return torch.cat(parts, -1)[..., order]

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Vectors with errors."""
        wide = self.hidden.expand(self.batch_shape)
        seen = wide.sample(sample_shape)
        for kind, units in enumerate(self.units):
            # A measurement without error has a covariance without a root.
            own, vectors = torch.linalg.eigh(self.error[kind])
            root = vectors * own.clamp(min=0.0).sqrt()
            random = torch.randn_like(seen[..., units, :])
            seen[..., units, :] += random @ root.mT
        return seen


def components(features: int, prior: Prior) -> Components:
    """Draw the mean of every feature, the number of components, their frame and amplitudes, and the noise."""
    rank = sample("rank", prior.rank)
    most = int(prior.rank.probs.shape[-1]) - 1
    if most >= features:
        raise ModelError(
            f"{most} components cannot be told from noise in {features} features; "
            "allow fewer: the prior of `rank` has one entry more than the most there can be"
        )
    mean = sample("mean", prior.mean.expand([features]).to_event(1))
    amplitude = sample("amplitude", prior.amplitude.expand([most]).to_event(1))
    # Normal rows made orthonormal prefer no direction.
    standard = Normal(torch.zeros((), dtype=torch.float64), 1.0)
    frame = orthonormal(sample("frame", standard.expand([most, features]).to_event(2)))
    used = (torch.arange(most) < rank[..., None]).to(amplitude.dtype)
    return Components(mean, frame, amplitude * used, sample("noise", prior.noise))


def learnt_from(
    values: np.ndarray,
    prior: Prior,
    *,
    draws: int,
    seed: int,
    error: np.ndarray | None = None,
    kind: np.ndarray | None = None,
) -> Learnt:
    """The posterior of the components of units (unit, feature), with the errors of each kind of unit."""
    low_rank = LowRank(
        prior.rank.probs.numpy().astype(float), prior.amplitude, prior.noise, prior.mean
    )
    told = int(min(draws, MOST_DRAWS, max(40, UNITS_OF_MOST / len(values))))
    return learn(Scatter.of(values, error, kind), low_rank, draws=told, seed=seed)


def story_draws(learnt: Learnt, seed: int) -> dict[str, torch.Tensor]:
    """Draws as the story has them: normal rows that become the frame."""
    generator = np.random.default_rng((seed, 1))
    count, most, features = learnt.frame.shape
    normal = generator.standard_normal((count, features, most))
    _, factor = np.linalg.qr(normal)
    signs = np.sign(np.einsum("nii->ni", factor))
    # Rows = factorᵀ · frame with a positive diagonal go back to the frame when made orthonormal.
    rows = np.swapaxes(factor * signs[:, :, None], 1, 2) @ learnt.frame
    found = {
        "mean": learnt.mean,
        "amplitude": learnt.amplitude,
        "frame": rows,
        "noise": learnt.noise,
    }
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in found.items()}


@dataclass(frozen=True)
class Scores:
    """Components of every unit in one frame for all draws.

    Attributes:
        axes: directions of the common frame, (component, feature), the largest variance first.
        variance: of the components along them, (draw, component).
        middle: mean of the features.
        learnt: what they are scores of.
        which: draws that are averaged.
    """

    axes: np.ndarray
    variance: np.ndarray
    middle: np.ndarray
    learnt: Learnt
    which: np.ndarray

    @classmethod
    def of(cls, learnt: Learnt) -> Scores:
        """The common frame: that of the mean covariance of the components, as many as are most probable."""
        rank = int(learnt.rank_probability.argmax())
        loading = _loadings(learnt, slice(None))
        covariance = np.einsum("nki,nkj->ij", loading, loading) / len(loading)
        axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :rank].T
        # Signs are a convention: the largest entry is positive.
        if rank:
            largest = np.abs(axes).argmax(1)
            axes = axes * np.sign(axes[np.arange(rank), largest])[:, None]
        variance = np.einsum("nki,ci->nkc", loading, axes)
        which = np.unique(np.linspace(0, len(loading) - 1, SCORE_DRAWS).astype(int))
        return cls(axes, (variance**2).sum(1), learnt.mean.mean(0), learnt, which)

    def told(
        self,
        values: np.ndarray,
        error: np.ndarray | None = None,
        kind: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of each unit's components, (unit, component) and (unit, component, component)."""
        units, rank = len(values), len(self.axes)
        gain, inner = self._gains(values.shape[1], error)
        kind = np.zeros(units, np.int64) if kind is None else kind
        mean, square = np.zeros((units, rank)), np.zeros((units, rank, rank))
        for draw, center in enumerate(self.learnt.mean[self.which]):
            away = values - center
            # All are told about one mean, or the mean's own error would be in every unit.
            one = _by_kind(gain[draw], away, kind) + (center - self.middle) @ self.axes.T
            mean += one
            square += one[:, :, None] * one[:, None] + inner[draw][kind]
        count = len(self.which)
        mean /= count
        return mean, square / count - mean[:, :, None] * mean[:, None]

    def _gains(self, features: int, error: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """For each draw and kind: from features to components, and the components' own covariance."""
        loading = np.swapaxes(_loadings(self.learnt, self.which), 1, 2)
        signal = loading @ np.swapaxes(loading, 1, 2)
        noise = self.learnt.noise[self.which] ** 2
        errors = np.zeros((1, features, features)) if error is None else error
        whole = signal[:, None] + noise[:, None, None, None] * np.eye(features) + errors
        along = self.axes @ signal
        gain = np.swapaxes(np.linalg.solve(whole, np.swapaxes(along, 1, 2)[:, None]), 2, 3)
        left = np.einsum("ncif,nfg,jg->ncij", gain, signal, self.axes, optimize=True)
        return gain, (along @ self.axes.T)[:, None] - left


def _by_kind(gain: np.ndarray, away: np.ndarray, kind: np.ndarray) -> np.ndarray:
    if len(gain) == 1:
        return np.asarray(away @ gain[0].T)
    found = np.empty((len(away), gain.shape[1]))
    for k, one in enumerate(gain):
        inside = kind == k
        found[inside] = away[inside] @ one.T
    return found


def _loadings(learnt: Learnt, which: Any) -> np.ndarray:
    """Loadings (draw, component, feature), nothing beyond the rank."""
    used = np.arange(learnt.frame.shape[1]) < learnt.rank[which][:, None]
    return np.asarray(learnt.frame[which] * (learnt.amplitude[which] * used)[:, :, None])
