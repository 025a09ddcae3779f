"""Import every module of atomzoo and run the examples in its docstrings.

Pytest's own collection of docstrings would import the files a second time, under the checkout's name.
"""

import doctest
import importlib
import os
import pkgutil
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType

import atomzoo

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> Iterator[ModuleType]:
    """Every module of the package, but the one that runs the command line."""
    yield atomzoo
    for found in pkgutil.walk_packages(atomzoo.__path__, "atomzoo."):
        if not found.name.endswith(".__main__"):
            yield importlib.import_module(found.name)


def examples(module: ModuleType) -> Iterator[doctest.DocTest]:
    """The module's examples, those of decorated models too, which are objects and not functions."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    yield from finder.find(module)
    for name, thing in vars(module).items():
        ours = type(thing).__module__.startswith("atomzoo")
        here = getattr(thing, "__module__", None) == module.__name__
        if ours and here and thing.__doc__ is not type(thing).__doc__:
            yield from finder.find(thing, f"{module.__name__}.{name}", module)


def main() -> int:
    """Run them all in an empty folder; the exit status says whether all passed."""
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for module in modules():
            count += 1
            for test in examples(module):
                if test.examples:
                    runner.run(test)
        os.chdir(os.sep)
    failed, tried = runner.failures, runner.tries
    print(f"{tried} docstring examples in {count} modules, {failed} failed")
    return int(failed > 0 or count <= 1)


if __name__ == "__main__":
    sys.exit(main())
