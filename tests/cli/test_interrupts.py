"""A fit that is stopped: what was done is kept, the rest is done later, and no file is ever half written."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

from atomzoo.cli import main
from atomzoo.inference import nuts
from atomzoo.inference.runs import read_run

OPTIONS = ["--runner", "nuts", "-O", "chains=2", "-O", "draws=60", "-O", "warmup=60", "--seed", 5]
QUICK = [*OPTIONS, "--quiet"]
TEMPORARY = r"\.run\.nc\.(?!partial).*\.part"
TRANSITIONS = 2 * (60 + 60)


@pytest.fixture(scope="module")
def unbroken(wall: Path, tmp_path_factory) -> xr.DataTree:
    path = tmp_path_factory.mktemp("unbroken") / "run.nc"
    assert main([str(w) for w in ("fit", "wall_second_order", wall, "-o", path, *QUICK)]) == 0
    return read_run(path)


def draws(run: xr.DataTree) -> list[xr.Dataset]:
    return [run[group].to_dataset() for group in ("posterior", "sample_stats")]


def same(one: xr.DataTree, other: xr.DataTree) -> bool:
    return all(a.identical(b) for a, b in zip(draws(one), draws(other), strict=True))


def signal_at(monkeypatch, number: int, transition: int) -> None:
    """Send this process a signal in the middle of a transition of the sampler."""
    plain = nuts._InstrumentedNUTS.sample
    count = 0

    def counted(self, state):
        nonlocal count
        count += 1
        if count == transition:
            signal.raise_signal(number)
        return plain(self, state)

    monkeypatch.setattr(nuts._InstrumentedNUTS, "sample", counted)


@pytest.mark.slow
@pytest.mark.parametrize("transition", [70, 100, TRANSITIONS])
def test_an_interrupted_fit_is_resumed_as_if_it_never_was(
    cli, wall, tmp_path, monkeypatch, unbroken, transition
):
    path, partial = tmp_path / "run.nc", tmp_path / "run.nc.partial"
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGINT, transition)
        stopped = cli("fit", "wall_second_order", wall, "-o", path, *QUICK)
    kept = transition >= 60 + 25 + 1
    assert stopped.code == 130
    assert stopped.out == ""
    assert stopped.err.count("\n") == 1
    assert (f"kept in {partial}" in stopped.err) == kept
    assert list(tmp_path.iterdir()) == ([partial] if kept else [])
    resumed = cli("fit", "wall_second_order", wall, "-o", path, *QUICK, "--resume")
    assert resumed.code == 0, resumed
    assert list(tmp_path.iterdir()) == [path]
    assert same(read_run(path), unbroken)


def test_an_interrupt_in_the_warm_up_leaves_nothing(cli, wall, tmp_path, monkeypatch):
    signal_at(monkeypatch, signal.SIGINT, 20)
    stopped = cli("fit", "wall_second_order", wall, "-o", tmp_path / "run.nc", *QUICK)
    assert (stopped.code, stopped.out) == (130, "")
    assert "nothing was far enough" in stopped.err
    assert list(tmp_path.iterdir()) == []


def test_a_request_to_terminate_is_an_interrupt_with_its_own_code(cli, wall, tmp_path, monkeypatch):
    signal_at(monkeypatch, signal.SIGTERM, 100)
    stopped = cli("fit", "wall_second_order", wall, "-o", tmp_path / "run.nc", *QUICK)
    assert stopped.code == 128 + signal.SIGTERM
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc.partial"]


def test_an_interrupt_that_a_library_swallows_counts_at_the_next_step(
    cli, wall, tmp_path, monkeypatch
):
    plain = nuts._transition
    count = 0

    def swallowing(*args):
        nonlocal count
        count += 1
        if count == 30:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return plain(*args)

    monkeypatch.setattr(nuts, "_transition", swallowing)
    stopped = cli("fit", "wall_second_order", wall, "-o", tmp_path / "run.nc", *QUICK)
    assert stopped.code == 130
    assert count < 60


def test_an_interrupt_while_the_run_is_written_loses_nothing(cli, wall, tmp_path, monkeypatch):
    path = tmp_path / "run.nc"
    with monkeypatch.context() as patch:
        patch.setattr(xr.DataTree, "to_netcdf", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert cli("fit", "wall_second_order", wall, "-o", path, *QUICK).code == 130
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc.partial"]
    monkeypatch.setattr(nuts, "_transition", None)  # every draw is there already
    assert cli("fit", "wall_second_order", wall, "-o", path, *QUICK, "--resume").code == 0
    assert list(tmp_path.iterdir()) == [path]


def test_without_resume_a_fit_starts_over_and_says_so(cli, wall, tmp_path, monkeypatch):
    path = tmp_path / "run.nc"
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGINT, 100)
        assert cli("fit", "wall_second_order", wall, "-o", path, *QUICK).code == 130
    signal_at(monkeypatch, signal.SIGINT, 10)
    again = cli("fit", "wall_second_order", wall, "-o", path, *QUICK)
    assert again.code == 130
    assert "starting over" in again.err
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_does_not_cost_what_an_interrupted_run_has_kept(
    cli, refused, wall, tmp_path, monkeypatch
):
    path, partial = tmp_path / "run.nc", tmp_path / "run.nc.partial"
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGINT, 100)
        assert cli("fit", "wall_second_order", wall, "-o", path, *QUICK).code == 130
    before = partial.read_bytes()
    refused("fit", "wall_second_order", wall, "-o", path, *QUICK, "-P", "nonsense=1")
    refused("fit", "wall_second_order", wall, "-o", path, *QUICK, "-O", "nonsense=1")
    refused("fit", "wall_bloch", wall, "-o", path, *QUICK)
    assert partial.read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [
        ("--seed", "6"),
        ("-P", "noise=HalfNormal(0.5)"),
        ("-O", "target_acceptance=0.9"),
        ("--prior", "PbTiO3"),
    ],
)
def test_another_fit_is_not_gone_on_with(cli, refused, wall, tmp_path, monkeypatch, other):
    path = tmp_path / "run.nc"
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGINT, 100)
        assert cli("fit", "wall_second_order", wall, "-o", path, *QUICK).code == 130
    typed = ("fit", "wall_second_order", wall, "-o", path, *QUICK, "--resume", *other)
    assert "belongs to another run" in refused(*typed)


def test_a_damaged_checkpoint_is_refused(refused, wall, tmp_path):
    partial = tmp_path / "run.nc.partial"
    for content in (b"", b"nonsense", b"PK\x03\x04" + b"\x7f" * 200):
        partial.write_bytes(content)
        typed = ("fit", "wall_second_order", wall, "-o", tmp_path / "run.nc", *QUICK, "--resume")
        assert "not a checkpoint" in refused(*typed)


@pytest.mark.slow
def test_an_interrupt_from_the_keyboard_ends_a_real_process_cleanly(cli, wall, tmp_path, unbroken):
    path = tmp_path / "run.nc"
    process = started(wall, path)
    wait_for(process, lambda: path.with_name("run.nc.partial").exists())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.count("\n") == 1
    assert cli("fit", "wall_second_order", wall, "-o", path, *QUICK, "--resume").code == 0
    assert same(read_run(path), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["at the first checkpoint", "while it is written"])
def test_a_killed_fit_leaves_its_target_absent_or_whole(cli, wall, tmp_path, moment):
    path = tmp_path / "run.nc"
    process = started(wall, path)
    if moment == "at the first checkpoint":
        wait_for(process, lambda: path.with_name("run.nc.partial").exists())
    else:
        wait_for(process, lambda: any(re.match(TEMPORARY, name) for name in os.listdir(tmp_path)))
    process.kill()
    process.communicate()
    if path.exists():
        read_run(path)
    assert cli("fit", "wall_second_order", wall, "-o", path, *QUICK, "--resume").code == 0
    read_run(path)
    assert not path.with_name("run.nc.partial").exists()


def started(wall: Path, path: Path) -> subprocess.Popen[str]:
    typed = ["-m", "atomzoo", "fit", "wall_second_order", wall, "-o", path, *QUICK]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, typed)], text=True, **streams)


def wait_for(process: subprocess.Popen[str], event: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not event():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        # Shorter than what it waits for.
        time.sleep(0.002)


@pytest.mark.slow
def test_an_interrupted_comparison_keeps_its_finished_runs(cli, wall, tmp_path, monkeypatch):
    from atomzoo.reports import compare

    monkeypatch.setattr(compare, "leave_one_out", lambda *_: signal.raise_signal(signal.SIGINT))
    runs = tmp_path / "runs"
    rivals = ("wall_second_order", "wall_first_order")
    stopped = cli(
        "compare", wall, *rivals, "--save-runs", runs, "--json", tmp_path / "t.json", "-q"
    )
    assert stopped.code == 130
    assert str(runs) in stopped.err
    assert os.listdir(runs) == ["wall_second_order.nc"]
    assert not (tmp_path / "t.json").exists()
