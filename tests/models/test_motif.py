"""Motifs: the likelihood against brute force, calibration, and what scenes know of their sites."""

import itertools
import math

import numpy as np
import pytest
import torch

from atomzoo.datasets.derived.patterns import patterns
from atomzoo.datasets.kinds import DataError, dataset
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit, make_density
from atomzoo.models.files import load_file
from atomzoo.models.model import View
from atomzoo.models.priors import ModelError
from atomzoo.models.structure import matching
from atomzoo.models.structure.matching import Layout, Table, log_classes, parameters
from atomzoo.models.structure.motif import motif, motifs_from
from atomzoo.models.structure.templates import LIBRARIES, library, parse_templates, read_templates

BENT = """motif,x,y,brightness
corner,1,0,1
corner,0,1,1
corner,-0.9,-0.9,1
chain,1,0,2
chain,-1,0,2
hook,1,0,1
hook,0.4,1.1,3
"""
RADIUS = 1.6


def some_patterns(ways, density=0.5, centre=0.0, marks=None):
    """Data of kind `patterns` from lists of neighbours, the nearest first."""
    slots = max(len(w) for w in ways) + 1
    features = 2 if marks is None else 3
    neighbour = np.zeros((len(ways), slots, features))
    for row, way in enumerate(ways):
        order = np.argsort(np.linalg.norm(way, axis=1)) if len(way) else []
        neighbour[row, : len(way), :2] = np.asarray(way).reshape(-1, 2)[order]
        if marks is not None:
            neighbour[row, : len(way), 2] = np.asarray(marks[row])[order]
    return dataset(
        "patterns",
        neighbour=neighbour,
        position=np.column_stack([np.arange(len(ways)), np.zeros(len(ways))]).astype(float),
        centre_variance=np.full(len(ways), centre),
        neighbour_variance=np.full((len(ways), slots), centre),
        radius=RADIUS,
        spacing=1.0,
        density=density,
        units={n: "nm" for n in ("neighbour", "position", "radius", "spacing")},
    )


def told(layout, noise, *, matrix=None, detection=0.9, clutter=0.02, spread=0.2, contrast=1.0):
    given = {
        "noise": noise,
        "matrix": np.eye(2) if matrix is None else matrix,
        "detection": detection,
        "clutter": clutter,
        "contrast": contrast,
        "spread": spread,
    }
    values = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in given.items()}
    return parameters(layout, values, torch.zeros((), dtype=torch.float64), RADIUS)


def likelihood(data, layout, made):
    """Log likelihood of every pattern under every class, (class, atom)."""
    laid = matching.overlay(data, layout)
    marks = data.neighbour.values[..., 2:]
    there = data.neighbour.values[..., :2].any(-1)
    strange = matching.log_strange(marks[..., 0], there) if marks.size else np.zeros(len(there))
    table = Table.of(layout, laid, strange, np.zeros(len(there)))
    density = torch.tensor(float(data.density))
    return log_classes(layout, table, made, density, torch.tensor(math.pi * RADIUS**2))


def by_hand(way, points, noise, detection, clutter, matrix, inside, angles=720):
    """Log density of one pattern: every assignment, the angle on a grid, the middle's offset by linear algebra.

    Neighbour j given to point k is M(R t_k + e_j − e_0); the e have the variance noise².
    """
    theta = 2 * np.pi * np.arange(angles) / angles
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    turned = np.einsum("ijt,kj->tki", turn, points)
    y = np.asarray(way).reshape(-1, 2) @ np.linalg.inv(matrix).T
    total = []
    area = math.pi * RADIUS**2
    seen = detection * inside
    for size in range(min(len(y), len(points)) + 1):
        for chosen in itertools.combinations(range(len(points)), size):
            for given in itertools.permutations(range(len(y)), size):
                left = [k for k in range(len(points)) if k not in chosen]
                value = size * math.log(detection) + np.log1p(-seen[left]).sum()
                value += (len(y) - size) * math.log(clutter) - clutter * area
                if size:
                    covariance = noise**2 * (np.eye(size) + 1)
                    rest = y[list(given)] - turned[:, chosen]
                    inverse = np.linalg.inv(covariance)
                    square = np.einsum("tki,kl,tli->t", rest, inverse, rest)
                    logs = -0.5 * square - size * math.log(2 * math.pi)
                    logs -= np.linalg.slogdet(covariance)[1]
                    value += np.log(np.exp(logs - logs.max()).mean()) + logs.max()
                    value -= size * math.log(np.linalg.det(matrix))
                total.append(value)
    total = np.array(total)
    return float(np.log(np.exp(total - total.max()).sum()) + total.max())


@pytest.mark.parametrize(("noise", "short"), [(0.02, 0.005), (0.06, 0.03), (0.08, 0.1)])
def test_the_likelihood_is_the_sum_over_all_assignments_and_angles(noise, short):
    """Chiral templates count as half of each image. What is left out of the sum grows with the noise."""
    found = parse_templates([line.rsplit(",", 1)[0] for line in BENT.splitlines()], "bent")
    layout = Layout.of(found, RADIUS)
    rng = np.random.default_rng(3)
    matrix = np.array([[1.02, 0.05], [0.0, 0.97]])
    made = told(layout, noise, matrix=matrix)
    ways = []
    for template in (*found.templates, *6 * found.templates[:1], *3 * found.templates[2:]):
        angle = rng.uniform(0, 2 * np.pi)
        c, s = np.cos(angle), np.sin(angle)
        points = template.points[rng.random(len(template.points)) < 0.9]
        moved = points + noise * rng.standard_normal(points.shape) - noise * rng.standard_normal(2)
        stray = rng.uniform(-0.9, 0.9, (rng.integers(0, 2), 2))
        way = np.concatenate([moved @ np.array([[c, s], [-s, c]]) @ matrix.T, stray])
        ways.append(way[np.linalg.norm(way, axis=1) < RADIUS])
    ours = likelihood(some_patterns(ways), layout, made).numpy()
    exact = np.zeros((layout.classes, len(ways)))
    scaled = noise / math.sqrt(np.linalg.det(matrix))
    for row in range(len(layout.motif)):
        points = layout.points[row, np.isfinite(layout.distance[row])]
        # All points are well inside the disc.
        found = [by_hand(way, points, scaled, 0.9, 0.02, matrix, np.ones(9)) for way in ways]
        one = np.exp(np.array(found) + layout.share[row])
        exact[layout.motif[row]] += one
    exact = np.log(exact)
    best = exact.argmax(0)
    columns = np.arange(len(ways))
    np.testing.assert_allclose(ours[best, columns], exact[best, columns], atol=short)
    # It is a lower bound, to the accuracy of the grid of angles.
    assert (ours[:-1] < exact + 1e-6).all()
    probable = [np.exp(v - np.logaddexp.reduce(v)) for v in (ours[:-1], exact)]
    assert np.abs(probable[0] - probable[1]).max() < max(short, 0.01)
