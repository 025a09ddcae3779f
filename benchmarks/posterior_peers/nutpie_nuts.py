"""PyMC models sampled by nutpie, with its defaults and four chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import nutpie
import pytensor.tensor as pt
from pymc_stories import build, latents

__all__ = ["Sampler"]


class Sampler:
    """Draws of a posterior. The amount is the draws a chain."""

    AMOUNT = 1000
    WARMUP = 400
    STEERED = False
    SHARES_COMPILE = True

    def __init__(self, name: str, problem: dict[str, Any], which: str) -> None:
        self.name, self.problem = name, problem
        self.model = build(name, self._data(which))
        self.compiled = None

    def _data(self, which: str) -> dict[str, np.ndarray]:
        return {key: np.asarray(value) for key, value in self.problem["data"][which].items()}

    def give(self, which: str) -> None:
        """Go on with other data."""
        others = {f"{key}_data": value for key, value in self._data(which).items()}
        used = {k: v for k, v in others.items() if k in self.compiled.shared_data}
        self.compiled = self.compiled.with_data(**used)

    def sample(self, seed: int, amount: int) -> dict[str, np.ndarray]:
        """Constrained draws (chain, draw, ...) by name."""
        if self.compiled is None:
            self.compiled = nutpie.compile_pymc_model(self.model)
        trace = nutpie.sample(
            self.compiled, draws=amount, chains=4, seed=seed, progress_bar=False, save_warmup=False
        )
        names = [variable.name for variable in self.model.free_RVs]
        draws = latents(self.name, {name: trace.posterior[name].values for name in names})
        return {name: draws[name] for name in self.problem["latents"]}

    def log_joint(self, values: dict[str, np.ndarray]) -> float:
        """Log joint density at constrained values."""
        point, jacobian = dict(values), 0.0
        if self.name == "hierarchy":
            factor, spread = point.pop("factor"), point.pop("spread")
            point["chol"] = (spread[:, None] * factor)[np.tril_indices(3)]
            # From a scale s and k correlations to a row of the covariance's factor: s^k / L_kk.
            k = np.arange(3)
            jacobian = float((k * np.log(spread) - np.log(np.diag(factor))).sum())
        free = {}
        for variable in self.model.free_RVs:
            transform = self.model.rvs_to_transforms[variable]
            value = np.asarray(point[variable.name])
            if transform is not None:
                value = transform.forward(pt.as_tensor(value), *variable.owner.inputs).eval()
            free[self.model.rvs_to_values[variable].name] = value
        return float(self.model.compile_logp(jacobian=False)(free)) + jacobian
