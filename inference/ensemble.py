"""Many short chains at once: start everywhere in the posterior, adapt from all, stop when the answer is known.

The modes are found first, and a mixture around them is fitted to the posterior. Where it covers the posterior, chains
start from its importance sample, and every chain proposes to jump to fresh draws of it, so that basins get their
weights. Else chains start below the tops of their climbs and find the posterior's shape from one another. In between
every chain moves by Hamiltonian Monte Carlo with one shared metric and jittered steps and trajectories, adapted
over all chains in a warm-up that is thrown away: rarely where the jumps do well, before every draw where they do not.
Sampling goes on until the worst parameter has the effective sample size asked for and nested R-hat says that the
chains agree.

References: Hoffman, Radul and Sountsov, An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian Monte
Carlo, AISTATS (2021); Margossian et al., Nested R-hat (2024); Gabrié, Rotskoff and Vanden-Eijnden, Adaptive Monte
Carlo augmented with normalizing flows, PNAS 119 (2022), for the jumps.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .convergence import Convergence
from .density import VALUES, Density
from .hmc import Metric, State, StepSize, TrajectoryLength, move, state_at
from .laplace import no_latents
from .mixture import Mixture, Pool, best_proposal, effective_draws, taught
from .modes import ascend, find_modes, spread
from .runs import Draws, Progress, RunError
from .strokes import Jumps, Record, strokes

__all__ = ["run"]

R_HAT = 1.01
# Share of effective draws from which a proposal is worth jumping to, and from which chains may start from its draws.
JUMP = 0.02
COVERED = 0.05
# Warm-up windows: short while the chains' shape is coarse, longer as it gets fine.
FIRST_WINDOW, GROWTH = 16, 2.0
# Transitions after which warm-up ends once the chains agree; and the share of the draws asked for after which it does
# where so many jumps are taken that little is left to learn.
ENOUGH, BRIEF, GOOD = 100, 0.25, 0.3
MOST_STEPS = 256
JITTER = 0.5
# Every trajectory takes a step of its own between these shares of the adapted one: where a posterior is narrow, as in
# the neck of a funnel, the long ones fail and the short ones go on. A failed trajectory is a divergence if no shorter
# step is likely to do: if its own is shorter than this share.
SHORTEST, LONGEST_STEP, SHORT = 0.25, 1.15, 0.5
# Draws that tell at the end of warm-up whether trajectories diverge, and how often the step is halved if they do.
TRIAL, HALVED = 32, 2
# Share of the effective draws asked for that every mean must have too.
MEAN = 0.25
# Growth of the effective sample size, while the draws double, below which it is not worth while to go on. It is looked
# at while there are few: no more than a share of what is asked for, and than a number.
GROWING, FEW, ENOUGH_TO_TELL = 1.2, 0.2, 1000
# Draws between two looks at the effective sample size: no fewer, and at first no more.
LEAST_BLOCK, FIRST_BLOCK = 8, 64
# Acceptance of jumps away from where it is least, but for a share of the draws, from which a trajectory comes only
# before every so many of them.
JUMPY, RARE = ((0.3, 16), (0.15, 8), (0.05, 2)), 0.005
# Leapfrog steps allowed in the first window of warm-up; twice as many in each that follows.
FIRST_STEPS = 16
# Weights that must be flattened further than to this power tell nothing about where the posterior is.
FLAT = 0.1
GROUPS = 8
KEEP_EVERY = 5.0


@dataclass
class _Kernel:
    """What moves the chains, fixed once warm-up is over.

    Attributes:
        metric: of the trajectories.
        step: their step size.
        length: their mean length.
        jump: what jumps are proposed from.
        every: draws from one trajectory to the next; there is a jump before each.
    """

    metric: Metric
    step: float
    length: float
    jump: Mixture | None
    every: int = 1

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything in it, to be kept."""
        found = {"scale": self.metric.scale, "vectors": self.metric.vectors}
        found |= {
            "stretch": self.metric.stretch,
            "steps": torch.tensor([self.step, self.length, self.every], dtype=torch.float64),
        }
        if self.jump is not None:
            found |= {"jump_weights": self.jump.weights, "jump_means": self.jump.means}
            found |= {
                "jump_factors": self.jump.factors,
                "jump_nu": torch.tensor(self.jump.nu, dtype=torch.float64),
            }
        return {name: values.numpy() for name, values in found.items()}

    @classmethod
    def kept(cls, arrays: Mapping[str, np.ndarray]) -> _Kernel:
        """The kernel that `arrays` took apart."""
        t = {name: torch.as_tensor(values) for name, values in arrays.items()}
        jump = None
        if "jump_nu" in t:
            nu = float(t["jump_nu"])
            jump = Mixture(t["jump_weights"], t["jump_means"], t["jump_factors"], nu)
        step, length, every = map(float, t["steps"])
        metric = Metric(t["scale"], t["vectors"], t["stretch"])
        return cls(metric, step, length, jump, int(every))


class _Draws:
    """Draws and statistics as they come, in blocks (draw, chain, ...)."""

    def __init__(self, blocks: list[Record] | None = None) -> None:
        self.blocks = blocks or []

    def __len__(self) -> int:
        return sum(len(block["z"]) for block in self.blocks)

    def all(self) -> Record:
        """So far, by name."""
        if len(self.blocks) > 1:
            names = self.blocks[0]
            self.blocks = [{n: torch.cat([block[n] for block in self.blocks]) for n in names}]
        return self.blocks[0] if self.blocks else {}

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything in it, to be kept."""
        return {f"draw_{name}": values.numpy() for name, values in self.all().items()}

    @classmethod
    def kept(cls, arrays: Mapping[str, np.ndarray]) -> _Draws:
        """The draws that `arrays` took apart."""
        found = {
            name.removeprefix("draw_"): torch.as_tensor(values)
            for name, values in arrays.items()
            if name.startswith("draw_")
        }
        return cls([found] if found else None)


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    ess: int = 2000,
    chains: int = 64,
    warmup: int = 1000,
    least: int = 1,
    most: int = 2000,
    target_acceptance: float = 0.8,
    starts: int = 64,
) -> Draws:
    """Sample with many chains until the effective sample size is reached.

    Args:
        density: what to sample.
        seed: everything depends on it alone.
        progress: called with (done, total, text).
        checkpoint: file to keep the draws so far in, and to go on from when it is there. It stays when all is done:
            whoever gave it removes it once the run is safe.
        ess: bulk effective draws of the worst parameter to stop at.
        chains: how many move together.
        warmup: most transitions of warm-up.
        least: least draws a chain.
        most: most draws a chain, if the effective sample size is not reached before.
        target_acceptance: acceptance probability that the step size is adapted to.
        starts: points to climb from, drawn from the prior.
    """
    if min(ess, warmup, least, most, starts) < 1 or chains < GROUPS:
        raise RunError(
            f"ess, warmup, least, most and starts must be at least 1, and chains at least {GROUPS}"
        )
    if density.dim == 0:
        return no_latents(density, chains, max(1, math.ceil(ess / chains)))
    report = progress or (lambda done, total, text: None)
    generator = torch.Generator().manual_seed(seed)
    settings = {"seed": seed, "ess": ess, "chains": chains, "warmup": warmup, "starts": starts}
    store = Checkpoint(checkpoint, "ensemble", density, {**settings, "target": target_acceptance})
    if arrays := store.load():
        basins = _Basins(*(torch.as_tensor(arrays[name]) for name in ("modes", "factors")))
        kernel, record = _Kernel.kept(arrays), _Draws.kept(arrays)
        state = state_at(density, torch.as_tensor(arrays["z"]))
        generator.set_state(torch.as_tensor(arrays["generator"]))
        warm = int(arrays["warm"])
    else:
        report(0, ess, "climbing to the modes")
        state, kernel, basins = _start(density, chains, starts, seed, generator)
        report(0, ess, "warming up")
        brief = math.ceil(BRIEF * ess / chains)
        state, kernel, warm = _warm_up(
            density, state, kernel, basins, warmup, brief, target_acceptance, generator
        )
        record = _Draws()

    def keep() -> None:
        known = {"modes": basins.modes.numpy(), "factors": basins.factors.numpy()}
        known |= {"z": state.z.numpy(), "generator": generator.get_state().numpy()}
        store.save({**kernel.arrays(), **record.arrays(), **known, "warm": np.array(warm)})

    keep()
    kept = time.monotonic()
    reached = _reached(Convergence(record.all()["z"].numpy())) if len(record) else 0.0
    while len(record) < most:
        block = _block_size(len(record), reached, ess, chains, 1 if kernel.jump is None else 3)
        block = min(block, most - len(record))
        # Without jumps a block may take long, and is told of piece by piece.
        for piece in [block] if kernel.jump is not None else _pieces(block):
            state, more = _draws(density, state, kernel, piece, generator)
            record.blocks.append(more)
            report(min(int(reached), ess), ess, f"{len(record)} draws a chain")
        draws = record.all()["z"].numpy()
        found = Convergence(draws)
        reached = _reached(found)
        agreed = reached >= ess and float(found.r_hat.max()) <= R_HAT
        if (agreed and len(record) >= least) or _stuck(draws, reached, ess):
            break
        if time.monotonic() - kept > KEEP_EVERY:
            keep()
            kept = time.monotonic()
    # In order of memory too, so that sums over them are those over the same run when it is read back.
    told = {name: values.transpose(0, 1).contiguous() for name, values in record.all().items()}
    z, jumped = told.pop("z"), told.pop("jumped", None)
    attrs = {
        "density_path": density.path,
        "warmup_transitions": warm,
        "trajectory_length": kernel.length,
        "trajectory_every": kernel.every,
        "jump_acceptance": float(jumped.to(z.dtype).mean()) if jumped is not None else 0.0,
        **basins.told(z.flatten(0, 1)),
    }
    return Draws(z, {name: v.numpy() for name, v in told.items()}, None, None, attrs)


def _reached(found: Convergence) -> float:
    """Effective draws of the worst dimension: of its bulk, and of its mean with a share of what is asked for."""
    return float(min(found.bulk.min(), found.mean.min() / MEAN))


def _pieces(n: int) -> list[int]:
    """A number of draws in pieces that are told of."""
    return [min(LEAST_BLOCK, n - start) for start in range(0, n, LEAST_BLOCK)]


def _stuck(draws: np.ndarray, reached: float, ess: int) -> bool:
    """Whether twice the draws are hardly worth more than half of them: some chain does not get away."""
    half = len(draws) // 2
    if half < TRIAL or reached > min(FEW * ess, ENOUGH_TO_TELL):
        return False
    return reached < GROWING * _reached(Convergence(draws[:half]))


def _block_size(done: int, reached: float, ess: int, chains: int, growth: int) -> int:
    """How many draws to go on with: what seems to be lacking, but not many times what there is."""
    if not done:
        return max(LEAST_BLOCK, min(FIRST_BLOCK, math.ceil(ess / chains)))
    rate = reached / done if reached > 0 else 0.0
    lacking = math.ceil(1.05 * (ess - reached) / rate) if rate > 0 else done
    return max(LEAST_BLOCK, min(lacking, growth * done))


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
    power = _tempered(pool.log_weights, 2 * chains)
    if power > FLAT:
        weights = torch.softmax(power * pool.log_weights, 0)
        chosen = torch.multinomial(weights, 16 * chains, replacement=True, generator=generator)
        z, metric = pool.z[chosen[:chains]], basins.metric(pool.z[chosen])
    else:
        z = _below_the_top(density, chains, seed)
        metric = Metric.from_draws(z)
    step = 1.2 / density.dim**0.25 if covered else 0.1
    jump = mixture if efficiency > JUMP else None
    return state_at(density, z), _Kernel(metric, step, 0.5 * math.pi, jump), basins


def _tempered(log_weights: Tensor, effective: int) -> float:
    """The largest power of the weights that leaves so many effective draws, 0 where none does."""
    power = 1.0
    while power > FLAT and effective_draws(power * log_weights) < effective:
        power *= 0.8
    return power if power > FLAT else 0.0


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
    brief: int,
    target: float,
    generator: torch.Generator,
) -> tuple[State, _Kernel, int]:
    """Adapt step size, trajectory length and metric over windows, until a window finds nothing to change."""
    length = TrajectoryLength(kernel.length)
    window, done, cap = FIRST_WINDOW, 0, FIRST_STEPS
    while done < most:
        step = StepSize(kernel.step, target)
        seen: list[State] = []
        taken = 0.0
        for _ in range(min(window, most - done)):
            jitter = _jitter(generator)
            steps = min(cap, _steps(jitter * length.value, step.value))
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
        values = torch.cat([s.value for s in seen])
        if kernel.jump is not None:
            kernel.jump = taught(kernel.jump, flat, values)
        learnt = kernel.jump is not before or (kernel.jump is None or taken < JUMP)
        if _agree(z) and (not learnt or done >= (min(ENOUGH, brief) if taken > GOOD else ENOUGH)):
            break
        kernel.metric = basins.metric(flat)
        window, cap = int(window * GROWTH), 2 * cap
    if kernel.jump is not None:
        kernel.every = _every(density, kernel.jump, flat, values, generator)
    for _ in range(HALVED if kernel.jump is None else 0):
        state, found = _draws(density, state, kernel, TRIAL, generator)
        done += TRIAL
        if not found["diverging"].any():
            break
        kernel.step *= 0.5
    return state, kernel, done


def _every(
    density: Density, jump: Mixture, z: Tensor, values: Tensor, generator: torch.Generator
) -> int:
    """Draws from one trajectory to the next: few where some draws of the posterior are hardly jumped away from."""
    places = jump.sample(VALUES, generator)
    there = density.values(places) - jump.log_prob(places)
    here = values - jump.log_prob(z)
    chance = torch.exp((there - here[:, None]).clamp(max=0.0)).mean(1).nan_to_num(nan=0.0)
    least = float(chance.quantile(RARE))
    return next((every for enough, every in JUMPY if least > enough), 1)


def _agree(z: Tensor) -> bool:
    """Whether the chains of a window do not look apart."""
    return len(z) > 4 and float(Convergence(z.numpy()).r_hat.max()) < 1.1


def _jitter(generator: torch.Generator) -> float:
    return 1 + JITTER * (2 * float(torch.rand(1, generator=generator)) - 1)


def _steps(length: float, step: float) -> int:
    return min(MOST_STEPS, max(1, round(length / step)))


def _draws(
    density: Density, state: State, kernel: _Kernel, n: int, generator: torch.Generator
) -> tuple[State, Record]:
    """So many draws of every chain, with what is known of each; all jumps are worked out at once."""
    chains = len(state.z)

    def trajectory(now: State, stale: bool) -> tuple[State, Record]:
        now = state_at(density, now.z) if stale else now
        share = SHORTEST + (LONGEST_STEP - SHORTEST) * float(torch.rand(1, generator=generator))
        steps = _steps(_jitter(generator) * kernel.length, share * kernel.step)
        moved = move(density, now, kernel.metric, share * kernel.step, steps, generator)
        return moved.state, {
            "acceptance_rate": moved.probability,
            "diverging": moved.diverging & (share < SHORT),
            "n_steps": torch.full((chains,), steps),
            "step_size": torch.full((chains,), share * kernel.step, dtype=now.z.dtype),
        }

    jumps = None
    if kernel.jump is not None:
        flat = kernel.jump.sample(n * chains, generator)
        values, log_q = density.values(flat), kernel.jump.log_prob(flat)
        flat, values, log_q = (t.reshape(n, chains, *t.shape[1:]) for t in (flat, values, log_q))
        jumps = Jumps.to(flat, values, log_q, kernel.jump.log_prob)
    state, found = strokes(state, n, kernel.every, trajectory, jumps, generator)
    # The gradient of before the jumps is of no use, and values alone are rounded otherwise.
    return state_at(density, state.z), found


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
