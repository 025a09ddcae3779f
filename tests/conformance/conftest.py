"""Every model of the catalogue, and one tiny model of each shape, go through the same suite."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny

from atomzoo.models.model import models

OWN = [m for m in models() if not m.name.startswith("tiny_")]
EVERY = [*OWN, *tiny.SHAPES.values()]
# Fewer draws than anyone would use: the suite asks whether runs are complete, not whether they are good.
SHORT = {
    "closed": {"draws": 200},
    "ensemble": {"ess": 200},
    "laplace": {"draws": 50, "proposals": 2000},
    "nuts": {"chains": 2, "draws": 20, "warmup": 30},
    "svi": {"draws": 20, "steps": 150},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "catalogued" in metafunc.fixturenames:
        metafunc.parametrize("catalogued", OWN, ids=lambda m: m.name)
    if "every" in metafunc.fixturenames:
        metafunc.parametrize("every", EVERY, ids=lambda m: m.name)


@pytest.fixture(scope="session")
def short_run():
    """A short fit of a model to data simulated from it, made once."""
    from atomzoo.inference.fit import fit, runner_of

    runs = {}

    def run(model):
        if model.name not in runs:
            data = model.simulate(seed=3)
            runs[model.name] = (
                data,
                fit(model, data, predictive=20, **SHORT[runner_of(model, None)[0]]),
            )
        return runs[model.name]

    return run
