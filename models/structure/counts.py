"""Counts of electrons with a gain and read-out noise, as one distribution with the right mean and variance."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["Counts"]


class Counts(TorchDistribution):
    """Poisson–Gaussian pixels: variance = gain · mean + extra, but at least `least`.

    A pixel I is taken as gain · n − extra / gain with n ~ Poisson(variance / gain²): the shifted Poisson distribution,
    with the mean and the variance of counts and read-out noise together. Values between the steps have the density's
    continuation. Where the mean leaves less than the least variance, the density goes on as a Gaussian of that
    variance, with the same value and slope. Its score is (I − mean) / variance everywhere: what least squares with
    weights from the mean sets to zero.

    References: Snyder, Helstrom, Lanterman, Faisal and White, Compensation for readout noise in CCD images, Journal of
    the Optical Society of America A 12 (1995), for the shift.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "mean_count": constraints.real,
        "gain": constraints.positive,
        "extra": constraints.real,
        "least": constraints.positive,
    }
    support = constraints.real

    def __init__(
        self,
        mean_count: Tensor,
        gain: Tensor,
        extra: Tensor,
        least: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.mean_count, self.gain, self.extra, self.least = torch.broadcast_tensors(
            mean_count, gain, extra, least
        )
        super().__init__(self.mean_count.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Counts:
        """The same distribution over more pixels."""
        mean, gain, extra, least = (
            t.expand(batch_shape) for t in (self.mean_count, self.gain, self.extra, self.least)
        )
        return Counts(mean, gain, extra, least, validate_args=False)

    @property
    def variance(self) -> Tensor:
        """Variance of each pixel."""
        return torch.maximum(self.gain * self.mean_count + self.extra, self.least)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        rate = self.variance / self.gain**2
        seen = value / self.gain + self.extra / self.gain**2
        density = torch.xlogy(seen, rate) - rate - torch.lgamma(seen.clamp(min=0) + 1)
        edge = (self.least - self.extra) / self.gain
        short = torch.minimum(self.mean_count - edge, torch.zeros_like(edge))
        # (I − edge)² − (I − mean)² = (mean − edge)(2 I − mean − edge); zero where the mean is above the edge.
        below = short * (2 * (value - edge) - short) / (2 * self.least)
        found: Tensor = density + below - self.gain.log()
        return found

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw pixels."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            count = torch.poisson((self.variance / self.gain**2).expand(shape))
            drawn: Tensor = self.gain * count - self.extra / self.gain
        return drawn
