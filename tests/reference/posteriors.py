"""The posteriors that runners are graded on: eight classics and the catalogue's walls, each with its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import classics
import xarray as xr

from atomzoo.datasets.scenes import simulate
from atomzoo.inference.density import Density
from atomzoo.inference.fit import make_density
from atomzoo.models.model import Model, find

__all__ = ["POSTERIORS", "Posterior"]


@dataclass(frozen=True)
class Posterior:
    """A model and its data.

    Attributes:
        name: also of the file that holds the reference.
        model: the model.
        data: makes the data.
    """

    name: str
    model: Model
    data: Callable[[], xr.Dataset]

    def density(self) -> Density:
        """The density under the model's first prior set."""
        return make_density(self.model, self.data())


# The noise at which the walls' shapes are told apart about half of the time; benchmarks/walls.py finds it.
WALLS = {
    "wall_second_order": {"noise": 0.1},
    "wall_first_order": {"noise": 0.03, "L_c": 1.2},
    "wall_bloch": {"noise": 0.19, "P_B": 0.3},
    "wall_neel": {"noise": 0.016},
}
POSTERIORS = {
    **{m.name: Posterior(m.name, m, m.design) for m in classics.CLASSICS},
    **{
        name: Posterior(name, find(name), partial(simulate, name, seed=1, cells=21, **given))
        for name, given in WALLS.items()
    },
}
