"""Certificates: which story they are of, how they are kept, and how those of the package are shown."""

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atomzoo.cli import main
from atomzoo.inference import certificates as module
from atomzoo.inference.calibrate import FALSE_ALARM, Certificate
from atomzoo.inference.certificates import certificates_of, story_of, version_of
from atomzoo.inference.fit import RUNNERS
from atomzoo.inference.runs import RunError
from atomzoo.inference.uniformity import DRAWS, TESTS, Uniform
from atomzoo.models.model import find, models

MODEL = '''
"""Models of a file."""

from pyro.distributions import HalfNormal, Normal
from atomzoo.models.model import model, observe, sample
from atomzoo.tests.inference.sbc_models import some_rows

def unused():
    return 1

def center(prior):
    """Where it is."""
    return sample("mean", prior.mean)

@model(
    kind="table",
    priors={"vague": {"mean": Normal(0.0, 1.0)}, "material": {"mean": Normal(5.0, 1.0)}},
    design=some_rows,
)
def sbc_version(table, prior):
    """A mean."""
    observe("value", Normal(center(prior), 1.0))
'''


def issued(model: str = "wall_second_order", runner: str = "laplace", power: float = 1.0):
    """A certificate of ranks that are uniform where the power is one."""
    n, rng = 100, np.random.default_rng(2)
    chosen = find(model)
    names = ["P_s", "L_c", "log likelihood"]
    level = FALSE_ALARM / (TESTS * len(names))
    judge = Uniform(n, level, 0)
    ranks = [(rng.random(n) ** power * (DRAWS + 1)).astype(int) for _ in names]
    return Certificate(
        model=model,
        prior_set="vague",
        prior={},
        design={},
        runner=runner,
        options={},
        n=n,
        seed=0,
        draws=DRAWS,
        level=level,
        quantities=tuple(judge.judge(*pair) for pair in zip(names, ranks, strict=True)),
        date="2026-03-04T05:06:07+00:00",
        versions={"atomzoo": "0.1.0", "torch": "2.9"},
        version=version_of(chosen, chosen.priors["vague"]),
        band=judge.pointwise,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where certificates of the package are looked for."""
    place = tmp_path / "certificates"
    place.mkdir()
    monkeypatch.setattr(module, "_folder", lambda: place)
    return place


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""A mean."""', '"""A mean, told better.\n\n    **Assumes** nothing.\n    """', True),
        ('"""Where it is."""', "", True),
        ("return 1", "return 2", True),
        ('"material"', '"another"', True),
        ("center(prior), 1.0)", "center(prior), 2.0)", False),
        ('return sample("mean", prior.mean)', 'return 2 * sample("mean", prior.mean)', False),
        ("Normal(0.0, 1.0)}", "Normal(0.0, 3.0)}", False),
    ],
)
def test_a_version_changes_with_the_story_what_it_calls_and_its_prior(
    tmp_path, monkeypatch, old, new, same
):
    assert old in MODEL
    monkeypatch.setattr("atomzoo.models.model._CATALOGUE", {})
    versions = []
    for place, text in enumerate((MODEL, MODEL.replace(old, new))):
        path = tmp_path / f"version_{place}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("sbc_versions", path)
        there = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "sbc_versions", there)
        spec.loader.exec_module(there)
        chosen = there.sbc_version
        versions.append(version_of(chosen, chosen.priors["vague"]))
    assert (versions[0] == versions[1]) is same
    assert all(len(version) == 64 for version in versions)


def test_every_model_of_the_catalogue_has_a_version_of_its_own():
    found = [story_of(m) for m in models()]
    assert all(found)
    assert len(set(found)) == len(found)


def test_a_story_without_source_has_no_version():
    code = "def sbc_typed(table, prior):\n    'Typed at a prompt.'"
    there: dict[str, object] = {"__name__": "atomzoo_prompt"}
    exec(code, there)
    typed = replace(find("wall_bloch"), story=there["sbc_typed"])
    assert story_of(typed) == ""


def test_a_certificate_of_another_story_or_prior_set_is_outdated():
    model, found = find("wall_second_order"), issued()
    assert not found.outdated(model)
    assert replace(found, version="0" * 64).outdated(model)
    assert replace(found, version="").outdated(model)
    assert replace(found, prior_set="PbTiO3").outdated(model)
    assert replace(found, prior_set="gone").outdated(model)
    assert not replace(found, prior_set="vague*", version="").outdated(model)


def test_the_worst_quantity_is_one_that_failed():
    good, bad = issued(), issued(power=2.0)
    assert good.worst in good.quantities
    mixed = replace(good, quantities=(*good.quantities[:2], bad.quantities[2]))
    assert mixed.worst is mixed.quantities[2]
    assert replace(good, quantities=()).worst is None


def test_certificates_of_an_earlier_version_are_still_read(folder):
    content = issued().as_json()
    for name in ("version", "band", "retried"):
        del content[name]
    (folder / "wall_second_order.laplace.json").write_text(json.dumps(content))
    (found,) = certificates_of("wall_second_order")
    assert found.retried == ()
    assert found.outdated(find("wall_second_order"))


def test_certificates_are_found_by_model_and_runner(folder):
    assert certificates_of("wall_second_order") == []
    made = [issued(runner=runner) for runner in ("laplace", "nuts")]
    for one in made:
        one.write(folder / f"{one.model}.{one.runner}.json")
    issued("wall_bloch").write(folder / "wall_bloch.laplace.json")
    (folder / "wall_second_order.laplace.json.partial").write_text("{")
    assert certificates_of("wall_second_order") == made
    assert certificates_of("wall_second") == []
    (folder / "wall_neel.nuts.json").write_text("{")
    with pytest.raises(RunError, match=r"wall_neel\.nuts\.json of this installation is damaged"):
        certificates_of("wall_neel")
    folder.rename(folder.with_name("elsewhere"))
    assert certificates_of("wall_second_order") == []


def test_what_comes_with_the_package_is_read_and_called_after_what_it_is_of():
    for model in models():
        for found in certificates_of(model.name):
            assert found.model == model.name
            assert found.runner in RUNNERS
            assert (module._folder() / f"{found.model}.{found.runner}.json").is_file()


def test_show_prints_the_certificates_of_a_model(folder, capsys):
    assert main(["show", "wall_second_order"]) == 0
    none = capsys.readouterr().out
    assert "no calibration comes with the package" in none
    issued().write(folder / "wall_second_order.laplace.json")
    assert main(["show", "wall_second_order"]) == 0
    one = capsys.readouterr().out
    for part in ("laplace", "100", "vague", "2026-03-04", "0.1.0", "2.9", "passed", "p = "):
        assert part in one
    assert "OUTDATED" not in one
    replace(issued(runner="nuts", power=2.0), version="").write(
        folder / "wall_second_order.nuts.json"
    )
    assert main(["show", "wall_second_order"]) == 0
    line = next(
        line for line in capsys.readouterr().out.splitlines() if re.match(r"nuts +100 ", line)
    )
    assert "FAILED, OUTDATED: the model has changed since" in line
