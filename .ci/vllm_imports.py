"""Check that all that we import from vLLM is there in the wheels of every release that our metadata allows.

python .ci/vllm_imports.py            # downloads the wheels of VERSIONS, without installing them
python .ci/vllm_imports.py WHEEL...
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parent.parent
VERSIONS = ("0.32.0", "0.33.0")
FOLDERS = ("controller", "evaluation", "kernels", "probes", "tersely", "training")


def find_imports() -> Iterator[tuple[str, str, str]]:
    """Module, name ("" for the module itself) and place of each import from vLLM."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "vllm":
                    yield from ((str(node.module), alias.name, place) for alias in node.names)
                if isinstance(node, ast.Import):
                    yield from ((a.name, "", place) for a in node.names if a.name.split(".")[0] == "vllm")


class Wheel:
    """The modules of a wheel, parsed and never run."""

    def __init__(self, path: Path) -> None:
        self.archive = ZipFile(path)
        self.files = set(self.archive.namelist())

    def source(self, module: str) -> str | None:
        """The source of a module; None if it is not there."""
        base = module.replace(".", "/")
        found = next((name for name in (f"{base}.py", f"{base}/__init__.py") if name in self.files), None)
        return None if found is None else self.archive.read(found).decode()

    def has(self, module: str, name: str) -> bool:
        """Whether a module defines, imports or lazily provides a name, or contains a module of that name."""
        source = self.source(module)
        if source is None:
            return False
        return not name or self.source(f"{module}.{name}") is not None or name in _names(ast.parse(source))


def _names(tree: ast.Module) -> set[str]:
    """Names that a module binds outside of functions and classes, and the keys of its tables of lazy attributes."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Dict):
            names.update(str(key.value) for key in node.keys if isinstance(key, ast.Constant))
        pending.extend(ast.iter_child_nodes(node))
    return names


def main() -> int:
    """Print what is missing; 1 if anything is."""
    with tempfile.TemporaryDirectory() as folder:
        wheels = [Path(argument) for argument in sys.argv[1:]]
        if not wheels:
            for version in VERSIONS:
                download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
                subprocess.run([*download, f"vllm=={version}"], check=True)
            wheels = sorted(Path(folder).glob("*.whl"))
        imports = sorted(set(find_imports()))
        missing = 0
        for path in wheels:
            wheel = Wheel(path)
            for module, name, place in imports:
                if not wheel.has(module, name):
                    missing += 1
                    print(f"{path.name}: {place} imports {module}{name and f'.{name}'}, which is not there")
        print(f"{len(imports)} imports, {len(wheels)} wheels, {missing} missing")
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
