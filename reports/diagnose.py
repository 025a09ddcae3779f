"""Diagnostics of a run as a list of gates: a figure, its threshold, passed or failed, and what it means."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..inference.heldout import RELIABLE_K, leave_one_out

__all__ = ["Gate", "diagnose", "posterior_p_value", "power_scaling"]

# Thresholds: R-hat and ESS per chain, Vehtari et al. 2021; nested R-hat, Margossian et al. 2024; E-BFMI, Betancourt
# 2016; Pareto k, Vehtari et al. 2024; power scaling, Kallioinen et al. 2024.
R_HAT = 1.01
ESS_PER_CHAIN = 100
E_BFMI = 0.3
MCSE_SHARE = 0.05
PREDICTIVE_P = 0.01
# With fewer predictions no p-value is small enough to mean anything.
LEAST_PREDICTIONS = 100
# Of a mode that is as far away as that in standard deviations, errors are 2 % larger than told.
LAST_STEP = 0.2
# With fewer draws their weights have no tail that a Pareto distribution could be fitted to.
LEAST_WEIGHED = 100
PRIOR_SENSITIVITY = 0.05
MANY_CHAINS = 16
# Figures by which a model wants its sampling to be judged, in place of its draws.
JUDGED = "judged_"
# A prior that matters is a finding about the conclusion, no fault of the computation: it is told, and stops nothing.
FINDINGS = ("prior sensitivity",)
# Gates whose figure must not be below the threshold; all others must not be above.
AT_LEAST = ("bulk ESS", "tail ESS", "E-BFMI", "posterior predictive p")


@dataclass(frozen=True)
class Gate:
    """One check of a run.

    Attributes:
        name: short name.
        value: the figure found, NaN where it does not exist.
        threshold: what it is held against.
        passed: whether it is on the right side.
        text: what it means and, when it fails, what to do.
    """

    name: str
    value: float
    threshold: float
    passed: bool
    text: str

    @property
    def limit(self) -> str:
        """The threshold with its direction, such as "≤ 1.01"."""
        return f"{'≥' if self.name in AT_LEAST else '≤'} {self.threshold:g}"

    @property
    def fault(self) -> bool:
        """Whether the run should not be relied on before this is mended."""
        return not self.passed and self.name not in FINDINGS

    @property
    def result(self) -> str:
        """In a word: passed, failed, or a finding to note."""
        return "passed" if self.passed else "failed" if self.fault else "note"

    def as_json(self) -> dict[str, Any]:
        """Plain values; a figure that does not exist is null."""
        plain = asdict(self)
        plain["value"] = None if not math.isfinite(self.value) else float(self.value)
        plain["passed"] = bool(self.passed)
        return {key: plain[key] for key in ("name", "value", "threshold", "passed")}


def diagnose(run: xr.DataTree) -> list[Gate]:
    """Every gate that applies to a run."""
    return [*sampling(run), *_left_out(run), *_predictive(run), *_prior(run)]


def sampling(run: xr.DataTree) -> list[Gate]:
    """The gates that ask whether the draws are those of the posterior."""
    if run.attrs.get("independent"):  # a closed form: there are no chains to agree
        return [*_importance(run), *_climb(run)]
    return [*_mixing(run), *_hamiltonian(run), *_importance(run)]


def _continuous(run: xr.DataTree) -> xr.Dataset:
    """Posterior variables that move; a parameter's elements are all kept.

    Names of clusters differ between chains that agree: a model of such tells what no names change instead.
    """
    posterior = run["posterior"].to_dataset()
    if "derived" in run.children:
        told = run["derived"].to_dataset()
        judged = {
            str(n).removeprefix(JUDGED): told[n].variable for n in told if str(n).startswith(JUDGED)
        }
        if judged:
            posterior = xr.Dataset(judged).rename(sweep="draw")
    moving = [
        n for n in posterior.data_vars if posterior[n].dtype.kind == "f" and posterior[n].size
    ]
    return posterior[moving]


def _worst(result: xr.Dataset, largest: bool) -> tuple[float, str]:
    """The worst figure over all elements, and whose it is.

    Infinity counts: R-hat is infinite where every chain stands still at a place of its own.
    """
    found = [
        (float(values.max() if largest else values.min()), str(variable))
        for variable, array in result.data_vars.items()
        if (values := array.values[~np.isnan(array.values)]).size
    ]
    if not found:
        return math.nan, ""
    return max(found, key=_figure) if largest else min(found, key=_figure)


def _figure(found: tuple[float, str]) -> float:
    return found[0]


def _mixing(run: xr.DataTree) -> list[Gate]:
    import arviz_stats as azs

    posterior = _continuous(run)
    if not posterior.data_vars:
        return []
    chains = posterior.sizes["chain"]
    gates = []
    with np.errstate(all="ignore"):
        if chains >= MANY_CHAINS:
            supers = np.arange(chains) % 8
            nested = azs.rhat_nested(posterior, superchain_ids=supers)
            gates.append(_r_hat("nested R-hat", nested))
        elif chains > 1:
            gates.append(_r_hat("R-hat", azs.rhat(posterior)))
        for method in ("bulk", "tail"):
            figure, name = _worst(azs.ess(posterior, method=method), largest=False)
            least = ESS_PER_CHAIN * min(chains, 4)
            gates.append(
                Gate(
                    f"{method} ESS",
                    figure,
                    least,
                    figure >= least,
                    f"effective draws of the worst parameter ({name}); run longer when too few",
                )
            )
        mcse, name = _worst(azs.mcse(posterior) / posterior.std(("chain", "draw")), largest=True)
    gates.append(
        Gate(
            "MCSE / sd",
            mcse,
            MCSE_SHARE,
            mcse <= MCSE_SHARE,
            f"Monte Carlo error of the worst mean ({name}) as a share of its posterior spread",
        )
    )
    return gates


def _r_hat(name: str, result: xr.Dataset) -> Gate:
    figure, who = _worst(result, largest=True)
    text = f"chains agree on every parameter, worst {who}; run longer or start elsewhere when not"
    return Gate(name, figure, R_HAT, figure <= R_HAT, text)


def _hamiltonian(run: xr.DataTree) -> list[Gate]:
    stats = run["sample_stats"].to_dataset()
    gates = []
    if "diverging" in stats:
        count = int(stats["diverging"].sum())
        text = "trajectories that left the energy surface; reparametrise or raise target_acceptance"
        gates.append(Gate("divergences", float(count), 0.0, count == 0, text))
    if "energy" in stats:
        energy = stats["energy"].values
        change = np.square(np.diff(energy, axis=1)).mean(1)
        figure = float((change / energy.var(1)).min())
        text = "energy moves freely between draws; low: heavy tails are not explored"
        gates.append(Gate("E-BFMI", figure, E_BFMI, figure >= E_BFMI, text))
    return gates


def _importance(run: xr.DataTree) -> list[Gate]:
    if "pareto_k" not in run.attrs:
        return []
    k = float(run.attrs["pareto_k"])
    text = "the importance sample represents the posterior; above, use ensemble"
    return [Gate("Pareto k of the draws", k, RELIABLE_K, k <= RELIABLE_K, text)]


def _climb(run: xr.DataTree) -> list[Gate]:
    if "last_step_sd" not in run.attrs:
        return []
    step = float(run.attrs["last_step_sd"])
    text = "the last step to the posterior's mode, in standard deviations of what moved most"
    return [Gate("last step", step, LAST_STEP, step <= LAST_STEP, text)]


def _weighable(run: xr.DataTree) -> bool:
    """Whether likelihoods were kept, of enough draws to weigh them."""
    if "log_likelihood" not in run.children:
        return False
    sizes = run["log_likelihood"].sizes
    return int(sizes["chain"] * sizes["draw"]) >= LEAST_WEIGHED


def _left_out(run: xr.DataTree) -> list[Gate]:
    if not _weighable(run) or "networks" in run.children:
        return []
    k = leave_one_out(run).k
    share = float(np.mean(k > RELIABLE_K))
    text = f"share of observations with k above {RELIABLE_K}, for which LOO is not reliable"
    return [Gate("Pareto k of LOO", share, 0.0, share == 0.0, text)]


def _predictive(run: xr.DataTree) -> list[Gate]:
    p = posterior_p_value(run)
    if p is None:
        return []
    text = "how often the model would make data that fit it as badly; small: it does not describe these data"
    return [Gate("posterior predictive p", p, PREDICTIVE_P, p >= PREDICTIVE_P, text)]


def posterior_p_value(run: xr.DataTree) -> float | None:
    """Share of predicted datasets that lie at least as far from the model's mean as the observed one.

    Distance is the mean square of the predictive mean's residuals; of several observed variables the worst counts. It
    is one-sided: a model with a latent for every element lies closer to the data it was fitted to than to new ones.
    None where there are too few predictions.
    """
    if "posterior_predictive" not in run.children:
        return None
    predicted = run["posterior_predictive"].to_dataset()
    observed = run["observed_data"].to_dataset()
    found = []
    for name in predicted.data_vars:
        draws = predicted[name].stack(sample=("chain", "draw")).transpose("sample", ...).values
        draws = draws.reshape(len(draws), -1).astype(float)
        if len(draws) < LEAST_PREDICTIONS:
            return None
        # Residuals from the other draws' mean, so that a draw is not compared with itself.
        n = len(draws)
        mean = draws.mean(0)
        own = np.square((draws - mean) * n / (n - 1)).mean(1)
        seen = np.square(observed[name].values.reshape(-1) - mean).mean()
        found.append(float(np.mean(own >= seen)))
    return min(found, default=None)


def _prior(run: xr.DataTree) -> list[Gate]:
    sensitive = {
        name: prior for name, (prior, _) in power_scaling(run).items() if math.isfinite(prior)
    }
    if not sensitive:
        return []
    name = max(sensitive, key=lambda n: sensitive[n])
    figure = sensitive[name]
    text = (
        f"how far the posterior of {name} moves when the priors are made sharper or flatter; above, the prior is "
        "part of the conclusion"
    )
    return [Gate("prior sensitivity", figure, PRIOR_SENSITIVITY, figure <= PRIOR_SENSITIVITY, text)]


def power_scaling(run: xr.DataTree) -> dict[str, tuple[float, float]]:
    """How each parameter's posterior answers to power scaling of the priors and of the likelihood.

    Only the priors of the prior set are scaled: what a model says of its own latents is part of the likelihood. Of a
    vector the most sensitive element counts.
    """
    if "log_prior" not in run.children or not _weighable(run):
        return {}
    written = json.loads(run.attrs.get("prior", "{}"))
    priors = [n for n in written if n in run["log_prior"].data_vars]
    known = [n for n in priors if n in _continuous(run).data_vars]
    if not known:
        return {}
    # A long pointwise log likelihood is thinned over draws; the others follow it.
    draws = run["log_likelihood"]["draw"]
    posterior = _continuous(run)[known].sel(draw=draws)
    prior = run["log_prior"].to_dataset()[priors].sel(draw=draws)
    likelihood = _total(run["log_likelihood"].to_dataset())
    scaled = [_sensitivity(posterior, total) for total in (_total(prior), likelihood)]
    return {n: (float(scaled[0][n].max()), float(scaled[1][n].max())) for n in known}


def _total(terms: xr.Dataset) -> xr.DataArray:
    """Sum over variables and everything but the draws."""
    parts = [
        array.sum([d for d in array.dims if d not in ("chain", "draw")])
        for array in terms.data_vars.values()
    ]
    return sum(parts[1:], parts[0])


def _sensitivity(posterior: xr.Dataset, total: xr.DataArray) -> xr.Dataset:
    """Power-scaling sensitivity of every variable to a log density; none to one that is the same everywhere."""
    import arviz_stats as azs

    if float(np.ptp(total.values)) == 0:
        return xr.zeros_like(posterior.isel(chain=0, draw=0, drop=True))
    tree = xr.DataTree.from_dict(
        {"posterior": posterior, "log_prior": total.to_dataset(name="total")}
    )
    try:
        with np.errstate(all="ignore"):
            found: xr.Dataset = azs.psense(tree, group="prior")
    except ValueError:  # one draw fills the tail: the run has failed, and other gates say so
        return xr.full_like(posterior.isel(chain=0, draw=0, drop=True), math.nan)
    return found
