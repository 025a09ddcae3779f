"""Climbing a noisy objective: Adam, a rate that falls when the noise hides the gain, and a stop when it still does.

References: Kingma and Ba, Adam: a method for stochastic optimization, arXiv 1412.6980 (2015); Agrawal, Sheldon and
Domke, Advances in black-box VI: normalizing flows, importance weighting, and optimization, arXiv 2006.10343 (2020), for
falling rates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .runs import RunError

__all__ = ["Training"]

# Adam's decay of both moments: the gradient changes as the rate falls, so that the second is shorter than usual.
DECAYS = (0.9, 0.99)
# What the rate falls by when a window brings no gain, and how often before training ends.
CUT, CUTS = 0.25, 2
# Seconds between two checkpoints.
KEEP_EVERY = 5.0
KEPT = ("parameters", "buffers", "first", "second")


class Training:
    """The state of training a module, which a checkpoint can keep.

    Attributes:
        step: steps done.
        stopped: `early` where the objective gained no more, `steps` where steps ran out, empty before.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.buffers = list(module.buffers())
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.step, self.cuts, self.stopped = 0, 0, ""
        self.best, self.error = -math.inf, 0.0

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything in it, and the state of torch's random numbers, to be kept."""
        found = {
            f"{what}_{i}": values.detach().numpy()
            for what in KEPT
            for i, values in enumerate(getattr(self, what))
        }
        figures = np.array([self.step, self.cuts, self.best, self.error])
        state = torch.get_rng_state().numpy()
        return {**found, "training": figures, "stopped": np.array(self.stopped), "random": state}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what `arrays` took apart."""
        with torch.no_grad():
            for what in KEPT:
                for i, values in enumerate(getattr(self, what)):
                    values.copy_(torch.as_tensor(arrays[f"{what}_{i}"]))
        step, cuts, self.best, self.error = map(float, arrays["training"])
        self.step, self.cuts, self.stopped = int(step), int(cuts), str(arrays["stopped"])
        torch.set_rng_state(torch.as_tensor(arrays["random"]))

    def climb(
        self,
        objective: Callable[[], Tensor],
        *,
        steps: int,
        rate: float,
        patience: int,
        least: float,
        longest: float,
        store: Checkpoint,
        kept: Mapping[str, np.ndarray],
        report: Callable[[int, int, str], None],
    ) -> None:
        """Climb until windows bring no gain or the steps run out.

        Args:
            objective: an unbiased estimate of what is to grow, differentiable in the parameters.
            steps: at most so many.
            rate: of learning, at the start.
            patience: steps of a window, over which the objective is averaged.
            least: a smaller gain is none, however little noise there is.
            longest: gradients longer than this are shortened to it.
            store: where to keep the state.
            kept: what to keep along with it.
            report: called with (done, total, text).
        """
        last = time.monotonic()
        while self.step < steps and not self.stopped:
            window = []
            for _ in range(min(patience, steps - self.step)):
                window.append(self._ascend(objective, rate * CUT**self.cuts, longest))
                if self.step % 20 == 0:
                    report(self.step, steps, f"training, ELBO {np.mean(window):.5g}")
            self._judge(np.array(window), least)
            if self.step >= steps and not self.stopped:
                self.stopped = "steps"
            if self.stopped or time.monotonic() - last > KEEP_EVERY:
                store.save({**self.arrays(), **kept})
                last = time.monotonic()

    def _ascend(self, objective: Callable[[], Tensor], rate: float, longest: float) -> float:
        """One step of Adam."""
        value = objective()
        found = float(value.detach())
        if not math.isfinite(found):
            raise RunError(f"the ELBO is {found} at step {self.step}; try a smaller rate")
        slopes = torch.autograd.grad(
            value, self.parameters, allow_unused=True, materialize_grads=True
        )
        length = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
        short = min(1.0, longest / max(length, 1e-300))
        self.step += 1
        a, b = DECAYS
        with torch.no_grad():
            for p, g, m, v in zip(self.parameters, slopes, self.first, self.second, strict=True):
                m.mul_(a).add_(g, alpha=short * (1 - a))
                v.mul_(b).addcmul_(g, g, value=short**2 * (1 - b))
                size = (v / (1 - b**self.step)).sqrt_().add_(1e-12)
                p.addcdiv_(m, size, value=rate / (1 - a**self.step))
        return found

    def _judge(self, window: np.ndarray, least: float) -> None:
        """Compare a window with the best before; without a gain the rate falls, and in the end training stops."""
        mean, error = float(window.mean()), float(window.std() / math.sqrt(len(window)))
        if mean - self.best > max(least, math.hypot(error, self.error)):
            self.best, self.error = mean, error
        elif self.cuts < CUTS:
            self.cuts += 1
        else:
            self.stopped = "early"
