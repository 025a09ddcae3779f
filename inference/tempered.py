"""The way from a reference to the posterior, π_β(z) ∝ q(z)^(1-β) p(z)^β, for many points at once.

The reference is normalised: a mixture around the modes that were found, and the prior for what was not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .density import Density, Values, sum_product
from .mixture import Mixture

__all__ = ["PriorDensity", "Tempered"]

# Numbers in one tensor over all points and all observations: 64 MB.
MOST_NUMBERS = 8_000_000
# Share of the reference that is the prior.
WIDE = 0.25


class PriorDensity(Density):
    """The normalised density of the latents of another density before any data."""

    def __init__(self, density: Density) -> None:
        super().__init__(density.model, density.data, density.prior, device=density.device)
        self.networks = density.networks

    def _total(self, z: Tensor | Values, held: Mapping[str, Tensor] | None) -> Tensor:
        """Log density of the prior alone."""
        factors, latents = self.factors(z, held)
        own = {site.name for site in [*self.sites, *self.discrete]}
        total = sum_product(
            [factor for factor in factors if factor.name in own],
            latents.plates_of_axis,
            self.plate_sizes,
        )
        return total.reshape(()) + sum(latents.jacobian, torch.zeros((), dtype=torch.float64))

    def _shape_key(self) -> tuple[Any, ...]:
        return "prior", *super()._shape_key()


class Tempered:
    """A geometric path between distributions, with the gradient of its log density.

    Attributes:
        power: β, from 0 for the reference to 1 for the posterior.
    """

    def __init__(self, density: Density, mixture: Mixture, points: int) -> None:
        self.density, self.mixture, self.power = density, mixture, 0.0
        self.prior = PriorDensity(density)
        numbers = density.dim + sum(density.view.data[name].size for name in density.observed)
        self.width = max(1, min(points, MOST_NUMBERS // numbers))

    def start(self, groups: int, few: int, many: int, generator: torch.Generator) -> Tensor:
        """Draws of the reference (group, draw, dim), every group with the same share of the prior.

        Args:
            groups: number of groups.
            few: draws a group where the prior can only be drawn from one by one.
            many: draws a group otherwise.
            generator: of the random numbers.
        """
        seed = int(torch.randint(2**31, (1,), generator=generator))
        counts = [groups * max(1, round(WIDE * n)) for n in (few, many)]
        wide = self.density.initial(counts[1], seed, counts[0])
        near = self.mixture.sample(round(len(wide) * (1 / WIDE - 1)), generator)
        dim = wide.shape[1]
        return torch.cat([wide.reshape(groups, -1, dim), near.reshape(groups, -1, dim)], 1)

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (n,) up to a constant, and its gradient (n, dim)."""
        value, slope = self.density.gradient(z, width=self.width)
        if self.power == 1:
            return value, slope
        base, base_slope = self._reference(z)
        rest = 1 - self.power
        return self.power * value + rest * base, self.power * slope + rest * base_slope

    def log_ratio(self, z: Tensor) -> Tensor:
        """Log of posterior over reference at every point, minus infinity where there is no posterior."""
        difference = self.density.gradient(z, width=self.width)[0] - self._reference(z)[0]
        return torch.nan_to_num(difference, nan=-torch.inf, posinf=-torch.inf)

    def _reference(self, z: Tensor) -> tuple[Tensor, Tensor]:
        wide, wide_slope = self.prior.gradient(z, width=self.width)
        near, near_slope = _gradient(self.mixture, z)
        both = torch.stack([wide + math.log(WIDE), near + math.log(1 - WIDE)])
        both = torch.nan_to_num(both, nan=-torch.inf)
        share = torch.softmax(both, 0)[..., None]
        slopes = torch.nan_to_num(torch.stack([wide_slope, near_slope]))
        return torch.logsumexp(both, 0), (share * slopes).sum(0)


def _gradient(mixture: Mixture, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log density of a mixture and its gradient."""
    dim = z.shape[1]
    parts = mixture.component_log_prob(z) + mixture.weights.log()
    value = torch.logsumexp(parts, 1)
    offset = (z[:, None] - mixture.means).permute(1, 2, 0)
    white = torch.linalg.solve_triangular(mixture.factors, offset, upper=False)
    pull = torch.linalg.solve_triangular(mixture.factors.mT, white, upper=True)
    share = torch.exp(parts - value[:, None]).T * (mixture.nu + dim)
    return value, -(share[:, None] * pull / (mixture.nu + white.square().sum(1, True))).sum(0).T
