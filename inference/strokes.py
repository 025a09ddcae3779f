"""Draws of many chains: trajectories, and between them jumps to places that were proposed beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .hmc import State

__all__ = ["Jumps", "Record", "strokes"]

# What is known of draws, by name, with an axis over the draws in front.
Record = dict[str, Tensor]


@dataclass(frozen=True)
class Jumps:
    """Places that jumps are proposed to, for every draw and chain: where, and how likely.

    Proposals do not depend on where a chain is, so that all of a block can be worked out at once.

    Attributes:
        places: (draw, ..., dim).
        values: log density of the posterior there (draw, ...).
        weights: the same less the log density of the proposal.
        proposed: log density of the proposal anywhere.
    """

    places: Tensor
    values: Tensor
    weights: Tensor
    proposed: Callable[[Tensor], Tensor]

    @classmethod
    def to(
        cls, places: Tensor, values: Tensor, log_q: Tensor, proposed: Callable[[Tensor], Tensor]
    ) -> Jumps:
        """Jumps to places where both densities are known; never to where there is none."""
        weights = torch.nan_to_num(values - log_q, nan=-torch.inf, posinf=-torch.inf)
        return cls(places, values, weights, proposed)


def strokes(
    state: State,
    n: int,
    every: int,
    trajectory: Callable[[State, bool], tuple[State, Record]],
    jumps: Jumps | None,
    generator: torch.Generator,
) -> tuple[State, Record]:
    """So many draws of every chain, and what is known of each.

    Args:
        state: where the chains are.
        n: draws.
        every: draws from one trajectory to the next; one where there are no jumps.
        trajectory: moves the chains, after asking for the gradient where the flag says that it is another place's. What
            it says of itself is kept with the draw after it.
        jumps: one before every draw.
        generator: of the random numbers.
    """
    lead, dim = state.value.shape, state.z.shape[-1]
    draws: list[Record] = []
    stale = False
    for start in range(0, n, every):
        state, told = trajectory(state, stale)
        if jumps is None:
            draws.append({"z": state.z[None], "lp": state.value[None]} | _first(told, 1))
            continue
        some = slice(start, min(start + every, n))
        found = _jumped(state, jumps, some, generator)
        told = _first(told, some.stop - start)
        # What a jump did is told of draws that no trajectory came before.
        told["acceptance_rate"] = torch.cat([told["acceptance_rate"][:1], found.pop("gained")[1:]])
        state = State(found["z"][-1], found["lp"][-1], state.gradient)
        draws.append(found | told)
        stale = True
    whole = {name: torch.cat([part[name] for part in draws]) for name in draws[0]}
    # With a fresh momentum, as a trajectory from there would begin.
    momentum = torch.randn(n, *lead, dim, dtype=state.z.dtype, generator=generator)
    whole["energy"] = 0.5 * momentum.square().sum(-1) - whole["lp"]
    return state, whole


def _first(told: Record, length: int) -> Record:
    """What is told of the first of so many draws; of the others nothing is."""
    return {
        name: torch.cat([values[None], values.new_zeros(length - 1, *values.shape)])
        for name, values in told.items()
    }


def _jumped(state: State, jumps: Jumps, some: slice, generator: torch.Generator) -> Record:
    """One jump after another of every chain, by Metropolis and Hastings."""
    weights = jumps.weights[some]
    tries = torch.rand(weights.shape, dtype=weights.dtype, generator=generator).log()
    here = state.value - jumps.proposed(state.z)
    last = torch.zeros(here.shape, dtype=torch.int64)
    taken, gained, chosen = [], [], []
    for i in range(len(weights)):
        gain = weights[i] - here
        take = tries[i] < gain
        here = torch.where(take, weights[i], here)
        last = torch.where(take, i + 1, last)
        taken.append(take)
        gained.append(gain)
        chosen.append(last)
    which = torch.stack(chosen)
    places = torch.cat([state.z[None], jumps.places[some]])
    wide = which[..., None].expand(*which.shape, places.shape[-1])
    return {
        "z": places.gather(0, wide),
        "lp": torch.cat([state.value[None], jumps.values[some]]).gather(0, which),
        "jumped": torch.stack(taken),
        "gained": torch.exp(torch.stack(gained).clamp(max=0.0)),
    }
