"""The walks of CONTRIBUTING.md, executed as they stand there; and the README's table and example."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def blocks(name: str) -> list[str]:
    return BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture
def as_it_was():
    """The catalogue, kinds, runners and modules, put back after the walk."""
    from atomzoo.datasets.kinds import KINDS
    from atomzoo.inference.fit import RUNNERS
    from atomzoo.models.model import _CATALOGUE, models

    models()
    places = [_CATALOGUE, KINDS, RUNNERS]
    kept, modules = [dict(place) for place in places], set(sys.modules)
    yield RUNNERS
    for place, before in zip(places, kept, strict=True):
        place.clear()
        place.update(before)
    for name in set(sys.modules) - modules:
        if name.startswith("atomzoo."):
            del sys.modules[name]


def add_module(path: str, source: str) -> str:
    """A file of the package that is only in the text, imported as if it were there."""
    name = "atomzoo." + path.removesuffix(".py").replace("/", ".")
    module = ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module
    exec(compile(source, path, "exec"), module.__dict__)
    return name


@pytest.mark.slow
def test_the_walks_of_contributing_work_as_written(as_it_was, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    added = []
    for block in blocks("CONTRIBUTING.md"):
        if match := re.match(r"# file: (\S+)\n", block):
            name = add_module(match[1], block)
            added.append(name)
            if name.startswith("atomzoo.inference."):
                as_it_was[name.rpartition(".")[2]] = "." + name.rpartition(".")[2]
        else:
            exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    assert len(added) == 3


def test_a_model_from_contributing_keeps_the_conformance_promises(as_it_was):
    import torch

    from atomzoo.inference.fit import make_density
    from atomzoo.models.model import find

    add_module(
        "models/order/imprint.py", next(b for b in blocks("CONTRIBUTING.md") if "imprint" in b)
    )
    imprint = find("wall_imprint")
    assert imprint.family == "order"
    density = make_density(imprint, imprint.simulate(seed=1))
    value, gradient = density.gradient(density.initial(100, seed=0))
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def test_the_readmes_model_is_a_model(as_it_was):
    source = next(b for b in blocks("README.md") if "@model" in b)
    names: dict[str, object] = {}
    exec(compile(source, "README.md", "exec"), names)
    from atomzoo.models.model import Model

    assert isinstance(names["my_wall"], Model)


def test_the_readmes_catalogue_is_current():
    """In a process of its own, where no test has registered models."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "import sys; from atomzoo.models.table import with_table; sys.stdout.write(with_table(sys.stdin.read()))"
    made = subprocess.run(
        [sys.executable, "-c", code], input=text, capture_output=True, encoding="utf-8", check=True
    )
    assert text == made.stdout, "run `python -m atomzoo.models.table`"


def test_the_readmes_commands_exist():
    """Every `atomzoo COMMAND` of the README and CONTRIBUTING is a command."""
    from typer.main import get_command

    from atomzoo.cli import app

    commands = set(get_command(app).commands)
    text = "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")
    )
    used = set(re.findall(r"^\$ (?:\.venv/bin/)?atomzoo (\w+)", text, re.M))
    assert used
    assert used <= commands
