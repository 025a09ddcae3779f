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
from atomzoo.models.structure.motif import motif
from atomzoo.models.structure.shared_parameters import CHAINS
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
        units=dict.fromkeys(("neighbour", "position", "radius", "spacing"), "nm"),
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


def test_the_density_is_proper():
    """Relative to the density of a Poisson process, that of each class averages to one over its patterns.

    10,000 patterns; the standard error is that of the sample, and four are allowed. Terms that are left out may take a
    twentieth away.
    """
    found = parse_templates(["motif,x,y", "bond,1,0", "bent,0.9,0", "bent,0,1.1"], "bonds")
    layout = Layout.of(found, RADIUS)
    rng = np.random.default_rng(0)
    rate = 0.4
    counts = rng.poisson(rate * math.pi * RADIUS**2, 10_000)
    ways = [
        RADIUS * np.sqrt(rng.random(n))[:, None] * _unit(2 * np.pi * rng.random(n)) for n in counts
    ]
    made = told(layout, 0.08, detection=0.8, clutter=0.15)
    ours = likelihood(some_patterns(ways, density=rate), layout, made).numpy()
    weights = np.exp(ours - ours[-1])
    mean, error = weights.mean(1), weights.std(1) / math.sqrt(len(ways))
    assert mean[-1] == 1
    assert (error[:-1] < 0.1).all()
    assert (mean[:-1] < 1 + 4 * error[:-1]).all()
    assert (mean[:-1] > 0.95 - 4 * error[:-1]).all()


def _unit(angle):
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def test_turning_the_picture_changes_no_probability():
    sheet = simulate("graphene", gives="atoms", field=3, vacancies=0.02, silicon_3=0.01, seed=2)
    layout = Layout.of(library(LIBRARIES.index("graphene")), 0.33)
    data = patterns(sheet, {"radius": 0.33})
    c, s = math.cos(0.7), math.sin(0.7)
    turned = data.copy(deep=True)
    turned.neighbour.values[..., :2] = data.neighbour.values @ np.array([[c, s], [-s, c]])
    made = told(layout, 0.008)._replace(strewn=torch.tensor(0.01, dtype=torch.float64))
    one, other = (torch.softmax(likelihood(d, layout, made), 0) for d in (data, turned))
    # What is found starts from steps of the angle.
    assert (one - other).abs().max() < 0.01


def at(data, prior, **values):
    """Probabilities of the classes with the parameters known."""
    density = make_density(motif, data, prior)
    given = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in values.items()}
    z = density.unconstrain({name: given[name] for name in density.names})
    return density.class_probabilities(z[None])["motif"][0].numpy()


KNOWN = {
    "scale": 1.0,
    "stretch": 1.02,
    "shear": 0.05,
    "detection": 0.99,
    "clutter": 0.002,
    "contrast": 1.0,
    "spread": 0.1,
}


@pytest.mark.parametrize("prior", ["graphene", "MoS2", "SrTiO3"])
@pytest.mark.parametrize("noise", [0.005, 0.01])
def test_probabilities_are_frequencies_where_the_parameters_are_known(prior, noise):
    """Of n atoms Σ p of the likeliest class are right, give or take √Σ p(1 − p); four of these are allowed, and 1 %
    for what is left out of the sum over assignments."""
    sheet = simulate("graphene", gives="atoms", field=4.5, pixel=0.02, seed=3)
    classes = len(motif.prepared(sheet, prior).attrs["motifs"])
    weights = np.full(classes, 1 / classes)
    known = KNOWN | {"noise": noise, "weights": weights}
    data = motif.simulate(sheet, prior=prior, seed=4, **known)
    found = at(data, prior, **known)
    truth = data.true_motif.values.astype(int)
    top, hit = found.max(1), found.argmax(1) == truth
    error = math.sqrt((top * (1 - top)).sum()) / len(top)
    assert abs(top.mean() - hit.mean()) < 4 * error + 0.01
    # Each class comes out as often as it was drawn, by its summed probability.
    spread = np.sqrt((found * (1 - found)).sum(0) + 1)
    assert (
        np.abs(found.sum(0) - np.bincount(truth, minlength=classes)) < 4 * spread + 0.01 * len(top)
    ).all()


def test_defects_of_graphene_are_found_at_ten_picometres_in_a_sheared_scan():
    """Recall and precision of single defects with parameters near those that a fit finds."""
    sheet = simulate(
        "graphene",
        gives="atoms",
        field=6,
        pixel=0.02,
        vacancies=0.01,
        silicon_3=0.005,
        silicon_4=0.005,
        disorder=0.01,
        shear=0.06,
        seed=11,
    )
    names = motif.prepared(sheet, "graphene").attrs["motifs"]
    weights = np.array([0.9 if name == "sp2 bulk" else 0.005 for name in names])
    near = 0.03
    weights[[names.index(f"{n} a vacancy") for n in ("next to", "second from", "third from")]] = (
        near
    )
    known = KNOWN | {"noise": 0.01, "shear": 0.06, "stretch": 1.0, "detection": 0.998}
    data = motif.prepared(sheet, "graphene")
    best = np.array(names)[at(data, "graphene", **known, weights=weights / weights.sum()).argmax(1)]
    told_as = np.isin(best, ["next to a vacancy", "silicon with 3 bonds", "silicon with 4 bonds"])
    true = data.true_site.values > 0
    f1 = 2 * (told_as & true).sum() / (told_as.sum() + true.sum())
    assert true.sum() > 25
    assert f1 > 0.9


def test_sites_near_silicon_are_told_from_other_defects():
    """Where two atoms have made room for one, atoms that are not bonded to it have lost a neighbour too."""
    sheet = simulate(
        "graphene", gives="atoms", field=5, pixel=0.02, silicon_4=0.01, disorder=0.005, seed=2
    )
    data = motif.prepared(sheet, "graphene")
    names = np.array(data.attrs["motifs"])
    weights = np.where(names == "sp2 bulk", 0.7, 0.3 / (len(names) - 1))
    known = KNOWN | {"noise": 0.005, "shear": 0.0, "stretch": 1.0, "weights": weights}
    best = names[at(data, "graphene", **known).argmax(1)]
    site, position = sheet.true_site.values, sheet.true_position.values
    silicon = position[site == sheet.attrs["site_names"].index("silicon with 4 bonds")]
    away = np.linalg.norm(data.position.values[:, None] - silicon, axis=2).min(1)
    few = (data.neighbour.values[..., :2] != 0).any(-1).sum(1) < 12
    near = few & (away > 0.23)
    assert near.sum() > 20
    assert set(best[near & (away < 0.32)]) == {"near silicon"}
    # Farther off only one neighbour is missing.
    assert set(best[near]) <= {"near silicon", "third from a vacancy"}
    assert (best[away > 0.6] == "sp2 bulk").all()


@pytest.mark.parametrize("prior", ["PbTiO3", "SrTiO3"])
def test_columns_of_a_perovskite_are_told_by_brightness_whatever_the_contrast(prior):
    """Displaced B is A displaced the other way, but for brightness; lead outshines what SrTiO3 has."""
    sheet = simulate("perovskite", gives="atoms", field=3.0, pixel=0.03, seed=1)
    found = fit(motif, sheet, prior=prior, predictive=0, lean=True)["classes"]["motif"]
    best = found.motif_class.values[found.values.argmax(1)]
    species = motif.prepared(sheet, prior)["true_species"].values
    names = np.array(sheet.attrs["species_names"])[species]
    assert len(best) > 30
    assert all(b.endswith(" A") == (name == "Pb") for b, name in zip(best, names, strict=True))


@pytest.mark.slow
def test_its_own_posterior_is_that_of_a_general_runner():
    """Means apart by less than four standard errors of both; of shares there are as many different draws as chains."""
    sheet = simulate("graphene", gives="atoms", field=2.2, disorder=0.006, vacancies=0.03, seed=3)
    own = fit(motif, sheet, prior="graphene", predictive=0, lean=True)
    short = {"starts": 8, "proposals": 4000, "refits": 3}
    other = fit(motif, sheet, prior="graphene", runner="laplace", predictive=0, lean=True, **short)
    effective = [run.attrs["importance_ess"] for run in (own, other)]
    assert min(effective) > 100
    for name in own["posterior"].data_vars:
        one, two = (
            run["posterior"][name].values.reshape(-1, *run["posterior"][name].shape[2:])
            for run in (own, other)
        )
        few = math.sqrt(1 / min(effective[0], CHAINS) + 1 / effective[1])
        assert (np.abs(one.mean(0) - two.mean(0)) < 4 * few * two.std(0)).all(), name
    error = math.hypot(own.attrs["log_evidence_se"], other.attrs["log_evidence_se"])
    assert abs(own.attrs["log_evidence"] - other.attrs["log_evidence"]) < 4 * error


@pytest.fixture(scope="module")
def run():
    sheet = simulate("graphene", gives="atoms", field=1.7, disorder=0.004, rotation=8.0, seed=5)
    return sheet, fit(motif, sheet, prior="graphene", predictive=8, seed=1, draws=400)


def test_a_perfect_sheet_is_bulk_turned_as_it_was(run):
    _, found = run
    classes = found["classes"]["motif"]
    assert classes.motif_class.values[0] == "sp2 bulk"
    assert float(classes[:, 0].min()) > 0.9
    derived = found["derived"]
    # The template has a bond along x of one kind of atom and against it of the other: half a turn apart, of three.
    assert derived["orientation"].attrs["period"] == 120
    folded = np.mod(derived["orientation"].values - 8.0 + 30, 60) - 30
    assert abs(np.median(np.minimum(np.abs(folded), 30 - np.abs(folded)))) < 3
    assert (derived["matched"].values == 12).mean() > 0.9
    assert derived["missing"].values.mean() < 0.2
    assert (derived["entropy"].values >= 0).all()
    noise = found["posterior"]["noise"]
    assert abs(float(noise.mean()) - 0.0045) < 0.001


def test_the_run_names_its_classes_and_says_who_was_left_out(run):
    sheet, found = run
    assert "other" in found["classes"].motif_class.values
    prepared = motif.prepared(sheet, "graphene")
    assert prepared.attrs["left_out"] == sheet.sizes["atom"] - len(found["classes"].atom)


def test_patterns_made_for_other_templates_are_refused():
    sheet = simulate("graphene", gives="atoms", field=3, seed=1)
    data = motif.prepared(sheet, "graphene")
    with pytest.raises(ModelError, match="made for other templates"):
        make_density(motif, data, "MoS2")
    with pytest.raises(ModelError, match="library must be one of"):
        make_density(motif, sheet, {"set": "graphene", "library": 9})
    with pytest.raises(ModelError, match="weights has 3 entries"):
        make_density(motif, data, {"set": "graphene", "weights": "Dirichlet([1, 1, 1])"})
    with pytest.raises(ModelError, match="within the radius"):
        make_density(motif, sheet, {"set": "graphene", "radius": 0.1})


# The file of templates is beside the script, wherever one works.
OWN = """from atomzoo.models.structure.motif import motifs_from
sites = motifs_from("sites.csv", radius=0.19)
"""


def test_templates_of_ones_own_make_a_model(tmp_path):
    (tmp_path / "sites.csv").write_text(
        "# in nm\nmotif,x,y\nplain,0.142,0\nplain,-0.071,0.12298\nplain,-0.071,-0.12298\n"
        "edge,0.142,0\nedge,-0.071,0.12298\n"
    )
    (tmp_path / "mine.py").write_text(OWN)
    made = load_file(str(tmp_path / "mine.py"), "sites")
    assert made.card.title.startswith("Motifs of sites")
    sheet = simulate("graphene", gives="atoms", field=2.2, vacancies=0.03, seed=1)
    density = make_density(made, sheet)
    assert [site.size for site in density.classes] == [3]
    found = density.class_probabilities(density.initial(4, 0))["motif"]
    assert found.shape[1:] == (
        len(motif.prepared(sheet, {"set": "graphene", "radius": 0.19}).atom),
        3,
    )
    drawn = made.simulate(sheet, seed=2)
    assert View(drawn).has("neighbour")


def test_a_script_with_a_bad_file_of_templates_says_what_is_wrong_in_it(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(DataError, match=r"^sites\.csv: there is no such file of templates"):
        load_file(str(tmp_path / "mine.py"), "sites")
    (tmp_path / "sites.csv").write_text("motif,x,y\nplain,0.142,zero\n")
    with pytest.raises(DataError, match=r"^templates sites, line 2: y must be a number"):
        load_file(str(tmp_path / "mine.py"), "sites")


MALFORMED = {
    "": "the file is empty",
    "motif,x\na,1\n": "line 1: expected columns",
    "motif,x,y,colour\na,1,0,2\n": "line 1: expected columns",
    "# note\nmotif,x,y\n": "no template",
    "motif,x,y\na,1\n": "line 2: expected 3 fields, found 2",
    "motif,x,y\na,1,0\na,one,0\n": "line 3: x must be a number",
    "motif,x,y\na,1,0\n\n# more\na,nan,0\n": "line 5: x must be finite",
    "motif,x,y\n,1,0\n": "line 2: a motif needs a name",
    "motif,x,y\nother,1,0\n": "line 2: a motif needs a name",
    "motif,x,y\na,0,0\n": "line 2: a neighbour cannot stand",
    "motif,x,y,brightness\na,1,0,-1\n": "line 2: brightness must be positive",
    "motif,x,y,tolerance\na,1,0,0.1\na,0,1,0.2\n": "several tolerances",
    "motif,x,y\na,1,0\na,1,0.01\n": "stand in one place",
    'motif,x,y\n"a,1,0\n': "line 2",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_file_of_templates_is_refused_with_its_line(text, tmp_path):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=MALFORMED[text]):
        read_templates(file)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_templates(tmp_path / "none.csv")
    (tmp_path / "image.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(DataError, match="cannot be read as text"):
        read_templates(tmp_path / "image.csv")


@pytest.mark.parametrize("number", range(1, len(LIBRARIES)))
def test_the_libraries_are_sound(number):
    """No two templates of a library are the same up to rotation and mirror images."""
    found = library(number)
    assert found.classes[-1] == "other"
    for one, other in itertools.combinations(found.templates, 2):
        assert not _same(one, other), f"{one.motif} and {other.motif}"


def _same(one, other):
    first = np.arctan2(*one.points[0][::-1])
    angles = np.arctan2(other.points[:, 1], other.points[:, 0])
    images = [one, one.mirrored()]
    starts = [first, -first]
    return any(
        image.turned(angle - start).like(other)
        for image, start in zip(images, starts, strict=True)
        for angle in angles
    )
