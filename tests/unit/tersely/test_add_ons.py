"""Research add-ons are optional: with their folders hidden, everything else still works."""

from __future__ import annotations

import sys

import pytest

from tersely.controller.policies import get_presets, list_policies, resolve_modifier
from tersely.errors import OptionError

from ...support.forked import fork

HIDDEN = """
import importlib.abc, sys, warnings

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("tersely.") and "research" in name.split("."):
            raise ModuleNotFoundError(f"hidden: {name}", name=name)

sys.meta_path.insert(0, Hide())
warnings.simplefilter("ignore")
"""
USE = """
import tersely
from tersely.cli.app import main
from tersely.controller.policies import get_presets, list_policies, make_policies
from tersely.training.methods import list_methods

assert "plan" not in list_policies() and "planned" not in get_presets()
assert "mahdpo" not in list_methods()
for preset in get_presets():
    make_policies(preset)
engine = tersely.load_engine("tersely-tiny-small")
question = "Set a to 6 + 4. What is a?"
for preset in ("budget", "balanced"):
    assert tersely.generate(engine, question, preset=preset, temperature=0, max_new_tokens=100).answer
assert tersely.sample(engine, question, k=2, max_new_tokens=80, temperature=1.0, seed=0).samples
assert main(["--help"]) == 0
"""


@pytest.mark.slow
def test_the_core_works_without_add_ons() -> None:
    def import_again() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tersely"]:
            del sys.modules[name]
        exec(HIDDEN + USE, {})

    process = fork(import_again)
    process.join()
    assert process.exitcode == 0


def test_add_ons_are_found_by_name() -> None:
    assert "plan" in list_policies()
    assert list(get_presets()["planned"]) == ["budget", "plan"]
    assert resolve_modifier("steer").name == "steer"
    assert resolve_modifier("shortcut").name == "shortcut"
    assert resolve_modifier("nowait").name == "nowait"
    with pytest.raises(OptionError) as caught:
        resolve_modifier("stear")
    assert caught.value.code == "unknown_name"
