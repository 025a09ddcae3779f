"""What runs hold for others, what they say in sentences, and how the models before the first are told what to do."""

import json
import shlex

import numpy as np
import pytest
import xarray as xr

from atomzoo.datasets.kinds import DataError, dataset
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.runs import RunError
from atomzoo.reports.answers import answers_of
from atomzoo.reports.commands import commands_of
from atomzoo.reports.compare import compare
from atomzoo.reports.given import given_by
from atomzoo.reports.page import _each_image_once


class Stopped(Exception):
    """Nothing needs to be fitted to see what would have been."""


@pytest.fixture
def asked(monkeypatch):
    """What the fit that makes atoms is called with."""
    seen = {}

    def fit(model, data, **how):
        seen.update(how, model=model.name)
        raise Stopped

    monkeypatch.setattr("atomzoo.reports.plan.fit", fit)
    return seen


@pytest.fixture(scope="module")
def image():
    return simulate("graphene", seed=1, field=1.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_device_reaches_the_model_that_makes_atoms_first(asked, image, device):
    with pytest.raises(Stopped):
        compare(image, ["motif"], device=device)
    assert (asked["model"], asked["device"]) == ("columns", device)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ("MoS2", "MoS2"),
        ("BaTiO3", None),
        (None, None),
        ({"set": "graphene", "noise": 0.004}, "graphene"),
        ({"spacing": 0.142}, {"spacing": 0.142, "set": None}),
    ],
)
def test_the_prior_reaches_it_too_where_it_has_such_a_set_or_parameter(
    asked, image, prior, expected
):
    with pytest.raises(Stopped):
        compare(image, ["motif"], prior=prior)
    assert asked["prior"] == expected


def test_an_image_without_columns_is_told_of_the_models_that_it_has(monkeypatch, image):
    def fit(*_: object, **__: object) -> None:
        raise DataError("no column stands out")

    monkeypatch.setattr("atomzoo.reports.plan.fit", fit)
    said = "columns makes no atoms of this image: no column stands out; .* plane_group, .*texture"
    with pytest.raises(DataError, match=said):
        compare(image)


def test_a_run_that_gives_nothing_is_no_data(wall_runs):
    for call in (given_by, compare):
        with pytest.raises(RunError, match="gives no data for other models"):
            call(wall_runs[0])


def run_of(model: str, classes=None, derived=None, **attrs) -> xr.DataTree:
    groups = {"posterior": xr.Dataset()}
    if classes is not None:
        names, share = classes
        groups["classes"] = xr.Dataset(
            {"group": (("atom", "group_class"), np.asarray(share))}, {"group_class": names}
        )
    if derived is not None:
        groups["derived"] = derived
    run = xr.DataTree.from_dict(groups)
    run.attrs = {"model": model, **attrs}
    return run


def test_classes_are_counted_and_doubt_is_said():
    share = [[1.0, 0.0], [0.95, 0.05], [0.4, 0.6]]
    left = json.dumps({"left_out": 2, "left_out_why": "2 atoms are at the rim."})
    said = answers_of(run_of("any", (["C1", "D3"], share), data_attrs=left))
    assert said == [
        "Of 3 atoms, 2 C1, 1 D3; 1 of these are less than 90 % sure.",
        "Left out: 2 atoms are at the rim.",
    ]
    assert answers_of(run_of("wall_bloch")) == []


def test_many_classes_are_summed_up():
    share = np.eye(9)
    (said,) = answers_of(run_of("any", ([f"k{i}" for i in range(9)], share)))
    assert said.startswith("Of 9 atoms, 1 k0, 1 k1, 1 k2, 1 k3, 1 k4, 4 others; each is")


def test_a_number_that_is_not_sure_is_told_with_the_next():
    run = run_of("normal_modes", rank_probability=np.array([0.2, 0.7, 0.1]))
    assert answers_of(run)[0].endswith(": probability 0.70, of 0 0.20.")


def test_names_from_files_are_made_harmless():
    run = run_of("columns", (["a\x1b[2J", "b\u202e"], [[1.0, 0.0], [0.0, 1.0]]), notes="x\x00y")
    assert all(sentence.isprintable() for sentence in answers_of(run))


def atoms(**attrs) -> xr.Dataset:
    return dataset(
        "atoms", position=np.eye(2), units={"position": "nm"}, attrs={"kind": "atoms", **attrs}
    )


def reproduced(data: xr.Dataset) -> list[str]:
    run = run_of("motif", prior_set="vague", runner="laplace", prior="{}")
    return commands_of(data, [(run, None)], compared=True).shell.splitlines()


def test_atoms_that_a_model_made_are_made_again_first():
    words = ["fit", "columns", "my image.dm4", "-o", "columns.nc", "--give", "atoms.nc"]
    first, second = reproduced(atoms(made_by=json.dumps([words])))
    assert shlex.split(first) == ["atomzoo", *words]
    assert shlex.split(second)[:4] == ["atomzoo", "compare", "atoms.nc", "motif"]


@pytest.mark.parametrize("evil", ["not json", "3", '["rm"]', '[["; rm -rf ~", "$(id)\\n&& x"]]'])
def test_what_a_file_says_of_its_making_is_quoted_or_ignored(evil):
    lines = reproduced(atoms(made_by=evil))
    assert all(line.startswith("atomzoo ") for line in lines)
    if len(lines) > 1:
        assert shlex.split(lines[0])[1] == "; rm -rf ~"
        assert len(lines) == 2


def test_an_image_that_stands_in_several_figures_is_stored_once():
    one, other = (f"data:image/png;base64,{text}" for text in ("AAAA", "BBBB"))
    drawn = '<image href="{}" opacity="0.5" transform="scale(2)" x="1" width="3" height="4" />'
    page = f"<main>{drawn.format(one)}{drawn.format(other)}{drawn.format(one)}</main>"
    found = _each_image_once(page)
    assert found.count(one) == found.count(other) == 1
    moved = 'transform="scale(2) translate(1 0) scale(3 4)" opacity="0.5"'
    assert found.count(f'<use href="#image-0" {moved}/>') == 2
    assert _each_image_once("<main></main>") == "<main></main>"
