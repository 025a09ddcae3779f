"""Every runner on posteriors with known answers, and the answers against each other."""

from pathlib import Path

import grading
import numpy as np
import pytest
import torch
from classics import CLASSICS, SCHOOL_EFFECTS, SCHOOL_ERRORS
from exact import EXACT, apart, exact
from posteriors import POSTERIORS
from scipy.stats import halfcauchy, norm

from atomzoo.inference.fit import RUNNERS, make_density
from atomzoo.inference.runs import digest

# Runners too slow for every posterior, and the few that they are given here; benchmarks/reference.py gives them all.
SLOW = {
    "nuts": ("eight_schools_noncentred", "wall_second_order", "logistic"),
    "svi": ("banana", "eight_schools_noncentred", "funnel", "two_modes", "wall_first_order"),
}
FUNNELS = ("eight_schools_centred", "funnel", "hierarchy")
SLOW_PAIRS = {(runner, name) for runner in ("ensemble", "smc") for name in FUNNELS}
# What a runner is made for; it refuses anything else before it starts.
MADE_FOR = {
    "exact": lambda density: density.dim <= 3,
    "closed": lambda density: density.model.posterior is not None,
}
FUNNEL = "no step size suits both the neck and the mouth of a funnel: trajectories diverge"
FLOW = "the tails of one flow in ten are too thin"
NO_SAMPLE = "no importance sample gets to the bottom of a funnel"
# Where a run may say that it failed. A wrong answer without a word is allowed nowhere.
REPORTED = {
    ("laplace", "eight_schools_centred"): NO_SAMPLE,
    ("laplace", "funnel"): NO_SAMPLE,
    (
        "laplace",
        "hierarchy",
    ): "37 dimensions, two thirds of them funnels: the weights are too uneven",
    ("ensemble", "eight_schools_centred"): FUNNEL,
    ("ensemble", "funnel"): FUNNEL,
    (
        "smc",
        "eight_schools_centred",
    ): "islands differ at the bottom of the funnel, says nested R-hat",
    ("smc", "funnel"): "islands differ at the bottom of the funnel, says nested R-hat",
    ("svi", "banana"): "a flow is too thin at the tips",
    ("svi", "funnel"): "a flow is too thin at the mouth and in the neck",
    ("svi", "eight_schools_noncentred"): FLOW,
    ("svi", "wall_first_order"): FLOW,
    ("svi", "two_modes"): "a guide that climbs from one mode does not see the other",
    ("nuts", "eight_schools_noncentred"): "a trajectory or two diverge where tau is large",
    ("nuts", "eight_schools_centred"): FUNNEL,
    ("nuts", "funnel"): FUNNEL,
    ("nuts", "two_modes"): "a chain stays in its mode, and R-hat says so",
}


def made(name):
    """Skips what has no reference."""
    there = Path(grading.__file__).with_name(f"{name}.json").is_file()
    return pytest.mark.skipif(not there, reason=f"no {name}.json: benchmarks/reference.py makes it")


def named(names):
    return [pytest.param(name, marks=made(name)) for name in names]


def pairs():
    for runner in RUNNERS:
        for name in SLOW.get(runner, POSTERIORS):
            slow = runner in SLOW or (runner, name) in SLOW_PAIRS
            marks = [made(name), *([pytest.mark.slow] if slow else [])]
            yield pytest.param(runner, name, marks=marks, id=f"{runner}-{name}")


@pytest.mark.parametrize(("runner", "name"), list(pairs()))
def test_a_run_is_right_or_says_that_it_failed(runner, name):
    made_for = MADE_FOR.get(runner)
    if made_for and not made_for(POSTERIORS[name].density()):
        allowed = {"refused"}
    elif (runner, name) in REPORTED:
        allowed = {"right", "reported failure"}
    else:
        allowed = {"right"}
    grade = grading.grade(runner, name)
    assert grade.verdict in allowed, f"{grade.verdict}: {grade.reason}"


@pytest.mark.parametrize("name", named(POSTERIORS))
def test_a_reference_is_of_this_posterior_and_passed_its_checks(name):
    known, density = grading.reference(name), POSTERIORS[name].density()
    assert known["data_sha256"] == digest(density.data)
    assert known["prior"] == density.prior.describe()
    assert {p.partition("[")[0] for p in known["parameters"]} == {
        *(site.name for site in density.sites),
        *density.derived,
    }
    checks = known["checks"]
    if known["method"] == "long run":
        assert checks["R-hat"] < 1.001
        assert min(checks["bulk ESS"], checks["tail ESS"]) > 50_000
        assert checks["divergences"] == 0
    else:
        assert checks["change on half the grid / sd"] < 1e-5


@pytest.mark.parametrize("name", EXACT)
def test_exact_integration_gives_the_reference_again(name):
    found, change = exact(name)
    known = grading.reference(name)["parameters"]
    assert found.keys() == known.keys()
    for parameter, summary in found.items():
        assert apart(summary, known[parameter]) < 1e-8 + change


@pytest.mark.parametrize(
    "file", named(["eight_schools_noncentred.long", "gp_regression.long"]), ids=str
)
def test_a_long_run_of_another_sampler_agrees_with_exact_integration(file):
    known = grading.reference(file.removesuffix(".long"))["parameters"]
    long = grading.reference(file)["parameters"]
    assert known.keys() == long.keys()
    for parameter, truth in known.items():
        run = long[parameter]
        error = run["mcse"]
        # Bonferroni over seven figures of each parameter, one false alarm in a thousand over all, as when grading.
        most = grading.limit()
        assert abs(run["mean"] - truth["mean"]) < most * error["mean"], parameter
        assert abs(run["sd"] - truth["sd"]) < most * error["sd"], parameter
        for a, b, e in zip(run["quantiles"], truth["quantiles"], error["quantiles"], strict=True):
            assert abs(a - b) < most * e, parameter


def test_closed_forms_of_the_moments():
    funnel, banana = exact("funnel")[0], exact("banana")[0]
    modes = exact("two_modes")[0]["place[0]"]
    assert funnel["x[0]"]["sd"] == pytest.approx(np.exp(9 / 4), rel=1e-9)
    assert funnel["x[0]"]["kurtosis"] == pytest.approx(3 * np.exp(9), rel=1e-9)
    assert banana["b"]["mean"] == pytest.approx(0, abs=1e-9)
    assert banana["b"]["sd"] == pytest.approx(19**0.5, rel=1e-9)
    away = 12 / 4.04
    assert modes["mean"] == pytest.approx(-0.4 * away, rel=1e-9)
    assert modes["sd"] ** 2 == pytest.approx(1 / 4.04 + 4 * 0.7 * 0.3 * away**2, rel=1e-9)


@pytest.mark.parametrize("model", CLASSICS, ids=lambda m: m.name)
def test_a_classic_has_a_finite_gradient_wherever_its_prior_draws(model):
    density = make_density(model, model.design())
    value, gradient = density.gradient(density.initial(64, 0))
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def by_hand(name, v):
    """Log joint density of a classic that the long runs do not check, as a reader of its docstring writes it."""
    log_pdf = norm.logpdf
    if name == "funnel":
        joint = log_pdf(v["v"], 0, 3) + log_pdf(v["x"], 0, np.exp(v["v"] / 2)[:, None]).sum(1)
    elif name == "banana":
        joint = log_pdf(v["a"], 0, 10) + log_pdf(v["b"], 0.03 * (v["a"] ** 2 - 100), 1)
    elif name == "two_modes":
        left, right = (log_pdf(0, v["place"] + side, 0.5).sum(1) for side in (3, -3))
        seen = np.logaddexp(np.log(0.7) + left, np.log(0.3) + right)
        return log_pdf(v["place"], 0, 5).sum(1) + seen
    else:
        joint = log_pdf(v["mu"], 0, 5) + halfcauchy.logpdf(v["tau"], 0, 5)
        joint += log_pdf(v["theta"], v["mu"][:, None], v["tau"][:, None]).sum(1)
        return joint + log_pdf(SCHOOL_EFFECTS, v["theta"], SCHOOL_ERRORS).sum(1)
    return joint + 2 * log_pdf(1)


@pytest.mark.parametrize("name", ["funnel", "banana", "two_modes", "eight_schools_centred"])
def test_the_log_joint_density_of_a_classic_is_what_its_docstring_says(name):
    density = POSTERIORS[name].density()
    z = density.initial(20, 0)
    values = {k: v.numpy() for k, v in density.constrain(z).items()}
    terms = sum(density.log_prior(z).values()) + density.pointwise(z).reshape(20, -1).sum(1)
    assert terms.numpy() == pytest.approx(by_hand(name, values), rel=1e-9)


def two_modes(rng, weight=0.3, stretch=1.0, shift=0.0, size=(4, 1000)):
    """Independent draws from the posterior with two modes, or from something like it."""
    side = np.where(rng.random(size) < weight, 1.0, -1.0)
    noise = rng.standard_normal((2, *size))
    places = side * 12 / 4.04 + stretch * noise / 4.04**0.5 + shift
    return {f"place[{i}]": place for i, place in enumerate(places)}


def wrong(draws, name="two_modes", importance_ess=None):
    found = grading.checks(grading.reference(name), draws, importance_ess)
    return [check for check in found if not check.passed]


def test_exact_draws_are_graded_right():
    # Of 100 times 8 comparisons at the limit for all runners, one fails in some 50,000 such tests.
    rng = np.random.default_rng(0)
    assert not any(wrong(two_modes(rng)) for _ in range(100))


def test_standard_errors_of_quantiles_hold_where_tails_are_heavy():
    known = grading.reference("funnel")
    known = known | {"parameters": {k: known["parameters"][k] for k in ("v", "x[0]")}}
    rng = np.random.default_rng(0)
    off = []
    for _ in range(200):
        v = 3 * rng.standard_normal((4, 1000))
        found = grading.checks(
            known, {"v": v, "x[0]": np.exp(v / 2) * rng.standard_normal(v.shape)}
        )
        off += [c.off / c.allowed * grading.limit() for c in found if c.what.startswith("q")]
    # Of 800 about 36 lie beyond two standard errors; 4.5 standard deviations either way, wrong once in 100,000 times.
    beyond = int((np.abs(off) > 2).sum())
    assert abs(beyond - 800 * 0.0455) < 4.5 * np.sqrt(800 * 0.0455 * 0.9545)


@pytest.mark.parametrize(
    "fault",
    [{"weight": 0.0}, {"weight": 0.4}, {"stretch": 1.5}, {"shift": 0.4}, {"shift": np.nan}],
    ids=str,
)
def test_draws_from_something_else_are_graded_wrong(fault):
    assert wrong(two_modes(np.random.default_rng(0), **fault))


def test_a_sample_worth_a_hundred_draws_is_not_held_to_the_standard_of_thousands():
    rng = np.random.default_rng(0)
    draws = two_modes(rng, size=(100,))
    chosen = rng.integers(100, size=(4, 1000))
    again = {name: values[chosen] for name, values in draws.items()}
    assert not wrong(again, importance_ess=100)
