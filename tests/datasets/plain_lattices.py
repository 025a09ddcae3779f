"""Images of plain lattices whose deformation is known."""

import numpy as np

from atomzoo.datasets.derived.phases import image_of

SPACING = 0.3


def turned(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s], [s, c]])


def waves(local=None, displacement=None, pixels=260, pixel=0.025, noise=0.0, seed=0):
    """A square lattice with local lattice vectors `local` times its own, or displaced: I(r) = I₀(r - u(r)).

    Its signal has standard deviation 1, so that 1 / noise is the ratio of signal and noise.
    """
    along = np.arange(pixels) * pixel
    x, y = np.meshgrid(along, along)
    at = np.stack([x, y], -1)
    home = at @ np.linalg.inv(np.eye(2) if local is None else local).T
    if displacement is not None:
        home = home - displacement(at)
    values = np.cos(2 * np.pi * home / SPACING).sum(-1)
    values = values + noise * np.random.default_rng(seed).standard_normal(values.shape)
    return image_of(values, along, along)
