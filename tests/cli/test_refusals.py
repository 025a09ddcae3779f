"""Wrong input: exit 2, one line, nothing written, no traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atomzoo import cli as command_line
from atomzoo.datasets.kinds import DataError
from atomzoo.tests.datasets.malformed import CANARY, malformed_files


@pytest.fixture(scope="module")
def malformed(tmp_path_factory) -> dict[str, Path]:
    return malformed_files(tmp_path_factory.mktemp("malformed"))


@pytest.mark.parametrize("command", ["inspect", "fit", "compare"])
def test_malformed_files_are_refused_with_one_line(command, malformed, refused, tmp_path):
    words = {
        "inspect": ["inspect", "FILE"],
        "fit": ["fit", "wall_second_order", "FILE", "-o", tmp_path / "run.nc"],
        "compare": ["compare", "FILE", "-o", tmp_path / "r.html", "--json", tmp_path / "t.json"],
    }
    for path in malformed.values():
        before = sorted(path.parent.iterdir())
        refused(*(path if word == "FILE" else word for word in words[command]))
        assert sorted(path.parent.iterdir()) == before
        assert not (path.parent / CANARY).exists()
    assert list(tmp_path.iterdir()) == []


def test_malformed_files_are_no_runs(malformed, refused, tmp_path):
    for path in malformed.values():
        if path.suffix in (".nc", ".h5", ".csv"):
            refused("report", path, "-o", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


FIT = ["fit", "wall_second_order", "WALL", "-o", "OUT/run.nc"]
DASK = ["calibrate", "wall_bloch", "-o", "OUT/c.json", "--dask", "tcp://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["fit"], "Missing argument 'MODEL'"),
        (["fit", "wall_bloch", "WALL"], "Missing option"),
        ([*FIT, "--nonsense"], "No such option"),
        ([*FIT, "--seed", "-1"], "--seed"),
        ([*FIT, "--seed", "x"], "--seed"),
        (["list", "--kind", "nonsense"], "there is no kind 'nonsense'"),
        (["list", "--family", "nonsense"], "there is no family 'nonsense'"),
        (["show", "wall_second"], "did you mean wall_second_order"),
        (["show", "OUT/mine.py:x"], "no such file"),
        (["show", "OUT/mine.py"], "say which model"),
        (["show", "wall_bloch", "--certificate", "WALL"], "cannot be read as JSON"),
        (["simulate", "nonsense", "-o", "OUT/x.nc"], "no scene or model 'nonsense'"),
        (["simulate", "wall_bloch", "-o", "OUT/x.txt"], "name it x.nc"),
        (["simulate", "wall_bloch", "-o", "OUT/x.nc", "-p", "noise"], "expected name=value"),
        (["simulate", "wall_bloch", "-o", "OUT/x.nc", "-p", "a=1"], "has no parameter a"),
        (["simulate", "wall_bloch", "-o", "OUT/x.nc", "-p", "noise=-1"], "must be positive"),
        (["simulate", "wall_bloch", "-o", "OUT/x.nc", "-p", "rows=x"], "like its default 1"),
        (["simulate", "wall_bloch", "-o", "OUT/x.nc", "-p", "rows=1.5"], "whole number"),
        (["simulate", "wall_bloch", "-o", "OUT/x.nc", "-p", "cells=1e12"], "above the limit"),
        (["simulate", "wall_bloch", "-o", "OUT/x.nc", "-p", "seed=1"], "not a parameter"),
        (
            ["simulate", "wall_bloch", "-o", "OUT/x.nc", "--prior", "vague", "-p", "noise=-1"],
            "noise = -1: expected a number that HalfNormal",
        ),
        (
            ["simulate", "wall_bloch", "-o", "OUT/x.nc", "--prior", "vague", "-p", "P_s=[1, 2, 3]"],
            "cannot be simulated with these values",
        ),
        (["inspect", "OUT/none.nc"], "no such file"),
        (["inspect", "OUT"], "it is a folder"),
        (["inspect", "WALL", "--pixel-size", "big"], "--pixel-size big"),
        (["inspect", "WALL", "--plane", "x"], "--plane x"),
        (["inspect", "WALL", "--attr", "lattice"], "expected name=value"),
        (["inspect", "WALL", "--kind", "image"], "kind"),
        (["fit", "nonsense", "WALL", "-o", "OUT/run.nc"], "no model 'nonsense'"),
        (["fit", "wall_bloch", "WALL", "-o", "OUT/run.nc"], "needs 2 along 'component'"),
        (["fit", "wall_second_order", "WALL", "-o", "OUT"], "is a folder"),
        (["fit", "wall_second_order", "WALL", "-o", "OUT/none/run.nc"], "there is no folder"),
        (["fit", "wall_second_order", "WALL", "-o", "WALL/run.nc"], "there is no folder"),
        (["fit", "wall_second_order", "WALL", "-o", "WALL"], "is an input"),
        (["fit", "wall_second_order", "WALL", "-o", "/proc/run.nc"], "cannot write into /proc"),
        (["fit", "wall_second_order", "WALL", "-o", "OUT/" + "n" * 300 + ".nc"], "name too long"),
        (["fit", "wall_second_order", "WALL", "-o", "OUT/run.txt"], "name it run.nc"),
        ([*FIT, "--prior", "nonsense"], "no prior set 'nonsense'"),
        ([*FIT, "-P", "nonsense=1"], "no parameter nonsense"),
        ([*FIT, "-P", "noise=Normal("], "cannot read the prior 'Normal('"),
        ([*FIT, "-P", "noise=__import__('os')"], "cannot read the prior"),
        ([*FIT, "-P", "noise=1", "-P", "noise=2"], "given twice"),
        ([*FIT, "--runner", "nonsense"], "no runner 'nonsense'"),
        ([*FIT, "-O", "nonsense=1"], "has no option nonsense"),
        ([*FIT, "-O", "ess=many"], "expected a whole number"),
        ([*FIT, "-O", "ess=0"], "at least 1"),
        ([*FIT, "--runner", "nuts", "-O", "target_acceptance=high"], "expected a number"),
        (["compare", "WALL", "wall_bloch"], "needs 2 along 'component'"),
        (["compare", "WALL", "nonsense"], "no model 'nonsense'"),
        (["compare", "WALL", "-P", "nonsense=1"], "no model here has a parameter nonsense"),
        (["compare", "WALL", "-o", "OUT/report.pdf"], "name it report.html"),
        (["compare", "WALL", "--json", "OUT/table.txt"], "name it table.json"),
        (["compare", "WALL", "--save-runs", "WALL"], "expected a folder"),
        (["compare", "WALL", "--save-runs", "OUT/none/runs"], "there is no folder"),
        (["compare", "WALL", "--save-runs", "OUT/runs", "-P", "nonsense=1"], "no model here"),
        (["report", "WALL", "-o", "OUT/report.html"], "not a run"),
        (["report", "OUT/none.nc", "-o", "OUT/report.html"], "no such file"),
        (["calibrate", "wall_bloch", "-n", "5", "-o", "OUT/c.json"], "-n"),
        (["calibrate", "wall_bloch", "-o", "OUT/c.nc"], "name it c.json"),
        (["calibrate", "wall_bloch", "-o", "OUT/c.json", "--workers", "0"], "--workers"),
        (["calibrate", "wall_bloch", "-o", "OUT/c.json", "--timeout", "0"], "more than 0"),
        (
            ["calibrate", "wall_bloch", "-o", "OUT/c.json", "--dask", "nonsense"],
            "no dask scheduler",
        ),
        ([*DASK, "--workers", "2"], "leave it out with --dask"),
        (["demo", "-o", "WALL"], "expected a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(refused, wall, tmp_path, words, says):
    before = wall.read_bytes()
    typed = [word.replace("WALL", str(wall)).replace("OUT", str(tmp_path)) for word in words]
    assert says.lower() in refused(*typed).lower()
    assert list(tmp_path.iterdir()) == []
    assert wall.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero (line 1)"),
        ("x = \n", "SyntaxError"),
        ("import no_such_module\n", "no_such_module"),
        ("x = 1\n", "it has none"),
        ("raise SystemExit\n", "SystemExit"),
    ],
)
def test_a_broken_file_of_the_users_is_refused_with_its_line(refused, tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert says in refused("show", f"{path}:x")


def test_saved_runs_do_not_overwrite_the_data(refused, wall, tmp_path):
    data = tmp_path / "wall_second_order.nc"
    data.write_bytes(wall.read_bytes())
    said = refused("compare", data, "wall_second_order", "--save-runs", tmp_path)
    assert "is an input" in said
    assert data.read_bytes() == wall.read_bytes()


def test_control_characters_in_names_do_not_reach_the_terminal(refused, cli, tmp_path, wall):
    evil = tmp_path / "evil\x1b[2J\u202ename\n.csv"
    evil.write_text("")
    assert "evil" in refused("inspect", evil)
    refused("fit", "wall_second_order", tmp_path / "gone\x1b[2J.nc", "-o", tmp_path / "x.nc")
    found = cli("simulate", "wall_bloch", "-o", tmp_path / "made\x1b[2J.nc")
    assert found.code == 0
    assert "\x1b" not in found.out


def test_a_full_disk_is_one_line(refused, monkeypatch, tmp_path):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "wall.nc")

    monkeypatch.setattr("atomzoo.datasets.files.write", full)
    assert "No space left" in refused("simulate", "wall_bloch", "-o", tmp_path / "wall.nc")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_refused(refused, wall, tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot write" in refused("fit", "wall_second_order", wall, "-o", tmp_path / "run.nc")


def test_an_error_of_ours_says_how_to_see_more(cli, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by us\nand more")

    monkeypatch.setattr("atomzoo.datasets.scenes.scenes", broken)
    found = cli("scenes")
    assert found.code == 70
    assert found.err.count("\n") == 1
    assert "ZeroDivisionError: by us" in found.err
    assert "ATOMZOO_DEBUG=1" in found.err
    monkeypatch.setenv("ATOMZOO_DEBUG", "1")
    assert "Traceback" in cli("scenes").err


def test_an_error_of_the_data_shows_its_traceback_only_when_asked(cli, monkeypatch):
    def wrong(*_: object) -> None:
        raise DataError("wrong")

    monkeypatch.setattr("atomzoo.datasets.scenes.scenes", wrong)
    assert cli("scenes").err == "error: wrong\n"
    monkeypatch.setenv("ATOMZOO_DEBUG", "1")
    assert "Traceback" in cli("scenes").err


def test_a_terminal_without_greek_gets_question_marks():
    code = "import sys; from atomzoo.cli import main; sys.exit(main(['show', 'wall_first_order']))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert found.returncode == 0, found
    assert b"?" in found.stdout


@pytest.mark.slow
def test_malformed_files_are_refused_in_processes_of_their_own(malformed, tmp_path):
    for command in (["inspect"], ["fit", "wall_bloch"], ["compare"]):
        output = [] if command == ["inspect"] else ["-o", str(tmp_path / "x.html")]
        output = ["-o", str(tmp_path / "x.nc")] if command[0] == "fit" else output
        path = str(malformed["truncated_netcdf"])
        words = [sys.executable, "-m", "atomzoo", *command, path, *output]
        found = subprocess.run(words, capture_output=True, text=True)
        assert (found.returncode, found.stdout) == (2, "")
        assert found.stderr.startswith("error: ")
        assert found.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_entry_point_returns_its_code():
    assert command_line.main(["--version"]) == 0
    assert command_line.main(["nonsense"]) == 2
