"""The help: commands under headings, no type for flags, examples that the commands accept."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from tersely.cli.app import app, main
from tersely.cli.lazy_commands import COMMANDS, EXAMPLES, GROUPS


@pytest.mark.parametrize("command", ["", *COMMANDS, "run", "doctor", "tasks", "train"])
def test_help_has_no_type_for_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "<bool>" not in out
    assert ("Examples:" in out) == (command in EXAMPLES)
    assert len(re.findall(r"--help(?![-\w])", out)) == 1


def test_headings_hold_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    out = capsys.readouterr().out
    places = [out.index(f"─ {heading} ─") for heading in (*GROUPS, "Research")]
    assert places == sorted(places)
    group = typer.main.get_command(app)
    context = group.make_context("tersely", [], resilient_parsing=True)
    assert {*group.list_commands(context)} >= {*COMMANDS, *(name for names in GROUPS.values() for name in names)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("example", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_name_options_that_exist(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, command, *arguments = shlex.split(example.split(" < ")[0])
    engine = arguments[arguments.index("--engine") :][:2] if "--engine" in arguments else []
    assert main([command, "--help", *engine]) == 0
    out = capsys.readouterr().out
    assert [flag for flag in arguments if flag.startswith("--") and flag != "--engine" and flag not in out] == []
