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
from jax.scipy.linalg import solve_triangular
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
    """Centred, unlike the model that is graded: these data fix every group's effects well."""
    center = sample("center", dist.Normal(0, 2).expand([3]).to_event(1))
    spread = sample("spread", dist.HalfNormal(1).expand([3]).to_event(1))
    factor = sample("factor", dist.LKJCholesky(3, 2))
    share = sample("share", dist.Dirichlet(2 * jnp.ones(4)))
    noise = sample("noise", dist.HalfNormal(1))
    scale = spread[:, None] * factor
    effect = sample(
        "effect", dist.MultivariateNormal(center, scale_tril=scale).expand([8]).to_event(1)
    )
    deterministic("z", solve_triangular(scale, (effect - center).T, lower=True).T)
    climbed = jnp.concatenate([jnp.zeros(1), jnp.cumsum(share)])[level]
    a, s, b = effect.T
    sample("y", dist.Normal(a[group] + s[group] * dose + b[group] * climbed, noise), obs=y)


def centred(point):
    """A point of the hierarchy with effects for z, and the log Jacobian of that change."""
    scale = point["spread"][:, None] * point["factor"]
    kept = {name: value for name, value in point.items() if name != "z"}
    volume = 8 * np.log(np.diag(scale)).sum()
    return kept | {"effect": point["center"] + point["z"] @ scale.T}, volume


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
# Sampled in other variables than those of the points.
CHANGED = {"hierarchy": centred}


def main() -> None:
    with np.load(sys.argv[1]) as task:
        data = {k[5:]: v for k, v in task.items() if k.startswith("data.")}
        points = {k[6:]: v for k, v in task.items() if k.startswith("point.")}
        joint = task["joint"]
        settings = json.loads(str(task["settings"]))
    model = MODELS[settings["model"]]
    if "prior" in settings:
        data["prior"] = settings["prior"]
    change = CHANGED.get(settings["model"], lambda point: (point, 0.0))
    apart = 0.0
    for i, expected in enumerate(joint):
        point, volume = change({k: v[i] for k, v in points.items()})
        apart = max(apart, abs(float(log_density(model, (), data, point)[0]) + volume - expected))
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
    draws = {
        f"draw.{k}": np.asarray(v) for k, v in sampler.get_samples(True).items() if k != "effect"
    }
    about = {
        "versions": {"numpyro": numpyro.__version__, "jax": jax.__version__},
        "divergences": int(sampler.get_extra_fields()["diverging"].sum()),
        "log joint apart": apart,
        "seconds": round(seconds),
    }
    np.savez(sys.argv[2], about=json.dumps(about), **draws)


if __name__ == "__main__":
    main()
