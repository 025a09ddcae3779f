"""Models from a file of the user's own: `my_models.py:my_wall`, imported because the user names it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..datasets.kinds import DataError
from .model import Model, find, models
from .priors import ModelError

__all__ = ["find_anywhere", "load_file"]


def find_anywhere(reference: str) -> Model:
    """A model by its name in the catalogue, or as `path/to/file.py:name`."""
    path, separator, name = reference.rpartition(":")
    if separator and path.endswith(".py"):
        return load_file(path, name)
    if reference.endswith(".py"):
        raise ModelError(f"say which model of {reference} is meant: {reference}:<name>")
    return find(reference)


def load_file(path: str, name: str) -> Model:
    """Run a Python file and return one of the models that it registers.

    Args:
        path: the file.
        name: the model's name.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(f"{path}: there is no such file")
    # The catalogue comes first, so that a clash of names is the user's file's fault and not the zoo's.
    models()
    found = {m.name: m for m in vars(_module(file.resolve())).values() if isinstance(m, Model)}
    if name not in found:
        there = f"it has {', '.join(found)}" if found else "it has none: decorate one with @model"
        raise ModelError(f"{path} has no model {name!r}; {there}")
    return found[name]


def _module(file: Path) -> object:
    """The file as a module, imported once, under a name that no other file has."""
    name = f"atomzoo_file_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(file.parent):
            spec.loader.exec_module(module)
    except (DataError, ModelError):
        # Ours say by themselves what is wrong.
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{file.name} cannot be imported: {type(error).__name__}: {first}{_line_in(file, error)}"
        ) from error
    return module


def _line_in(file: Path, error: BaseException) -> str:
    """Where in the file it went wrong."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Files beside it can be imported while it runs, as they can from a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
