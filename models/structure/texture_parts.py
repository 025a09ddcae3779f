"""Texture as shares of a few pure spectra, none of them negative."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Categorical, LogNormal, MultivariateNormal

from ...datasets.derived.windows import magnitudes
from ...datasets.kinds import dataset
from ..model import Told, View, model, observe, sample
from ..priors import Prior, prior_set
from .nonnegative import STEPS, Parts, grid, learn_parts, prior_of_shares, shares
from .phase_map import blocks

REGION = 4.0
# Draws that shares are averaged over, and draws told.
SHARE_DRAWS, MOST_DRAWS = 12, 200
SIXTHS = dict(enumerate("0⅙⅓½⅔⅚1"))

PRIORS = {
    "vague": prior_set(
        note="Up to three parts, any number as probable; magnitudes are in units of the background.",
        count="Categorical([1, 1, 1])",
        part="HalfNormal(2 * magnitude.rms)",
        noise=LogNormal(0.0, 1.0),
        purity=0.5,
        spacings=4,
        size=0,
        step=0.5,
        fine=8,
    )
}


def small() -> xr.Dataset:
    """A few windows of two parts."""
    rng = np.random.default_rng(0)
    place = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 0.5
    share = rng.random((16, 1))
    pure = np.array([[4.0, 1.0, 1.0], [1.0, 1.0, 4.0]])
    value = share * pure[0] + (1 - share) * pure[1] + 0.3 * rng.standard_normal((16, 3))
    return dataset(
        "magnitudes",
        magnitude=np.abs(value),
        position=place.astype(float),
        frequency=np.stack([np.arange(3.0), np.zeros(3)], 1),
        noise_root=0.3 * np.eye(3),
        axis=np.array(["x", "y"]),
        units={"position": "nm", "frequency": "1/nm"},
    )


def learn_texture_parts(
    view: View, prior: Prior, *, draws: int, seed: int, mask: torch.Tensor | None = None
) -> Told:
    """The posterior of parts and their number, and maps of shares."""
    magnitude, root = view.magnitude.numpy(), view.noise_root.numpy()
    counted = np.ones(len(magnitude), bool) if mask is None else mask.numpy().astype(bool)
    purity = float(prior.purity)
    most = int(prior.count.probs.shape[-1])
    found = [
        learn_parts(magnitude[counted], root, k, purity, prior.part, prior.noise, seed)
        for k in range(1, most + 1)
    ]
    evidence = np.array([f.log_evidence for f in found])
    log_prior = torch.log(prior.count.probs).numpy()
    total = float(np.logaddexp.reduce(log_prior + evidence))
    probability = np.exp(log_prior + evidence - total)
    error = float(np.sqrt(((probability * np.array([f.error for f in found])) ** 2).sum()))
    rng = np.random.default_rng((seed, 5))
    told = _draws(found, probability, prior, min(draws, MOST_DRAWS), rng)
    derived = _maps(view, found[int(probability.argmax())], probability, purity)
    attrs = {"count_probability": probability.tolist(), "count_log_evidence": evidence.tolist()}
    return Told(told, total, error, derived, attrs)


def _draws(
    found: list[Parts],
    probability: np.ndarray,
    prior: Prior,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Draws as the story has them: parts beyond their number are those of the prior."""
    count = rng.choice(len(found), draws, p=probability / probability.sum())
    features = found[0].parts.shape[2]
    spare = float(prior.part.scale) * np.abs(rng.standard_normal((draws, len(found), features)))
    noise = np.empty(draws)
    for i, k in enumerate(count):
        which = rng.choice(len(found[k].weight), p=found[k].weight)
        spare[i, : k + 1], noise[i] = found[k].parts[which], found[k].noise[which]
    parts, noises = torch.as_tensor(spare), torch.as_tensor(noise)
    return {"parts": parts, "noise": noises}


def _maps(view: View, found: Parts, probability: np.ndarray, purity: float) -> xr.Dataset:
    """Mean shares with errors, averaged over draws; the part that has most of the image is the first."""
    inverse = np.linalg.inv(view.noise_root.numpy())
    dense = view.fine_magnitude if view.has("fine_magnitude") else view.magnitude
    where = view.fine_position if view.has("fine_position") else view.position
    share, error = _shares(found, view.magnitude.numpy() @ inverse, inverse, purity)
    order = np.argsort(-share.mean(0), kind="stable")
    fine, fine_error = _shares(found, dense.numpy() @ inverse, inverse, purity)
    mean = np.einsum("d,dkf->kf", found.weight, found.parts)
    spread = np.einsum("d,dkf->kf", found.weight, (found.parts - mean) ** 2)
    return xr.Dataset(
        {
            "count_probability": (("count",), probability),
            "abundance": (("window", "part"), share[:, order]),
            "abundance_sd": (("window", "part"), error[:, order]),
            "position": (("window", "axis"), view.position.numpy()),
            "place_abundance": (("place", "part"), fine[:, order]),
            "place_abundance_sd": (("place", "part"), fine_error[:, order]),
            "place_position": (("place", "axis"), where.numpy()),
            "spectrum": (("part", "feature"), mean[order]),
            "spectrum_sd": (("part", "feature"), np.sqrt(spread[order])),
            "frequency": (("feature", "axis"), view.frequency.numpy()),
        },
        {"count": np.arange(1, len(probability) + 1), "mix": names_of_shares(len(probability))},
    )


def names_of_shares(parts: int) -> list[str]:
    """What each point of the grid of shares is, such as "part 1" or "½ of 1, ½ of 2"."""
    return [
        f"part {int(point.argmax()) + 1}"
        if point.max() == 1
        else ", ".join(
            f"{SIXTHS[round(STEPS * share)]} of {k + 1}" for k, share in enumerate(point) if share
        )
        for point in grid(parts)
    ]


def _shares(
    found: Parts, values: np.ndarray, inverse: np.ndarray, purity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every unit's shares."""
    count = found.parts.shape[1]
    points = grid(count)
    log_prior = prior_of_shares(points, count, purity)
    likely = np.argsort(-found.weight)[:SHARE_DRAWS]
    weight = found.weight[likely] / found.weight[likely].sum()
    mean, square = np.zeros((len(values), count)), np.zeros((len(values), count))
    for w, i in zip(weight, likely, strict=True):
        probability, _ = shares(values, points, log_prior, found.parts[i] @ inverse, found.noise[i])
        mean += w * probability @ points
        square += w * probability @ points**2
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def table_of_parts(run: xr.DataTree, data: xr.Dataset) -> xr.Dataset:
    """Shares of every window, with the region that it lies in, as a table."""
    told = run["derived"].to_dataset()
    position = told["position"].values
    step = np.diff(np.unique(position[:, 0].round(9))).min()
    # The shares add up to one: the last says nothing that the others do not.
    kept = max(1, told.sizes["part"] - 1)
    names = [f"share_{i + 1}" for i in range(kept)]
    return dataset(
        "table",
        value=np.concatenate([told["abundance"].values[:, :kept], position], 1),
        variable=np.array([*names, "x", "y"]),
        block=blocks(position, REGION * float(step)),
        attrs={"variable_units": ["1"] * kept + ["nm", "nm"]},
    )


@model(
    kind="image",
    prepare=("magnitudes", magnitudes),
    posterior=learn_texture_parts,
    priors=PRIORS,
    units={"parts": "magnitude"},
    symbols={"count": "K", "parts": "P", "mix": "h", "noise": "σ"},
    noise="noise",
    gives=("table", table_of_parts),
    design=small,
)
def texture_parts(view: View, prior: Prior) -> None:
    """Texture as a mixture: magnitudes of a window = Σ h_k P_k + noise, parts and shares not negative, Σ h_k = 1.

    Each part P_k is the spectrum of a pure texture and can be read as one; h_k is how much of a window it fills. Shares
    are in sixths, and summed out; `purity` below one says that most windows are pure. How many parts there are has a
    posterior. The covariance of the noise is that of windows next to each other, up to σ².

    `mix` has a class for every set of shares, 28 for three parts: those are no kinds of texture, of which there are at
    most as many as parts. Parts are told largest first.

    **Assumes** magnitudes that add up by area, as they do where two lattices have no peak in common, and the same noise
    everywhere.
    **Fails** where phases share peaks: their waves then interfere at the boundary, and a further part is found that is
    the boundary's, so that with three parts allowed two phases often get three. Look at the maps, not at the number.
    **Identifiable**: parts up to their order, where some windows are nearly pure.

    References: Lee and Seung, Nature 401 (1999) 788; Schmidt, Winther and Hansen, Bayesian non-negative matrix
    factorization, Independent Component Analysis and Signal Separation (2009) 540.
    """
    most, features = int(prior.count.probs.shape[-1]), view.sizes["feature"]
    count = sample("count", prior.count)
    parts = sample("parts", prior.part.expand([most, features]).to_event(2))
    noise = sample("noise", prior.noise)
    points = grid(most)
    log_share = np.stack(
        [prior_of_shares(points, k, float(prior.purity)) for k in range(1, most + 1)]
    )
    # What is impossible is next to impossible, so that gradients stay finite.
    share = torch.as_tensor(np.maximum(np.exp(log_share), 1e-300))
    root = torch.linalg.cholesky(view.noise_root @ view.noise_root.mT)
    middles = torch.as_tensor(points) @ parts
    with view.plate("window"):
        mix = sample("mix", Categorical(share[count.long()]))
        spread = noise[..., None, None] * root
        observe("magnitude", MultivariateNormal(middles[mix.long()], scale_tril=spread))
