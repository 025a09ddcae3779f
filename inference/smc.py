"""Sequential Monte Carlo: for several modes, and for the evidence with its error.

Islands of particles start from a reference q, a mixture around all modes that many climbs found and, for what they
missed, the prior. They are tempered along q^(1-β) p^β to the posterior p. A step in β leaves half of the weights
effective; then the particles are resampled and moved by Hamiltonian Monte Carlo in the metric of their own covariance,
and every state that a move passes is kept as a particle. The islands share what they learn about the posterior's
shape and nothing else, so the spread of their evidences is the error of the mean, and they are the chains of the run.
At the end those with more evidence hand particles to those with less.

A path from the prior alone would not do: where the data say how large the noise is, the particles meet a first-order
transition between explaining the data and calling them noise, and hardly any get across.

References: Dau and Chopin, Waste-free sequential Monte Carlo, JRSS B (2022); Buchholz, Chopin and Jacob, Adaptive
tuning of Hamiltonian Monte Carlo within sequential Monte Carlo, Bayesian Analysis (2021); Gerber, Chopin and Whiteley,
Negative association, ordering and convergence of resampling methods, Annals of Statistics (2019).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from .density import Density
from .hmc import Metric, move, state_at
from .laplace import no_latents
from .mixture import Pool, best_proposal
from .modes import find_modes
from .resampling import shuffled, systematic
from .runs import Draws, Progress, RunError
from .tempered import Tempered

__all__ = ["run"]

ACCEPTANCE = 0.8
# A quarter of a period: on a Gaussian the end of a trajectory is independent of its start.
LENGTH = 0.5 * math.pi
MOST_STEPS = 32
# Displacement grows like time while particles diffuse, and no more when they have forgotten where they began.
SETTLED = 1.25
MOST_TEMPERATURES = 500
# Draws and rounds to fit the mixture around the modes with.
PROPOSED, REFITS = 2000, 10


@dataclass
class _Population:
    """All that is known between two temperatures.

    Attributes:
        z: particles (island, particle, dim), equally weighted.
        step: step size of the moves.
        log_evidence: of every island so far.
        figures: of every temperature.
    """

    z: Tensor
    step: float
    log_evidence: Tensor
    figures: dict[str, list[float]]


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    chains: int = 16,
    draws: int = 512,
    starts: int = 64,
    particles: int = 64,
    moves: int = 8,
    effective: float = 0.5,
) -> Draws:
    """Draw from the posterior by tempering particles from a reference around its modes, as wide as the prior.

    Args:
        density: what to sample.
        seed: everything depends on it alone.
        progress: called with (done, total, text).
        checkpoint: not used, the run takes seconds.
        chains: independent islands.
        draws: draws an island.
        starts: points to climb from, drawn from the prior.
        particles: particles that an island moves at once.
        moves: least number of states that each of them passes at every temperature; up to four times as many while
            they still drift.
        effective: share of effective weights that a step in temperature leaves.
    """
    if draws < 1 or min(chains, particles, moves) < 2:
        raise RunError("draws must be at least 1; chains, particles and moves at least 2")
    if not 0 < effective < 1:
        raise RunError("effective must lie between 0 and 1")
    if density.dim == 0:
        return no_latents(density, chains, draws)
    report = progress or (lambda done, total, text: None)
    generator = torch.Generator().manual_seed(seed)
    report(0, 100, "climbing to the modes")
    pool = Pool(density, PROPOSED, generator)
    mixture = best_proposal(pool, *find_modes(density, starts, seed), REFITS)
    path = Tempered(density, mixture, chains * particles)
    now = _Population(
        path.start(chains, particles, particles * moves, generator),
        density.dim**-0.25,
        torch.zeros(chains, dtype=torch.float64),
        {"temperatures": [0.0], "acceptance": [], "moves": [], "step_size": []},
    )
    while path.power < 1:
        report(int(100 * path.power), 100, f"tempered to {path.power:.2g}")
        start, metric = _reweigh(path, now, particles, effective, generator)
        least = moves if path.power < 1 else max(moves, math.ceil(draws / particles))
        _move(path, now, start, metric, least, generator)
    report(100, 100, "done")
    thinned = torch.linspace(0, now.z.shape[1] - 1, draws, dtype=torch.float64).round().long()
    evidence, error = _pooled(now.log_evidence)
    attrs = {
        "density_path": density.path,
        "log_evidence_islands": json.dumps([round(v, 4) for v in now.log_evidence.tolist()]),
        **{name: json.dumps([float(f"{v:.4g}") for v in f]) for name, f in now.figures.items()},
    }
    return Draws(now.z[:, thinned], {}, evidence, error, attrs)


def _reweigh(
    path: Tempered,
    now: _Population,
    particles: int,
    effective: float,
    generator: torch.Generator,
) -> tuple[Tensor, Metric]:
    """Step in temperature; resampled particles (island, particle, dim) and the metric of the new distribution."""
    islands, _, dim = now.z.shape
    gain = path.log_ratio(now.z.flatten(0, 1)).reshape(islands, -1)
    power = _next_power(gain, path.power, effective)
    if len(now.figures["temperatures"]) > MOST_TEMPERATURES:
        raise RunError("the posterior is too far from its modes and the prior; narrow the prior")
    log_weights = torch.where(torch.isfinite(gain), (power - path.power) * gain, -torch.inf)
    if not torch.isfinite(log_weights).any(1).all():
        raise RunError(
            "the posterior is zero at almost every point that was tried; check the prior"
        )
    path.power = power
    now.figures["temperatures"].append(power)
    now.log_evidence = now.log_evidence + log_weights.logsumexp(1) - math.log(gain.shape[1])
    everywhere = now.z.flatten(0, 1)
    pooled = torch.softmax(log_weights.flatten(), 0)
    offset = everywhere - pooled @ everywhere
    covariance = (pooled[:, None] * offset).T @ offset + 1e-20 * torch.eye(dim)
    metric = Metric.from_covariance(covariance, float(1 / pooled.square().sum()) / dim)
    place = offset @ _longest_axis(covariance)
    # Sorted, so that neighbours stand in for one another; then shuffled, so that draws are in no order.
    order = place.reshape(islands, -1).argsort(1)
    chosen = systematic(log_weights.gather(1, order), particles, generator)
    chosen = order.gather(1, shuffled(chosen, generator))
    start = now.z.gather(1, chosen[..., None].expand(-1, -1, dim))
    return (_even(start, now.log_evidence, generator) if power == 1 else start), metric


def _even(start: Tensor, log_evidence: Tensor, generator: torch.Generator) -> Tensor:
    """Particles handed from islands of more evidence to those of less, so that every draw counts alike.

    Whatever an island can keep it keeps: the islands stay as independent as they can be.
    """
    islands, n, _ = start.shape
    owners = systematic(log_evidence[None], islands * n, generator)[0]
    owned = torch.bincount(owners, minlength=islands)
    spare = torch.cat(
        [start[k, torch.arange(n, max(n, int(owned[k]))) % n] for k in range(islands)]
    )
    spare = spare[torch.randperm(len(spare), generator=generator)]
    lacking = torch.arange(n) >= owned[:, None]
    even = start.clone()
    even[lacking] = spare
    return even


def _next_power(gain: Tensor, power: float, effective: float) -> float:
    """The power at which a share of the weights is still effective, those of zero likelihood left aside."""
    gain = gain[torch.isfinite(gain)]
    low, high = 0.0, 1 - power
    if len(gain) == 0 or _effective_share(high * gain) >= effective:
        return 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _effective_share(middle * gain) >= effective:
            low = middle
        else:
            high = middle
    return power + low


def _effective_share(log_weights: Tensor) -> float:
    return float(1 / torch.softmax(log_weights, 0).square().sum()) / len(log_weights)


def _longest_axis(covariance: Tensor) -> Tensor:
    """The direction along which standardised particles spread most: that between two modes, where there are two."""
    scale = torch.sqrt(torch.diagonal(covariance))
    vectors: Tensor = torch.linalg.eigh(covariance / scale[:, None] / scale)[1]
    return vectors[:, -1] / scale


def _move(
    path: Tempered,
    now: _Population,
    start: Tensor,
    metric: Metric,
    least: int,
    generator: torch.Generator,
) -> None:
    """Move the particles until they have forgotten where they began, and keep every state on the way."""
    islands, _, dim = start.shape
    state = state_at(path, start.flatten(0, 1))
    kept, distance, accepted = [state.z], [torch.zeros(dim)], 0.0
    jitter = 0.5 + torch.rand(4 * least, dtype=torch.float64, generator=generator)
    for i in range(1, 4 * least):
        steps = min(math.ceil(LENGTH * float(jitter[i]) / now.step), MOST_STEPS)
        moved = move(path, state, metric, now.step, steps, generator)
        probability = float(moved.probability.mean())
        accepted += probability
        now.step *= math.exp(probability - ACCEPTANCE)
        state = moved.state
        kept.append(state.z)
        distance.append(metric.back(state.z - kept[0]).square().mean(0))
        if i + 1 >= least and bool((distance[i] < SETTLED * distance[i // 2]).all()):
            break
    now.z = torch.stack(kept, 1).reshape(islands, -1, dim)
    now.figures["acceptance"].append(accepted / (len(kept) - 1))
    now.figures["moves"].append(len(kept) - 1)
    now.figures["step_size"].append(now.step)


def _pooled(log_evidence: Tensor) -> tuple[float, float]:
    """Log of the islands' mean evidence and its standard error."""
    islands = len(log_evidence)
    mean = torch.logsumexp(log_evidence, 0) - math.log(islands)
    return float(mean), float(torch.exp(log_evidence - mean).std() / math.sqrt(islands))
