"""The layout: what is packaged, which imports are allowed, what an import costs, and names that no file may contain."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tersely
from tersely.controller.controller import ControllerState

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {package: ROOT / folder for package, folder in SETUPTOOLS["package-dir"].items()}
HOMES = {package.removeprefix("tersely.") for package in FOLDERS if package != "tersely"}

LAYERS: list[list[str]] = PROJECT["tool"]["house"]["layers"]


def _modules() -> Iterator[tuple[str, Path]]:
    """Every module of ours by its dotted name inside `tersely`."""
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [*package.split(".")[1:], *file.relative_to(folder).with_suffix("").parts]
            yield ".".join(p for p in parts if p != "__init__"), file


MODULES = dict(_modules())


def _layer(module: str) -> int:
    """The layer of a module by its longest matching room; rooms are paths in the repository."""
    path = module.replace(".", "/") if module.split(".")[0] in HOMES else "/".join(["tersely", *module.split(".")])
    path = path.rstrip("/")
    rooms = [
        (len(room), layer) for layer, rooms in enumerate(LAYERS) for room in rooms if f"{path}/".startswith(f"{room}/")
    ]
    assert rooms, f"{module} has no layer in pyproject.toml"
    return max(rooms)[1]


def _module_of(name: str) -> str | None:
    """The module that an imported name belongs to, or is."""
    return name if name in MODULES else name.rpartition(".")[0] if name.rpartition(".")[0] in MODULES else None


@cache
def _imports(module: str, file: Path) -> frozenset[str]:
    """Dotted names that a file imports, its own package's relative to `tersely`, anything else with a leading '!'."""
    found = set()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = ["tersely", *filter(None, package.split("."))]
            base = [*parts[: len(parts) - node.level + 1], *filter(None, [node.module])]
            names = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            inside = name == "tersely" or name.startswith("tersely.")
            found.add(name.removeprefix("tersely").removeprefix(".") if inside else f"!{name}")
    return frozenset(found)


def test_packages_are_the_folders_with_code() -> None:
    found = {
        ".".join([package, *init.parent.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for init in folder.rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == found


def _folder(package: str) -> Path:
    """The folder of a package, by its longest parent in `package-dir`."""
    home = next(p for p in sorted(FOLDERS, key=len, reverse=True) if package == p or package.startswith(f"{p}."))
    folder: Path = FOLDERS[home]
    return folder.joinpath(*package.removeprefix(home).split(".")[1:])


def test_every_data_file_is_packaged() -> None:
    globs = [
        f"{_folder(package)}/{pattern}"
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
    ]
    files = [p for folder in FOLDERS.values() for p in folder.rglob("*") if p.is_file()]
    data = [p for p in files if p.suffix not in {".py", ".pyc", ".so", ".md"}]
    assert [p for p in data if not any(fnmatch(str(p), g) for g in globs)] == []


def test_type_checkers_see_the_same_tree() -> None:
    links = {p.name: p.resolve() for p in (ROOT / ".types" / "tersely").iterdir() if p.name != "__pycache__"}
    siblings = {package.removeprefix("tersely."): f for package, f in FOLDERS.items() if package != "tersely"}
    own = {p.name: p for p in (ROOT / "tersely").iterdir() if p.name != "__pycache__"}
    assert links == siblings | own


@cache
def _graph() -> dict[str, set[str]]:
    """Imports between our modules, lazy and type-checking ones included."""
    graph = {}
    for module, file in MODULES.items():
        inside = (name for name in _imports(module, file) if not name.startswith("!"))
        graph[module] = {found for name in inside if (found := _module_of(name)) is not None} - {module}
    return graph


def test_imports_point_down() -> None:
    wrong = [f"{a} -> {b}" for a, found in _graph().items() for b in found if _layer(b) > _layer(a)]
    assert wrong == []


def test_imports_make_no_circle() -> None:
    TopologicalSorter(_graph()).prepare()  # raises CycleError with the circle


def test_only_research_imports_research() -> None:
    wrong = [
        f"{a} -> {b}"
        for a, found in _graph().items()
        for b in found
        if ".research" in f".{b}" and ".research" not in f".{a}"
    ]
    assert wrong == []


def test_the_architecture_page_shows_the_layers() -> None:
    """The diagram of the rooms is drawn from the list that the tests above hold."""
    lines = ["```mermaid", "flowchart BT"]
    for number, rooms in enumerate(LAYERS):
        lines.append(f'    L{number}["{"<br>".join(rooms)}"]')
    lines += [f"    L{number} --> L{number - 1}" for number in range(1, len(LAYERS))]
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert "\n".join([*lines, "```"]) in text.partition("## The layers")[2]
    states = set(re.findall(r"\b[A-Z]{5,}\b", text.partition("stateDiagram-v2")[2].partition("```")[0]))
    assert states == set(ControllerState.__members__)


def test_no_folder_is_imported_by_its_bare_name() -> None:
    bare = {f"!{package.removeprefix('tersely.')}" for package in FOLDERS if package != "tersely"}
    scripts = [p for name in ("tests", "examples", "benchmarks") for p in (ROOT / name).rglob("*.py")]
    files = {**MODULES, **{p.stem: p for p in scripts}}
    wrong = [f"{p}: {n[1:]}" for m, p in files.items() for n in _imports(m, p) if n.split(".")[0] in bare]
    assert wrong == []


def test_kernels_is_not_shadowed() -> None:
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s.origin if s else '')"
    safe = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=safe, capture_output=True, text=True, check=True)
    origin = done.stdout.strip()
    assert not origin or not Path(origin).is_relative_to(ROOT / "kernels")
    assert str(ROOT) not in sys.path, "run `pytest`, not `python -m pytest`: ours would shadow the kernels library"


def test_import_is_cheap_and_leaves_torch_out() -> None:
    code = "import sys; import tersely; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(modules) < 120 and {"torch", "transformers", "numpy"}.isdisjoint(modules)


@pytest.mark.slow
def test_public_names_are_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own imports warn
        for name in tersely.__all__:
            try:
                found = getattr(tersely, name)
            except ImportError as error:  # an extra that is not installed
                found = error if "pip install 'tersely[" in str(error) else None
            assert found is not None
    assert set(tersely.__all__) <= set(dir(tersely))
    with pytest.raises(AttributeError):
        _ = tersely.nothing


def test_files_name_no_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout knows which files are its own")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    # Put together from pieces, or this file would name them.
    folders = [f"/{name}/" for name in ("work", "root", "home", "Users", "opt/wheels", "tmp")]
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("download.pytorch", "org"))]
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, folders))})|{'|'.join(map(re.escape, hosts))}")
    wrong = []
    for file in (ROOT / name for name in names if name):
        if file.is_symlink() or not file.is_file() or file.suffix == ".safetensors":
            continue
        if hit := pattern.search(file.read_text(encoding="utf-8", errors="replace")):
            wrong.append(f"{file.relative_to(ROOT)}: {hit[0]}")
    assert wrong == []
