"""The command line in this process, through the same entry that a shell uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from atomzoo.cli import main
from atomzoo.datasets.files import write
from atomzoo.datasets.scenes import simulate


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli("fit", model, path, "-o", run)`."""

    def typed(*args: object) -> Result:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return typed


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """The one line with which a command is refused."""

    def typed(*args: object) -> str:
        found = cli(*args)
        assert found.code == 2, found
        assert found.out == ""
        assert found.err.startswith("error: ")
        assert found.err.endswith("\n")
        assert found.err.count("\n") == 1
        assert found.err[:-1].isprintable()
        return found.err

    return typed


@pytest.fixture(scope="session")
def wall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small wall, quick to fit."""
    data = simulate("wall_second_order", seed=3)
    return write(data, tmp_path_factory.mktemp("data") / "wall.nc")


@pytest.fixture(scope="session")
def fitted(wall: Path) -> Path:
    """A run of it."""
    path = wall.with_name("run.nc")
    assert main(["fit", "wall_second_order", str(wall), "-o", str(path), "--quiet"]) == 0
    return path
