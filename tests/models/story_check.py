"""A model's own posterior against its story: draws from the prior, weighed by the story's likelihood."""

import numpy as np
import torch

from atomzoo.inference.fit import make_density


def weighed(model, data, prior, site, draws=20_000, seed=0):
    """Weights of prior draws and the number of the discrete latent in each, evidence and its error, values by name."""
    density = make_density(model, data, prior)
    (latent,) = density.alternatives
    z = density.initial(draws, seed)
    rng = np.random.default_rng(seed)
    chosen = torch.as_tensor(rng.integers(latent.size, size=draws))
    held = {site: chosen}
    log_weight = density.pointwise(z, held).reshape(draws, -1).sum(1).numpy()
    weight = np.exp(log_weight - log_weight.max())
    evidence = log_weight.max() + np.log(weight.mean())
    error = weight.std() / weight.mean() / np.sqrt(draws)
    values = {name: value.numpy() for name, value in density.constrain(z, held).items()}
    return weight / weight.sum(), chosen.numpy(), evidence, error, values


def compared(rows, weight, own):
    """Difference of means of weighed rows and of the model's own, in standard errors."""
    mean = weight @ rows
    spread = np.sqrt((weight[:, None] ** 2 * (rows - mean) ** 2).sum(0))
    own_error = own.std(0) / np.sqrt(len(own))
    return np.abs(mean - own.mean(0)) / (np.hypot(spread, own_error) + 1e-12)
