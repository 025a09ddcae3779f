"""NumPyro's NUTS in its three ways to run chains, and its language."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpyro

numpyro.enable_x64()

import jax  # noqa: E402  double precision is set before
import jax.numpy as jnp  # noqa: E402
import numpyro.distributions  # noqa: E402
from numpyro.infer import MCMC, NUTS  # noqa: E402
from numpyro.infer.util import log_density  # noqa: E402
from stories import STORIES, Language  # noqa: E402

__all__ = ["JAX", "Nuts", "Sequential", "Vectorised"]

JAX = Language(numpyro.sample, numpyro.distributions, jnp)


class Story:
    """A posterior in JAX, with its data."""

    STEERED = False

    def __init__(self, name: str, problem: dict[str, Any], which: str) -> None:
        self.problem = problem
        self.model = functools.partial(STORIES[name], JAX)
        self.compiled: dict[int, Any] = {}
        self.give(which)

    def give(self, which: str) -> None:
        """Go on with other data."""
        self.data = {k: jnp.asarray(np.asarray(v)) for k, v in self.problem["data"][which].items()}

    def log_joint(self, values: dict[str, np.ndarray]) -> float:
        """Log joint density at constrained values."""
        return float(log_density(self.model, (self.data,), {}, values)[0])


class Nuts(Story):
    """Four chains, each on a device of its own. The amount is the draws a chain."""

    AMOUNT = 1000
    WARMUP = 1000
    CHAINS = 4
    METHOD = "parallel"
    # NumPyro shares a compile over data of the same size in all its ways but this one.
    SHARES_COMPILE = False

    def sample(self, seed: int, amount: int) -> dict[str, np.ndarray]:
        """Constrained draws (chain, draw, ...) by name."""
        if amount not in self.compiled:
            self.compiled[amount] = MCMC(
                NUTS(self.model),
                num_warmup=self.WARMUP,
                num_samples=amount,
                num_chains=self.CHAINS,
                chain_method=self.METHOD,
                progress_bar=False,
                jit_model_args=self.SHARES_COMPILE,
            )
        mcmc = self.compiled[amount]
        mcmc.run(jax.random.key(seed), self.data)
        draws = mcmc.get_samples(group_by_chain=True)
        return {name: np.asarray(draws[name]) for name in self.problem["latents"]}


class Sequential(Nuts):
    """Four chains in turn on one device."""

    METHOD = "sequential"
    SHARES_COMPILE = True


class Vectorised(Sequential):
    """64 chains as one batch."""

    AMOUNT = 100
    CHAINS = 64
    METHOD = "vectorized"
