"""Many short chains at once: start everywhere in the posterior, adapt from all, stop when the answer is known.

The modes are found first, and a mixture around them is fitted to the posterior. Where it covers the posterior, chains
start from its importance sample, and now and then each chain proposes to jump to a fresh draw of it, so that basins
get their weights. Else chains start below the tops of their climbs and find the posterior's shape from one another.
In between every chain moves by Hamiltonian Monte Carlo with one shared metric, step size and jittered trajectory
length, adapted over all chains in a warm-up that is thrown away. Sampling goes on until the worst parameter has the
effective sample size asked for and nested R-hat says that the chains agree.

References: Hoffman, Radul and Sountsov, An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte
Carlo, AISTATS (2021); Margossian et al., Nested R-hat (2024); Gabrié, Rotskoff and Vanden-Eijnden, Adaptive Monte
Carlo augmented with normalizing flows, PNAS 119 (2022), for the jumps.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .convergence import bulk_ess, nested_r_hat
from .density import Density
from .hmc import Metric, Moved, State, StepSize, TrajectoryLength, move, state_at
from .laplace import no_latents
from .mixture import Mixture, Pool, best_proposal, taught
from .modes import ascend, find_modes, spread
from .runs import Draws, Progress, RunError

__all__ = ["run"]

R_HAT = 1.01
# Share of effective draws from which a proposal is worth jumping to, and from which chains may start from its draws.
JUMP = 0.02
COVERED = 0.05
# Warm-up windows: short while the chains' shape is coarse, longer as it gets fine.
FIRST_WINDOW, GROWTH = 16, 2.0
# Transitions after which warm-up ends once the chains agree.
ENOUGH = 100
MOST_STEPS = 512
JITTER = 0.5
BLOCK = 16


@dataclass
class _Kernel:
    """What moves the chains, fixed once warm-up is over."""

    metric: Metric
    step: float
    length: float
    jump: Mixture | None


class _Record:
    """Draws and statistics as they come, and the counts over all of them."""

    def __init__(self) -> None:
        self.z: list[Tensor] = []
        self.stats: dict[str, list[Tensor]] = {}
        self.jumps = 0.0

    def add(self, state: State, **stats: Tensor) -> None:
        self.z.append(state.z)
        for name, values in {"lp": state.value, **stats}.items():
            self.stats.setdefault(name, []).append(values)

    @property
    def draws(self) -> np.ndarray:
        """So far, (draw, chain, dim)."""
        return torch.stack(self.z).numpy()


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    ess: int = 2000,
    chains: int = 64,
    warmup: int = 1000,
    most: int = 2000,
    target_acceptance: float = 0.8,
    starts: int = 64,
) -> Draws:
    """Sample with many chains until the effective sample size is reached.

    Args:
        density: what to sample.
        seed: everything depends on it alone.
        progress: called with (done, total, text).
        checkpoint: not used yet.
        ess: bulk effective draws of the worst parameter to stop at.
        chains: how many move together.
        warmup: most transitions of warm-up.
        most: most draws a chain, if the effective sample size is not reached before.
        target_acceptance: acceptance probability that the step size is adapted to.
        starts: points to climb from, drawn from the prior.
    """
    if min(ess, chains, warmup, most, starts) < 1:
        raise RunError("ess, chains, warmup, most and starts must be at least 1")
    if density.dim == 0:
        return no_latents(density, chains, max(1, math.ceil(ess / chains)))
    report = progress or (lambda done, total, text: None)
    generator = torch.Generator().manual_seed(seed)
    report(0, ess, "climbing to the modes")
    start, kernel, found = _start(density, chains, starts, seed, generator)
    report(0, ess, "warming up")
    state, kernel, warm = _warm_up(
        density, start, kernel, found, warmup, target_acceptance, generator
    )
    record = _Record()
    reached, agreed = 0.0, math.inf
    while len(record.z) < most:
        for _ in range(BLOCK):
            state = _transition(density, state, kernel, record, generator)
        draws = record.draws
        reached = float(np.min(bulk_ess(draws)))
        agreed = float(np.max(nested_r_hat(draws)))
        report(min(int(reached), ess), ess, f"{len(record.z)} draws a chain")
        if reached >= ess and agreed <= R_HAT:
            break
    stats = {name: torch.stack(values, 1).numpy() for name, values in record.stats.items()}
    attrs = {
        "density_path": density.path,
        "warmup_transitions": warm,
        "step_size": kernel.step,
        "trajectory_length": kernel.length,
        "jump_acceptance": record.jumps / len(record.z) if kernel.jump else 0.0,
        **found.told(torch.cat(record.z)),
    }
    return Draws(torch.stack(record.z, 1), stats, None, None, attrs)


@dataclass(frozen=True)
class _Basins:
    """The modes that were found, with the Cholesky factors of their covariances."""

    modes: Tensor
    factors: Tensor

    def of(self, z: Tensor) -> Tensor:
        """The basin of every draw: the mode that is nearest in its own metric."""
        even = torch.full((len(self.modes),), 1 / len(self.modes), dtype=torch.float64)
        return Mixture(even, self.modes, self.factors, 5.0).component_log_prob(z).argmax(-1)

    def told(self, z: Tensor) -> dict[str, object]:
        """How many basins there are and what share of the draws each has."""
        shares = torch.bincount(self.of(z), minlength=len(self.modes)) / len(z)
        return {
            "basins": len(self.modes),
            "basin_weights": json.dumps([round(float(share), 4) for share in shares]),
        }

    def metric(self, z: Tensor) -> Metric:
        """The metric of draws about the means of their basins."""
        if len(self.modes) == 1:
            return Metric.from_draws(z)
        basin = self.of(z)
        offset = z.clone()
        for k in basin.unique():
            offset[basin == k] -= z[basin == k].mean(0)
        return Metric.from_draws(offset)


def _start(
    density: Density, chains: int, starts: int, seed: int, generator: torch.Generator
) -> tuple[State, _Kernel, _Basins]:
    """Starting points, a first kernel, and the basins that were found."""
    modes, heights, factors = find_modes(density, starts, seed)
    basins = _Basins(modes, factors)
    pool = Pool(density, 2048, generator)
    mixture = best_proposal(pool, modes, heights, factors, 6)
    efficiency = pool.efficiency(mixture)
    covered = efficiency > COVERED
    if covered:
        weights = torch.softmax(pool.log_weights, 0)
        chosen = torch.multinomial(weights, 16 * chains, replacement=True, generator=generator)
        z, metric = pool.z[chosen[:chains]], basins.metric(pool.z[chosen])
    else:
        z = _below_the_top(density, chains, seed)
        metric = Metric.from_draws(z)
    step = 1.2 / density.dim**0.25 if covered else 0.1
    jump = mixture if efficiency > JUMP else None
    return state_at(density, z), _Kernel(metric, step, 0.5 * math.pi, jump), basins


def _below_the_top(density: Density, chains: int, seed: int) -> Tensor:
    """Draws from the prior, climbed part of the way: no top is typical in many dimensions."""
    first = density.initial(chains, seed + 1)
    z = ascend(density, first, spread(first), steps=40)
    fine = torch.isfinite(density.gradient(z)[0])
    if not fine.any():
        raise RunError(
            "the density is not finite anywhere near draws from the prior; check the prior"
        )
    best = z[fine]
    return torch.where(fine[:, None], z, best[torch.arange(chains) % len(best)])


def _warm_up(
    density: Density,
    state: State,
    kernel: _Kernel,
    basins: _Basins,
    most: int,
    target: float,
    generator: torch.Generator,
) -> tuple[State, _Kernel, int]:
    """Adapt step size, trajectory length and metric over windows, until a window finds nothing to change."""
    length = TrajectoryLength(kernel.length)
    window, done = FIRST_WINDOW, 0
    while done < most:
        step = StepSize(kernel.step, target)
        seen: list[State] = []
        taken = 0.0
        for _ in range(min(window, most - done)):
            jitter = _jitter(generator)
            steps = _steps(jitter * length.value, step.value)
            moved = move(density, state, kernel.metric, step.value, steps, generator)
            step.update(moved.probability)
            if kernel.jump is None:
                length.update(state.z, moved, kernel.metric, jitter)
            state = moved.state
            if kernel.jump is not None:
                state, jumped = _jumped(density, state, kernel.jump, generator)
                taken += float(jumped.to(torch.float64).mean()) / window
            seen.append(state)
        done += len(seen)
        kernel.step, kernel.length = step.value, length.value
        z = torch.stack([s.z for s in seen])
        flat, before = z.flatten(0, 1), kernel.jump
        if kernel.jump is not None:
            kernel.jump = taught(kernel.jump, flat, torch.cat([s.value for s in seen]))
        learnt = kernel.jump is not before or (kernel.jump is None or taken < JUMP)
        if _agree(z) and (not learnt or done >= ENOUGH):
            break
        kernel.metric = basins.metric(flat)
        window = int(window * GROWTH)
    return state, kernel, done


def _agree(z: Tensor) -> bool:
    """Whether the chains of a window do not look apart."""
    return len(z) > 4 and float(np.max(nested_r_hat(z.numpy()))) < 1.1


def _jitter(generator: torch.Generator) -> float:
    return 1 + JITTER * (2 * float(torch.rand(1, generator=generator)) - 1)


def _steps(length: float, step: float) -> int:
    return min(MOST_STEPS, max(1, round(length / step)))


def _transition(
    density: Density, state: State, kernel: _Kernel, record: _Record, generator: torch.Generator
) -> State:
    """One trajectory and one jump of every chain, written down."""
    steps = _steps(_jitter(generator) * kernel.length, kernel.step)
    moved: Moved = move(density, state, kernel.metric, kernel.step, steps, generator)
    state = moved.state
    if kernel.jump is not None:
        state, taken = _jumped(density, state, kernel.jump, generator)
        record.jumps += float(taken.to(torch.float64).mean())
    record.add(
        state,
        energy=moved.energy,
        acceptance_rate=moved.probability,
        diverging=moved.diverging,
        n_steps=torch.full((len(state.z),), steps),
        step_size=torch.full((len(state.z),), kernel.step, dtype=torch.float64),
    )
    return state


def _jumped(
    density: Density, state: State, mixture: Mixture, generator: torch.Generator
) -> tuple[State, Tensor]:
    """Propose a fresh draw of the mixture to every chain, by Metropolis and Hastings."""
    z = mixture.sample(len(state.z), generator)
    new = state_at(density, z)
    weight = new.value - mixture.log_prob(z) - state.value + mixture.log_prob(state.z)
    weight = torch.nan_to_num(weight, nan=-torch.inf, posinf=-torch.inf)
    uniform = torch.rand(len(z), dtype=z.dtype, generator=generator)
    taken = uniform.log() < weight
    return state.where(taken, new), taken
