"""Pyro's own No-U-Turn sampler, instrumented: the reference that other runners are graded against."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import NUTS
from torch import Tensor

from .checkpoint import Checkpoint
from .density import Density
from .runs import Draws, Progress, RunError

__all__ = ["run"]

STATS = ("lp", "energy", "acceptance_rate", "diverging", "step_size", "tree_depth", "n_steps")
# Often enough that an interrupt loses seconds, seldom enough that writing costs nothing.
CHECKPOINT_EVERY = 25


class _Potential(torch.autograd.Function):
    """Minus the log density, with the gradient that the density computes together with it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, density: Density) -> Tensor:
        value, gradient = density.gradient_at(z)
        ctx.save_for_backward(gradient)
        return -value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return -upstream[0] * gradient, None


class _InstrumentedNUTS(NUTS):
    """NUTS that keeps what one transition did: its energy, depth and number of steps."""

    energy: float = 0.0
    depth: int = 0
    steps: int = 0

    def _build_tree(
        self, z: Any, r: Any, grads: Any, log_slice: Any, way: Any, depth: int, energy: Any
    ) -> Any:
        self.depth = max(self.depth, depth + 1)
        self.energy = float(energy)
        return super()._build_tree(z, r, grads, log_slice, way, depth, energy)

    def _build_basetree(self, *args: Any) -> Any:
        self.steps += 1
        return super()._build_basetree(*args)


def run(
    density: Density,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    chains: int = 4,
    draws: int = 500,
    warmup: int = 500,
    target_acceptance: float = 0.8,
    max_tree_depth: int = 10,
) -> Draws:
    """Sample with Pyro's NUTS, one chain after the other, with a dense mass matrix up to 50 dimensions.

    Args:
        density: what to sample.
        seed: chain c uses a seed made of this and c.
        progress: called with (done, total, text).
        checkpoint: file to keep finished draws in, and to go on from when it is there. It stays when all are done:
            whoever gave it removes it once the run is safe.
        chains: number of chains.
        draws: draws a chain, after warm-up.
        warmup: adaptation steps a chain.
        target_acceptance: acceptance probability that the step size is adapted to.
        max_tree_depth: trajectories have at most 2 to this power steps.
    """
    if density.dim == 0:
        raise RunError("the model has no continuous latent: NUTS has nothing to move; use laplace")
    if min(chains, draws, warmup) < 1:
        raise RunError("chains, draws and warmup must be at least 1")
    settings = {"target_accept_prob": target_acceptance, "max_tree_depth": max_tree_depth}
    shape = (chains, draws, density.dim)
    depends = {"shape": shape, "seed": seed, "warmup": warmup, **settings}
    store = _Store(Checkpoint(checkpoint, "nuts", density, depends), shape)
    for chain in range(chains):
        _run_chain(density, chain, seed, warmup, store, settings, progress)
    stats = {name: store.stats[i] for i, name in enumerate(STATS)}
    stats["diverging"] = stats["diverging"].astype(bool)
    for name in ("tree_depth", "n_steps"):
        stats[name] = stats[name].astype(int)
    return Draws(torch.as_tensor(store.z), stats, attrs={"density_path": density.path})


def _run_chain(
    density: Density,
    chain: int,
    seed: int,
    warmup: int,
    store: _Store,
    settings: dict[str, Any],
    progress: Progress | None,
) -> None:
    chains, draws = store.z.shape[:2]
    done = int(store.done[chain])
    if done == draws:
        return
    total = chains * (warmup + draws)
    with pyro.validation_enabled(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + chain)
        kernel = _InstrumentedNUTS(
            potential_fn=lambda p: _Potential.apply(p["z"], density),
            full_mass=density.dim <= 50,
            **settings,
        )
        state = {"z": _start(density, seed * 1_000_003 + chain)}
        kernel.initial_params = state
        kernel.setup(warmup)
        if done:
            state = store.restore(kernel, chain)
            kernel._t = warmup + done
        else:
            for step in range(warmup):
                state = kernel.sample(state)
                if progress and step % 10 == 0:
                    progress(chain * (warmup + draws) + step, total, f"chain {chain + 1} warm-up")
        for step in range(done, draws):
            state = _transition(kernel, state, chain, step, store)
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == draws:
                store.save(kernel, chain, step + 1)
            if progress and step % 10 == 0:
                progress(chain * (warmup + draws) + warmup + step, total, f"chain {chain + 1}")


def _start(density: Density, seed: int) -> Tensor:
    """The likeliest of a few draws from the prior: inside the support, and different for every chain."""
    points = density.initial(16, seed)
    values = torch.nan_to_num(density.log_prob(points), nan=-torch.inf, posinf=-torch.inf)
    if not torch.isfinite(values).any():
        raise RunError(
            "the density is not finite at any of 16 draws from the prior; check the prior"
        )
    return points[values.argmax()].detach()


def _transition(kernel: _InstrumentedNUTS, state: Any, chain: int, step: int, store: _Store) -> Any:
    kernel.depth = kernel.steps = 0
    divergences = len(kernel._divergences)
    # Pyro keeps a running mean over the draws; from zero, its update is this draw's share of it.
    kernel._mean_accept_prob = 0.0
    state = kernel.sample(state)
    acceptance = (step + 1) * kernel._mean_accept_prob
    _, potential, _ = kernel._fetch_from_cache()
    store.z[chain, step] = state["z"].detach().numpy()
    store.stats[:, chain, step] = (
        -float(potential),
        kernel.energy,
        acceptance,
        len(kernel._divergences) > divergences,
        kernel.step_size,
        kernel.depth,
        kernel.steps,
    )
    return state


class _Store:
    """Draws so far and the sampler's state, on disk when the checkpoint has a path."""

    def __init__(self, checkpoint: Checkpoint, shape: tuple[int, int, int]) -> None:
        self.checkpoint = checkpoint
        chains, draws, dim = shape
        self.z = np.zeros(shape)
        self.stats = np.zeros((len(STATS), chains, draws))
        self.done = np.zeros(chains, dtype=int)
        self.step = np.zeros(chains)
        self.mass = np.zeros((chains, dim, dim) if dim <= 50 else (chains, dim))
        self.rng = np.zeros((chains, torch.get_rng_state().numel()), dtype=np.uint8)
        for name, array in checkpoint.load().items():
            setattr(self, name, array)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("z", "stats", "done", "step", "mass", "rng")}

    def save(self, kernel: NUTS, chain: int, done: int) -> None:
        """Keep the chain's state so that going on gives the draws that an unbroken run would."""
        self.done[chain] = done
        self.step[chain] = kernel.step_size
        self.mass[chain] = next(iter(kernel.inverse_mass_matrix.values())).numpy()
        self.rng[chain] = torch.get_rng_state().numpy()
        self.checkpoint.save(self._arrays())

    def restore(self, kernel: NUTS, chain: int) -> dict[str, Tensor]:
        """Put a kernel into the state that `save` kept."""
        names = next(iter(kernel.inverse_mass_matrix))
        kernel.mass_matrix_adapter.inverse_mass_matrix = {names: torch.as_tensor(self.mass[chain])}
        kernel._adapter.step_size = float(self.step[chain])
        torch.set_rng_state(torch.as_tensor(self.rng[chain]))
        state = {"z": torch.as_tensor(self.z[chain, self.done[chain] - 1])}
        kernel.clear_cache()
        return state
