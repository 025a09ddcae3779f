import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from atomzoo.inference import calibrate as module
from atomzoo.inference.calibrate import FALSE_ALARM, Certificate, calibrate
from atomzoo.inference.fit import make_density
from atomzoo.inference.runs import RunError
from atomzoo.inference.uniformity import DRAWS, Uniform, band
from atomzoo.models.model import Model
from atomzoo.models.priors import ModelError
from atomzoo.reports.diagnose import Gate
from atomzoo.tests.inference import sbc_models

# Enough for models of one or two parameters, and quick.
QUICK = {"starts": 4, "proposals": 2000}


def a_gate(run: xr.DataTree) -> list[Gate]:
    """One that about half of the fits fail."""
    mean = float(run["posterior"]["mean"].mean())
    return [Gate("positive mean", mean, 0.0, mean > 0, ""), Gate("no trouble", 1.0, 0.0, True, "")]


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return calibrate("sbc_right", 60, workers=1, check=a_gate, seed=1, **QUICK)


def ended_within(seconds: float, group: int) -> bool:
    """Whether no process of a group is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def uniform(n: int, seed: int = 0) -> Uniform:
    return Uniform(n, FALSE_ALARM / 6, seed)


def study(model: Model, prior: dict[str, str], **options: int) -> "module._Study":
    source = module._source(model)
    return module._Study(source, sbc_models.some_rows(), prior, "laplace", options, None)


@pytest.mark.slow
def test_a_right_model_passes(certificate):
    assert certificate.passed, [q for q in certificate.quantities if not q.passed]
    assert [q.name for q in certificate.quantities] == ["mean", "noise", "log likelihood"]
    assert all(len(q.ranks) == 60 for q in certificate.quantities)
    assert all(0 <= rank <= DRAWS for q in certificate.quantities for rank in q.ranks)


@pytest.mark.slow
def test_a_model_fitted_with_another_noise_than_simulated_fails():
    found = calibrate("sbc_wrong", 30, workers=1, seed=1, **QUICK)
    assert not found.passed
    assert not next(q for q in found.quantities if q.name == "noise").passed
    assert found.failed_gates is None


@pytest.mark.slow
def test_the_certificate_says_what_was_done(certificate, tmp_path):
    assert certificate.prior["noise"] == "HalfNormal(1)"
    scale = float(sbc_models.some_rows()["value"].std())
    assert certificate.prior["mean"] == f"Normal(0, {2 * scale:.12g})", "read off the design once"
    assert certificate.runner == "laplace"
    assert certificate.options == QUICK
    assert certificate.level == pytest.approx(FALSE_ALARM / 18)
    negative = certificate.fits_with_failed_gates
    assert negative is not None
    assert 0 < negative < 60
    assert certificate.failed_gates == {"positive mean": negative}
    path = certificate.write(tmp_path / "certificate.json")
    assert Certificate.read(path) == certificate
    assert json.loads(path.read_text())["passed"] is True


@pytest.mark.slow
def test_the_same_seed_gives_the_same_ranks_wherever_the_fits_run():
    options = {"n": 20, "seed": 5, "starts": 2, "proposals": 500}
    alone = calibrate("sbc_known", workers=1, **options)
    with ThreadPoolExecutor(2) as threads:
        threaded = calibrate("sbc_known", executor=threads, **options)
    seen = []
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        apart = calibrate(
            "sbc_known", executor=processes, progress=lambda done, *_: seen.append(done), **options
        )
    assert threaded.quantities == alone.quantities
    assert apart.quantities == alone.quantities
    assert seen == list(range(21))


@pytest.mark.slow
def test_fits_that_hang_or_die_are_tried_once_more_and_then_recorded(monkeypatch, tmp_path):
    options = {"n": 21, "seed": 5, "starts": 2, "proposals": 500}
    undisturbed = calibrate("sbc_troubled", workers=1, **options)
    seeds = module._seeds(5, 21)
    trouble = {seeds[7]: ("hang", str(tmp_path / "hung")), seeds[12]: ("die", "")}
    monkeypatch.setenv("SBC_TROUBLE", json.dumps(trouble))
    told = []
    found = calibrate(
        "sbc_troubled",
        workers=2,
        timeout=15,
        progress=lambda done, total, text: told.append(text),
        **options,
    )
    killed = "its worker process was killed (SIGKILL)"
    assert found.failures == (f"simulation 12: {killed}, 2 times",)
    assert sorted(found.retried) == [
        f"simulation 12: {killed}",
        "simulation 7: it took longer than 15 s",
    ]
    assert f"simulation 12 is tried again: {killed}" in told
    assert not found.passed
    for quantity, other in zip(found.quantities, undisturbed.quantities, strict=True):
        assert quantity.ranks == other.ranks[:12] + other.ranks[13:]


@pytest.mark.slow
def test_an_interrupted_calibration_goes_on_where_it_stopped(tmp_path):
    options = {"n": 20, "seed": 5, "workers": 1, "starts": 2, "proposals": 500}
    kept = tmp_path / "kept"

    def stop(done, total, text):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate("sbc_known", checkpoint=kept, progress=stop, **options)
    with kept.open("a") as file:
        file.write('{"simulation": 8, "ra')  # the power went
    seen = []
    resumed = calibrate(
        "sbc_known", checkpoint=kept, progress=lambda done, *_: seen.append(done), **options
    )
    assert seen == list(range(8, 21))
    assert resumed.quantities == calibrate("sbc_known", **options).quantities
    more = calibrate("sbc_known", checkpoint=kept, **options | {"n": 24})
    assert more.quantities[0].ranks[:20] == resumed.quantities[0].ranks
    assert len(kept.read_text().splitlines()) == 1 + 24
    for other in ({"seed": 6}, {"proposals": 600}, {"prior": {"mean": "Normal(0, 2)"}}):
        with pytest.raises(RunError, match="left from another calibration"):
            calibrate("sbc_known", checkpoint=kept, **options | other)
    kept.write_text("nonsense")
    with pytest.raises(RunError, match="remove it"):
        calibrate("sbc_known", checkpoint=kept, **options)


def started(script):
    """A script in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_an_interrupt_stops_the_workers_and_leaves_no_traceback_of_theirs(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import signal
            from atomzoo.inference.calibrate import calibrate
            if __name__ == "__main__":
                signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where it is ignored
                try:
                    calibrate("wall_second_order", 1000, workers=2, progress=lambda *a: print(a, flush=True))
                except KeyboardInterrupt:
                    print("stopped")
        """)
    )
    process = started(script)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert out.endswith("stopped\n")
    assert err == ""
    assert ended_within(10, process.pid)


def test_an_interrupt_that_another_thread_gets_is_heard_while_workers_are_busy(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import signal, threading, time
            from atomzoo.inference.workers import on_processes
            def interrupt():
                time.sleep(1)
                signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            if __name__ == "__main__":
                signal.signal(signal.SIGINT, signal.default_int_handler)
                quick_and_for_hours = [range(3), range(10**12)]
                try:
                    for _ in on_processes(sum, quick_and_for_hours, count=1, timeout=2000.0):
                        threading.Thread(target=interrupt).start()
                except KeyboardInterrupt:
                    print("stopped")
        """)
    )
    process = started(script)
    try:
        assert process.communicate(timeout=60) == ("stopped\n", "")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_only_continuous_global_parameters_are_ranked_and_the_rest_is_named():
    design = sbc_models.some_rows()
    prior = sbc_models.sbc_mixed.resolve(design).describe()
    not_ranked = module._not_ranked(make_density(sbc_models.sbc_mixed, design, prior))
    assert set(not_ranked) == {"sign", "offset"}
    assert "discrete" in not_ranked["sign"]
    assert "local" in not_ranked["offset"]
    outcome = module._replicate(study(sbc_models.sbc_mixed, prior, starts=2, proposals=500), 1)
    assert not outcome.failure
    # Not the likelihood either: it is not that of one sign.
    assert set(outcome.ranks) == {"shift"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 19}, "at least 20 simulations"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"timeout": 0.0}, "timeout must be more than 0"),
        ({"runner": "nonsense"}, "there is no runner"),
        ({"prior": "nonsense"}, "no prior set"),
        ({"prior": {"mean": 1.0}}, "no continuous parameter"),
    ],
)
def test_what_cannot_be_calibrated_is_said(arguments, says):
    with pytest.raises((RunError, ModelError), match=says):
        calibrate("sbc_known", **{"n": 20, **arguments})


def test_simulations_without_a_fit_are_counted_and_fail_the_certificate(monkeypatch):
    seeds = module._seeds(0, 40)

    def outcome(study: module._Study, seed: int) -> module._Outcome:
        rank = int(np.random.default_rng(seed).integers(0, DRAWS + 1))
        return module._Outcome({"mean": rank}, failure="no" if seed == seeds[3] else "")

    monkeypatch.setattr(module, "_replicate", outcome)
    found = calibrate("sbc_known", 40, workers=1)
    assert found.failures == ("simulation 3: no",)
    assert all(q.passed for q in found.quantities)
    assert not found.passed


def test_when_nothing_can_be_fitted_the_first_reason_is_given():
    design = sbc_models.some_rows()
    prior = sbc_models.sbc_known.resolve(design).describe()
    failed = module._replicate(study(sbc_models.sbc_known, prior, draws=10), 1)
    assert failed.failure == "a rank needs 199 posterior draws, the runner gave 40"
    with pytest.raises(RunError, match="no simulation could be fitted; the first: a rank needs"):
        module._judge([failed] * 20, 0)


def test_a_file_that_is_no_certificate_is_refused(tmp_path):
    path = tmp_path / "c.json"
    for text in ("", "[]", "{}", '{"passed": true, "quantities": [1]}', "nonsense"):
        path.write_text(text)
        with pytest.raises(RunError, match=r"c\.json"):
            Certificate.read(path)
    with pytest.raises(RunError, match="no such file"):
        Certificate.read(tmp_path / "none.json")


def test_uniform_ranks_fail_as_seldom_as_promised():
    n, rounds = 100, 400
    rng = np.random.default_rng(3)
    judge = Uniform(n, 0.05, 0)
    judged = [judge.judge("x", rng.integers(0, DRAWS + 1, n)) for _ in range(rounds)]
    for p_values in ([q.ecdf_p for q in judged], [q.chi2_p for q in judged]):
        failed = sum(p < 0.05 for p in p_values)
        # Seven standard deviations of the binomial would be a wrong test and no accident.
        assert scipy.stats.binomtest(failed, rounds, 0.05).pvalue > 1e-6
    for i in range(4):
        outside = sum(not q.coverage[i].passed for q in judged)
        # Limits on whole counts are never crossed more often than promised.
        assert scipy.stats.binomtest(outside, rounds, 0.05, alternative="greater").pvalue > 1e-6


@pytest.mark.parametrize(
    "warp",
    [
        pytest.param(lambda u: u**2, id="biased"),
        pytest.param(lambda u: 0.5 + (u - 0.5) / 2, id="too wide a posterior"),
        pytest.param(lambda u: np.sin(np.pi * u / 2) ** 2, id="too narrow a posterior"),
    ],
)
def test_ranks_that_are_not_uniform_fail(warp):
    u = np.random.default_rng(1).random(200)
    ranks = np.minimum((warp(u) * (DRAWS + 1)).astype(int), DRAWS)
    found = uniform(200).judge("x", ranks)
    assert not found.passed
    assert found.ecdf_p < FALSE_ALARM / 6


def test_intervals_of_whole_ranks_have_exactly_the_coverage_they_are_named_after():
    found = uniform(DRAWS + 1).judge("x", np.arange(DRAWS + 1))
    assert [part.found for part in found.coverage] == [part.level for part in found.coverage]


def test_the_band_holds_all_ranks_exactly_when_the_test_of_their_distribution_passes():
    n, level = 100, 0.05
    judge = Uniform(n, level, 0)
    low, high = band(n, DRAWS, judge.pointwise)
    rng = np.random.default_rng(4)
    verdicts = []
    for power in np.repeat([1.0, 1.3], 200):
        ranks = (rng.random(n) ** power * (DRAWS + 1)).astype(int)
        share = (ranks[:, None] < np.arange(1, DRAWS + 1)).mean(0)
        inside = bool(((low <= share) & (share <= high)).all())
        assert inside == (judge.judge("x", ranks).ecdf_p >= level)
        verdicts.append(inside)
    assert 0 < sum(verdicts) < len(verdicts)
