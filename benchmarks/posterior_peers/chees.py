"""BlackJAX's ChEES-HMC on NumPyro's potential: 64 chains, the settings of its own test, compiled as a whole."""

from __future__ import annotations

import functools
from typing import Any

import blackjax
import jax
import numpy as np
import optax
from blackjax.adaptation.base import get_filter_adapt_info_fn
from in_jax import Story
from numpyro.infer.util import initialize_model

__all__ = ["Chees", "Diagonal"]


class Chees(Story):
    """Draws of a posterior. The amount is the draws a chain."""

    AMOUNT = 100
    WARMUP = 1000
    CHAINS = 64
    SHARES_COMPILE = True
    METRIC: str | None = None

    def __init__(self, name: str, problem: dict[str, Any], which: str) -> None:
        super().__init__(name, problem, which)
        found = initialize_model(
            jax.random.key(0), self.model, model_args=(self.data,), dynamic_args=True
        )
        self.example, self.potential, self.constrain = found[0].z, found[1], found[2]

    def _run(self, key: Any, data: Any, amount: int) -> Any:
        def log_prob(position: Any) -> Any:
            return -self.potential(data)(position)

        start_key, warmup_key, sample_key = jax.random.split(key, 3)
        leaves, tree = jax.tree.flatten(self.example)
        start = [
            jax.random.uniform(k, (self.CHAINS, *leaf.shape), minval=-2, maxval=2)
            for k, leaf in zip(jax.random.split(start_key, len(leaves)), leaves, strict=True)
        ]
        warmup = blackjax.chees_adaptation(
            log_prob,
            self.CHAINS,
            target_acceptance_rate=0.75,
            adaptation_info_fn=get_filter_adapt_info_fn(),
            mass_matrix_estimation=self.METRIC,
        )
        (states, parameters), _ = warmup.run(
            warmup_key,
            jax.tree.unflatten(tree, start),
            step_size=0.1,
            optim=optax.adam(learning_rate=0.5, b1=0, b2=0.95),
            num_steps=self.WARMUP,
            max_sampling_steps=amount,
        )
        step = jax.vmap(blackjax.dynamic_hmc(log_prob, **parameters).step)

        def draw(states: Any, key: Any) -> Any:
            states, _ = step(jax.random.split(key, self.CHAINS), states)
            return states, states.position

        _, positions = jax.lax.scan(draw, states, jax.random.split(sample_key, amount))
        return jax.vmap(jax.vmap(self.constrain(data)))(positions)

    def sample(self, seed: int, amount: int) -> dict[str, np.ndarray]:
        """Constrained draws (chain, draw, ...) by name."""
        if amount not in self.compiled:
            self.compiled[amount] = jax.jit(functools.partial(self._run, amount=amount))
        draws = self.compiled[amount](jax.random.key(seed), self.data)
        return {name: np.asarray(draws[name]).swapaxes(0, 1) for name in self.problem["latents"]}


class Diagonal(Chees):
    """The same with the scales of the parameters learnt from the chains."""

    METRIC = "diagonal"
