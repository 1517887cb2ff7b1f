"""What README and docs name exists: commands, options, files, links, and what Python blocks import."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tersely
from tersely.cli.app import main

from ...support.readme import BLOCK, code_blocks

ROOT = Path(__file__).parents[3]
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
CURRENT = [path for path in DOCS if path.name not in ("LOG.md", "CHANGELOG.md")]  # those tell history
_FOLDERS = tuple("controller probes training kernels evaluation tersely tests benchmarks examples".split())
_INLINE = re.compile(r"`((?:tersely|python|make) [^`]+)`")


def commands(path: Path) -> Iterator[list[str]]:
    """The arguments of each command, in console blocks and in inline code."""
    text = path.read_text("utf-8")
    lines = [line for block in code_blocks(path, "console") for line in block.replace("\\\n", " ").split("\n")]
    found = [line[2:] for line in lines if line.startswith("$ ")]
    found += [code.replace("\n", " ") for code in _INLINE.findall(BLOCK.sub("", text))]
    for command in found:
        command = re.sub(r"^\w+=\S+ ", "", re.split(r" [|<>]|;| && ", command.split(" #")[0])[0])
        yield re.sub(r"['\"]", "", command).split()


@cache
def help_of(*command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*command, "--help"]) == 0
    return out.getvalue()


def unknown_parts(arguments: list[str]) -> list[str]:
    """What a command names that there is not."""
    program, *rest = arguments
    flags = [part.split("=")[0] for part in rest if part.startswith("--") and len(part) > 2]
    if program == "make":
        text = (ROOT / "Makefile").read_text("utf-8")
        return [part for part in rest if "=" not in part and not re.search(rf"^[\w -]*\b{part}\b[\w -]*:", text, re.M)]
    if program == "python":
        script = next((part for part in rest if part.endswith(".py")), None)
        if script is None or not script.startswith(_FOLDERS):
            return []
        if not (ROOT / script).exists():
            return [script]
        text = (ROOT / script).read_text("utf-8")
        shared = re.search(r"make_parser\((.*)\)", text)  # of benchmarks/measuring.py
        names = ["json", *re.findall(r"(\w+)=", shared[1])] if shared else []
        return [flag for flag in flags if flag[2:] not in names and f'"{flag}"' not in text]
    if program != "tersely" or not rest or not re.fullmatch(r"[a-z][a-z-]*", rest[0]):
        return []
    depth = 2 if rest[0] == "train" and len(rest) > 1 and re.fullmatch(r"[a-z0-9-]+", rest[1]) else 1
    if rest[:2] == ["train", "mymethod"] or (rest[0] == "serve" and "vllm" in rest):  # vLLM's own options pass
        return []
    shown = help_of(*rest[:depth])
    return [flag for flag in flags if flag != "--engine" and not re.search(rf"{flag}(?![\w-])", shown)]


@pytest.mark.parametrize("path", CURRENT, ids=lambda path: path.name)
def test_commands_and_their_options_exist(path: Path) -> None:
    assert {" ".join(command): unknown for command in commands(path) if (unknown := unknown_parts(command))} == {}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        other = path.parent / file if file else path
        if not other.exists():
            dead.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text("utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            dead += [] if anchor in slugs else [target]
    assert dead == []


@pytest.mark.parametrize("path", CURRENT, ids=lambda path: path.name)
def test_files_exist(path: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(_FOLDERS)})/[\w./-]+)`", path.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists() and "METHOD" not in name] == []


def missing_names(code: str) -> list[str]:
    """What a Python block imports from this package, or takes from it, that there is not."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tersely":
            module = importlib.import_module(str(node.module))
            missing += [alias.name for alias in node.names if not hasattr(module, alias.name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tersely":
            missing += [node.attr] if node.attr not in tersely.__all__ and not hasattr(tersely, node.attr) else []
    return missing


@pytest.mark.parametrize("path", CURRENT, ids=lambda path: path.name)
def test_python_blocks_use_what_there_is(path: Path) -> None:
    assert [name for block in code_blocks(path, "python") for name in missing_names(block)] == []
