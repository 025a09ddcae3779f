"""What the commands take: every argument and option with its help, named as the commands name it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LARGEST_SEED = 2**31 - 1
HINTS = "Hints for reading"

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model of the catalogue, or one of your own: my_models.py:my_wall."
    ),
]
DataFile = Annotated[Path, typer.Argument(metavar="FILE", help="The data.")]
Prior = Annotated[
    str | None, typer.Option("--prior", metavar="SET", help="Prior set, such as vague or PbTiO3.")
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "-P", metavar="NAME=EXPRESSION", help="A prior of your own: -P 'L_c=LogNormal(0, 1)'."
    ),
]
Runner = Annotated[
    str | None,
    typer.Option("--runner", metavar="NAME", help="By default the one that the model prefers."),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "-O",
        metavar="OPTION=VALUE",
        help="An option of the runner: -O ess=4000; of all of them: -O device=cuda.",
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, max=LARGEST_SEED, help="The same seed gives the same result."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 when a gate failed.")]
Kind = Annotated[
    str | None,
    typer.Option(
        "--kind", help="What the data are: image, profile, table, …", rich_help_panel=HINTS
    ),
]
PixelSize = Annotated[
    str | None,
    typer.Option(
        "--pixel-size",
        metavar="SIZE",
        help="Of a pixel: 0.02 (nm), '20 pm', or y,x.",
        rich_help_panel=HINTS,
    ),
]
Channel = Annotated[
    str | None,
    typer.Option(
        "--channel", help="Which of several arrays, by name or number.", rich_help_panel=HINTS
    ),
]
Plane = Annotated[
    str | None,
    typer.Option(
        "--plane", metavar="[AXIS,]NUMBER", help="One image of a stack.", rich_help_panel=HINTS
    ),
]
Units = Annotated[
    list[str] | None,
    typer.Option(
        "--units",
        metavar="NAME=UNIT",
        help="Unit of a variable or coordinate.",
        rich_help_panel=HINTS,
    ),
]
Attr = Annotated[
    list[str] | None,
    typer.Option(
        "--attr",
        metavar="NAME=VALUE",
        help="An attribute: --attr lattice=square.",
        rich_help_panel=HINTS,
    ),
]

Certificate = Annotated[
    Path | None,
    typer.Option("--certificate", metavar="FILE", help="What `atomzoo calibrate` wrote."),
]
SceneName = Annotated[
    str, typer.Argument(metavar="SCENE", help="A scene, or a model for its prior predictive.")
]
DataOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="Where the data go (.nc).")
]
Parameter = Annotated[
    list[str] | None,
    typer.Option("-p", metavar="NAME=VALUE", help="A parameter of the scene or model."),
]
OfKind = Annotated[str | None, typer.Option("--kind", help="Only models of this kind of data.")]
OfFamily = Annotated[str | None, typer.Option("--family", help="Only models of this family.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
RunOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="RUN.nc", help="Where the run goes.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from RUN.nc.partial, if it is there.")
]
Give = Annotated[
    Path | None,
    typer.Option(
        "--give",
        metavar="DATA.nc",
        help="Where the data go that the fit gives, for other models to be fitted to.",
    ),
]
Rivals = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help="By default all that can be fitted to these data."),
]
MaybePage = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="REPORT.html", help="Where the report goes."),
]
TableOutput = Annotated[
    Path | None,
    typer.Option("--json", metavar="TABLE.json", help="The comparison for programs."),
]
SaveRuns = Annotated[
    Path | None,
    typer.Option("--save-runs", metavar="DIR", help="Keep every run, as DIR/MODEL.nc."),
]
StrictOnBest = Annotated[
    bool,
    typer.Option(
        "--strict", help="Exit with 1 when a gate of the winner, or of a tied model, failed."
    ),
]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN.nc...", help="What `atomzoo fit` wrote.")]
Page = Annotated[
    Path, typer.Option("-o", "--output", metavar="REPORT.html", help="Where the report goes.")
]
CertificateOutput = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="CERTIFICATE.json", help="Where the certificate goes."),
]
Simulations = Annotated[int, typer.Option("-n", min=20, help="Number of simulations.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes, by default one a processor.")
]
Dask = Annotated[
    str | None,
    typer.Option("--dask", metavar="ADDRESS", help="Run on the workers of this Dask scheduler."),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", metavar="SECONDS", help="A fit that takes longer is ended and tried once more."
    ),
]
ResumeCalibration = Annotated[
    bool, typer.Option("--resume", help="Go on from CERTIFICATE.json.partial, if it is there.")
]
StrictOnRanks = Annotated[
    bool, typer.Option("--strict", help="Exit with 1 when the calibration failed.")
]
DemoFolder = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR", help="Where its files go.")
]
