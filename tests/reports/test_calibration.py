"""Certificates in a report: a line a runner, and the ranks with the band of chance."""

import re
from dataclasses import replace

import numpy as np
import pytest

from atomzoo.inference import certificates
from atomzoo.inference.certificates import Certificate, version_of
from atomzoo.inference.uniformity import DRAWS, Uniform
from atomzoo.models.model import find
from atomzoo.reports.calibration import MOST_LANES, calibration_figure
from atomzoo.reports.figures import look
from atomzoo.reports.page import report

NAMES = ("P_s", "L_c", "log likelihood")


def issued(runner: str = "laplace", power: float = 1.0, names: tuple[str, ...] = NAMES):
    """A certificate whose ranks are uniform where the power is one."""
    model, rng = find("wall_second_order"), np.random.default_rng(2)
    judge = Uniform(100, 0.001, 0)
    ranks = [(rng.random(100) ** power * (DRAWS + 1)).astype(int) for _ in names]
    return Certificate(
        model=model.name,
        prior_set="vague",
        prior={},
        design={},
        runner=runner,
        options={},
        n=100,
        seed=0,
        draws=DRAWS,
        level=0.001,
        quantities=tuple(judge.judge(*pair) for pair in zip(names, ranks, strict=True)),
        date="2026-03-04T05:06:07+00:00",
        versions={"atomzoo": "0.1.0", "torch": "2.9"},
        version=version_of(model, model.priors["vague"]),
        band=judge.pointwise,
    )


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Certificates that come with the package."""
    monkeypatch.setattr(certificates, "_folder", lambda: tmp_path)

    def keep(*found: Certificate) -> None:
        for one in found:
            one.write(tmp_path / f"{one.model}.{one.runner}.json")

    return keep


def rows(html: str) -> list[str]:
    """The text of every line of the table of calibrations."""
    table = html.partition("Calibration on data that the model made itself</caption>")[2]
    body = table.partition("<tbody>")[2].partition("</tbody>")[0]
    return [re.sub(r"<[^>]+>", " ", row) for row in body.split("</tr>")[:-1]]


def test_a_model_without_a_certificate_has_no_table_of_them(kept, wall_runs, tmp_path):
    page = report(wall_runs[0], tmp_path / "page.html").read_text("utf-8")
    assert "Calibration" not in page


def test_every_certificate_is_a_line_and_a_figure(kept, wall_runs, tmp_path):
    kept(issued(), replace(issued("nuts", power=2.0), version="", failures=("simulation 1: no",)))
    page = report(wall_runs[0], tmp_path / "page.html").read_text("utf-8")
    passed, failed = rows(page)
    for part in ("laplace", "100", "vague", "2026-03-04", "atomzoo 0.1.0, torch 2.9", "✓ passed"):
        assert part in passed
    assert "outdated" not in passed
    for part in ("nuts", "✗ failed", "1 without a fit", "outdated", "the model has changed"):
        assert part in failed
    assert page.count('aria-label="Calibration of laplace in 100 simulations') == 1
    assert page.count('aria-label="Calibration of nuts in 100 simulations') == 1


def test_a_figure_says_how_many_quantities_leave_the_band():
    def told(power: float, names: tuple[str, ...] = NAMES) -> str:
        return calibration_figure(issued(power=power, names=names), look(0), {}).alt

    assert "all stay within the band" in told(1.0)
    assert "3 of 3 do not stay" in told(2.0)
    many = tuple(f"x[{i}]" for i in range(30))
    assert f"{MOST_LANES} of {MOST_LANES} do not stay" in told(2.0, many)


def test_a_certificate_without_ranks_or_band_has_no_figure():
    assert calibration_figure(replace(issued(), quantities=()), look(0), {}) is None
    assert calibration_figure(replace(issued(), band=0.0), look(0), {}) is None
