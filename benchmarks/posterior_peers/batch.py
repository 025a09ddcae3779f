"""Many datasets of one shape: atomzoo in one call, NumPyro one after another or vmapped.

NumPyro runs one chain a dataset, 1,000 draws to warm up and 1,000 to keep: with its own way to share a compile, with
the whole run compiled once by hand, and vmapped over the datasets. atomzoo stops at the effective sample size that is
asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["RUNS"]

MODEL = "wall_second_order"
LATENTS = ("P_s", "x0", "L_c", "noise")
Draws = dict[str, np.ndarray]


def in_turn(one: Callable[[int], Draws], n: int) -> dict[str, Any]:
    """Seconds of the first dataset, with what is built for it, and of the others."""
    started = time.perf_counter()
    found = [one(0)]
    first = time.perf_counter() - started
    found += [one(i) for i in range(1, n)]
    rest = time.perf_counter() - started - first
    return {"n": n, "first": first, "rest": rest, "draws": found}


def ours(problem: dict[str, Any], n: int) -> dict[str, Any]:
    import xarray as xr

    # What is imported is not timed, as that of the others is not.
    import atomzoo.inference.stack

    datasets = [xr.Dataset.from_dict(parts) for parts in problem["datasets"][:n]]
    started = time.perf_counter()
    run = atomzoo.fit(MODEL, datasets, ess=problem["ess"])
    seconds = time.perf_counter() - started
    kept = {name: run["posterior"][name].values for name in LATENTS}
    draws = [{name: kept[name][:, :, i] for name in LATENTS} for i in range(n)]
    return {"n": n, "first": seconds, "rest": 0.0, "draws": draws}


def shared(problem: dict[str, Any], n: int) -> dict[str, Any]:
    import jax
    from in_jax import Sequential

    sampler = Sequential(MODEL, {"data": problem["data"], "latents": LATENTS}, 0)
    sampler.CHAINS = 1

    def one(i: int) -> Draws:
        sampler.give(i)
        return sampler.sample(i, 1000)

    jax.block_until_ready(sampler.data)
    return in_turn(one, n)


def by_hand(problem: dict[str, Any], n: int) -> dict[str, Any]:
    import jax

    one, stacked = _one_and_data(problem, n)
    compiled = jax.jit(one)
    keys = jax.random.split(jax.random.key(0), n)

    def fit(i: int) -> Draws:
        draws = compiled(keys[i], {name: values[i] for name, values in stacked.items()})
        return {name: np.asarray(draws[name]) for name in LATENTS}

    return in_turn(fit, n)


def vmapped(problem: dict[str, Any], n: int) -> dict[str, Any]:
    import jax

    one, stacked = _one_and_data(problem, n)
    started = time.perf_counter()
    draws = jax.vmap(one)(jax.random.split(jax.random.key(0), n), stacked)
    kept = {name: np.asarray(draws[name]) for name in LATENTS}
    seconds = time.perf_counter() - started
    each = [{name: kept[name][i] for name in LATENTS} for i in range(n)]
    return {"n": n, "first": seconds, "rest": 0.0, "draws": each}


def _one_and_data(problem: dict[str, Any], n: int) -> tuple[Any, dict[str, Any]]:
    """A run as a function of key and data, and the data of all."""
    import functools

    import jax.numpy as jnp
    from in_jax import JAX
    from numpyro.infer import MCMC, NUTS
    from stories import STORIES

    data = problem["data"][:n]
    stacked = {key: jnp.asarray([d[key] for d in data]) for key in data[0]}
    model = functools.partial(STORIES[MODEL], JAX)

    def one(key: Any, data: Any) -> Any:
        mcmc = MCMC(NUTS(model), num_warmup=1000, num_samples=1000, progress_bar=False)
        mcmc.run(key, data)
        return mcmc.get_samples(group_by_chain=True)

    return one, stacked


RUNS = {"ours": ours, "shared": shared, "by_hand": by_hand, "vmapped": vmapped}
