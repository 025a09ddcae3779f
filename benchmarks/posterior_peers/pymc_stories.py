"""The posteriors as PyMC models. The data are `pm.Data`, so that a compiled model can be given others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt

__all__ = ["STORIES", "build", "latents"]

Data = dict[str, Any]
STORIES: dict[str, Callable[[Data], None]] = {}


def build(name: str, data: dict[str, np.ndarray]) -> pm.Model:
    """The model of a story with its data, without the bounds that nutpie does not need."""
    with pm.Model(check_bounds=False) as model:
        STORIES[name]({key: pm.Data(key + "_data", value) for key, value in data.items()})
    return model


def latents(name: str, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws under the names that the others have."""
    if name != "hierarchy":
        return draws
    packed = draws.pop("chol")
    factor = np.zeros((*packed.shape[:-1], 3, 3))
    factor[(..., *np.tril_indices(3))] = packed
    spread = np.sqrt((factor**2).sum(-1))
    return draws | {"spread": spread, "factor": factor / spread[..., None]}


def story(function: Callable[[Data], None]) -> Callable[[Data], None]:
    STORIES[function.__name__] = function
    return function


def wall(d: Data) -> tuple[Any, Any, Any]:
    P_s = pm.HalfNormal("P_s", d["P_s_scale"])
    x0 = pm.Normal("x0", d["x0_loc"], d["x0_scale"])
    L_c = pm.LogNormal("L_c", d["L_c_loc"], d["L_c_scale"])
    return P_s, L_c, d["sense"] * (d["x"] - x0) / L_c


def see(d: Data, mean: Any) -> None:
    pm.Normal("value", mean, pm.HalfNormal("noise", d["noise_scale"]), observed=d["value"][:, 0])


@story
def wall_second_order(d: Data) -> None:
    P_s, _, u = wall(d)
    see(d, P_s * pt.tanh(u))


@story
def wall_first_order(d: Data) -> None:
    P_s, _, u = wall(d)
    eta = pm.HalfNormal("eta", d["eta_scale"])
    tanh = pt.tanh(u)
    see(d, P_s * tanh / pt.sqrt(eta * (1 - tanh**2) + 1))


@story
def wall_bloch(d: Data) -> None:
    P_s, _, u = wall(d)
    P_B = pm.Normal("P_B", d["P_B_loc"], d["P_B_scale"])
    noise = pm.HalfNormal("noise", d["noise_scale"])
    decay = pt.exp(-pt.abs(u))
    mean = pt.stack([P_s * pt.tanh(u), P_B * 2 * decay / (1 + decay**2)], axis=-1)
    pm.Normal("value", mean, noise, observed=d["value"])


@story
def wall_neel(d: Data) -> None:
    P_s, L_c, u = wall(d)
    r = pm.HalfNormal("R0", d["R0_scale"]) / L_c
    see(d, P_s * 0.5 * (pt.tanh((u + r) / 2) + pt.tanh((u - r) / 2)))


@story
def eight_schools_centred(d: Data) -> None:
    theta = pm.Normal("theta", pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5), shape=8)
    pm.Normal("value", theta, d["errors"], observed=d["value"][:, 0])


@story
def eight_schools_noncentred(d: Data) -> None:
    mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
    z = pm.Normal("z", 0, 1, shape=8)
    pm.Normal("value", mu + tau * z, d["errors"], observed=d["value"][:, 0])


@story
def funnel(d: Data) -> None:
    v = pm.Normal("v", 0, 3)
    pm.Normal("x", 0, pt.exp(v / 2), shape=9)


@story
def banana(d: Data) -> None:
    a = pm.Normal("a", 0, 10)
    pm.Normal("b", 0.03 * (a**2 - 100), 1)


@story
def two_modes(d: Data) -> None:
    place = pm.Normal("place", 0, 5, shape=2)
    shifted = pt.stack([place + 3, place - 3])
    far = pt.sum(((d["value"][:, 0] - shifted) / 0.5) ** 2, axis=-1)
    pm.Potential("value", pt.logsumexp(pt.log(d["weights"]) - 0.5 * far))


@story
def logistic(d: Data) -> None:
    intercept = pm.Normal("intercept", 0, 2.5)
    slopes = pm.Normal("slopes", 0, 1, shape=25)
    pm.Bernoulli("value", logit_p=intercept + d["covariates"] @ slopes, observed=d["value"][:, 0])


@story
def gp_regression(d: Data) -> None:
    length = pm.InverseGamma("length", 5, 5)
    amplitude, noise = pm.HalfNormal("amplitude", 2), pm.HalfNormal("noise", 1)
    kernel = amplitude**2 * pt.exp(-0.5 * d["squares"] / length**2) + noise**2 * pt.eye(40)
    pm.MvNormal("value", np.zeros(40), chol=pt.linalg.cholesky(kernel), observed=d["value"][:, 0])


@story
def hierarchy(d: Data) -> None:
    center = pm.Normal("center", 0, 2, shape=3)
    chol, _, _ = pm.LKJCholeskyCov("chol", n=3, eta=2, sd_dist=pm.HalfNormal.dist(1, size=3))
    z = pm.Normal("z", 0, 1, shape=(8, 3))
    share = pm.Dirichlet("share", 2 * np.ones(4))
    effect = (center + z @ chol.T)[d["group"]]
    mean = effect[:, 0] + effect[:, 1] * d["dose"] + effect[:, 2] * (d["climb"] @ share)
    pm.Normal("value", mean, pm.HalfNormal("noise", 1), observed=d["value"][:, 0])
