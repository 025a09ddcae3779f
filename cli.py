"""The command line: each command reads what was typed, calls the package, and shows what came of it.

Whatever takes time to import is imported by the command that needs it, so that help comes at once.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _inputs as inputs
from . import _options as opt
from ._terminal import InputError, hint_on_interrupt, note, plain, progress, run, say

if TYPE_CHECKING:
    import xarray as xr

    from .models.model import Model
    from .reports.given import Made

__all__ = ["app", "main"]

DATA_SUFFIXES = (".nc", ".h5", ".hdf5")
DEMO_MODEL = "wall_first_order"

app = typer.Typer(
    name="atomzoo",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: atomzoo demo",
)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        args: what was typed after `atomzoo`, by default what this process was started with.
    """
    return run(typer.main.get_command(app), args)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        found = "(not installed)"
        with suppress(PackageNotFoundError):
            found = version("atomzoo")
        say(f"atomzoo {found}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _atomzoo(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Which model made these data, how sure is that, and when can they not tell.

    Data come from files of microscopes, arrays and tables. Runs are NetCDF
    files that ArviZ reads, a report is one HTML page.

    Exit codes: 0 done, 1 a gate failed (with --strict), 2 the input was
    wrong, 130 interrupted.
    """
    if context.invoked_subcommand is None:
        say(context.get_help())


@app.command("list", epilog="Example: atomzoo list --kind profile")
def list_models(
    kind: opt.OfKind = None,
    family: opt.OfFamily = None,
    as_json: opt.AsJson = False,
) -> None:
    """List the models of the catalogue."""
    from ._show import catalogue_json, show_catalogue
    from .datasets.kinds import measured_kinds
    from .models.model import models

    every = models()
    _check_choice("kind", kind, list(measured_kinds()))
    _check_choice("family", family, list(dict.fromkeys(m.family for m in every)))
    found = models(kind, family)
    if as_json:
        typer.echo(catalogue_json(found))
    else:
        show_catalogue(found)


def _check_choice(name: str, value: str | None, known: list[str]) -> None:
    if value is not None and value not in known:
        raise InputError(f"there is no {name} {value!r}; there are {', '.join(known)}")


@app.command(epilog="Example: atomzoo show wall_bloch")
def show(
    model: opt.ModelName,
    certificate: opt.Certificate = None,
) -> None:
    """Show a model's card and priors, and its certificates if it has any."""
    from ._show import show_certificate, show_certificates, show_model
    from .inference.certificates import Certificate, certificates_of
    from .inference.fit import runner_of

    found = _model(model)
    issued = Certificate.read(certificate) if certificate else None
    if issued is not None and issued.model != found.name:
        raise InputError(f"{certificate} is a certificate of {issued.model}, not of {found.name}")
    kept = certificates_of(found.name)
    show_model(found, runner_of(found, None)[0])
    if issued is not None:
        say()
        show_certificate(issued)
    elif not found.amortised:
        say()
        show_certificates(found, kept)


@app.command(epilog="Example: atomzoo scenes")
def scenes() -> None:
    """List the scenes that can be simulated."""
    from ._show import show_scenes
    from .datasets.scenes import scenes

    show_scenes(scenes())


@app.command(
    epilog="Example: atomzoo simulate ferroelectric_wall -o wall.nc --seed 1 -p noise=0.02"
)
def simulate(
    scene: opt.SceneName,
    output: opt.DataOutput,
    seed: opt.Seed = 0,
    parameter: opt.Parameter = None,
    prior: opt.Prior = None,
    override: opt.Override = None,
) -> None:
    """Simulate data, with the truth beside them.

    Where a scene and a model share a name, --prior or -P says that the model is meant.
    """
    target = inputs.target(output, DATA_SUFFIXES)
    from .datasets.files import write
    from .models.simulate import simulate

    given = inputs.values(parameter, "-p")
    _check_free(given)
    chosen = inputs.chosen_prior(prior, inputs.pairs(override, "-P"))
    made = simulate(scene, seed=seed, prior=chosen, **given)
    write(made, target)
    _say_written(output, made)


def _check_free(given: dict[str, Any]) -> None:
    """Parameters share their way with arguments of `simulate`."""
    for taken in ("name", "seed", "prior", "data"):
        if taken in given:
            raise InputError(f"-p {taken}: not a parameter")


def _say_written(path: Path, made: xr.Dataset) -> None:
    from ._show import known_truth

    sizes = " × ".join(f"{made.sizes[dim]} {dim}" for dim in made[_main_variable(made)].dims)
    say(f"wrote {plain(path)}: {made.attrs['kind']}, {sizes}")
    if truth := known_truth(made):
        say(f"truth: {truth}")


def _main_variable(data: xr.Dataset) -> str:
    from .datasets.kinds import kind_of

    return kind_of(data).main


@app.command(epilog="Example: atomzoo inspect image.tif --pixel-size 0.02")
def inspect(
    file: opt.DataFile,
    kind: opt.Kind = None,
    pixel_size: opt.PixelSize = None,
    channel: opt.Channel = None,
    plane: opt.Plane = None,
    units: opt.Units = None,
    attr: opt.Attr = None,
) -> None:
    """Say what a file is, if it is valid, and which models fit it."""
    from ._show import show_data, show_run
    from .models.model import models

    hints = inputs.hints(kind, pixel_size, channel, plane, units, attr)
    data, run = inputs.data_or_run(file, hints)
    if run is not None:
        from .reports.diagnose import diagnose
        from .reports.given import given_by, model_of

        say("a run:")
        show_run(run, diagnose(run))
        model = model_of(run)
        if model is None or model.giver is None:
            return
        made = given_by(run)
        say(f"\nwhat it gives to other models, {made.count}:\n")
        data = made.data
    assert data is not None
    show_data(data, models())


def _data(file: Path, hints: dict[str, Any]) -> tuple[xr.Dataset, Made | None]:
    """The data of a file, and of a run what its model gives to others."""
    data, run = inputs.data_or_run(file, hints)
    if run is None:
        assert data is not None
        return data, None
    from .inference.runs import RunError
    from .reports.given import given_by

    try:
        made = given_by(run)
    except RunError as error:
        raise InputError(f"{file}: {error}") from None
    return made.data, made


@app.command(
    epilog="Example: atomzoo fit wall_first_order wall.nc -o run.nc --prior PbTiO3 -P eta=0.5"
)
def fit(
    model: opt.ModelName,
    file: opt.DataFile,
    output: opt.RunOutput,
    prior: opt.Prior = None,
    override: opt.Override = None,
    runner: opt.Runner = None,
    seed: opt.Seed = 0,
    option: opt.Option = None,
    resume: opt.Resume = False,
    give: opt.Give = None,
    strict: opt.Strict = False,
    quiet: opt.Quiet = False,
    kind: opt.Kind = None,
    pixel_size: opt.PixelSize = None,
    channel: opt.Channel = None,
    plane: opt.Plane = None,
    units: opt.Units = None,
    attr: opt.Attr = None,
) -> None:
    """Fit a model to data.

    What an interrupted run has done is kept beside its output, as
    RUN.nc.partial. The same command with --resume goes on from there and
    gives the same draws as a run that was never interrupted.
    """
    target = inputs.target(output, (".nc",), inputs=[file])
    given = inputs.maybe_target(give, DATA_SUFFIXES, inputs=[file])
    if given == target:
        raise InputError(f"{give} cannot hold both the run and the data that it gives")
    chosen = inputs.chosen_prior(prior, inputs.pairs(override, "-P"))
    data, source = _data(file, inputs.hints(kind, pixel_size, channel, plane, units, attr))
    from ._show import show_run
    from .datasets.files import write
    from .inference.fit import check_fit, fit, runner_of
    from .inference.runs import write_run
    from .reports.diagnose import diagnose
    from .reports.given import made_by
    from .reports.plan import maker_of

    found = _model(model)
    name, function = runner_of(found, runner)
    options = inputs.option_values(name, function, option)
    if not found.takes(data.attrs["kind"]) and (maker := maker_of(data, found.kind)):
        raise InputError(
            f"{found.name} needs {found.kind}, and {file} is of kind {data.attrs['kind']}: first "
            f"atomzoo fit {maker.name} {file} -o {found.kind}.nc, then fit {found.name} to {found.kind}.nc"
        )
    check_fit(found, data, chosen)
    if given is not None and found.giver is None:
        raise InputError(f"{found.name} gives no data: leave out --give")
    if source is not None:
        say(f"{plain(file)}: {source.step}\n")
    partial = target.with_name(f"{target.name}.partial")
    _start(partial, resume)
    with hint_on_interrupt(lambda: _what_is_kept(partial)):
        with progress(quiet) as report:
            made = fit(
                found,
                data,
                prior=chosen,
                runner=name,
                seed=seed,
                progress=report,
                checkpoint=partial,
                **options,
            )
        write_run(made, target)
    partial.unlink(missing_ok=True)
    gates = diagnose(made)
    show_run(made, gates)
    say(f"\nwrote {plain(output)}")
    if given is not None and found.giver is not None:
        write(made_by(made, found, data, found.name).data, given)
        say(f"wrote {plain(give)}, of kind {found.gives}")
    elif found.giver is not None:
        say(f"it serves as {found.gives} too: atomzoo compare {plain(output)}")
    _end_strictly(strict, [gate.name for gate in gates if gate.fault])


def _start(partial: Path, resume: bool) -> None:
    """Settle what becomes of an earlier run that was interrupted."""
    if partial.exists() and not resume:
        note(
            f"{partial} is left from an interrupted run; starting over (--resume would go on from it)"
        )
        partial.unlink()
    elif resume and not partial.exists():
        note(f"there is no {partial} to go on from; starting at the beginning")


def _what_is_kept(partial: Path) -> str:
    if partial.exists():
        return f"what was done is kept in {partial}; the same command with --resume goes on"
    return "nothing was far enough to be kept"


def _end_strictly(strict: bool, failed: list[str]) -> None:
    if strict and failed:
        note(f"failed gates: {', '.join(failed)}")
        raise typer.Exit(1)


@app.command(
    epilog="Example: atomzoo compare wall.nc -o report.html --json table.json --prior PbTiO3"
)
def compare(
    file: opt.DataFile,
    models: opt.Rivals = None,
    output: opt.MaybePage = None,
    table: opt.TableOutput = None,
    save_runs: opt.SaveRuns = None,
    prior: opt.Prior = None,
    override: opt.Override = None,
    runner: opt.Runner = None,
    seed: opt.Seed = 0,
    option: opt.Option = None,
    strict: opt.StrictOnBest = False,
    quiet: opt.Quiet = False,
    kind: opt.Kind = None,
    pixel_size: opt.PixelSize = None,
    channel: opt.Channel = None,
    plane: opt.Plane = None,
    units: opt.Units = None,
    attr: opt.Attr = None,
) -> None:
    """Compare models: which one made the data, or can the data not tell?

    Fits every model that could have made them. An override with -P goes to
    the models that have the parameter.
    """
    page = inputs.maybe_target(output, (".html", ".htm"), inputs=[file])
    listed = inputs.maybe_target(table, (".json",), inputs=[file])
    chosen = inputs.chosen_prior(prior, inputs.pairs(override, "-P"))
    data, source = _data(file, inputs.hints(kind, pixel_size, channel, plane, units, attr))
    from ._show import show_comparison
    from .inference.runs import write_run, write_text
    from .reports.compare import compare
    from .reports.plan import plan

    planned = plan(data, [_model(name) for name in models] if models else None)
    rivals = planned.models
    options = _options_of_all(rivals, runner, option)
    runs = None if save_runs is None else inputs.folder(save_runs)
    if runs is not None:
        for rival in (*planned.makers.values(), *rivals):
            inputs.check_kept(runs / f"{rival.name}.nc", [file])

    def keep(made: xr.DataTree) -> None:
        if runs is not None:
            runs.mkdir(exist_ok=True)
            write_run(made, runs / f"{made.attrs['model']}.nc")

    kept = f"finished runs are in {save_runs}" if runs else "nothing was written"
    with hint_on_interrupt(lambda: kept), progress(quiet) as report:
        found = compare(
            source.run if source else data,
            rivals if models else None,
            prior=chosen,
            runner=runner,
            seed=seed,
            progress=report,
            on_run=keep,
            **options,
        )
    if listed is not None:
        write_text(json.dumps(found.as_json(), ensure_ascii=False, indent=1), listed)
    if page is not None:
        from .reports.page import report as write_page

        write_page(found, page)
    show_comparison(found)
    written = [plain(path) for path in (output, table, save_runs) if path is not None]
    if written:
        say(f"\nwrote {', '.join(written)}")
    resting = found.standing
    _end_strictly(
        strict,
        [
            f"{row.model.name}: {gate.name}"
            for row in found.rows
            for gate in row.gates
            if row.model.name in resting and gate.fault
        ],
    )


def _options_of_all(
    rivals: list[Model], runner: str | None, option: list[str] | None
) -> dict[str, Any]:
    """The options, which every rival's runner must have."""
    from .inference.fit import runner_of

    found: dict[str, Any] = {}
    for model in rivals:
        name, function = runner_of(model, runner)
        found |= inputs.option_values(name, function, option)
    return found


@app.command(epilog="Example: atomzoo report run.nc -o report.html")
def report(
    files: opt.Runs,
    output: opt.Page,
) -> None:
    """Write a report of a run, or of several runs side by side."""
    page = inputs.target(output, (".html", ".htm"), inputs=files)
    from .inference.runs import read_run
    from .reports.page import report

    runs = [read_run(file) for file in files]
    report(runs[0] if len(runs) == 1 else runs, page)
    say(f"wrote {plain(output)}")


@app.command(epilog="Example: atomzoo calibrate wall_second_order -n 200 -o certificate.json")
def calibrate(
    model: opt.ModelName,
    output: opt.CertificateOutput,
    n: opt.Simulations = 200,
    workers: opt.Workers = None,
    dask: opt.Dask = None,
    timeout: opt.Timeout = 600.0,
    prior: opt.Prior = None,
    override: opt.Override = None,
    runner: opt.Runner = None,
    seed: opt.Seed = 0,
    option: opt.Option = None,
    resume: opt.ResumeCalibration = False,
    strict: opt.StrictOnRanks = False,
    quiet: opt.Quiet = False,
) -> None:
    """Check a model against data that it simulated itself.

    Parameters are drawn from the prior, data from the parameters, and the
    model is fitted to the data, again and again. Where the fits are right,
    the true values fall evenly among the posterior draws.

    What an interrupted calibration has done is kept beside its output, as
    CERTIFICATE.json.partial; --resume goes on from there.
    """
    target = inputs.target(output, (".json",))
    if dask is not None and workers is not None:
        raise InputError("--workers are processes of this machine: leave it out with --dask")
    chosen = inputs.chosen_prior(prior, inputs.pairs(override, "-P"))
    from ._show import show_certificate
    from .inference.calibrate import calibrate
    from .inference.fit import runner_of
    from .inference.workers import dask_executor
    from .reports.diagnose import diagnose

    found = _model(model)
    options = inputs.option_values(*runner_of(found, runner), option)
    partial = target.with_name(f"{target.name}.partial")
    with (
        dask_executor(dask) if dask is not None else nullcontext() as executor,
        hint_on_interrupt(lambda: _what_is_kept(partial)),
    ):
        _start(partial, resume)
        with progress(quiet) as report:
            issued = calibrate(
                found,
                n,
                prior=chosen,
                runner=runner,
                seed=seed,
                executor=executor,
                workers=workers,
                timeout=timeout,
                check=diagnose,
                progress=report,
                checkpoint=partial,
                **options,
            )
    issued.write(target)
    partial.unlink(missing_ok=True)
    show_certificate(issued)
    say(f"\nwrote {plain(output)}")
    _end_strictly(
        strict, [q.name for q in issued.quantities if not q.passed] or list(issued.failures[:1])
    )


@app.command(epilog="Example: atomzoo demo -o first-look")
def demo(
    output: opt.DemoFolder = Path("atomzoo-demo"),
    quiet: opt.Quiet = False,
) -> None:
    """Simulate a ferroelectric wall, fit a model, compare all, write reports.

    Takes a minute or two. Every step is shown as the command that does it.
    """
    place = inputs.folder(output)
    wall, made = place / "wall.nc", place / f"{DEMO_MODEL}.nc"
    steps: list[list[Any]] = [
        ["simulate", "ferroelectric_wall", "-o", wall, "--seed", 1],
        ["inspect", wall],
        ["fit", DEMO_MODEL, wall, "-o", made],
        ["report", made, "-o", place / f"{DEMO_MODEL}.html"],
        ["compare", wall, "-o", place / "report.html", "--json", place / "table.json"],
    ]
    place.mkdir(exist_ok=True)
    command = typer.main.get_command(app)
    for step in steps:
        typed = [str(part) for part in step]
        say(f"\n$ atomzoo {shlex.join(typed)}", style="bold cyan")
        if quiet and step[0] in ("fit", "compare"):
            typed.append("--quiet")
        if command.main(args=typed, prog_name="atomzoo", standalone_mode=False):
            raise typer.Exit(1)
    say(f"\nOpen {plain(place / 'report.html')} in a browser.", style="bold")


def _model(reference: str) -> Model:
    from .models.files import find_anywhere

    return find_anywhere(reference)
