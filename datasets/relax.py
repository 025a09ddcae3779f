"""Relaxation of a sheet of three-fold atoms under Keating's energy.

With d_i the bonds of an atom, r_i their lengths at rest, and an angle of 120° between them at rest,

    E = Σ_bonds (3 / 16) (d² − r²)² / r² + β Σ_angles (3 / 8) (d_i · d_j + r_i r_j / 2)² / (r_i r_j),

in units of the stiffness of a bond. β is the stiffness against bending relative to that against stretching.
"""

from __future__ import annotations

import numpy as np

__all__ = ["relax"]

# Bending is some times softer than stretching in all sheets of carbon; pictures do not tell how many times.
BENDING = 0.25
# Forces below it, in units of stiffness times nm, move nothing by a hundredth of a picometre.
SMALL_FORCE = 1e-6


def energy_and_gradient(
    position: np.ndarray, bonds: np.ndarray, length: np.ndarray
) -> tuple[float, np.ndarray]:
    """Keating's energy and its gradient; every bond is listed by both its atoms."""
    there = bonds >= 0
    # A bond that is not there has no energy and, pointing to the atom itself, no force.
    other = np.where(there, bonds, np.arange(len(bonds))[:, None])
    d = position[other] - position[:, None]
    energy, force = 0.0, np.zeros_like(d)
    stretch = np.where(there, (d**2).sum(2) - length**2, 0.0)
    energy += float((3 / 32 * stretch**2 / length**2).sum())
    force += (3 / 8 * stretch / length**2)[:, :, None] * d
    three = there.sum(1) < 4
    for i in range(3):
        for j in range(i + 1, 4):
            both = there[:, i] & there[:, j] & three
            product = length[:, i] * length[:, j]
            bend = np.where(both, (d[:, i] * d[:, j]).sum(1) + product / 2, 0.0)
            energy += float((BENDING * 3 / 8 * bend**2 / product).sum())
            factor = (BENDING * 3 / 4 * bend / product)[:, None]
            force[:, i] += factor * d[:, j]
            force[:, j] += factor * d[:, i]
    gradient = -force.sum(1)
    for axis in range(2):
        gradient[:, axis] += np.bincount(other.ravel(), force[..., axis].ravel(), len(position))
    return energy, gradient


def relax(position: np.ndarray, bonds: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Positions at rest, nearest to those given.

    Args:
        position: where the atoms are, (atom, 2).
        bonds: the neighbours of each atom, (atom, 4), -1 where there is none.
        length: length of each bond at rest.
    """
    from scipy.optimize import minimize

    def flat(x: np.ndarray) -> tuple[float, np.ndarray]:
        energy, gradient = energy_and_gradient(x.reshape(-1, 2), bonds, length)
        # Energies are about the square of a length: in units where a bond is one, tolerances are those of the method.
        return energy / scale**2, gradient.ravel() / scale**2

    scale = float(length.mean())
    found = minimize(
        flat,
        position.ravel(),
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": 2000, "maxfun": 3000, "ftol": 0.0, "gtol": SMALL_FORCE / scale**2},
    )
    return np.asarray(found.x).reshape(-1, 2)
