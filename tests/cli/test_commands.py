import json
import os
import re
import subprocess
import sys
from pathlib import Path

import arviz_base
import h5py
import numpy as np
import pytest

import atomzoo
from atomzoo.datasets.files import read
from atomzoo.datasets.scenes import scenes
from atomzoo.inference.runs import read_run
from atomzoo.models.model import models

COMMANDS = [
    "list",
    "show",
    "scenes",
    "simulate",
    "inspect",
    "fit",
    "compare",
    "report",
    "calibrate",
    "demo",
]
OWN_MODEL = '''
from pyro.distributions import HalfNormal, Normal
from atomzoo.datasets.walls import wall_second_order
from atomzoo.models.model import model, observe, sample

@model(
    kind="profile",
    priors={"vague": {"height": Normal(0.0, 1.0), "noise": HalfNormal(1.0)}},
    runner="laplace",
    design=wall_second_order,
)
def NAME(wall, prior):
    """A flat line."""
    observe("value", Normal(sample("height", prior.height), sample("noise", prior.noise)))
'''


def python(*args: object, **settings: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, **settings)  # type: ignore[call-overload]


def own_model(folder: Path, name: str) -> Path:
    path = folder / "my_models.py"
    path.write_text(OWN_MODEL.replace("NAME", name))
    return path


def test_help_names_every_command_and_each_has_an_example(cli):
    general = cli("--help")
    assert general.code == 0
    for command in COMMANDS:
        assert command in general.out
        own = cli(command, "--help")
        assert own.code == 0
        example = re.search(rf"Example: atomzoo {command}\b.*", own.out)
        assert example, f"no example in the help of {command}"


def test_without_a_command_there_is_help(cli):
    found = cli()
    assert found.code == 0
    assert "Usage" in found.out


def test_version(cli):
    found = cli("--version")
    assert found.code == 0
    assert re.fullmatch(r"atomzoo \S.*\n", found.out)


def test_list_shows_every_model(cli):
    found = cli("list")
    assert found.code == 0
    assert all(m.name in found.out for m in models())


def test_list_narrows_by_kind_and_family(cli):
    for chosen in (
        {"kind": "profile"},
        {"family": "order"},
        {"kind": "profile", "family": "order"},
    ):
        options = [word for name, value in chosen.items() for word in (f"--{name}", value)]
        listed = json.loads(cli("list", *options, "--json").out)
        assert [m["model"] for m in listed] == [m.name for m in models(**chosen)]


def test_list_as_json_has_what_a_program_needs(cli):
    listed = json.loads(cli("list", "--json").out)
    bloch = next(m for m in listed if m["model"] == "wall_bloch")
    assert bloch["kind"] == "profile"
    assert bloch["priors"]["vague"]["P_s"] == "HalfNormal(2 * value.peak)"
    assert bloch["contains"] == {"wall_second_order": {"P_B": 0.0}}


def test_show_has_the_card_the_priors_the_runner_and_the_special_cases(cli):
    found = cli("show", "wall_bloch")
    assert found.code == 0
    for part in (
        "**Assumes**",
        "PbTiO3",
        "LogNormal(log(0.8), 0.5)",
        "laplace",
        "wall_second_order at P_B = 0",
    ):
        assert part in found.out


@pytest.mark.parametrize("scene", [s.name for s in scenes()])
def test_every_scene_is_listed_and_simulated_to_a_file_with_its_truth(cli, tmp_path, scene):
    assert scene in cli("scenes").out
    path = tmp_path / "data.nc"
    found = cli("simulate", scene, "-o", path, "--seed", 4)
    assert found.code == 0
    assert found.err == ""
    assert read(path).equals(atomzoo.simulate(scene, seed=4))


def test_simulate_takes_parameters(cli, tmp_path):
    path = tmp_path / "data.nc"
    cli("simulate", "wall_bloch", "-o", path, "-p", "rows=3", "-p", "noise=0.125")
    data = read(path)
    assert data.sizes["row"] == 3
    assert data.true_noise == 0.125


def test_simulate_of_a_model_draws_from_its_prior(cli, tmp_path):
    path = tmp_path / "data.nc"
    options = ("--prior", "PbTiO3", "-P", "L_c=3.5", "-p", "P_s=0.5", "--seed", 2)
    found = cli("simulate", "wall_bloch", "-o", path, *options)
    assert found.code == 0, found
    data = read(path)
    assert (data.attrs["model"], data.true_L_c, data.true_P_s) == ("wall_bloch", 3.5, 0.5)
    prior = {"set": "PbTiO3", "L_c": "3.5"}
    assert data.equals(atomzoo.simulate("wall_bloch", seed=2, prior=prior, P_s=0.5))


def test_inspect_says_what_a_file_is_and_which_models_fit(cli, wall):
    found = cli("inspect", wall)
    assert found.code == 0
    assert "profile" in found.out
    assert "21 x" in found.out
    assert "unit cell" in found.out
    assert re.search(r"wall_second_order +yes +vague", found.out)
    assert re.search(r"wall_bloch +no +it needs 2 along 'component'", found.out)


def test_inspect_of_a_run_shows_the_run(cli, fitted):
    found = cli("inspect", fitted)
    assert found.code == 0
    assert "wall_second_order" in found.out
    assert "P_s" in found.out


def test_a_hint_that_is_missing_is_named_as_an_option_and_does(cli, refused, tmp_path):
    path = tmp_path / "picture.npy"
    np.save(path, np.random.default_rng(0).random((8, 8)))
    assert "--kind image with --pixel-size <nm a pixel>" in refused("inspect", path)
    found = cli("inspect", path, "--pixel-size", "20,30 pm")
    assert found.code == 0, found
    assert re.search(r"y +8 y +nm +0 +0\.14", found.out)
    assert re.search(r"x +8 x +nm +0 +0\.21", found.out)


def test_other_hints_reach_the_reader(cli, tmp_path):
    stack = tmp_path / "stack.npy"
    np.save(stack, np.random.default_rng(0).random((3, 8, 8)))
    found = cli("inspect", stack, "--plane", "0,2", "--pixel-size", "0.1")
    assert "8 y × 8 x" in found.out
    codes = tmp_path / "codes.npy"
    np.save(codes, np.arange(16).reshape(4, 4) % 2)
    options = ("--kind", "lattice", "--attr", "lattice=square", "--attr", "periodic=1")
    assert "lattice: square" in cli("inspect", codes, *options).out
    several = tmp_path / "several.h5"
    with h5py.File(several, "w") as file:
        file["first"], file["second"] = np.eye(8), 7 * np.eye(8)
    found = cli("inspect", several, "--kind", "table", "--channel", "second")
    assert found.code == 0, found
    assert re.search(r"value .* 7\n", found.out)


def test_fit_writes_a_run_that_arviz_reads(fitted):
    run = arviz_base.convert_to_datatree(str(fitted))
    assert {"posterior", "log_likelihood", "posterior_predictive"} <= set(run.children)
    assert not fitted.with_name("run.nc.partial").exists()


def test_fit_takes_priors_options_and_seeds(cli, wall, tmp_path):
    path = tmp_path / "run.nc"
    options = ("--prior", "BaTiO3", "-P", "noise=0.05", "-P", "P_s=Normal(1, 0.1)")
    found = cli(
        "fit", "wall_second_order", wall, "-o", path, *options, "-O", "ess=300", "--seed", 7
    )
    assert found.code == 0, found
    run = read_run(path)
    prior = json.loads(run.attrs["prior"])
    assert (prior["noise"], prior["P_s"]) == ("0.05", "Normal(1, 0.1)")
    assert prior["L_c"].startswith("LogNormal")
    assert "noise" not in run["posterior"]
    assert json.loads(run.attrs["runner_options"]) == {"ess": 300}
    assert run.attrs["seed"] == 7
    assert re.search(r"P_s +1\.", found.out)


def test_strict_exits_with_one_when_a_gate_failed_and_keeps_the_run(cli, wall, tmp_path):
    path = tmp_path / "run.nc"
    few = ("-O", "chains=8", "-O", "ess=1", "-q")
    found = cli("fit", "wall_second_order", wall, "-o", path, *few, "--strict")
    assert found.code == 1
    assert "failed gates: " in found.err
    assert "FAILED" in found.out
    assert path.exists()
    assert cli("fit", "wall_second_order", wall, "-o", path, *few).code == 0


def test_progress_goes_to_stderr_in_plain_lines_and_quiet_is_quiet(cli, wall, tmp_path):
    typed = ("fit", "wall_second_order", wall, "-o", tmp_path / "run.nc")
    assert re.fullmatch(r"(\d+ % .*\n)+", cli(*typed).err)
    assert cli(*typed, "--quiet").err == ""


@pytest.mark.slow
def test_compare_prints_the_verdict_and_writes_table_and_runs(cli, wall, tmp_path):
    table, runs = tmp_path / "table.json", tmp_path / "runs"
    rivals = ("wall_second_order", "wall_first_order")
    overrides = ("-P", "eta=HalfNormal(2)", "-P", "noise=HalfNormal(0.1)")
    found = cli("compare", wall, *rivals, "--json", table, "--save-runs", runs, *overrides, "-q")
    assert found.code == 0, found
    written = json.loads(table.read_text())
    assert set(written) == {"data", "winner", "verdict", "models"}
    assert {m["model"] for m in written["models"]} == set(rivals)
    assert written["verdict"] in found.out
    priors = {name: json.loads(read_run(runs / f"{name}.nc").attrs["prior"]) for name in rivals}
    assert priors["wall_first_order"]["eta"] == "HalfNormal(2)"
    assert "eta" not in priors["wall_second_order"]
    assert {p["noise"] for p in priors.values()} == {"HalfNormal(0.1)"}


def test_report_writes_one_page(cli, fitted, tmp_path):
    page = tmp_path / "report.html"
    found = cli("report", fitted, "-o", page)
    assert found.code == 0, found
    assert page.read_text("utf-8").lstrip().lower().startswith("<!doctype html>")


GIVER = """
from atomzoo.datasets.kinds import dataset

def heights(run, data):
    return dataset("table", value=run["posterior"]["height"].values[:2].T, variable=["a", "b"])
"""


def test_data_that_a_fit_gives_are_written_for_the_next_fit(cli, refused, wall, tmp_path):
    path = own_model(tmp_path, "giver")
    text = path.read_text().replace("design=", 'gives=("table", heights), design=')
    path.write_text(GIVER + text)
    given = tmp_path / "given.nc"
    found = cli("fit", f"{path}:giver", wall, "-o", tmp_path / "run.nc", "--give", given, "-q")
    assert found.code == 0, found
    assert read(given).attrs["kind"] == "table"
    typed = ("fit", "wall_second_order", wall, "-o", tmp_path / "run.nc")
    assert "gives no data" in refused(*typed, "--give", given)
    assert "cannot hold both" in refused(*typed, "--give", tmp_path / "run.nc")


@pytest.mark.slow
def test_a_model_from_a_file_of_the_users_is_a_model_like_any(cli, wall, tmp_path):
    mine = f"{own_model(tmp_path, 'flat_one')}:flat_one"
    assert "A flat line." in cli("show", mine).out
    assert cli("fit", mine, wall, "-o", tmp_path / "run.nc", "-q").code == 0
    assert cli("simulate", mine, "-o", tmp_path / "data.nc").code == 0
    found = cli("compare", wall, mine, "wall_second_order", "-q")
    assert found.code == 0
    assert "wall_second_order wins" in found.out


@pytest.mark.slow
def test_calibrate_writes_a_certificate_that_show_prints(cli, refused, tmp_path):
    mine = f"{own_model(tmp_path, 'flat_two')}:flat_two"
    path = tmp_path / "certificate.json"
    options = ("-n", 20, "--workers", 1, "-O", "starts=2", "-O", "proposals=500", "--quiet")
    found = cli("calibrate", mine, "-o", path, *options)
    assert found.code == 0, found
    assert found.err == ""
    assert json.loads(path.read_text())["model"] == "flat_two"
    shown = cli("show", mine, "--certificate", path)
    for part in ("calibration of flat_two: passed", "height", "noise", "log likelihood"):
        assert part in found.out
        assert part in shown.out
    assert "a certificate of flat_two" in refused("show", "wall_bloch", "--certificate", path)


@pytest.mark.slow
def test_python_m_atomzoo_works_and_writes_no_escape_codes_into_a_pipe(tmp_path):
    """The same from a folder where nothing else is, as a user would."""
    clean = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "GITHUB_ACTIONS")}
    typed = ["-m", "atomzoo"]
    made = python(*typed, "simulate", "wall_second_order", "-o", "wall.nc", cwd=tmp_path, env=clean)
    run = python(
        *typed, "fit", "wall_second_order", "wall.nc", "-o", "run.nc", cwd=tmp_path, env=clean
    )
    for found in (made, run):
        assert found.returncode == 0, found
        assert "\x1b" not in found.stdout + found.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"wall.nc", "run.nc"}


def test_output_that_nobody_reads_is_no_error():
    command = f"{sys.executable} -m atomzoo scenes | head -n 1"
    found = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "ferroelectric_wall\n"


@pytest.mark.slow
def test_the_demo_shows_its_commands_and_the_verdict(tmp_path):
    found = python("-m", "atomzoo", "demo", "-o", "first look", "-q", cwd=tmp_path)
    assert found.returncode == 0, found
    assert found.stderr == ""
    typed = re.findall(r"^\$ atomzoo (\w+) ", found.stdout, re.MULTILINE)
    assert typed == ["simulate", "inspect", "fit", "report", "compare"]
    table = json.loads((tmp_path / "first look" / "table.json").read_text())
    assert table["winner"] == "wall_first_order"
    assert table["verdict"] in found.stdout
    assert (tmp_path / "first look" / "report.html").stat().st_size > 10_000
    assert "'first look/wall.nc'" in found.stdout, "typed again as it stands"
