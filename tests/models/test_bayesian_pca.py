"""Principal components: evidence by brute force, ranks and draws against the priors that data were drawn from."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from torch.distributions import HalfNormal, LogNormal, Normal

from atomzoo.models.priors import ModelError
from atomzoo.models.structure.bayesian_pca import LowRank, Scatter, learn, orthonormal


def tensor(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def prior(most=3, amplitude=1.0, spread=0.7, noise=0.6, mean=1.5):
    return LowRank(
        np.ones(most + 1),
        LogNormal(tensor(math.log(amplitude)), tensor(spread)),
        HalfNormal(tensor(noise)),
        Normal(tensor(0.0), tensor(mean)),
    )


def drawn(rng, low, units, features):
    """Data from the prior, with what they came from."""
    rank = int(rng.integers(len(low.rank)))
    frame = np.linalg.qr(rng.standard_normal((features, features)))[0][:, :rank]
    size = np.exp(float(low.amplitude.loc) + float(low.amplitude.scale) * rng.standard_normal(rank))
    noise = float(low.noise.scale) * abs(rng.standard_normal())
    mean = float(low.mean.scale) * rng.standard_normal(features)
    values = mean + (rng.standard_normal((units, rank)) * size) @ frame.T
    values += noise * rng.standard_normal((units, features))
    return values, rank, noise, (size**2).sum(), mean


def by_brute_force(values, error, low, rank, draws=60_000):
    """Evidence and its error: the mean of the likelihood over the prior, the mean of the data integrated out."""
    rng = np.random.default_rng(7)
    features = values.shape[1]
    frame = np.linalg.qr(rng.standard_normal((draws, features, max(rank, 1))))[0][:, :, :rank]
    size = np.exp(
        float(low.amplitude.loc) + float(low.amplitude.scale) * rng.standard_normal((draws, rank))
    )
    noise = float(low.noise.scale) * np.abs(rng.standard_normal(draws))
    loading = frame * size[:, None]
    own = loading @ np.swapaxes(loading, 1, 2) + noise[:, None, None] ** 2 * np.eye(features)
    width = float(low.mean.scale)
    whole, pull = np.zeros_like(own) + np.eye(features) / width**2, np.zeros((draws, features))
    total = np.full(draws, -features * math.log(width))
    for value, extra in zip(values, error, strict=True):
        precision = np.linalg.inv(own + extra)
        total += 0.5 * (np.linalg.slogdet(precision)[1] - features * math.log(2 * math.pi))
        total -= 0.5 * np.einsum("i,nij,j->n", value, precision, value)
        whole += precision
        pull += precision @ value
    total -= 0.5 * np.linalg.slogdet(whole)[1]
    total += 0.5 * np.einsum("ni,ni->n", pull, np.linalg.solve(whole, pull[:, :, None])[:, :, 0])
    weight = np.exp(total - total.max())
    return total.max() + math.log(weight.mean()), weight.std() / weight.mean() / math.sqrt(draws)


@pytest.mark.parametrize("measured", [False, True])
def test_the_evidence_of_every_rank_is_the_mean_likelihood_over_the_prior(measured):
    rng = np.random.default_rng(3)
    units, features, low = 12, 4, prior(2)
    shape = 0.25 * rng.standard_normal((units, features, features))
    error = shape @ np.swapaxes(shape, 1, 2) + 0.02 * np.eye(features) if measured else None
    values = np.outer(rng.standard_normal(units), np.full(features, 0.5))
    values += 0.5 * rng.standard_normal((units, features))
    kind = np.arange(units) if measured else None
    learnt = learn(Scatter.of(values, error, kind), low, draws=10, seed=1)
    for rank in range(3):
        brute, brute_se = by_brute_force(
            values, np.zeros((units, 1, 1)) if error is None else error, low, rank
        )
        # Four standard errors of both, and six figures are compared: a false alarm in 3,000.
        se = math.hypot(brute_se, learnt.log_evidence_se[rank])
        assert abs(learnt.log_evidence[rank] - brute) < 4 * se + 0.01
        assert se < 0.2


def test_where_data_come_from_the_prior_ranks_are_as_probable_as_they_are_said_to_be():
    rng = np.random.default_rng(11)
    low, sets = prior(3), 60
    said, true, places = np.zeros(4), np.zeros(4), []
    for i in range(sets):
        values, rank, noise, _, mean = drawn(rng, low, 40, 8)
        learnt = learn(Scatter.of(values), low, draws=99, seed=i)
        said += learnt.rank_probability
        true[rank] += 1
        places.append([(learnt.noise < noise).sum(), (learnt.mean[:, 0] < mean[0]).sum()])
    # The number of sets of a rank has at most the variance of a coin's: 4.5 errors, four ranks.
    assert (np.abs(said - true) < 4.5 * math.sqrt(0.25 * sets)).all()
    # Ranks of the truth among 99 draws are even: mean and variance of the ranks, four figures at 4.5 errors.
    ranks = (np.array(places) + 0.5) / 100
    assert (np.abs(ranks.mean(0) - 0.5) < 4.5 * math.sqrt(1 / 12 / sets)).all()
    assert (np.abs(ranks.var(0) - 1 / 12) < 4.5 * math.sqrt(1 / 180 / sets)).all()


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_the_most_probable_rank_is_right_in_nineteen_of_twenty_sets(rank):
    """Amplitudes from the noise to eight times as large, 400 units, 12 features."""
    rng = np.random.default_rng(100 + rank)
    low, sets, right = prior(4, amplitude=2.0, spread=1.0), 16, 0
    for i in range(sets):
        frame = np.linalg.qr(rng.standard_normal((12, 12)))[0][:, :rank]
        size = np.exp(rng.uniform(0, math.log(8), rank))
        values = (rng.standard_normal((400, rank)) * size) @ frame.T + rng.standard_normal(
            (400, 12)
        )
        learnt = learn(Scatter.of(values), low, draws=1, seed=i)
        right += int(learnt.rank_probability.argmax() == rank)
    # With 95 % right, fewer than 12 of 16 happen once in 1,000 times.
    assert right >= 12


def test_loadings_come_back_with_the_errors_that_they_are_told_with():
    """One component with known direction: its angle to the truth against the spread of the draws."""
    rng = np.random.default_rng(5)
    low, sets, off = prior(2, amplitude=2.0), 40, []
    for i in range(sets):
        truth = np.eye(6)[0]
        values = np.outer(rng.standard_normal(300) * 1.5, truth) + 0.7 * rng.standard_normal(
            (300, 6)
        )
        learnt = learn(Scatter.of(values), low, draws=200, seed=i)
        one = learnt.rank == 1
        first = learnt.frame[one, 0] * np.sign(learnt.frame[one, 0, :1])
        # The component along a fixed axis square to the truth is zero.
        off.append(float((first[:, 3] < 0).mean()))
    # Such shares are even where the posterior is right: their normal quantiles have variance one.
    quantiles = ndtri(np.clip(off, 0.5 / 200, 1 - 0.5 / 200))
    assert abs(quantiles.mean()) < 4.5 / math.sqrt(sets)
    assert abs(quantiles.var() - 1) < 4.5 * math.sqrt(2 / sets)


def test_the_story_frame_is_orthonormal_and_told_draws_go_back_to_it():
    frame = orthonormal(torch.randn(5, 3, 7, dtype=torch.float64))
    eye = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    torch.testing.assert_close(frame @ frame.mT, eye, rtol=0, atol=1e-12)


def test_the_same_seed_gives_the_same_answer():
    values = np.random.default_rng(0).standard_normal((50, 6))
    one, other = (learn(Scatter.of(values), prior(), draws=20, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.frame, other.frame)
    assert not np.array_equal(one.noise, learn(Scatter.of(values), prior(), draws=20, seed=5).noise)


def test_as_many_components_as_features_are_refused():
    values = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(ModelError, match="allow fewer"):
        learn(Scatter.of(values), prior(3), draws=5, seed=0)
