"""The same posteriors in NumPyro, and long runs of its NUTS: `python numpyro_runs.py TASK.npz DRAWS.npz`.

It knows nothing of atomzoo, so that a mistake there is not repeated here, and runs in an environment of its own.
`benchmarks/reference.py` writes the task and reads the draws. Before sampling, the log joint density is compared at the
points of the task.
"""

from __future__ import annotations

import json
import os
import sys
import time

# One thread: the tensors are small.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import deterministic, sample
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density

numpyro.enable_x64()


def eight_schools_noncentred(y, sigma):
    mu, tau = sample("mu", dist.Normal(0, 5)), sample("tau", dist.HalfCauchy(5))
    z = sample("z", dist.Normal(0, 1).expand([8]).to_event(1))
    theta = deterministic("theta", mu + tau * z)
    sample("y", dist.Normal(theta, sigma), obs=y)


def logistic(y, covariates):
    intercept = sample("intercept", dist.Normal(0, 2.5))
    slopes = sample("slopes", dist.Normal(0, 1).expand([25]).to_event(1))
    sample("y", dist.Bernoulli(logits=intercept + covariates @ slopes), obs=y)


def gp_regression(y, inputs):
    length = sample("length", dist.InverseGamma(5, 5))
    amplitude = sample("amplitude", dist.HalfNormal(2))
    noise = sample("noise", dist.HalfNormal(1))
    kernel = jnp.exp(-((inputs[:, None] - inputs) ** 2) / (2 * length**2))
    covariance = amplitude**2 * kernel + noise**2 * jnp.eye(len(inputs))
    sample("y", dist.MultivariateNormal(jnp.zeros(len(inputs)), covariance), obs=y)


def hierarchy(y, group, dose, level):
    """Without the groups' effects, which are normal given the rest: they are drawn afterwards."""
    center = sample("center", dist.Normal(0, 2).expand([3]).to_event(1))
    spread = sample("spread", dist.HalfNormal(1).expand([3]).to_event(1))
    factor = sample("factor", dist.LKJCholesky(3, 2))
    share = sample("share", dist.Dirichlet(2 * jnp.ones(4)))
    noise = sample("noise", dist.HalfNormal(1))
    rows = effect_rows(dose, level, share)
    seen = dist.LowRankMultivariateNormal(
        rows @ center, rows @ (spread[:, None] * factor), noise**2 * jnp.ones(20)
    )
    sample("y", seen, obs=y.reshape(8, 20))


def effect_rows(dose, level, share):
    """What multiplies intercept, slope and step, for the 20 rows of each of 8 groups."""
    climbed = jnp.concatenate([jnp.zeros(1), jnp.cumsum(share)])[level]
    return jnp.stack([jnp.ones(160), dose, climbed], -1).reshape(8, 20, 3)


def effects(point, y, group, dose, level):
    """The groups' standardised effects given the rest: normal."""
    rows = effect_rows(dose, level, point["share"])
    loads = rows @ (point["spread"][:, None] * point["factor"]) / point["noise"]
    left = (y.reshape(8, 20) - rows @ point["center"]) / point["noise"]
    precision = jnp.eye(3) + loads.mT @ loads
    mean = jnp.linalg.solve(precision, jnp.einsum("gri,gr->gi", loads, left)[..., None])[..., 0]
    return dist.MultivariateNormal(mean, precision_matrix=precision)


def wall(shape):
    """A wall of one row: its shape is a function of u and of the draws of further parameters."""

    def story(y, x, prior):
        def draw(name):
            kind, arguments = prior[name]
            return sample(name, getattr(dist, kind)(**arguments))

        width = draw("L_c")
        u = prior["sense"] * (x - draw("x0")) / width
        mean = shape(u, width, draw)
        sample("y", dist.Normal(mean, draw("noise")), obs=y)

    return story


def second_order(u, width, draw):
    return draw("P_s") * jnp.tanh(u)


def first_order(u, width, draw):
    return draw("P_s") * jnp.tanh(u) / jnp.sqrt(1 + draw("eta") * sech(u) ** 2)


def bloch(u, width, draw):
    return jnp.concatenate([draw("P_s") * jnp.tanh(u), draw("P_B") * sech(u)], -1)


def neel(u, width, draw):
    # P_s sinh u / (cosh r + cosh u), without the overflow of cosh.
    r = draw("R0") / width
    return draw("P_s") / 2 * (jnp.tanh((u + r) / 2) + jnp.tanh((u - r) / 2))


def sech(u):
    return 2 * jnp.exp(-jnp.abs(u)) / (1 + jnp.exp(-2 * jnp.abs(u)))


MODELS = {
    "eight_schools_noncentred": eight_schools_noncentred,
    "logistic": logistic,
    "gp_regression": gp_regression,
    "hierarchy": hierarchy,
    "wall_second_order": wall(second_order),
    "wall_first_order": wall(first_order),
    "wall_bloch": wall(bloch),
    "wall_neel": wall(neel),
}
# What is integrated out while sampling: its name, and its distribution given the rest and the data.
AFTERWARDS = {"hierarchy": ("z", effects)}


def log_joint(name, model, data, point):
    """The whole log joint density at a point, whatever the model leaves for afterwards."""
    if name not in AFTERWARDS:
        return float(log_density(model, (), data, point)[0])
    left, given_rest = AFTERWARDS[name]
    rest = {k: v for k, v in point.items() if k != left}
    drawn = given_rest(rest, **data).log_prob(point[left]).sum()
    return float(log_density(model, (), data, rest)[0] + drawn)


def drawn_afterwards(name, data, draws, seed):
    """One draw of what was integrated out for each draw of the rest."""
    left, given_rest = AFTERWARDS[name]
    flat = {k: v.reshape(-1, *v.shape[2:]) for k, v in draws.items()}
    keys = jax.random.split(jax.random.PRNGKey(seed), len(next(iter(flat.values()))))
    values = jax.vmap(lambda key, rest: given_rest(rest, **data).sample(key))(keys, flat)
    shape = next(iter(draws.values())).shape[:2]
    return {left: values.reshape(*shape, *values.shape[1:])}


def main() -> None:
    with np.load(sys.argv[1]) as task:
        data = {k[5:]: v for k, v in task.items() if k.startswith("data.")}
        points = {k[6:]: v for k, v in task.items() if k.startswith("point.")}
        joint = task["joint"]
        settings = json.loads(str(task["settings"]))
    model = MODELS[settings["model"]]
    if "prior" in settings:
        data["prior"] = settings["prior"]
    name = settings["model"]
    apart = max(
        abs(log_joint(name, model, data, {k: v[i] for k, v in points.items()}) - expected)
        for i, expected in enumerate(joint)
    )
    if not apart < 1e-6 * np.abs(joint).max():
        raise SystemExit(f"{settings['model']}: the log joint densities differ by {apart:.3g}")
    kernel = NUTS(model, target_accept_prob=settings["acceptance"], dense_mass=settings["dense"])
    sampler = MCMC(
        kernel,
        num_warmup=settings["warmup"],
        num_samples=settings["draws"] * settings["thinning"],
        thinning=settings["thinning"],
        num_chains=settings["chains"],
        chain_method="sequential",
        progress_bar=False,
    )
    started = time.perf_counter()
    sampler.run(jax.random.PRNGKey(settings["seed"]), **data)
    seconds = time.perf_counter() - started
    draws = sampler.get_samples(group_by_chain=True)
    if name in AFTERWARDS:
        draws |= drawn_afterwards(name, data, draws, settings["seed"] + 1)
    about = {
        "versions": {"numpyro": numpyro.__version__, "jax": jax.__version__},
        "divergences": int(sampler.get_extra_fields()["diverging"].sum()),
        "log joint apart": apart,
        "seconds": round(seconds),
    }
    np.savez(sys.argv[2], about=json.dumps(about), **{f"draw.{k}": v for k, v in draws.items()})


if __name__ == "__main__":
    main()
