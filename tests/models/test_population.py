"""What is learnt of the peaks of an image: how near each other they come."""

import math

import numpy as np
import torch

from atomzoo.models.structure.peaks import Peaks
from atomzoo.models.structure.population import BROAD, UNLEARNT, Population, distances

SIDE, WIDTH = 400, 2.0


def peaks_at(place: np.ndarray) -> Peaks:
    x, y = (torch.from_numpy(place[:, i].copy()) for i in (0, 1))
    coefs = torch.zeros(4, 4, dtype=torch.float64)
    return Peaks(x, y, torch.full((len(place),), 1000.0, dtype=torch.float64), WIDTH, coefs)


def learnt(place: np.ndarray) -> Population:
    covariance = torch.diag(torch.tensor([0.01, 0.01, 900.0], dtype=torch.float64))
    peaks = peaks_at(place)
    return Population.learn(peaks, covariance.expand(len(peaks), 3, 3), (SIDE, SIDE))


def rarer(population: Population, distance: float) -> float:
    return math.exp(float(np.interp(math.log(distance), population.reach, population.log_g)))


def test_columns_that_keep_apart_are_told_to_be_rare_beside_each_other():
    line = np.arange(10, SIDE, 12.0)
    place = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    found = learnt(place + np.random.default_rng(1).normal(0, 0.2, place.shape))
    doubt = max(BROAD, UNLEARNT / (UNLEARNT + len(place)))
    assert rarer(found, 6.0) < 1.01 * doubt
    assert rarer(found, 11.8) == 1.0


def test_columns_that_do_not_care_are_as_frequent_anywhere():
    count = 4000
    found = learnt(np.random.default_rng(2).uniform(0, SIDE, (count, 2)))
    # Half to twice the mean distance hold most of the columns. A class of distances is as wide as the kernel's,
    # 2√π · 5 %, and has at least a twentieth of them: four standard errors.
    mean = 0.5 * SIDE / math.sqrt(count)
    error = 4 / math.sqrt(count / 20)
    inside = np.linspace(0.5 * mean, 2 * mean, 20)
    assert min(rarer(found, r) for r in inside) > 1 - error


def test_an_empty_site_of_a_lattice_is_not_taken_for_a_column():
    line = np.arange(10, SIDE, 12.0)
    place = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    found = learnt(place)
    assert max(np.exp(found.log_g)) <= 1.0


def test_the_distance_is_to_another_peak_and_infinite_where_there_is_none():
    two = peaks_at(np.array([[10.0, 10.0], [13.0, 14.0]]))
    assert distances(two).tolist() == [5.0, 5.0]
    assert distances(two, np.array([[10.0, 11.0]])).tolist() == [1.0]
    assert distances(peaks_at(np.array([[10.0, 10.0]]))).tolist() == [math.inf]
