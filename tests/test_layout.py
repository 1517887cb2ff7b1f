"""The shape of the house: what is packaged, who may import whom, what an import costs, what no file may say."""

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
from pathlib import Path

import pytest

import tersely

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {package: ROOT / folder for package, folder in SETUPTOOLS["package-dir"].items()}

# Who may import whom. The longest matching prefix is a module's home; importing at home is always allowed.
LEAVES = {"errors", "writing"}
BELOW_SERVING = {"controller", "probes", "kernels", *LEAVES}
LIBRARY = BELOW_SERVING | {"controller.serving", "controller.agents"}
ALLOWED = {
    "errors": set(),
    "writing": {"errors"},
    "kernels": LEAVES,
    "probes": {"kernels", *LEAVES},
    "controller": {"probes", "kernels", *LEAVES},
    "controller.agents": BELOW_SERVING,
    "controller.serving": BELOW_SERVING,
    "evaluation": LIBRARY,
    "training": LIBRARY | {"evaluation"},
    "cli": LIBRARY | {"", "evaluation", "training"},
    "": LIBRARY,  # tersely/__init__.py itself
}


def _modules() -> Iterator[tuple[str, Path]]:
    """Every module of ours by its dotted name inside `tersely`."""
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [*package.split(".")[1:], *file.relative_to(folder).with_suffix("").parts]
            yield ".".join(p for p in parts if p != "__init__"), file


MODULES = dict(_modules())


def _home(module: str) -> str:
    return max((h for h in ALLOWED if module == h or h == "" or module.startswith(h + ".")), key=len)


def _imports(module: str, file: Path) -> Iterator[str]:
    """Dotted names that a file imports, its own package's relative to `tersely`, anything else with a leading '!'."""
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
            yield name.removeprefix("tersely").removeprefix(".") if inside else f"!{name}"


def test_packages_are_the_folders_with_code() -> None:
    found = {
        ".".join([package, *init.parent.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for init in folder.rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == found


def test_every_data_file_is_packaged() -> None:
    globs = [
        f"{FOLDERS['.'.join(package.split('.')[:2])].joinpath(*package.split('.')[2:])}/{pattern}"
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
    ]
    files = [p for folder in FOLDERS.values() for p in folder.rglob("*") if p.is_file()]
    data = [p for p in files if p.suffix not in {".py", ".pyc", ".so", ".md"}]
    assert [p for p in data if not any(fnmatch(str(p), g) for g in globs)] == []


def test_type_checkers_see_the_same_tree() -> None:
    links = {p.name: p.resolve() for p in (ROOT / ".types" / "tersely").iterdir()}
    siblings = {package.removeprefix("tersely."): f for package, f in FOLDERS.items() if package != "tersely"}
    own = {p.name: p for p in (ROOT / "tersely").iterdir() if p.name != "__pycache__"}
    assert links == siblings | own


def test_arrows_point_one_way() -> None:
    wrong = []
    for module, file in MODULES.items():
        home = _home(module)
        for name in _imports(module, file):
            if not name.startswith("!") and (target := _home(name)) != home and target not in ALLOWED[home]:
                wrong.append(f"{file.relative_to(ROOT)} imports tersely.{name}")
    assert wrong == []


def test_nobody_imports_a_folder_by_its_bare_name() -> None:
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
    code = "import sys, time; t = time.perf_counter(); import tersely; print(time.perf_counter() - t, *sys.modules)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, *modules = min((r.stdout.split() for r in runs), key=lambda words: float(words[0]))
    assert float(seconds) < 0.3
    assert {"torch", "transformers", "numpy"}.isdisjoint(modules)


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
    with pytest.raises(AttributeError, match="no attribute 'nothing'; public names: "):
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
