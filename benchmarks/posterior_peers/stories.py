"""The posteriors as Pyro and NumPyro models, plain as their users write them: one text serves both.

A story is called with a language (`Language`) and the data, a dict of arrays. What says nothing about the latents is
left out; densities may differ from those of atomzoo by a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["STORIES", "Language"]


class Language(NamedTuple):
    """What Pyro and NumPyro have in common.

    Attributes:
        sample: the primitive.
        dist: the distributions.
        np: torch or jax.numpy.
    """

    sample: Callable[..., Any]
    dist: Any
    np: Any


Data = dict[str, Any]
STORIES: dict[str, Callable[[Language, Data], None]] = {}


def story(function: Callable[[Language, Data], None]) -> Callable[[Language, Data], None]:
    STORIES[function.__name__] = function
    return function


def wall(b: Language, d: Data) -> tuple[Any, Any, Any]:
    """What all walls share: saturation, width, and the distance from the wall in widths."""
    P_s = b.sample("P_s", b.dist.HalfNormal(d["P_s_scale"]))
    x0 = b.sample("x0", b.dist.Normal(d["x0_loc"], d["x0_scale"]))
    L_c = b.sample("L_c", b.dist.LogNormal(d["L_c_loc"], d["L_c_scale"]))
    return P_s, L_c, d["sense"] * (d["x"] - x0) / L_c


def see(b: Language, d: Data, mean: Any) -> None:
    noise = b.sample("noise", b.dist.HalfNormal(d["noise_scale"]))
    b.sample("value", b.dist.Normal(mean, noise).to_event(1), obs=d["value"][:, 0])


@story
def wall_second_order(b: Language, d: Data) -> None:
    P_s, _, u = wall(b, d)
    see(b, d, P_s * b.np.tanh(u))


@story
def wall_first_order(b: Language, d: Data) -> None:
    P_s, _, u = wall(b, d)
    eta = b.sample("eta", b.dist.HalfNormal(d["eta_scale"]))
    tanh = b.np.tanh(u)
    see(b, d, P_s * tanh / b.np.sqrt(eta * (1 - tanh**2) + 1))


@story
def wall_bloch(b: Language, d: Data) -> None:
    P_s, _, u = wall(b, d)
    P_B = b.sample("P_B", b.dist.Normal(d["P_B_loc"], d["P_B_scale"]))
    noise = b.sample("noise", b.dist.HalfNormal(d["noise_scale"]))
    decay = b.np.exp(-b.np.abs(u))
    mean = b.np.stack([P_s * b.np.tanh(u), P_B * 2 * decay / (1 + decay**2)], -1)
    b.sample("value", b.dist.Normal(mean, noise).to_event(2), obs=d["value"])


@story
def wall_neel(b: Language, d: Data) -> None:
    P_s, L_c, u = wall(b, d)
    r = b.sample("R0", b.dist.HalfNormal(d["R0_scale"])) / L_c
    see(b, d, P_s * 0.5 * (b.np.tanh((u + r) / 2) + b.np.tanh((u - r) / 2)))


@story
def eight_schools_centred(b: Language, d: Data) -> None:
    mu = b.sample("mu", b.dist.Normal(0.0, 5.0))
    tau = b.sample("tau", b.dist.HalfCauchy(5.0))
    theta = b.sample("theta", b.dist.Normal(mu, tau).expand([8]).to_event(1))
    b.sample("value", b.dist.Normal(theta, d["errors"]).to_event(1), obs=d["value"][:, 0])


@story
def eight_schools_noncentred(b: Language, d: Data) -> None:
    mu = b.sample("mu", b.dist.Normal(0.0, 5.0))
    tau = b.sample("tau", b.dist.HalfCauchy(5.0))
    z = b.sample("z", b.dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    b.sample("value", b.dist.Normal(mu + tau * z, d["errors"]).to_event(1), obs=d["value"][:, 0])


@story
def funnel(b: Language, d: Data) -> None:
    v = b.sample("v", b.dist.Normal(0.0, 3.0))
    b.sample("x", b.dist.Normal(0.0, b.np.exp(v / 2)).expand([9]).to_event(1))


@story
def banana(b: Language, d: Data) -> None:
    a = b.sample("a", b.dist.Normal(0.0, 10.0))
    b.sample("b", b.dist.Normal(0.03 * (a**2 - 100), 1.0))


@story
def two_modes(b: Language, d: Data) -> None:
    place = b.sample("place", b.dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    seen = b.dist.Normal(b.np.stack([place + 3, place - 3]), 0.5).to_event(1)
    mixture = b.dist.MixtureSameFamily(b.dist.Categorical(d["weights"]), seen)
    b.sample("value", mixture, obs=d["value"][:, 0])


@story
def logistic(b: Language, d: Data) -> None:
    intercept = b.sample("intercept", b.dist.Normal(0.0, 2.5))
    slopes = b.sample("slopes", b.dist.Normal(0.0, 1.0).expand([25]).to_event(1))
    seen = b.dist.Bernoulli(logits=intercept + d["covariates"] @ slopes).to_event(1)
    b.sample("value", seen, obs=d["value"][:, 0])


@story
def gp_regression(b: Language, d: Data) -> None:
    length = b.sample("length", b.dist.InverseGamma(5.0, 5.0))
    amplitude = b.sample("amplitude", b.dist.HalfNormal(2.0))
    noise = b.sample("noise", b.dist.HalfNormal(1.0))
    kernel = amplitude**2 * b.np.exp(-0.5 * d["squares"] / length**2) + noise**2 * b.np.eye(40)
    factor = b.np.linalg.cholesky(kernel)
    b.sample(
        "value", b.dist.MultivariateNormal(b.np.zeros(40), scale_tril=factor), obs=d["value"][:, 0]
    )


@story
def hierarchy(b: Language, d: Data) -> None:
    center = b.sample("center", b.dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    spread = b.sample("spread", b.dist.HalfNormal(1.0).expand([3]).to_event(1))
    factor = b.sample("factor", b.dist.LKJCholesky(3, 2.0))
    z = b.sample("z", b.dist.Normal(0.0, 1.0).expand([8, 3]).to_event(2))
    share = b.sample("share", b.dist.Dirichlet(2 * b.np.ones(4)))
    noise = b.sample("noise", b.dist.HalfNormal(1.0))
    effect = (center + z @ (spread[:, None] * factor).mT)[d["group"]]
    mean = effect[:, 0] + effect[:, 1] * d["dose"] + effect[:, 2] * (d["climb"] @ share)
    b.sample("value", b.dist.Normal(mean, noise).to_event(1), obs=d["value"][:, 0])
