"""Kinds of neighbourhood, and how many there are: local crystallography."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.distributions import Beta, Categorical, Distribution, Gamma, Normal

from ...datasets.derived.features import features_of, orders, ring_basis
from ..model import Told, View, model, observe, sample
from ..priors import ModelError, Prior, prior_set
from .dirichlet_gibbs import swept, weights_of
from .dirichlet_process import Settings, fitted
from .rings import AnyOrder, precision_factor

# Atoms that the mixture is learnt from.
ENOUGH = 4000
# Gibbs draws at most and at least, and how many times all atoms may be told from them.
DRAWS, FEWEST_DRAWS, TOLD = 1000, 32, 3_000_000
# Chains, sweeps of each before the first draw, and rounds of sweeps after it at most.
CHAINS, WARM, ROUNDS = 4, 100, 8
# Clusters of which more than this part would be taken for another are said to overlap.
OVERLAP = 0.05
# Shares below it are clusters that no atom is in.
SEEN = 0.5
# Draws that names are read off.
NAMED = 32
# Neighbours not further than this times the middle distance are counted in names.
NEAR = 1.25

PRIORS = {
    "vague": prior_set(
        note="Features are in units of their errors, or of their spread where no errors are known.",
        alpha=Gamma(1.0, 1.0),
        scatter=Gamma(0.5, 0.5),
        clusters=12.0,
        kappa=0.01,
        freedom=2.0,
        neighbours=0.0,
        intensity=1.0,
        rim=1.0,
    )
}


def some_features() -> xr.Dataset:
    """Features of a small sheet with two kinds of atoms."""
    from ...datasets.scenes import simulate

    sheet = simulate("graphene", gives="atoms", seed=0, field=2.0, silicon_3=0.05)
    return features_of(sheet, {"neighbours": 3})


def ring_of(features: View) -> np.ndarray:
    """The orders of the neighbours that the features may be told in."""
    neighbours = int(features.attrs["neighbours"])
    return orders(neighbours, features.sizes["component"] == 2 * neighbours)


def groups_of(features: View) -> np.ndarray:
    """For each component whether it is a distance, an angle or the intensity."""
    neighbours = int(features.attrs["neighbours"])
    groups = np.repeat([0, 1, 2], [neighbours, neighbours - 1, 1])
    return groups[: features.sizes["component"]]


def settings_of(features: View, prior: Mapping[str, Any]) -> Settings:
    """The prior as the numerics want it."""
    found: dict[str, tuple[float, float] | float] = {}
    for name in ("alpha", "scatter"):
        entry = prior[name]
        if isinstance(entry, float):
            found[name] = entry
        elif isinstance(entry, Gamma):
            found[name] = float(entry.concentration), float(entry.rate)
        else:
            raise ModelError(f"the prior of {name} must be Gamma here; use another runner")
    nu = features.sizes["component"] - 1 + float(prior["freedom"])
    return Settings(
        clusters=count_of(prior),
        kappa=float(prior["kappa"]),
        nu=nu,
        alpha=found["alpha"],
        scatter=found["scatter"],
        groups=groups_of(features),
    )


def count_of(prior: Mapping[str, Any]) -> int:
    """Most clusters that there can be."""
    count = prior["clusters"]
    if not isinstance(count, float) or count != int(count) or not 2 <= count <= 50:
        raise ModelError(f"clusters must be a whole number from 2 to 50, found {count!r}")
    if prior["freedom"] <= 0 or prior["kappa"] <= 0:
        raise ModelError("freedom and kappa must be positive")
    return int(count)


def posterior(
    features: View, prior: Prior, *, draws: int, seed: int, mask: torch.Tensor | None = None
) -> Told:
    """Gibbs draws from where the best variational posterior is, learnt from a few thousand atoms."""
    values = features.data["feature"].values
    total = len(values)
    if mask is not None:
        values = values[mask.numpy()]
    if len(values) > ENOUGH:
        some = np.random.default_rng(seed).choice(len(values), ENOUGH, replace=False)
        values = values[np.sort(some)]
    ring, chosen = ring_of(features), settings_of(features, prior)
    start = fitted(values, ring, chosen, seed)
    draws = min(draws, DRAWS, max(FEWEST_DRAWS, TOLD // total))
    chains = CHAINS if draws >= CHAINS else 1
    found = swept(
        values,
        ring,
        chosen,
        start,
        draws=draws // chains,
        chains=chains,
        warm=WARM,
        rounds=ROUNDS,
        seed=seed,
    )
    numbers = np.arange(1, chosen.clusters + 1)
    told = (found.occupied[..., None] == numbers).mean((0, 1))
    confused = _confused(start.shares.sum(2))
    pairs = np.argwhere(np.triu(np.maximum(confused, confused.T), 1) > OVERLAP)
    drawn = {name: torch.as_tensor(value) for name, value in found.latents.items()}
    last = {name: value[-NAMED:] for name, value in drawn.items()}
    names = derive(features, prior, last)["cluster"].values
    text = "; ".join(f"{names[a]} and {names[b]}" for a, b in pairs.tolist())
    return Told(
        {
            name: value
            for name, value in drawn.items()
            if isinstance(prior.get(name, None), Distribution) or name not in prior
        },
        derived=xr.Dataset(
            {
                "occupied": ("number", told),
                "overlap": (("cluster", "cluster2"), confused),
            }
            | {f"judged_{name}": (("chain", "sweep"), v) for name, v in found.figures.items()},
            {"number": numbers, "cluster": names},
        ),
        attrs={
            "independent": 0,
            "atoms_learnt_from": len(values),
            "bound": start.bound,
            "most_probable_clusters": int(numbers[told.argmax()]),
            "overlapping": f"kinds that overlap: {text}" if text else "no kinds overlap",
        },
    )


def _confused(shares: np.ndarray) -> np.ndarray:
    """Of the atoms of a cluster, the part that a draw would put into another, 0 where there are none."""
    number = shares.sum(0)
    both = shares.T @ shares
    found: np.ndarray = np.where(
        (number > SEEN)[:, None] & (number > SEEN), both / np.maximum(number, SEEN)[:, None], 0.0
    )
    return found


def derive(features: View, prior: Prior, values: Mapping[str, torch.Tensor]) -> xr.Dataset:
    """Each cluster's share, and its mean neighbourhood in pm and degrees, with errors and the spread within it."""
    ring, groups = torch.as_tensor(ring_of(features)), torch.as_tensor(groups_of(features))
    size = len(groups)
    scatter = values.get("scatter")
    if scatter is None:
        count = int(groups.max()) + 1
        scatter = torch.full((len(values["root"]), count), prior["scatter"], dtype=torch.float64)
    scale = scatter[:, groups].sqrt()[:, None]
    factor = precision_factor(values["root"], values["cross"], scale)
    inverse = torch.linalg.solve_triangular(
        factor, torch.eye(size, dtype=factor.dtype), upper=False
    )
    centre = (inverse.mT @ values["middle"].unsqueeze(-1)).squeeze(-1) / prior["kappa"] ** 0.5
    # Every draw in the order that is nearest to the last one's.
    turned = torch.einsum("sij,dkj->dksi", ring, centre)
    best = ((turned - centre[-1][:, None]) ** 2).sum(-1).argmin(-1)
    centre = turned.gather(2, best[..., None, None].expand(*best.shape, 1, size)).squeeze(2)
    chosen = ring[best]
    covariance = chosen @ (inverse.mT @ inverse) @ chosen.mT
    weights = weights_of(values["stick"].numpy())
    found = {
        "share": ("cluster", weights.mean(0)),
        "share_sd": ("cluster", weights.std(0)),
    }
    found |= _physical(features, centre.numpy(), covariance.numpy(), weights)
    return xr.Dataset(found, {"cluster": _names(found, features)})


def _physical(
    features: View, centre: np.ndarray, covariance: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """Centres and spreads in pm, degrees, and relative intensity, NaN for clusters that no atom is in."""
    facts, neighbours = features.attrs, int(features.attrs["neighbours"])
    basis = ring_basis(neighbours)
    # In draws where a cluster has no atoms its centre is anywhere.
    counted = weights / weights.sum(0)
    counted[:, weights.mean(0) * len(features.data["feature"]) < SEEN] = np.nan

    def over_draws(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = np.einsum("dk...,dk->k...", value, counted)
        square = np.einsum("dk...,dk->k...", (value - np.nan_to_num(mean)) ** 2, counted)
        return mean, np.sqrt(square)

    parts = {
        "distance": (
            np.eye(neighbours) * facts["scale_distance"],
            slice(0, neighbours),
            facts["middle_distance"],
            "pm",
        ),
        "angle": (
            basis * facts["scale_angle"],
            slice(neighbours, 2 * neighbours - 1),
            360 / neighbours,
            "degrees",
        ),
    }
    found: dict[str, Any] = {}
    for name, (linear, columns, middle, unit) in parts.items():
        mean, error = over_draws(middle + centre[..., columns] @ linear.T)
        within = np.einsum(
            "ij,dkjl,il->dki", linear, covariance[..., columns, columns], linear, optimize=True
        )
        told = {"": mean, "_sd": error, "_spread": over_draws(np.sqrt(within))[0]}
        for ending, value in told.items():
            found[f"cluster_{name}{ending}"] = (("cluster", "slot"), value, {"units": unit})
    if features.sizes["component"] == 2 * neighbours:
        mean, error = over_draws(centre[..., -1] * facts["scale_intensity"])
        spread = over_draws(np.sqrt(covariance[..., -1, -1]))[0] * facts["scale_intensity"]
        found["cluster_intensity"] = ("cluster", np.exp(mean))
        found["cluster_intensity_sd"] = ("cluster", error * np.exp(mean))
        found["cluster_intensity_spread"] = ("cluster", spread * np.exp(mean))
    return found


def _names(found: Mapping[str, Any], features: View) -> list[str]:
    """What each cluster is: near neighbours, their mean distance, and as much more as sets it apart from the others."""
    away, angle = found["cluster_distance"][1], found["cluster_angle"][1]
    bright = found["cluster_intensity"][1] if "cluster_intensity" in found else None
    forms = []
    for k, distance in enumerate(away):
        if np.isnan(distance).any():
            forms.append(["empty"])
            continue
        near = distance[distance < NEAR * features.attrs["middle_distance"]]
        mean = (near if len(near) else distance).mean() / 1000
        text = f"{len(near)} neighbour{'' if len(near) == 1 else 's'}, {mean:.2f} nm"
        mine = [text]
        if bright is not None:
            mine.append(f"{text}, ×{bright[k]:.2g}")
        mine += [
            f"{mine[-1]}, {angle[k].max():.0f}°",
            f"{mine[-1]}, {angle[k].max():.0f}° ({k + 1})",
        ]
        forms.append(mine)
    chosen = []
    for own in forms:
        alike = [form for form in own if sum(form in other for other in forms) == 1]
        chosen.append(alike[0] if alike else own[-1])
    return [f"{name} {k + 1}" if name == "empty" else name for k, name in enumerate(chosen)]


@model(
    kind="atoms",
    prepare=("features", features_of),
    priors=PRIORS,
    symbols={"alpha": "α", "scatter": "s²", "stick": "v", "middle": "ξ"},
    design=some_features,
    posterior=posterior,
    derive=derive,
    enough=ENOUGH,
)
def neighbourhoods(features: View, prior: Prior) -> None:
    """Local crystallography: kinds of neighbourhood by a Dirichlet-process mixture of normal distributions.

    Each atom's K neighbours (`neighbours`; 0: as many as come before the largest step in distance) are taken around it:
    K distances, K angles between successive ones, and with `intensity` = 1 the logarithm of its own brightness. Atom n
    belongs to cluster k with weight w_k = v_k Π_{j<k} (1 - v_j), v ~ Beta(1, α), broken off after `clusters` sticks.
    Its features are normal about the cluster's centre, with the cluster's full covariance, in any of the 2K orders in
    which a ring can be told: a turned or mirrored neighbourhood is the same, and a symmetric one needs no alignment.
    Precisions are Wishart with `freedom` more degrees than their size less one and the `scatter` of distances, angles
    and intensities; centres are worth `kappa` atoms. α and scatter are learnt.

    **Assumes** one normal distribution for each kind of neighbourhood, and atoms that share neighbours but are taken as
    independent; the same error for all atoms.
    **Fails** where a kind is far from normal: it is told as several clusters. Rare kinds of which fewer than about the
    number of features are seen are merged. Atoms at the rim are left out and counted; at an edge of the crystal within
    the frame use `rim` = 0, and the frame's cut neighbourhoods are a kind of their own. All chains
    begin with the best partition of several; small kinds are split and joined, another partition of large ones is not
    visited. Of noisy images the odd neighbourhoods are told as many small kinds whose number the chains do not agree
    on: the gates then fail, and only the large kinds are to be relied on.
    **Identifiable**: clusters up to their names. Here they are named by what they are: neighbours that are near (within
    1.25 of the usual distance), their mean distance, and where that leaves two alike, brightness against the median and
    the widest angle. Whether chains agree is asked of what no names change: number and shares of the clusters,
    likelihood, α and scatter. Where two overlap, `overlap` says how many atoms
    of one are taken for the other; then their number is known less well than `occupied` says.

    References: Belianinov et al., Identification of phases, symmetries and defects through local crystallography,
    Nature Communications 6 (2015); Blei and Jordan, Variational inference for Dirichlet process mixtures, Bayesian
    Analysis 1 (2006); Ishwaran and James, Gibbs sampling methods for stick-breaking priors, Journal of the American
    Statistical Association 96 (2001).
    """
    count, size = count_of(prior), features.sizes["component"]
    groups = torch.as_tensor(groups_of(features))
    ring = torch.as_tensor(ring_of(features), dtype=torch.float64)
    nu = size - 1 + prior.freedom
    alpha = sample("alpha", prior.alpha)
    stick = sample("stick", Beta(1.0, alpha).expand([count - 1]).to_event(1))
    one = torch.ones(1, dtype=torch.float64)
    weights = torch.cat([stick, one]) * torch.cat([one, (1 - stick).cumprod(0)])
    scatter = prior.scatter
    if isinstance(scatter, Distribution):
        scatter = pyro.sample("scatter", scatter.expand([int(groups.max()) + 1]).to_event(1))
    else:
        scatter = torch.full((int(groups.max()) + 1,), scatter, dtype=torch.float64)
    freedom = nu - torch.arange(size, dtype=torch.float64)
    root = sample("root", Gamma(freedom / 2, 0.5).expand([count, size]).to_event(2))
    below = torch.zeros(count, size * (size - 1) // 2, dtype=torch.float64)
    factor = precision_factor(
        root, sample("cross", Normal(below, 1.0).to_event(2)), scatter[groups].sqrt()
    )
    middle = sample(
        "middle", Normal(torch.zeros(count, size, dtype=torch.float64), 1.0).to_event(2)
    )
    away = torch.linalg.solve_triangular(factor.mT, middle.unsqueeze(-1), upper=True).squeeze(-1)
    centre = away / prior.kappa**0.5
    with features.plate("atom"):
        cluster = sample("cluster", Categorical(weights)).long()
        observe("feature", AnyOrder(centre[cluster], factor[cluster], ring))
