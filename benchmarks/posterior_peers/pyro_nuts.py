"""Pyro's NUTS, with its defaults: as many draws to warm up as to keep; chains in turn, as Pyro does on two cores."""

from __future__ import annotations

import functools
import time
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions
import torch
from pyro.infer import MCMC, NUTS
from stories import STORIES, Language

__all__ = ["Jitted", "Sampler"]

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
PYRO = Language(pyro.sample, pyro.distributions, torch)


class Sampler:
    """Draws of a posterior. The amount is the draws a chain; few, since they are slow, and the rest extrapolated."""

    AMOUNT = 150
    WARMUP = 150
    STEERED = False
    SHARES_COMPILE = False
    CHAINS = 4
    JIT = False

    def __init__(self, name: str, problem: dict[str, Any], which: str) -> None:
        self.problem, self.seconds_of_draws = problem, 0.0
        data = {key: torch.as_tensor(np.asarray(v)) for key, v in problem["data"][which].items()}
        self.model = functools.partial(STORIES[name], PYRO, data)

    def sample(self, seed: int, amount: int) -> dict[str, np.ndarray]:
        """Constrained draws (chain, draw, ...) by name."""
        pyro.set_rng_seed(seed)
        started: list[float] = []

        def watch(kernel: Any, params: Any, stage: str, i: int) -> None:
            if stage.lower().startswith("sample"):
                if i == 0:
                    started.append(time.perf_counter())
                if i == amount - 1:
                    self.seconds_of_draws += time.perf_counter() - started[-1]

        kernel = NUTS(self.model, jit_compile=self.JIT, ignore_jit_warnings=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mcmc = MCMC(
                kernel,
                num_samples=amount,
                num_chains=self.CHAINS,
                hook_fn=watch,
                disable_progbar=True,
            )
            mcmc.run()
        draws = mcmc.get_samples(group_by_chain=True)
        return {name: draws[name].numpy() for name in self.problem["latents"]}

    def log_joint(self, values: dict[str, np.ndarray]) -> float:
        """Log joint density at constrained values."""
        held = {key: torch.as_tensor(v) for key, v in values.items()}
        trace = pyro.poutine.trace(pyro.poutine.condition(self.model, held)).get_trace()
        return float(trace.log_prob_sum())


class Jitted(Sampler):
    """The same with the potential traced by PyTorch's JIT."""

    JIT = True
