"""Normal modes: what the displacements around all atoms have in common, an order parameter from the bottom up."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from pyro.distributions import HalfNormal, LogNormal, Normal

from ...datasets.derived.displacements import displacements
from ...datasets.kinds import dataset
from ..model import Told, View, model, observe
from ..priors import Prior, PriorSet, prior_set
from .chemistry import chemistry, slopes
from .components import Measured, Scores, components, learnt_from, story_draws
from .phase_map import blocks

# Regions of the table, in distances of neighbours.
REGION = 6.0
MOST = 3
RANK = "Categorical([" + ", ".join(["1"] * (MOST + 1)) + "])"

VAGUE = prior_set(
    note="Scales with the displacements that there are.",
    rank=RANK,
    amplitude="LogNormal(log(2 * displacement.std), 1)",
    noise="HalfNormal(2 * displacement.std)",
    mean="Normal(0, displacement.std)",
    neighbours=0,
    centres=0,
    scan=1,
)


def perovskite(off_centre: float) -> PriorSet:
    """A perovskite's B about which A are: a mode of that size in nm, and thermal or static disorder of picometres."""
    return prior_set(
        {"displacement": "nm"},
        f"B off its centre by {off_centre * 1000:g} pm, order of magnitude; disorder of some 5 pm.",
        rank=RANK,
        # Moved against all four neighbours, B counts once, less what the neighbours would do alone.
        amplitude=LogNormal(float(np.log(off_centre)), 1.0),
        noise=HalfNormal(0.01),
        mean=Normal(0.0, 0.02),
        neighbours=4,
        centres=2,
        scan=1,
    )


PRIORS = {
    "vague": VAGUE,
    "SrTiO3": perovskite(0.005),
    "BaTiO3": perovskite(0.01),
    "PbTiO3": perovskite(0.02),
    "BiFeO3": perovskite(0.03),
}


def small() -> xr.Dataset:
    """A few atoms with three neighbours, not measured all alike."""
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * np.arange(3) / 3
    cells = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2)
    error = (np.eye(6) + 0.2) * 0.003**2
    return dataset(
        "displacements",
        displacement=0.01 * rng.standard_normal((25, 6)),
        position=0.25 * cells,
        pattern=np.eye(6).reshape(6, 3, 2),
        mean_shell=0.14 * np.stack([np.cos(angle), np.sin(angle)], 1),
        error_kind=np.arange(25) % 2,
        error=np.stack([error, 2 * error]),
        axis=np.array(["x", "y"]),
        units={"displacement": "nm", "position": "nm", "mean_shell": "nm", "error": "nm^2"},
    )


def learn_modes(
    view: View, prior: Prior, *, draws: int, seed: int, mask: torch.Tensor | None = None
) -> Told:
    """The posterior of the modes, and the amplitudes of every atom."""
    displacement = view.displacement.numpy()
    error, kind = view.error.numpy(), view.error_kind.numpy()
    counted = np.ones(len(kind), bool) if mask is None else mask.numpy().astype(bool)
    learnt = learnt_from(
        displacement[counted], prior, draws=draws, seed=seed, error=error, kind=kind[counted]
    )
    evidence, evidence_error = learnt.total_evidence
    attrs = {
        "rank_probability": learnt.rank_probability.tolist(),
        "rank_log_evidence": learnt.log_evidence.tolist(),
    }
    derived = _told(view, Scores.of(learnt), displacement, error, kind)
    return Told(story_draws(learnt, seed), evidence, evidence_error, derived, attrs)


def _told(
    view: View, scores: Scores, displacement: np.ndarray, error: np.ndarray, kind: np.ndarray
) -> xr.Dataset:
    """Amplitudes with errors, patterns as arrows, shares of the variance, and what chemistry has to do with it."""
    mean, covariance = scores.told(displacement, error, kind)
    modes, basis = len(scores.axes), view.pattern.numpy()
    every = float(((displacement - scores.middle) ** 2).sum(1).mean())
    measured = np.einsum("kii->k", error)[kind].mean()
    found = {
        "rank_probability": (("rank",), scores.learnt.rank_probability),
        "amplitude": (("atom", "mode"), mean),
        "amplitude_sd": (("atom", "mode"), np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))),
        "pattern": (("mode", "slot", "axis"), np.einsum("mf,fsx->msx", scores.axes, basis)),
        "mean_shell": (("slot", "axis"), view.mean_shell.numpy()),
        "variance": (("mode",), scores.variance.mean(0)),
        "variance_sd": (("mode",), scores.variance.std(0)),
        "explained": (("mode",), scores.variance.mean(0) / max(every - measured, 1e-300)),
        "measured": ((), measured / every),
        "position": (("atom", "axis"), view.position.numpy()),
    }
    properties = chemistry(view.data)
    if properties and modes:
        names = list(properties)
        columns = np.stack([properties[n] for n in names], 1)
        # Unlike the posterior mean, what is seen along a mode is not drawn towards zero.
        seen = (displacement - scores.middle) @ scores.axes.T
        told = slopes(seen, columns, view.position.numpy())
        dims = ("mode", "property")
        found |= {
            "slope": (dims, told.value),
            "slope_sd": (dims, told.error),
            "slope_probability": (dims, told.probability),
            "property_value": (("atom", "property"), columns),
        }
        return _with_units(xr.Dataset(found, {"property": names}))
    return _with_units(xr.Dataset(found))


def _with_units(told: xr.Dataset) -> xr.Dataset:
    """What is a length says in what."""
    for name in ("amplitude", "amplitude_sd", "mean_shell", "position"):
        told[name].attrs["units"] = "nm"
    for name in ("variance", "variance_sd"):
        told[name].attrs["units"] = "nm^2"
    return told


def table_of_modes(run: xr.DataTree, data: xr.Dataset) -> xr.Dataset:
    """Amplitudes and chemistry of every atom, with the region that it lies in, as a table."""
    told = run["derived"].to_dataset()
    position = told["position"].values
    bond = float(np.linalg.norm(told["mean_shell"].values, axis=1).mean())
    names = [f"mode_{i + 1}" for i in range(told.sizes["mode"])]
    columns, units = [*told["amplitude"].values.T], ["nm"] * len(names)
    if "property" in told:
        names += [str(n) for n in told["property"].values]
        columns += [*told["property_value"].values.T]
        units += ["1"] * told.sizes["property"]
    return dataset(
        "table",
        value=np.stack([*columns, *position.T], 1),
        variable=np.array([*names, "x", "y"]),
        block=blocks(position, REGION * bond),
        attrs={"variable_units": [*units, "nm", "nm"]},
    )


@model(
    kind="atoms",
    prepare=("displacements", displacements),
    posterior=learn_modes,
    priors=PRIORS,
    units={"amplitude": "displacement", "noise": "displacement", "mean": "displacement"},
    symbols={"rank": "k", "amplitude": "a", "frame": "U", "mean": "μ", "noise": "σ"},
    noise="noise",
    gives=("table", table_of_modes),
    design=small,
)
def normal_modes(atoms: View, prior: Prior) -> None:
    """Normal modes: displacements of each atom's neighbours = μ + Σ a_i z_i u_i + disorder + measurement error.

    In a crystal whose atoms move alone, by σ each way, the displacement of each neighbour against the centre has the
    centre's own in it; coordinates are chosen (`displacements`) in which that is σ² in every direction. A mode is what
    atoms do together beyond it. Its pattern is an arrow for every neighbour, its strength z_i in each atom the order
    parameter there. Their number has a posterior;
    the error of every position is known and enters atom by atom. Slopes of the amplitudes on species, or on intensity,
    say what chemistry has to do with them, each with the probability that it is not zero.

    **Assumes** one crystal in one orientation, atoms that otherwise move alone and all by the same σ, shells that are
    independent though neighbours share atoms, and modes with normal strengths. Two domains are no normal strengths:
    the mode is found all the same, and its amplitudes are drawn a little towards the middle.
    **Fails** where centres are looser than their neighbours: disorder of the centre alone looks like a pair of modes,
    the polar ones. What shifts of whole rows do is left out beforehand (`scan`), and so is a strain that does the
    same. With 10⁴ atoms and more all that is there is a mode, of less than a picometre too: look at the sizes. Errors
    of columns fitted together are taken as independent: a mode below the error of a position may be of the fit.
    **Identifiable**: the number of modes and the space that they span; single modes only where their variances differ
    by more than their errors, each up to its sign. What all cells share is in the mean, not in a mode. Patterns have no
    units, amplitudes are in nm: their product is how each neighbour is displaced.

    References: Tipping and Bishop, Journal of the Royal Statistical Society B 61 (1999) 611; Minka, Advances in Neural
    Information Processing Systems 13 (2000) 598.
    """
    hidden = components(atoms.sizes["feature"], prior)
    kinds = range(atoms.sizes["kind"])
    units = [torch.nonzero(atoms.error_kind == kind).reshape(-1) for kind in kinds]
    observe("displacement", Measured(hidden, atoms.error, units))
