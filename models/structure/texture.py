"""Texture: what local spectra of an image have in common, and the map of how much of it is where."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from pyro.distributions import LogNormal

from ...datasets.derived.windows import windows
from ...datasets.kinds import dataset
from ..model import Told, View, model, observe
from ..priors import ModelError, Prior, PriorSet, prior_set
from .components import Scores, components, learnt_from, story_draws
from .phase_map import blocks, find_phases, nearest_phase

# Regions of the table, in windows: within one, neighbours are alike.
REGION = 4.0
MOST_PHASES = 6


def _prior(note: str, most: int = 8) -> PriorSet:
    """Any number of components, each of which stands out of the noise of a single window, and so in a map.

    Spectra are in units of that noise. Weaker ones, that only many windows show together, are haze and scan.
    """
    return prior_set(
        note=note,
        rank="Categorical([" + ", ".join(["1"] * (most + 1)) + "])",
        amplitude="LogNormal(log(6), 0.7)",
        noise=LogNormal(0.0, 0.5),
        mean="Normal(spectrum.mean, 2 * spectrum.std)",
        phases=2,
        spacings=4,
        size=0,
        step=0.5,
        fine=8,
    )


PRIORS = {
    "vague": _prior("Spectra are in units of their noise; windows are four spacings wide."),
    "few": _prior("At most three components, where the image is small.", 3),
}


def small() -> xr.Dataset:
    """Windows of few features."""
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) * 0.5
    return dataset(
        "windows",
        spectrum=3 + rng.standard_normal((25, 10)),
        position=place.astype(float),
        frequency=np.stack([np.arange(10.0), np.zeros(10)], 1),
        axis=np.array(["x", "y"]),
        units={"position": "nm", "frequency": "1/nm"},
    )


def learn_texture(
    view: View, prior: Prior, *, draws: int, seed: int, mask: torch.Tensor | None = None
) -> Told:
    """The posterior of the components, and maps of components and phases."""
    spectrum = view.spectrum.numpy()
    counted = np.ones(len(spectrum), bool) if mask is None else mask.numpy().astype(bool)
    learnt = learnt_from(spectrum[counted], prior, draws=draws, seed=seed)
    evidence, error = learnt.total_evidence
    attrs = {
        "rank_probability": learnt.rank_probability.tolist(),
        "rank_log_evidence": learnt.log_evidence.tolist(),
    }
    derived = _maps(view, prior, Scores.of(learnt), seed)
    return Told(story_draws(learnt, seed), evidence, error, derived, attrs)


def _maps(view: View, prior: Prior, scores: Scores, seed: int) -> xr.Dataset:
    """Components of windows and places, and the phase of every place."""
    spectrum = view.spectrum.numpy()
    dense = view.fine_spectrum.numpy() if view.has("fine_spectrum") else spectrum
    where = view.fine_position if view.has("fine_position") else view.position
    mean, covariance = scores.told(spectrum)
    fine, fine_covariance = scores.told(dense)
    rank = mean.shape[1]
    middles = find_phases(mean, _phases(prior) if rank else 1, seed)
    probability = nearest_phase(fine, fine_covariance, middles, seed)
    root = view.noise_root.numpy() if view.has("noise_root") else np.eye(spectrum.shape[1])
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    found = {
        "rank_probability": (("rank",), scores.learnt.rank_probability),
        "abundance": (("window", "component"), mean),
        "abundance_sd": (("window", "component"), sd),
        "position": (("window", "axis"), view.position.numpy()),
        "place_abundance": (("place", "component"), fine),
        "place_position": (("place", "axis"), where.numpy()),
        "phase_probability": (("place", "phase"), probability),
        "window_phase": (("window", "phase"), nearest_phase(mean, covariance, middles, seed)),
        "phase_abundance": (("phase", "component"), middles),
        # Back from units of noise to logarithms of the amplitude.
        "pattern": (("component", "feature"), scores.axes @ root),
        "variance": (("component",), scores.variance.mean(0)),
        "variance_sd": (("component",), scores.variance.std(0)),
        "frequency": (("feature", "axis"), view.frequency.numpy()),
    }
    return xr.Dataset(found)


def _phases(prior: Prior) -> int:
    phases = float(prior.phases)
    if not (phases.is_integer() and 1 <= phases <= MOST_PHASES):
        raise ModelError(f"phases must be a whole number from 1 to {MOST_PHASES}, found {phases:g}")
    return int(phases)


def table_of_texture(run: xr.DataTree, data: xr.Dataset) -> xr.Dataset:
    """Components of every window, with the region that it lies in, as a table."""
    told = run["derived"].to_dataset()
    position = told["position"].values
    step = np.diff(np.unique(position[:, 0].round(9))).min()
    names = [f"texture_{i + 1}" for i in range(told.sizes["component"])]
    columns = [*told["abundance"].values.T, *position.T]
    return dataset(
        "table",
        value=np.stack(columns, 1),
        variable=np.array([*names, "x", "y"]),
        block=blocks(position, REGION * float(step)),
        attrs={"variable_units": ["1"] * len(names) + ["nm", "nm"]},
    )


@model(
    kind="image",
    prepare=("windows", windows),
    posterior=learn_texture,
    priors=PRIORS,
    units={"amplitude": "spectrum", "noise": "spectrum", "mean": "spectrum"},
    symbols={"rank": "k", "amplitude": "a", "frame": "U", "mean": "μ", "noise": "σ"},
    noise="noise",
    gives=("table", table_of_texture),
    design=small,
)
def texture(view: View, prior: Prior) -> None:
    """Texture: local spectra = μ + Σ a_i z_i u_i + noise, with as many components as the image pays for.

    A window of four spacings slides over the image; its spectrum (`windows`) is a vector in units of noise. Components
    are orthonormal directions u_i that are not preferred beforehand, with a strength z_i in each window that is
    standard normal, and their number has a posterior. Their map is the texture. `phases` is how many phases the map is
    split into: a place is of the phase whose spectrum it is nearest to, and the probability is that of the components'
    error. Where no component is found there is one phase.

    **Assumes** windows half a window apart are independent given the components, the same noise in all of them, and
    textures that differ in periods, directions or contrast, not in phases of waves.
    **Fails** at boundaries: a window across one is a mixture, whose spectrum is not the mean of the two, so that a
    sharp boundary adds components, and the number of components is no number of phases. Nothing narrower than about
    half a window is resolved. Counting noise is larger where columns are brighter, which is not in the story.
    **Identifiable**: the number of components and the space that they span; single components only where their
    variances differ by more than their errors, and each up to its sign.

    References: Tipping and Bishop, Journal of the Royal Statistical Society B 61 (1999) 611; Minka, Advances in Neural
    Information Processing Systems 13 (2000) 598; Vasudevan, Ziatdinov, Jesse and Kalinin, Nano Letters 16 (2016) 5574
    for the sliding window.
    """
    observe("spectrum", components(view.sizes["feature"], prior))
