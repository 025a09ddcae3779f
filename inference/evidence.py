"""The evidence from draws: bridge sampling between the posterior and a mixture fitted to it.

The draws are halved. A mixture of Student-t distributions is fitted to one half, and the ratio of its normaliser to the
posterior's is estimated from the other half and fresh draws of the mixture, with the bridge that is optimal when the
draws are worth as many as are effective. Then the halves change places, and the two estimates must about agree.

References: Meng and Wong, Simulating ratios of normalizing constants via a simple identity, Statistica Sinica (1996);
Frühwirth-Schnatter, Estimating marginal likelihoods for mixture and Markov switching models using bridge sampling
techniques, Econometrics Journal (2004); Gronau et al., A tutorial on bridge sampling, Journal of Mathematical
Psychology (2017).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import xarray as xr
from torch import Tensor
from torch.func import vmap

from .convergence import bulk_ess
from .density import Density
from .mixture import Mixture, taught
from .runs import Draws, RunError, digest

__all__ = ["Evidence", "bridge", "free_draws", "with_evidence"]

# Tails of the proposal; that which fits draws left out of the fit is taken.
DEGREES_OF_FREEDOM = (5.0, 30.0, 1e4)
MOST_COMPONENTS = 8
# Fewer draws a dimension do not tell a covariance.
LEAST_DRAWS = 20
# A relative error above this says only the order of magnitude, and the error itself is not known then.
LARGE_ERROR = 0.5
# Standard errors that the halves may be apart: once in 16,000 runs by chance. Then the error is what they say, unless
# that is large enough to hide something that they have not seen.
APART, TELLING = 4.0, 0.1
CHUNK = 1000


class Evidence(NamedTuple):
    """A log evidence.

    Attributes:
        log_evidence: log marginal likelihood.
        se: its standard error.
        problem: why it should not be believed, empty where nothing speaks against it.
    """

    log_evidence: float
    se: float
    problem: str = ""


def bridge(density: Density, run: xr.DataTree | Draws | Tensor, *, seed: int = 0) -> Evidence:
    """Estimate the evidence from draws of the posterior.

    Args:
        density: what was sampled.
        run: a run, what a runner returned, or unconstrained draws (chain, draw, dim).
        seed: of the mixture's draws.

    Raises:
        RunError: when the draws are not of this density, or too few.
    """
    z = free_draws(density, run)
    if density.dim == 0:
        return Evidence(float(density.log_prob(z.new_zeros(0))), 0.0)
    half = z.shape[1] // 2
    if half < 4 or z.shape[0] * half < LEAST_DRAWS * density.dim:
        raise RunError(
            f"{z.shape[0] * z.shape[1]} draws are too few for the evidence in {density.dim} dimensions; "
            f"draw at least {2 * LEAST_DRAWS * density.dim}"
        )
    value = _values(density, run, z)
    if not torch.isfinite(value).all():
        raise RunError(
            "the density is zero or undefined at some draws; they are not of this density"
        )
    generator = torch.Generator().manual_seed(seed)
    halves = (slice(None, half), slice(half, None))
    found = [
        _bridge(density, z[:, fit], value[:, fit], z[:, rest], value[:, rest], generator)
        for fit, rest in (halves, halves[::-1])
    ]
    return _together(found)


def _values(density: Density, run: xr.DataTree | Draws | Tensor, z: Tensor) -> Tensor:
    """Log density of every draw, (chain, draw): as the runner tells it, where it does."""
    if isinstance(run, Draws) and "lp" in run.stats:
        return torch.as_tensor(run.stats["lp"])
    return density.values(z.flatten(0, 1)).reshape(z.shape[:2])


def _together(found: list[Evidence]) -> Evidence:
    """The mean of both halves; where they are too far apart for their errors, that is the error."""
    log_evidence = 0.5 * sum(each.log_evidence for each in found)
    se = 0.5 * math.hypot(*(each.se for each in found))
    apart = 0.5 * abs(found[0].log_evidence - found[1].log_evidence)
    problem = next((each.problem for each in found if each.problem), "")
    if not problem and not se < LARGE_ERROR:
        problem = f"the standard error of the log evidence is {se:.1g}; use smc, or draw more"
    if not problem and apart > max(APART * se, TELLING):
        problem = (
            f"two halves of the draws give evidences e^{2 * apart:.2g} apart; use smc, or draw more"
        )
    return Evidence(log_evidence, apart if apart > APART * se else se, problem)


def _bridge(
    density: Density,
    fit: Tensor,
    fit_value: Tensor,
    z: Tensor,
    value: Tensor,
    generator: torch.Generator,
) -> Evidence:
    """Evidence from draws z (chain, draw, dim) and a mixture fitted to other draws."""
    mixture = _proposal(fit, fit_value)
    ours = value.flatten() - mixture.log_prob(z.flatten(0, 1))
    parts = [mixture.sample(len(part), generator) for part in ours.split(CHUNK)]
    proposed = torch.cat(parts)
    theirs = density.values(proposed) - mixture.log_prob(proposed)
    n = len(ours)
    effective = float(bulk_ess(ours.reshape(value.shape).T[..., None].numpy())[0])
    effective = min(effective, n) if math.isfinite(effective) else 1.0
    share = math.log(effective / (effective + n)), math.log(n / (effective + n))
    log_evidence, converged = _optimal(ours, theirs, *share)
    with_q = torch.exp(theirs - log_evidence - _mixed(theirs - log_evidence, *share))
    with_p = torch.exp(-_mixed(ours - log_evidence, *share))
    error = _relative_variance(with_q) / n + _relative_variance(with_p) / effective
    problem = (
        "" if converged else "the bridge does not converge: the draws are far from any mixture"
    )
    return Evidence(log_evidence, math.sqrt(error), problem)


def _mixed(log_ratio: Tensor, log_s1: float, log_s2: float) -> Tensor:
    """Log of s1 p / q + s2."""
    return torch.logaddexp(log_ratio + log_s1, torch.full_like(log_ratio, log_s2))


def _optimal(ours: Tensor, theirs: Tensor, log_s1: float, log_s2: float) -> tuple[float, bool]:
    """Meng and Wong's fixed point, Z = E_q[p / (s1 p + s2 Z q)] / E_p[q / (s1 p + s2 Z q)]."""
    log_z = torch.median(ours)
    for _ in range(1000):
        top = torch.logsumexp(theirs - log_z - _mixed(theirs - log_z, log_s1, log_s2), 0)
        bottom = torch.logsumexp(-_mixed(ours - log_z, log_s1, log_s2), 0)
        step = top - bottom
        log_z = log_z + step
        if not torch.isfinite(log_z) or step.abs() < 1e-10:
            break
    return float(log_z), bool(step.abs() < 1e-10)


def _relative_variance(values: Tensor) -> float:
    return float(values.var() / values.mean().square())


def _proposal(z: Tensor, value: Tensor) -> Mixture:
    """The mixture fitted to two thirds of the draws that is likeliest to have made the rest."""
    last = z.shape[1] * 2 // 3
    some, rest = z[:, :last].flatten(0, 1), z[:, last:].flatten(0, 1)
    dim = z.shape[2]
    covariance = torch.cov(some.T).reshape(dim, dim)
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        raise RunError("the draws lie in fewer dimensions than the posterior has; draw more")
    found = []
    for nu in DEGREES_OF_FREEDOM:
        # The scale matrix of a Student-t distribution with this covariance.
        scale = math.sqrt((nu - 2) / nu)
        one = Mixture(torch.ones(1, dtype=z.dtype), some.mean(0)[None], scale * factor[None], nu)
        found += [one, taught(one, some, value[:, :last].flatten(), MOST_COMPONENTS)]
    return max(found, key=lambda mixture: float(mixture.log_prob(rest).mean()))


def free_draws(density: Density, run: xr.DataTree | Draws | Tensor) -> Tensor:
    """Unconstrained draws (chain, draw, dim), from a run by inverting its transforms."""
    if isinstance(run, Tensor):
        z = run
    elif isinstance(run, Draws):
        z = run.z
    else:
        z = _from_run(density, run)
    if z.dim() != 3 or z.shape[2] != density.dim:
        raise RunError(
            f"draws must be (chain, draw, {density.dim}) to be of {density.model.name}, found {tuple(z.shape)}"
        )
    return z


def _from_run(density: Density, run: xr.DataTree) -> Tensor:
    if run.attrs["model"] != density.model.name or run.attrs["data_sha256"] != digest(density.data):
        raise RunError(
            f"the run is of {run.attrs['model']} and its data, not of this {density.model.name} and these"
        )
    posterior = run["posterior"].to_dataset()
    names = [site.name for site in [*density.sites, *density.alternatives]]
    arrays = [posterior[name].transpose("chain", "draw", ...).values for name in names]
    values = {
        name: torch.as_tensor(array).flatten(0, 1)
        for name, array in zip(names, arrays, strict=True)
    }
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    # Classes of single elements are in no run; the transforms do not depend on them, whatever is drawn.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        invert = vmap(density.unconstrain, randomness="different")
        parts = [
            invert({name: value[start : start + CHUNK] for name, value in values.items()})
            for start in range(0, chains * draws, CHUNK)
        ]
    return torch.cat(parts).reshape(chains, draws, density.dim)


def with_evidence(density: Density, draws: Draws, seed: int) -> Draws:
    """The same draws with the evidence by bridge sampling, or with the reason why it is not known."""
    try:
        found = bridge(density, draws, seed=seed)
    except RunError as error:
        found = Evidence(math.nan, math.nan, str(error))
    if found.problem:
        return draws._replace(attrs={**draws.attrs, "evidence_problem": found.problem})
    return draws._replace(log_evidence=found.log_evidence, log_evidence_se=found.se)
