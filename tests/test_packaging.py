"""The package as a whole: what ships, what may import what, and how fast it answers."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("datasets", "models", "inference", "reports")
SOURCES = sorted(
    [*ROOT.glob("*.py"), *(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))]
)
COMMAND_LINE = ("cli", "_inputs", "_options", "_show", "_terminal")
HEIGHT = {floor: height for height, floor in enumerate(FLOORS)}
HEIGHT |= dict.fromkeys(COMMAND_LINE, len(FLOORS))
TOP = len(FLOORS) + 1  # the public API and __main__ may import everything


def repository_files() -> list[Path]:
    """What is tracked, or would be: everything that git does not ignore."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def module_name(path: Path) -> str:
    """Dotted, without the package's own name: `models.model`, and nothing for the public API."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each module of ours that a file imports."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            origin = ".".join(filter(None, base))
            for alias in node.names:
                below = f"{origin}.{alias.name}".lstrip(".")
                yield node.lineno, below if below in MODULES else origin


def height(module: str) -> int:
    return HEIGHT.get(module.split(".")[0], TOP)


def own_seconds(*command: str) -> float:
    """Processor time of the best of five runs: a busy machine does not lengthen it."""
    best = float("inf")
    for _ in range(5):
        before = os.times()
        subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        spent = after.children_user + after.children_system
        best = min(best, spent - before.children_user - before.children_system)
    return best


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of the files in the repository, built where no leftovers lie."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    for path in repository_files():
        copy = folder / "source" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    subprocess.run([*command, "source"], cwd=folder, check=True, capture_output=True)
    return zipfile.ZipFile(next((folder / "dist").glob("*.whl")))


def test_the_wheel_has_every_module_and_nothing_else(wheel):
    shipped = {name for name in wheel.namelist() if name.endswith(".py")}
    assert shipped == {f"atomzoo/{path.relative_to(ROOT).as_posix()}" for path in SOURCES}, (
        "add the new folder to tool.setuptools.packages in pyproject.toml"
    )


def test_the_wheel_has_its_data_types_marker_and_licence(wheel):
    data = {
        f"atomzoo/{path.relative_to(ROOT).as_posix()}"
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    missing = (data | {"atomzoo/py.typed"}) - set(wheel.namelist())
    assert not missing, "add them to tool.setuptools.package-data in pyproject.toml"
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def test_no_file_of_the_repository_is_over_a_megabyte():
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in repository_files()}
    assert not {name: size for name, size in sizes.items() if size > 1_000_000}


def test_nothing_in_the_package_unpickles():
    words = re.compile(r"\bpickle\.loads?\b|allow_pickle\s*=\s*True|weights_only\s*=\s*False")
    found = [str(path) for path in SOURCES if words.search(path.read_text())]
    assert not found


def test_no_file_names_a_folder_of_one_machine():
    folders = re.compile(rb"(?<![\w.])/(work|root|farm)/")
    found = [str(path) for path in repository_files() if folders.search(path.read_bytes())]
    assert not found


def test_imports_inside_the_package_are_relative():
    absolute = [
        f"{path.relative_to(ROOT)} line {node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "atomzoo")
        or (
            isinstance(node, ast.Import)
            and any(n.name.split(".")[0] == "atomzoo" for n in node.names)
        )
    ]
    assert not absolute


@pytest.mark.parametrize("module", sorted(MODULES), ids=lambda name: name or "atomzoo")
def test_a_module_imports_nothing_from_a_higher_floor(module):
    upward = [
        f"line {line} imports {target or 'atomzoo'}"
        for line, target in imported_modules(MODULES[module])
        if height(target) > height(module)
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: {target for _, target in imported_modules(path) if target != module}
        for module, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_every_package_that_is_imported_is_declared():
    declared = {
        re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
        for requirement in requires("atomzoo")
        if not re.search(r"extra == ['\"](dev|bench)['\"]", requirement)
    }
    providers = packages_distributions()
    undeclared = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                # What an extra brings need not be installed; then it goes by the name of what is imported.
                owners = {name.lower().replace("_", "-") for name in providers.get(top, [top])}
                if not owners & declared:
                    undeclared.add(f"{path.relative_to(ROOT)} imports {top}")
    assert not undeclared


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == str(citation["version"]) == version("atomzoo")


def test_importing_atomzoo_imports_nothing_but_the_standard_library():
    """Neither torch nor anything else that has to be installed; the public names are there nevertheless."""
    code = (
        "import sys; before = set(sys.modules); import atomzoo; dir(atomzoo)\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['atomzoo']"


def test_importing_atomzoo_takes_under_300_ms():
    assert own_seconds(sys.executable, "-c", "import atomzoo") < 0.3


def test_help_answers_in_under_400_ms():
    assert own_seconds(sys.executable, "-m", "atomzoo", "--help") < 0.4
