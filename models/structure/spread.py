"""How well peaks that were fitted together are known: blocks of the inverse of large sparse normal equations.

The inverse of 3·10⁵ equations is not worked out. What a peak's neighbours take from its precision falls off within a
few widths: a peak and those that it shares pixels with are a small dense matrix, and the peak's block of its inverse is
had for all peaks in batches. What is beyond reaches back only through the neighbours and changes the variance by the
square of what neighbours' neighbours share. The background adds E S⁻¹ Eᵀ, with S its Schur complement and E how a peak
moves with it, worked out in tiles of the image, and the common width adds its own rank-one part exactly. Tests hold
this against the dense inverse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .peaks import Frame, System, scores

__all__ = ["covariances", "joint_draws"]

# Numbers in the windows of a batch.
AT_ONCE = 4_000_000
# Tiles of the background: cells of knots in their core, and splines around it that the inverse is worked out with.
# In least squares a spline's coefficient is known of at a fifth to a quarter from one knot to the next.
CORE, HALO = 6, 3
# Unknowns up to which the whole matrix is factored for draws.
DENSE = 2500
# Relative to unit diagonals: what keeps two peaks at one place from dividing by zero.
RIDGE = 1e-9


def covariances(frame: Frame, system: System) -> Tensor:
    """Covariance of x, y and intensity of each peak, all else unknown, (peak, 3, 3)."""
    count = len(system.peaks)
    if not count:
        return torch.zeros(0, 3, 3, dtype=torch.float64)
    found, rows = _windows(system)
    moves = rows @ system.border
    left = system.ground - system.border.T @ moves
    found += _through_background(frame, system, moves.tocsr(), ((left + left.T) / 2).tocsr())
    lean = torch.from_numpy(system.lean[: 3 * count]).reshape(count, 3)
    return found + lean[:, :, None] * lean[:, None, :] / system.width_precision


def _windows(system: System) -> tuple[Tensor, Any]:
    """Covariance of each peak among its neighbours, and the rows of the inverse that it is from, sparse."""
    from scipy.sparse import csr_array

    count = len(system.peaks)
    scale = system.own.diagonal(dim1=1, dim2=2).clamp(min=1e-300).rsqrt()
    blocks = system.blocks
    keys = torch.from_numpy(
        np.repeat(np.arange(count), np.diff(blocks.indptr)) * count + blocks.indices
    )
    data = torch.from_numpy(blocks.data)
    size = torch.from_numpy(np.diff(blocks.indptr).astype(np.int64))
    starts = torch.from_numpy(blocks.indptr[:-1].astype(np.int64))
    around = torch.from_numpy(blocks.indices.astype(np.int64))
    found = torch.empty(count, 3, 3, dtype=torch.float64)
    values, places, owners = [], [], []
    order = torch.argsort(size)
    first = 0
    while first < count:
        # Peaks with like numbers of neighbours go together; the last of a batch has the most.
        last = first + 1 + int(AT_ONCE / (9 * int(size[order[first]]) ** 2))
        most = int(size[order[min(last, count) - 1]])
        chosen = order[first : first + max(1, int(AT_ONCE / (9 * most**2)))]
        first += len(chosen)
        most = int(size[chosen].max())
        members = _members(chosen, starts, size, around, most)
        root, inverse = _last_rows(members, keys, data, scale, count)
        found[chosen] = root
        real = members >= 0
        values.append(inverse.permute(0, 2, 1, 3)[real].flatten())
        places.append(members[real])
        owners.append(chosen[:, None].expand(-1, most)[real])
    place, owner = torch.cat(places), torch.cat(owners)
    three = torch.arange(3)
    row = (3 * owner[:, None, None] + three[:, None]).expand(-1, 3, 3)
    col = (3 * place[:, None, None] + three).expand(-1, 3, 3)
    flat = (torch.cat(values).numpy(), (row.flatten().numpy(), col.flatten().numpy()))
    return found, csr_array(flat, shape=(3 * count, 3 * count))


def _members(chosen: Tensor, starts: Tensor, size: Tensor, around: Tensor, most: int) -> Tensor:
    """Peaks in the window of each, itself last, −1 in empty places, (peak, most)."""
    slot = torch.arange(most)
    there = slot < size[chosen][:, None]
    at = (starts[chosen][:, None] + slot).clamp(max=len(around) - 1)
    members = torch.where(there, around[at], -1)
    members = torch.where(members == chosen[:, None], -1, members)
    # One place is free now: the window's own peak goes there, and that place to the end.
    members, _ = members.sort(1, descending=True)
    members[:, -1] = chosen
    return members


def _last_rows(
    members: Tensor, keys: Tensor, data: Tensor, scale: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The last block of each window's inverse, and its last rows, (peak, 3, member, 3)."""
    n, most = members.shape
    wanted = members[:, :, None] * count + members[:, None, :]
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    valid = (members[:, :, None] >= 0) & (members[:, None, :] >= 0) & (keys[at] == wanted)
    block = torch.where(valid[..., None, None], data[at], 0.0)
    unit = torch.where((members >= 0)[..., None], scale[members.clamp(min=0)], 0.0)
    block = block * unit[:, :, None, :, None] * unit[:, None, :, None, :]
    dense = block.permute(0, 1, 3, 2, 4).reshape(n, 3 * most, 3 * most)
    ridge = torch.where(members >= 0, RIDGE, 1.0)[..., None].expand(-1, -1, 3).reshape(n, -1)
    dense.diagonal(dim1=1, dim2=2).add_(ridge)
    root, info = torch.linalg.cholesky_ex(dense)
    if bool(info.any()):
        for i in info.nonzero()[:, 0]:
            root[i] = _root(dense[i])
    tip = torch.zeros(n, 3 * most, 3, dtype=torch.float64)
    tip[:, -3:] = torch.linalg.solve_triangular(
        root[:, -3:, -3:], torch.eye(3, dtype=torch.float64).expand(n, 3, 3), upper=False
    )
    column = torch.linalg.solve_triangular(root.mT, tip, upper=True).reshape(n, most, 3, 3)
    rows = column.permute(0, 3, 1, 2) * unit[:, -1, :, None, None] * unit[:, None]
    return rows[:, :, -1], rows


def _root(matrix: Tensor) -> Tensor:
    """Cholesky factor of a matrix that small errors of its entries may have left short of positive definite."""
    scale = matrix.diagonal().clamp(min=1e-300).clone()
    ridge = RIDGE
    while True:
        root, info = torch.linalg.cholesky_ex(matrix + torch.diag(ridge * scale))
        if int(info) == 0:
            found: Tensor = root
            return found
        ridge *= 10


def _through_background(frame: Frame, system: System, moves: Any, left: Any) -> Tensor:
    """What the background's uncertainty adds to the covariance of each peak."""
    count = len(system.peaks)
    my, mx = system.peaks.coefs.shape
    place, _, _ = frame.under(system.peaks)
    row, col = place[:, 0] // mx, place[:, 0] % mx
    added = torch.zeros(count, 3, 3, dtype=torch.float64)
    tile = (row // CORE) * (mx // CORE + 1) + col // CORE
    order = np.argsort(tile, kind="stable")
    for these in np.split(order, np.flatnonzero(np.diff(tile[order])) + 1):
        top, near = int(row[these[0]]) // CORE * CORE, int(col[these[0]]) // CORE * CORE
        down = np.arange(max(0, top - HALO), min(my, top + CORE + 3 + HALO))
        across = np.arange(max(0, near - HALO), min(mx, near + CORE + 3 + HALO))
        splines = (down[:, None] * mx + across).ravel()
        part = torch.from_numpy(left[splines][:, splines].toarray())
        root = _root(part)
        rows = (3 * these[:, None] + np.arange(3)).ravel()
        move = torch.from_numpy(moves[rows][:, splines].toarray())
        half = torch.linalg.solve_triangular(root, move.T, upper=False).T
        half = half.reshape(len(these), 3, -1)
        added[torch.from_numpy(these)] = half @ half.mT
    return added


def joint_draws(frame: Frame, system: System, draws: int, seed: int) -> dict[str, Tensor]:
    """Draws from the Gaussian about the fit, of all peaks, the background and the width together.

    Small systems are factored. Of a large one each draw costs one solve: a draw of the pixels' noise, seen through the
    equations, has their matrix as its covariance, and solving with it gives a draw that has the inverse.
    """
    peaks = system.peaks
    n = 3 * len(peaks)
    size = n + peaks.coefs.numel()
    generator = torch.Generator().manual_seed(seed)
    found = _dense_draws if size <= DENSE else _solved_draws
    moved, wider = found(frame, system, draws, generator)
    each = moved[:, :n].reshape(draws, -1, 3)
    return {
        "x": peaks.x + each[:, :, 0],
        "y": peaks.y + each[:, :, 1],
        "intensity": peaks.intensity + each[:, :, 2],
        "coefs": peaks.coefs + moved[:, n:].reshape(draws, *peaks.coefs.shape),
        "width": peaks.width + wider,
    }


def _dense_draws(
    frame: Frame, system: System, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    matrix = np.block(
        [
            [system.blocks.toarray(), system.border.toarray()],
            [system.border.toarray().T, system.ground.toarray()],
        ]
    )
    root = _root(torch.from_numpy(matrix))
    white = torch.randn(len(matrix), draws, generator=generator, dtype=torch.float64)
    moved = torch.linalg.solve_triangular(root.mT, white, upper=True).T
    return _with_width(system, moved, draws, generator)


def _solved_draws(
    frame: Frame, system: System, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    size = 3 * len(system.peaks) + system.peaks.coefs.numel()
    moved = torch.empty(draws, size, dtype=torch.float64)
    noise_root = system.weights.sqrt()
    prior_root = torch.from_numpy(np.sqrt(np.maximum(system.pulled, 0.0)))
    for i in range(draws):
        noise = torch.randn(frame.image.shape, generator=generator, dtype=torch.float64)
        more = torch.randn(size, generator=generator, dtype=torch.float64)
        seen = scores(frame, system.peaks, noise_root * noise) + (prior_root * more).numpy()
        moved[i] = torch.from_numpy(system.solve(seen))
    return _with_width(system, moved, draws, generator)


def _with_width(
    system: System, moved: Tensor, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The draws with the width drawn too, and all else moved as it goes with the width."""
    white = torch.randn(draws, generator=generator, dtype=torch.float64)
    wider = white / system.width_precision**0.5
    return moved - wider[:, None] * torch.from_numpy(system.lean), wider
