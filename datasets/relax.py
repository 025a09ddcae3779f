"""Relaxation of a sheet of three-fold atoms under Keating's energy.

With d_i the bonds of an atom, r_i their lengths at rest, and angles of 120° between them at rest,

    E = Σ_bonds (3 / 16) (d² − r²)² / r² + β Σ_angles (3 / 8) (d_i · d_j + r_i r_j / 2)² / (r_i r_j),

in units of the stiffness of a bond. β is the stiffness against bending relative to that against stretching.

Example:
    >>> pair, length = np.array([[0.0, 0.0], [0.2, 0.0]]), np.full((2, 4), 0.15)
    >>> relax(pair, np.array([[1, -1, -1, -1], [0, -1, -1, -1]]), length).round(4).tolist()
    [[0.025, 0.0], [0.175, 0.0]]
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["misfits", "relax"]

# Bending is far softer than stretching. With a tenth, bonds in boundaries of pentagons and heptagons stay within 6 % of
# their length; a better value would have to come from measured forces.
BENDING = 0.1
# A step that moves no atom by more, in nm, is the last.
CLOSE_NM = 1e-7
MOST_STEPS = 200


def misfits(position: np.ndarray, bonds: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, Any]:
    """The energy as half the sum of squares: what is squared, and its sparse Jacobian by x0, y0, x1, ….

    Every bond is listed by both its atoms, and each has half of it. Atoms with four bonds have no preferred angles.
    """
    from scipy.sparse import csr_matrix

    atom, place = np.nonzero(bonds >= 0)
    other, rest = bonds[atom, place], length[atom, place]
    d = position[other] - position[atom]
    stiff = np.sqrt(3 / 16) / rest
    values = [stiff * ((d**2).sum(1) - rest**2)]
    pull = 2 * stiff[:, None] * d
    entries = [(np.arange(len(atom)), other, pull), (np.arange(len(atom)), atom, -pull)]
    start = len(atom)
    threefold = (bonds >= 0).sum(1) < 4
    for i, j in ((0, 1), (0, 2), (1, 2)):
        middle = np.flatnonzero(threefold & (bonds[:, i] >= 0) & (bonds[:, j] >= 0))
        first, second = bonds[middle, i], bonds[middle, j]
        d_i, d_j = position[first] - position[middle], position[second] - position[middle]
        product = length[middle, i] * length[middle, j]
        stiff = np.sqrt(3 / 4 * BENDING / product)
        values.append(stiff * ((d_i * d_j).sum(1) + product / 2))
        rows, d_i, d_j = start + np.arange(len(middle)), stiff[:, None] * d_i, stiff[:, None] * d_j
        entries += [(rows, first, d_j), (rows, second, d_i), (rows, middle, -d_i - d_j)]
        start += len(middle)
    rows, atoms = (np.concatenate([entry[k] for entry in entries]) for k in (0, 1))
    slopes = np.concatenate([entry[2] for entry in entries])
    where = (np.repeat(rows, 2), (2 * atoms[:, None] + [0, 1]).ravel())
    jacobian = csr_matrix((slopes.ravel(), where), shape=(start, position.size))
    return np.concatenate(values), jacobian


def relax(
    position: np.ndarray, bonds: np.ndarray, length: np.ndarray, body: np.ndarray | None = None
) -> np.ndarray:
    """Positions at rest, by the method of Levenberg and Marquardt.

    Args:
        position: where the atoms are, (atom, 2).
        bonds: the neighbours of each atom, (atom, 4), -1 where there is none; the last only where there are four.
        length: length of each bond at rest.
        body: number of the rigid body that an atom moves with, without turning; -1 where it moves by itself.
    """
    from scipy.sparse import identity
    from scipy.sparse.linalg import splu

    share = _moves(np.full(len(position), -1) if body is None else body)
    found, (misfit, jacobian) = position, misfits(position, bonds, length)
    # The sheet as a whole is free to move: some damping keeps it where it is.
    damping = 1e-3
    for _ in range(MOST_STEPS):
        slope = jacobian @ share
        normal = (slope.T @ slope + damping * identity(slope.shape[1])).tocsc()
        factor = splu(normal, "MMD_AT_PLUS_A", 0.0, options={"SymmetricMode": True})
        step = -(share @ factor.solve(slope.T @ misfit)).reshape(-1, 2)
        tried = misfits(found + step, bonds, length)
        if tried[0] @ tried[0] <= misfit @ misfit:
            found, (misfit, jacobian) = found + step, tried
            damping = max(damping / 10, 1e-8)
        else:
            damping *= 10
        if np.abs(step).max() < CLOSE_NM:
            break
    return found


def _moves(body: np.ndarray) -> Any:
    """Sparse matrix from what moves, atoms and bodies, to coordinates of atoms."""
    from scipy.sparse import csr_matrix

    alone = body < 0
    what = np.where(alone, np.cumsum(alone) - 1, int(alone.sum()) + body)
    columns = (2 * what[:, None] + [0, 1]).ravel()
    return csr_matrix((np.ones(len(columns)), (np.arange(len(columns)), columns)))
