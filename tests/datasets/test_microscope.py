"""The microscope: the image is the sum of its columns, and the bound is what the best measurement reaches."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest

from atomzoo.datasets.microscope import Probe, Scan, measure, render
from atomzoo.datasets.setting import Setting

SKEW = np.array([[1.03, 0.05], [0.02, 0.97]])


def bent_scan(pixels: int, pixel: float, seed: int = 0) -> Scan:
    """A scan with everything that a scan can have."""
    rng = np.random.default_rng(seed)
    grid = np.arange(pixels) * pixel
    t = np.linspace(-1, 1, pixels)
    drift = np.stack([0.05 * t**2 - 0.03 * t, 0.02 * t + 0.03 * t**3], 1)
    return Scan(grid, grid, SKEW, drift, 0.01 * rng.standard_normal(pixels))


def test_an_image_is_the_sum_of_all_its_columns() -> None:
    rng, scan, probe = np.random.default_rng(1), bent_scan(64, 0.02), Probe(0.04, 0.2, 0.1)
    specimen = rng.uniform(-0.4, 1.7, (60, 2))
    electrons = rng.uniform(500, 1000, 60)
    drift, jitter = scan.shifts
    expected = np.zeros((64, 64))
    for s, n in zip(specimen, electrons, strict=True):
        for row, y in enumerate(scan.y):
            seen = scan.centre + SKEW @ (s - scan.centre) + drift[row] + [jitter[row], 0]
            away = np.stack([scan.x, np.full(64, y)], 1) - seen
            r2 = (np.linalg.solve(SKEW, away.T) ** 2).sum(0)
            core = 0.8 / (2 * math.pi * 0.04**2) * np.exp(-r2 / (2 * 0.04**2))
            tail = 0.2 / (2 * math.pi * 0.1**2) * np.exp(-r2 / (2 * 0.1**2))
            expected[row] += n * 0.02**2 / np.linalg.det(SKEW) * (core + tail)
    image = render(specimen, electrons, probe, scan)
    assert np.abs(image - expected).max() < 1e-10 * expected.max()


@pytest.mark.parametrize("matrix", [np.eye(2), SKEW, 1.2 * np.eye(2)])
def test_a_column_gives_its_dose_whatever_the_scale(matrix: np.ndarray) -> None:
    grid = np.arange(80) * 0.02
    image = render(
        np.array([[0.81, 0.77]]), np.array([700.0]), Probe(0.04), Scan(grid, grid, matrix)
    )
    assert image.sum() == pytest.approx(700, rel=1e-10)


def test_a_column_half_outside_gives_half_and_one_far_outside_nothing() -> None:
    grid = np.arange(80) * 0.02
    image = render(
        np.array([[-0.01, 0.8], [-2.0, 0.8]]), np.full(2, 700.0), Probe(0.04), Scan(grid, grid)
    )
    assert image.sum() == pytest.approx(350, rel=1e-10)


def test_points_of_the_specimen_are_seen_where_scale_and_drift_put_them() -> None:
    scan = bent_scan(64, 0.02)
    specimen = np.random.default_rng(2).uniform(0, 1.2, (200, 2))
    seen = scan.image_position(specimen)
    drift = np.stack([np.interp(seen[:, 1], scan.y, column) for column in scan.shifts[0].T], 1)
    expected = scan.centre + (specimen - scan.centre) @ SKEW.T + drift
    np.testing.assert_allclose(seen, expected, atol=1e-10)
    np.testing.assert_allclose(scan.specimen_position(seen), specimen, atol=1e-10)


def test_a_lone_column_without_background_is_placed_to_the_width_over_the_root_of_its_electrons() -> (
    None
):
    grid = np.arange(64) * 0.02
    scan, probe = Scan(grid, grid), Probe(0.04)
    place, electrons = np.array([[0.637, 0.622]]), np.array([500.0])
    found = measure(place, electrons, probe, scan, render(place, electrons, probe, scan))
    expected = np.diag([0.04**2 / 500, 0.04**2 / 500, 500])
    np.testing.assert_allclose(found.covariance[0], expected, rtol=1e-9, atol=1e-12)


def test_the_bound_is_the_inverse_of_the_fisher_information() -> None:
    scan, probe = bent_scan(64, 0.02), Probe(0.04, 0.2, 0.1)
    place, electrons = np.array([[0.6, 0.65]]), np.array([400.0])
    variance = 3.0 + render(place, electrons, probe, scan)
    found = measure(place, electrons, probe, scan, variance).covariance[0]
    seen, step, gradient = scan.image_position(place), 1e-5, []
    # The drift is held: the bound is for the place in the image at the column's own rows.
    for shift in np.eye(2) * step:
        moved = [place + np.linalg.solve(SKEW, sign * shift) for sign in (1, -1)]
        up, down = (render(m, electrons, probe, scan) for m in moved)
        gradient.append(((up - down) / (2 * step)).ravel())
    gradient.append((render(place, np.ones(1), probe, scan)).ravel())
    jacobian = np.stack(gradient)
    assert seen.shape == (1, 2)
    np.testing.assert_allclose(
        found, np.linalg.inv(jacobian / variance.ravel() @ jacobian.T), rtol=1e-5, atol=1e-10
    )


def test_the_best_measurement_of_a_shaken_column_has_the_spread_of_the_bound() -> None:
    # Without background the centre of gravity is the best measurement.
    rng, grid, repeats, jitter = np.random.default_rng(3), np.arange(40) * 0.02, 600, 0.01
    place, electrons, probe = np.array([[0.39, 0.4]]), np.array([400.0]), Probe(0.05)
    centres, shifts = [], []
    for _ in range(repeats):
        scan = Scan(grid, grid, jitter=jitter * rng.standard_normal(40))
        mean = render(place, electrons, probe, scan)
        shifts.append(measure(place, electrons, probe, scan, mean).row_shift[0])
        counts = rng.poisson(mean)
        centres.append([(counts.sum(0) @ grid), (counts.sum(1) @ grid)] / counts.sum())
    still = Scan(grid, grid)
    found = measure(place, electrons, probe, still, render(place, electrons, probe, still))
    shaken = found.covariance[0, 0, 0] + jitter**2 * found.row_weight[0]
    error = np.array(centres) - place
    # The variance of n normal numbers has a relative standard deviation of √(2/n); five of them, and a count that
    # varies by a twentieth adds 1/400.
    near = 5 * math.sqrt(2 / repeats) + 1 / 400
    assert abs((error[:, 0] ** 2).mean() / shaken - 1) < near
    assert abs((error[:, 1] ** 2).mean() / found.covariance[0, 1, 1] - 1) < near
    # What the jitter did is known, row by row.
    known = error[:, 0] - np.array(shifts)
    assert abs((known**2).mean() / found.covariance[0, 0, 0] - 1) < 2 * near
    assert abs(np.var(shifts) / (jitter**2 * found.row_weight[0]) - 1) < near


def test_a_hundred_thousand_columns_render_in_seconds_and_in_little_more_than_the_image() -> None:
    rng, grid = np.random.default_rng(4), np.arange(4096) * 0.02
    jitter = 0.003 * rng.standard_normal(4096)
    scan = Scan(grid, grid, np.array([[1.01, 0.01], [0.0, 1.0]]), jitter=jitter)
    specimen = rng.uniform(0.5, 81.4, (100_000, 2))
    electrons = rng.uniform(500, 1000, 100_000)
    tracemalloc.start()
    start = time.process_time()
    image = render(specimen, electrons, Probe(0.04), scan)
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < image.nbytes + 100e6
    # About three seconds of one core; a machine may be four times slower.
    assert seconds < 12
    inside = scan.image_position(specimen)
    fully = ((inside > 0.3) & (inside < 4095 * 0.02 - 0.3)).all(1)
    assert electrons[fully].sum() <= image.sum() * (1 + 1e-9) <= electrons.sum() * (1 + 2e-9)


def test_drift_and_jitter_have_the_size_that_was_asked_for() -> None:
    setting = Setting(field=4.0, pixel=0.05, drift=0.02, jitter=0.01)
    scans = [setting.scan(np.random.default_rng(seed)) for seed in range(400)]
    power = np.mean([(scan.shifts[0] ** 2).mean() for scan in scans]) / 0.02**2
    # Shares 0.6, 0.3, 0.1 of three polynomials: the variance of one axis' power is 2 Σ share² = 0.92. The sum over
    # rows is not the integral, by about one row in eighty.
    assert abs(power - 1) < 5 * math.sqrt(0.92 / 800) + 0.1
    jitter = np.array([scan.shifts[1] for scan in scans])
    assert abs(jitter.var() / 0.01**2 - 1) < 5 * math.sqrt(2 / jitter.size)
    means = np.abs(np.mean([scan.shifts[0].mean(0) for scan in scans], axis=0))
    assert (means < 5 * 0.02 / math.sqrt(400)).all()


def test_no_drift_folds_the_image() -> None:
    setting = Setting(field=2.0, pixel=0.02, drift=0.04)
    for seed in range(200):
        scan = setting.scan(np.random.default_rng(seed))
        assert np.diff(scan.y + scan.shifts[0][:, 1]).min() >= 0.5 * 0.02 * (1 - 1e-9)
        points = np.random.default_rng(seed).uniform(0, 2, (20, 2))
        back = scan.image_position(scan.specimen_position(points))
        np.testing.assert_allclose(back, points, atol=1e-9)
