"""atomzoo itself: `fit` with the runner `ensemble`, asked for a number of effective samples."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

# What a fit needs is imported when it is asked for; the peers import all of theirs at once.
from atomzoo import fit

__all__ = ["OnCuda", "Sampler", "classics", "model_of"]

CLASSICS = Path(__file__).parents[2] / "tests" / "reference" / "classics.py"


@functools.cache
def classics() -> Any:
    """The module of the classic posteriors, which the tests have."""
    spec = importlib.util.spec_from_file_location("classics", CLASSICS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_of(name: str) -> Any:
    """A model of the catalogue, or one of the classic posteriors."""
    return name if name.startswith("wall_") else getattr(classics(), name)


class Sampler:
    """Draws of a posterior. The amount is the effective sample size, which the runner stops at."""

    AMOUNT = 4000
    STEERED = True
    SHARES_COMPILE = True
    DEVICE = "cpu"

    def __init__(self, name: str, problem: dict[str, Any], which: str) -> None:
        self.model, self.problem = model_of(name), problem
        self.give(which)

    @staticmethod
    def prepare(name: str) -> None:
        """Import runner, stories that are asked for, and what datasets need, as the peers have imported theirs."""
        importlib.import_module("atomzoo.inference.ensemble")
        model_of(name)
        xr.Dataset({"x": ("x", [0.0])})

    def give(self, which: str) -> None:
        """Go on with other data."""
        parts = self.problem["dataset"][which]
        self.data = xr.Dataset.from_dict(parts)

    def sample(self, seed: int, amount: int) -> dict[str, np.ndarray]:
        """Constrained draws (chain, draw, ...) by name."""
        run = fit(
            self.model,
            self.data,
            runner="ensemble",
            ess=amount,
            seed=seed,
            lean=True,
            device=self.DEVICE,
        )
        posterior = run["posterior"].to_dataset()
        return {name: posterior[name].values for name in self.problem["latents"]}


class OnCuda(Sampler):
    """The same with the model worked out on a graphics card."""

    DEVICE = "cuda"

    @staticmethod
    def prepare(name: str) -> None:
        """Wake the card besides."""
        import torch

        Sampler.prepare(name)
        torch.zeros((), device="cuda")
