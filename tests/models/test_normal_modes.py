"""Normal modes: the posterior against a sampler on the same story, and modes against scenes."""

import math

import numpy as np
import pytest

import atomzoo
from atomzoo.datasets.derived.displacements import displacements
from atomzoo.datasets.kinds import validate
from atomzoo.datasets.scenes import simulate
from atomzoo.models.model import find
from atomzoo.models.structure.chemistry import slopes

from .story_check import compared, weighed
from .test_texture import QUICK, invariants, of_run


def fitted(scene, seed=1, **given):
    atoms = simulate(scene, gives="atoms", seed=seed, **given)
    run = atomzoo.fit("normal_modes", atoms, seed=2, **QUICK)
    return run["derived"].to_dataset(), find("normal_modes").prepared(atoms)


def along(told, truth, mode=0):
    """Correlation of a mode's amplitudes with the true displacement of the centre along its pattern."""
    way = told["pattern"].values[mode].mean(0)
    way = way / np.linalg.norm(way)
    return abs(np.corrcoef(told["amplitude"].values[:, mode], truth @ way)[0, 1])


def test_the_story_itself_gives_the_same_posterior_and_evidence():
    """Against draws from the prior, weighed by the likelihood that the story has."""
    seen = find("normal_modes").design()
    rng = np.random.default_rng(1)
    error = 0.004**2 * np.stack([np.eye(3) + 0.3, 2 * np.eye(3) + 0.5])
    data = seen.isel(atom=slice(12)).drop_vars(["displacement", "pattern", "error"])
    data = data.isel(slot=slice(2)).assign(
        displacement=(
            ("atom", "feature"),
            np.outer(rng.standard_normal(12), [0.01, 0.005, 0])
            + 0.006 * rng.standard_normal((12, 3)),
            {"units": "nm"},
        ),
        pattern=(("feature", "slot", "axis"), np.eye(4)[:3].reshape(3, 2, 2)),
        error=(("kind", "feature", "feature2"), error, {"units": "nm^2"}),
    )
    given = {"set": "vague", "rank": "Categorical([1, 1, 1])", "mean": "Normal(0, 0.005)"}
    own = atomzoo.fit("normal_modes", data, prior=given, seed=1, draws=400, predictive=0)
    weight, rank, evidence, apart, drawn = weighed("normal_modes", data, given, "rank", 50_000)
    assert 1 / (weight**2).sum() > 150, "too few prior draws count for their errors to be known"
    rows = invariants(drawn["frame"], drawn["amplitude"], drawn["noise"], rank)
    # Five figures at 4.5 standard errors of a difference.
    assert (compared(rows, weight, of_run(own)) < 4.5).all()
    both = math.hypot(apart, own.attrs["log_evidence_se"])
    assert abs(own.attrs["log_evidence"] - evidence) < 4.5 * both


@pytest.mark.parametrize("walls", ["ferroelastic", "180"])
def test_the_first_mode_of_a_ferroelectric_is_its_polarization(walls):
    told, truth = fitted("perovskite", walls=walls)
    assert told["rank_probability"].values[0] < 1e-6
    assert along(told, truth["true_displacement"].values) > 0.95
    if walls == "180":
        # All four neighbours move together against the centre.
        arrows = told["pattern"].values[0]
        together = np.linalg.norm(arrows.mean(0)) / np.linalg.norm(arrows, axis=1).mean()
        assert together > 0.99


def test_eight_sites_are_a_pair_of_modes():
    told, truth = fitted("perovskite", material="BaTiO3", state="eight-site")
    assert told["rank_probability"].values.argmax() == 2
    moved = np.einsum("ma,na->nm", told["pattern"].values.mean(1), truth["true_displacement"])
    for mode in range(2):
        assert abs(np.corrcoef(told["amplitude"].values[:, mode], moved[:, mode])[0, 1]) > 0.9


@pytest.mark.parametrize("scene", ["perovskite", "graphene", "tmd"])
def test_a_crystal_whose_atoms_move_alone_has_no_mode(scene):
    given = {"material": "SrTiO3"} if scene == "perovskite" else {}
    told, _ = fitted(scene, **given)
    assert told["rank_probability"].values.argmax() == 0
    assert told.sizes["mode"] == 0


@pytest.mark.parametrize("centres", [1, 2])
@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_a_sheared_and_noisy_scan_with_missed_columns_keeps_most_shells(noise, centres):
    """At 20 pm bonds no longer tell the sublattices apart, and brightness has to."""
    atoms = simulate(
        "tmd", gives="atoms", seed=7, shear=0.06, stretch=1.04, disorder=noise, field=7.0
    )
    dim = atoms["intensity"].values < np.exp(np.log(atoms["intensity"].values).mean())
    missed = dim & (np.random.default_rng(7).random(len(dim)) < 0.05)
    seen = displacements(atoms.isel(atom=~missed), {"centres": centres})
    own = np.flatnonzero(~dim[~missed] if centres == 1 else dim[~missed])
    position = atoms["position"].values[~missed]
    low, high = position.min(0), position.max(0)
    deep = (np.minimum(position - low, high - position).min(1) > 0.25)[own]
    used = np.isin(own, seen["atom"].values)
    assert set(seen["atom"].values) <= set(own)
    # A metal has three chalcogens of which each is missed once in twenty; a tenth may be too far off besides.
    assert used[deep].mean() > (0.95**3 if centres == 1 else 1.0) - 0.15
    assert (np.abs(np.linalg.norm(seen["mean_shell"].values, axis=1) - 0.185) < 0.02).all()


def test_lengths_say_that_they_are_in_nanometres():
    told, _ = fitted("perovskite", field=5.0)
    assert {told[n].attrs["units"] for n in ("amplitude", "amplitude_sd")} == {"nm"}


def test_amplitudes_are_as_far_off_as_they_say():
    """Of normal strengths, in units of their errors: mean square one."""
    model = find("normal_modes")
    seen = model.prepared(simulate("perovskite", gives="atoms", seed=3, walls="180"))
    rng = np.random.default_rng(4)
    pattern = np.linalg.qr(rng.standard_normal((6, 1)))[0][:, 0]
    strength = 0.01 * rng.standard_normal(seen.sizes["atom"])
    noise = 0.004 * rng.standard_normal(seen["displacement"].shape)
    factor = np.linalg.cholesky(seen["error"].values)[seen["error_kind"].values]
    noise += np.einsum("nij,nj->ni", factor, rng.standard_normal(noise.shape))
    data = seen.assign(displacement=seen["displacement"] * 0 + np.outer(strength, pattern) + noise)
    told = atomzoo.fit("normal_modes", data, seed=1, **QUICK)["derived"].to_dataset()
    sign = np.sign(told["amplitude"].values[:, 0] @ strength)
    # Amplitudes are about the mean of all.
    off = sign * told["amplitude"].values[:, 0] - (strength - strength.mean())
    off /= told["amplitude_sd"].values[:, 0]
    # The errors of two parameters that all atoms share add little.
    assert abs((off**2).mean() - 1) < 4.5 * math.sqrt(2 / len(off)) + 0.02


def test_chemistry_is_found_where_it_moves_atoms_and_nowhere_else():
    probability = {}
    for push in (0.012, 0.0):
        told, _ = fitted("solid_solution", push=push)
        names = [str(n) for n in told["property"].values]
        assert abs(told["pattern"].values[0].mean(0)[0]) > 1
        probability[push] = dict(zip(names, told["slope_probability"].values[0], strict=True))
    assert probability[0.012]["dipole_intensity_x"] > 0.95
    assert probability[0.0]["dipole_intensity_x"] < 0.5
    assert probability[0.012]["dipole_intensity_y"] < 0.5


def test_slopes_of_what_has_nothing_to_do_with_amplitudes_keep_their_errors():
    """Amplitudes and properties that are both smooth: regions widen the error, and false alarms are rare."""
    rng = np.random.default_rng(6)
    place = np.stack(np.meshgrid(np.arange(30.0), np.arange(30.0)), -1).reshape(-1, 2)

    def smooth():
        ways, phases = rng.standard_normal((60, 2)) / 3, rng.uniform(0, 2 * np.pi, 60)
        return np.cos(place @ ways.T + phases).sum(1)

    alarms = [
        slopes(smooth()[:, None], smooth()[:, None], place).probability[0, 0] > 0.95
        for _ in range(100)
    ]
    # One in a hundred expected at most; eight or more happen once in 10,000 times at two in a hundred.
    assert sum(alarms) < 8


def test_a_fit_gives_a_table_for_models_of_causes():
    atoms = simulate("solid_solution", gives="atoms", seed=1, field=6.0)
    run = atomzoo.fit("normal_modes", atoms, seed=1, **QUICK)
    table = find("normal_modes").giver(run, atoms)
    assert validate(table).attrs["kind"] == "table"
    assert {"mode_1", "mean_intensity", "x"} <= set(table["variable"].values.tolist())
    assert 1 < np.unique(table["block"]).size < table.sizes["row"]


def test_prepared_data_and_atoms_give_the_same_fit():
    atoms = simulate("perovskite", gives="atoms", seed=1, field=5.0)
    seen = displacements(atoms, {"neighbours": 0, "centres": 0, "scan": 1})
    one, other = (atomzoo.fit("normal_modes", d, seed=1, **QUICK) for d in (atoms, seen))
    assert one["posterior"].to_dataset().identical(other["posterior"].to_dataset())
