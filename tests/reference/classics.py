"""Eight classic posteriors that samplers are judged by, as models of tables in plain Pyro.

Each is posed with data of its own (`MODEL.design()`), so that everything depends on this file alone. Where the data
are simulated, they come from NumPy's generator with seed 0.
"""

from __future__ import annotations

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.distributions import (
    Bernoulli,
    Categorical,
    Dirichlet,
    HalfCauchy,
    HalfNormal,
    Independent,
    LKJCholesky,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch import Tensor
from torch.distributions.transforms import ReshapeTransform

from atomzoo.datasets.kinds import dataset
from atomzoo.models.model import View, model, observe, sample
from atomzoo.models.priors import Prior

__all__ = [
    "CLASSICS",
    "banana",
    "eight_schools_centred",
    "eight_schools_noncentred",
    "funnel",
    "gp_regression",
    "hierarchy",
    "logistic",
    "two_modes",
]


def column(values: np.ndarray | list[float]) -> xr.Dataset:
    """A table of one column."""
    return dataset("table", value=np.asarray(values, float)[:, None], variable=np.array(["y"]))


def tensor(values: np.ndarray | list[float]) -> Tensor:
    """Constants in double precision, on the device of the story that makes them."""
    return torch.as_tensor(np.asarray(values, float))


def nothing() -> xr.Dataset:
    """Two numbers that say nothing about any latent."""
    return column([-1.0, 1.0])


def observe_nothing() -> None:
    """An observation that does not depend on the latents: the posterior is the prior."""
    observe("value", Normal(tensor([0.0]), 1.0))


SCHOOL_EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SCHOOL_ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def schools() -> xr.Dataset:
    """Estimated effects of coaching in eight schools; their standard errors are known."""
    return column(SCHOOL_EFFECTS)


SCHOOLS_PRIOR = {"stan": {"mu": Normal(0.0, 5.0), "tau": HalfCauchy(5.0)}}
SCHOOLS_SIZES = {"row": (8, 8), "variable": (1, 1)}


@model(kind="table", priors=SCHOOLS_PRIOR, sizes=SCHOOLS_SIZES, design=schools)
def eight_schools_centred(table: View, prior: Prior) -> None:
    """Eight schools, y_j ~ N(theta_j, sigma_j²) with theta_j ~ N(mu, tau²): a funnel where tau is small.

    References: Rubin, Journal of Educational Statistics 6 (1981); Gelman et al., Bayesian Data Analysis, section 5.5.
    """
    sigma = tensor(SCHOOL_ERRORS)
    mu, tau = sample("mu", prior.mu), sample("tau", prior.tau)
    theta = pyro.sample("theta", Normal(mu * torch.ones_like(sigma), tau).to_event(1))
    observe("value", Normal(theta[:, None], sigma[:, None]))


@model(kind="table", priors=SCHOOLS_PRIOR, sizes=SCHOOLS_SIZES, design=schools)
def eight_schools_noncentred(table: View, prior: Prior) -> None:
    """Eight schools, y_j ~ N(theta_j, sigma_j²) with theta_j = mu + tau z_j and z_j ~ N(0, 1).

    References: Papaspiliopoulos, Roberts and Sköld, Statistical Science 22 (2007), for the change of variables.
    """
    sigma = tensor(SCHOOL_ERRORS)
    mu, tau = sample("mu", prior.mu), sample("tau", prior.tau)
    z = pyro.sample("z", Normal(torch.zeros_like(sigma), 1.0).to_event(1))
    theta = pyro.deterministic("theta", mu + tau * z)
    observe("value", Normal(theta[:, None], sigma[:, None]))


@model(
    kind="table",
    priors={"neal": {"v": Normal(0.0, 3.0)}},
    sizes={"row": (2, 2), "variable": (1, 1)},
    design=nothing,
)
def funnel(table: View, prior: Prior) -> None:
    """Neal's funnel in ten dimensions, v ~ N(0, 3²) and x_i ~ N(0, exp(v)) for i = 1 to 9.

    References: Neal, Annals of Statistics 31 (2003), section 8.
    """
    v = sample("v", prior.v)
    pyro.sample("x", Normal(torch.zeros(9, dtype=torch.float64), torch.exp(v / 2)).to_event(1))
    observe_nothing()


BEND = 0.03


@model(
    kind="table",
    priors={"haario": {"a": Normal(0.0, 10.0)}},
    sizes={"row": (2, 2), "variable": (1, 1)},
    design=nothing,
)
def banana(table: View, prior: Prior) -> None:
    """Haario's banana, a ~ N(0, 10²) and b ~ N(0.03 (a² - 100), 1): E b = 0, Var b = 19.

    References: Haario, Saksman and Tamminen, Computational Statistics 14 (1999).
    """
    a = sample("a", prior.a)
    pyro.sample("b", Normal(BEND * (a**2 - 100), 1.0))
    observe_nothing()


WEIGHTS = [0.7, 0.3]
OFFSET = 3.0


@model(
    kind="table",
    priors={"wide": {"place": Normal(0.0, 5.0).expand([2]).to_event(1)}},
    sizes={"row": (2, 2), "variable": (1, 1)},
    design=lambda: column([0.0, 0.0]),
)
def two_modes(table: View, prior: Prior) -> None:
    """A point seen once, by an instrument shifted by +3 (chance 0.7) or by -3 (chance 0.3) along both axes.

    y ~ 0.7 N(place + 3, 1/2²) + 0.3 N(place - 3, 1/2²) with place ~ N(0, 5²) and y = 0 at both axes. The posterior is
    0.7 N(-m, s²) + 0.3 N(m, s²) with 1/s² = 1/5² + 2² and m = 3 · 2² s²: modes 17 standard deviations apart.
    """
    place = sample("place", prior.place)
    shifted = place + OFFSET * tensor([[1.0], [-1.0]])
    seen = Independent(Normal(shifted[..., None], 0.5), 2)
    observe("value", MixtureSameFamily(Categorical(tensor(WEIGHTS)), seen))


def covariates() -> np.ndarray:
    """500 rows of 25 standard normal covariates, neighbours correlated by one half."""
    rng = np.random.default_rng(0)
    lag = np.abs(np.subtract.outer(np.arange(25), np.arange(25)))
    return rng.standard_normal((500, 25)) @ np.linalg.cholesky(0.5**lag).T


def answers() -> xr.Dataset:
    """Zeros and ones, with coefficients that alternate in sign and fade."""
    slopes = np.where(np.arange(25) % 2, -1.0, 1.0) * np.exp(-np.arange(25) / 8)
    chance = 1 / (1 + np.exp(-(0.5 + covariates() @ slopes)))
    return column((np.random.default_rng(1).random(500) < chance).astype(float))


@model(
    kind="table",
    priors={
        "weak": {"intercept": Normal(0.0, 2.5), "slopes": Normal(0.0, 1.0).expand([25]).to_event(1)}
    },
    sizes={"row": (500, 500), "variable": (1, 1)},
    design=answers,
)
def logistic(table: View, prior: Prior) -> None:
    """Logistic regression, logit p_i = intercept + x_i · slopes, with 25 covariates and 500 answers.

    References: the size of the German credit data; Gelman et al., Annals of Applied Statistics 2 (2008), for the prior.
    """
    slopes = sample("slopes", prior.slopes)
    eta = sample("intercept", prior.intercept) + tensor(COVARIATES) @ slopes
    observe("value", Bernoulli(logits=eta[:, None]))


INPUTS = np.linspace(0.0, 10.0, 40)


def curve() -> xr.Dataset:
    """A smooth curve at 40 points with noise 0.3."""
    noise = 0.3 * np.random.default_rng(0).standard_normal(40)
    return column(np.sin(INPUTS) + 0.5 * np.cos(2.3 * INPUTS) + noise)


@model(
    kind="table",
    priors={
        "betancourt": {
            # As text: to make it here would import SymPy, a third of a second for all the others too.
            "length": "InverseGamma(5, 5)",
            "amplitude": HalfNormal(2.0),
            "noise": HalfNormal(1.0),
        }
    },
    sizes={"row": (40, 40), "variable": (1, 1)},
    noise="noise",
    design=curve,
)
def gp_regression(table: View, prior: Prior) -> None:
    """Gaussian process regression, y ~ N(0, amplitude² exp(-(x - x')² / 2 length²) + noise² 1).

    References: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 5.4.1; Betancourt,
    Robust Gaussian Process Modeling (2020), for the prior of the length.
    """
    kernel = torch.exp(-0.5 * tensor(SQUARES) / sample("length", prior.length) ** 2)
    signal = sample("amplitude", prior.amplitude) ** 2 * kernel
    noise = sample("noise", prior.noise) ** 2 * torch.eye(40, dtype=torch.float64)
    factor = torch.linalg.cholesky(signal + noise)
    whole = MultivariateNormal(torch.zeros(40, dtype=torch.float64), scale_tril=factor)
    observe("value", TransformedDistribution(whole, ReshapeTransform((40,), (40, 1))))


GROUPS, LEVELS, EACH = 8, 5, 20


def plan() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group, dose and level of each of the 160 rows."""
    row = np.arange(GROUPS * EACH)
    return row // EACH, np.linspace(-1.0, 1.0, EACH)[row % EACH], (row * 3) % LEVELS


def responses() -> xr.Dataset:
    """Groups whose intercept, slope and step are correlated; noise 0.5."""
    rng = np.random.default_rng(0)
    group, dose, level = plan()
    correlation = np.array([[1.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 1.0]])
    factor = np.array([0.8, 0.6, 1.0])[:, None] * np.linalg.cholesky(correlation)
    effect = np.array([1.0, -0.5, 2.0]) + rng.standard_normal((GROUPS, 3)) @ factor.T
    climbed = np.array([0.0, 0.5, 0.7, 0.95, 1.0])[level]
    mean = effect[group, 0] + effect[group, 1] * dose + effect[group, 2] * climbed
    return column(mean + 0.5 * rng.standard_normal(len(mean)))


@model(
    kind="table",
    priors={
        "weak": {
            "center": Normal(0.0, 2.0).expand([3]).to_event(1),
            "spread": HalfNormal(1.0).expand([3]).to_event(1),
            "factor": LKJCholesky(3, 2.0),
            "share": Dirichlet(2 * torch.ones(LEVELS - 1)),
            "noise": HalfNormal(1.0),
        }
    },
    sizes={"row": (160, 160), "variable": (1, 1)},
    noise="noise",
    design=responses,
)
def hierarchy(table: View, prior: Prior) -> None:
    """Correlated effects of eight groups and a monotone step, y = a_g + s_g dose + b_g (share_1 + … + share_level).

    (a, s, b)_g = center + diag(spread) L z_g with L Lᵀ ~ LKJ(2), share ~ Dirichlet(2, 2, 2, 2), Gaussian noise.

    References: Lewandowski, Kurowicka and Joe, Journal of Multivariate Analysis 100 (2009); Bürkner and Charpentier,
    British Journal of Mathematical and Statistical Psychology 73 (2020), for the monotone step.
    """
    spread, factor = sample("spread", prior.spread), sample("factor", prior.factor)
    z = pyro.sample("z", Normal(torch.zeros(GROUPS, 3, dtype=torch.float64), 1.0).to_event(2))
    effect = sample("center", prior.center) + z @ (spread[:, None] * factor).mT
    climbed, group = tensor(CLIMB) @ sample("share", prior.share), torch.as_tensor(GROUP)
    terms = torch.stack([torch.ones_like(climbed), tensor(DOSE), climbed], -1)
    mean = (effect[group] * terms).sum(-1)
    observe("value", Normal(mean[:, None], sample("noise", prior.noise)))


COVARIATES = covariates()
SQUARES = np.subtract.outer(INPUTS, INPUTS) ** 2
GROUP, DOSE, LEVEL = plan()
# A row for each observation: which of the steps it has climbed.
CLIMB = LEVEL[:, None] > np.arange(LEVELS - 1)

CLASSICS = (
    eight_schools_centred,
    eight_schools_noncentred,
    funnel,
    banana,
    two_modes,
    logistic,
    gp_regression,
    hierarchy,
)
