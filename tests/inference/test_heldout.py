"""Held-out prediction against closed forms of a normal mean."""

import math

import numpy as np
import toys
from scipy.stats import norm

from atomzoo.datasets.kinds import dataset
from atomzoo.inference.fit import fit
from atomzoo.inference.heldout import blocks_of, leave_block_out, leave_one_out
from atomzoo.models.model import find


def exact_left_out(seen: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Log predictive density of each block, each number by itself, given the others."""
    parts = []
    for block in np.unique(codes):
        kept = seen[codes != block]
        precision = len(kept) + 1 / 4
        mean, sd = kept.sum() / precision, math.sqrt(1 + 1 / precision)
        parts.append(norm.logpdf(seen[codes == block], mean, sd).sum())
    return np.array(parts)


def test_leave_one_out_is_the_closed_form():
    data = toys.some_numbers()
    run = fit(toys.toy_normal, data, runner="laplace", draws=2000, predictive=0)
    held = leave_one_out(run)
    exact = exact_left_out(data["value"].values.ravel(), np.arange(20))
    np.testing.assert_allclose(held.parts, exact, atol=0.02)
    assert (held.k < 0.7).all()


def test_leave_block_out_is_the_closed_form_refitted_or_not():
    data = toys.some_numbers().assign(block=("row", np.arange(20) // 5))
    run = fit(toys.toy_normal, data, runner="laplace", draws=2000, predictive=0)
    held = leave_block_out(toys.toy_normal, data, run, draws=2000)
    exact = exact_left_out(data["value"].values.ravel(), np.arange(20) // 5)
    assert held is not None
    # Over seeds the hardest block has a Monte Carlo standard error of 0.04 with these 8,000 draws; four of them.
    np.testing.assert_allclose(held.parts, exact, atol=0.16)


def test_tables_without_blocks_have_none_and_profiles_split_along_x():
    assert blocks_of(toys.toy_normal, toys.some_numbers()) is None
    wall = find("wall_second_order").design(rows=3)
    codes = blocks_of(find("wall_second_order"), wall)
    assert codes.shape == (3, 21)
    assert (codes == codes[0]).all()
    assert (np.diff(codes[0]) >= 0).all()


def test_atoms_are_split_into_tiles_of_space():
    import tiny

    rng = np.random.default_rng(0)
    place = rng.uniform(0, 10, (200, 2))
    atoms = dataset("atoms", position=place, intensity=np.ones(200), units={"position": "nm"})
    codes = blocks_of(tiny.tiny_classes, atoms, most=9)
    assert len(np.unique(codes)) == 9
    for code in np.unique(codes):
        assert np.ptp(place[codes == code], axis=0).max() < 10 / 3 + 1e-9


def test_draws_that_repeat_in_the_tail_are_scored_all_the_same():
    from atomzoo.inference.heldout import _left_out

    rng = np.random.default_rng(3)
    means = rng.normal(0, 0.3, 400)
    exact = norm.logpdf(1.0, means)[:, None]
    # A third of the draws is the same, the one that the left-out number likes least.
    repeated = np.concatenate([exact, np.full((200, 1), exact.min())])
    part, _, k = _left_out(repeated)
    plain = -np.log(np.exp(-repeated).mean())
    assert abs(part - plain) < 1e-9
    assert math.isfinite(k)
