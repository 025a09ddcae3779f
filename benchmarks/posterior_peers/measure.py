"""One measurement in a process of its own: `python measure.py JOB.json`, which prints one line of JSON.

The clock runs from the model to the draws, compile included. It stands while effective sizes are worked out.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["quality"]

FAR_GOAL = 40_000
# Many short chains are judged as a few long ones: the between-chain variance of short ones is all Monte Carlo error.
MOST_CHAINS = 4


def elements(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every number of every parameter that varies, (chain, draw)."""
    found = {}
    for name, value in draws.items():
        for place in np.ndindex(value.shape[2:]):
            label = f"{name}[{', '.join(map(str, place))}]" if place else name
            found[label] = value[(..., *place)].astype(float)
    return {label: x for label, x in found.items() if np.ptp(x) > 1e-12}


def grouped(array: np.ndarray) -> np.ndarray:
    """Chains dealt out to a few, draw by draw; one chain as its halves."""
    chains, length = array.shape
    if chains == 1:
        return array[:, : length // 2 * 2].reshape(2, -1)
    each = max(1, chains // MOST_CHAINS)
    dealt = array[: chains // each * each].reshape(-1, each, length)
    return dealt.transpose(0, 2, 1).reshape(-1, each * length)


def quality(draws: dict[str, np.ndarray]) -> dict[str, Any]:
    """Worst effective size and R-hat; mean, its error, standard deviation, its error. The same functions for all."""
    from arviz_stats.base import array_stats

    numbers = elements(draws)
    ess = {name: float(array_stats.ess(x, method="bulk")) for name, x in numbers.items()}
    r_hat = [array_stats.rhat(grouped(x), method="rank") for x in numbers.values()]
    moments = {
        name: (
            float(x.mean()),
            float(x.std() / math.sqrt(ess[name])),
            float(x.std()),
            float(array_stats.mcse(x, method="sd")),
        )
        for name, x in numbers.items()
    }
    return {
        "ess": float(np.min(list(ess.values()))),
        "r_hat": float(np.max(r_hat)),
        "moments": moments,
        "draws": next(iter(numbers.values())).size,
    }


def timed(make: Any, seed: int, amount: int) -> dict[str, Any]:
    """Seconds from model to draws, and what the draws are worth."""
    gc.collect()
    started, busy = time.perf_counter(), time.process_time()
    sampler = make()
    draws = sampler.sample(seed, amount)
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    found = {"seconds": seconds, "cpu": cpu, "amount": amount, **quality(draws)}
    if hasattr(sampler, "seconds_of_draws"):
        found["seconds_of_draws"] = sampler.seconds_of_draws
    return found


def far_amount(peer: Any, near: dict[str, Any], limit: float) -> int:
    """What to ask for to come to the far goal, or as near to it as the limit on seconds allows.

    Where it can be told from the compile, the time of the draws alone counts.
    """
    if peer.STEERED:
        return FAR_GOAL
    share = peer.AMOUNT / (peer.AMOUNT + peer.WARMUP)
    seconds = near.get("seconds_warm", near["seconds"])
    affordable = 1 + max(0.0, limit / seconds - 1) / share
    times = min(FAR_GOAL / max(near["ess"], 1.0), affordable)
    return max(int(peer.AMOUNT * times), peer.AMOUNT)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Cold, and where asked for warm; or far, where a near measurement is given."""
    module, name = job["peer"]
    peer = getattr(importlib.import_module(module), name)
    if hasattr(peer, "prepare"):
        peer.prepare(job["posterior"])
    imported = time.time() - job["spawned"]
    problem = json.loads(Path(job["problem"]).read_text())
    seed, posterior, near = job["seed"], job["posterior"], job.get("near")
    amount = far_amount(peer, near, job["far_limit"]) if near else peer.AMOUNT
    made: list[Any] = []

    def first() -> Any:
        made.append(peer(posterior, problem, "first"))
        return made[-1]

    found: dict[str, Any] = {"imported": imported, "cold": timed(first, seed, amount)}
    if job["warm"] and peer.SHARES_COMPILE and "second" in problem["data"]:

        def again() -> Any:
            made[0].give("second")
            return made[0]

        found["warm"] = timed(again, seed, amount)
    return found


def check(job: dict[str, Any]) -> dict[str, Any]:
    """Log density less atomzoo's at the test points of every posterior: it should be one number each."""
    module, name = job["peer"]
    peer = getattr(importlib.import_module(module), name)
    offsets = {}
    for posterior, path in job["problems"].items():
        problem = json.loads(Path(path).read_text())
        sampler = peer(posterior, problem, "first")
        offsets[posterior] = [
            sampler.log_joint({key: np.asarray(v) for key, v in point["values"].items()})
            - point["log_joint"]
            for point in problem["points"]
        ]
    return {"offsets": offsets}


def batch(job: dict[str, Any]) -> dict[str, Any]:
    """Many datasets: the seconds, and which of them came to the effective size asked for."""
    from batch import RUNS

    problem = json.loads(Path(job["problem"]).read_text())
    found = RUNS[job["run"]](problem, job["n"])
    every = [quality(draws) for draws in found.pop("draws")]
    return {**found, "ess": [q["ess"] for q in every], "r_hat": [q["r_hat"] for q in every]}


if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text())
    work = {"measure": measure, "check": check, "batch": batch}[told["work"]]
    result = work(told)
    print("RESULT " + json.dumps(result), flush=True)
