"""A policy of one's own: derived from `tersely.Policy`, given as an object, a name or a file."""

from __future__ import annotations

from pathlib import Path

import pytest

import tersely
from tersely.controller.policies import load_policy, make_policies
from tersely.errors import OptionError

OWN = """
import tersely

class Stop(tersely.Policy):
    name = "stop"

    def watch(self, view):
        yield tersely.Wait(at=5, boundary="token")
        done = yield tersely.Close("five tokens", phrase="")
        yield tersely.Note(f"carried out: {done}")

class Counter(tersely.Policy):
    name = "counter"

    def __init__(self):
        self.sequences = 0

    def watch(self, view):
        self.sequences += 1
        yield tersely.Wait(at=10_000)

    def end_batch(self):
        return f"{self.sequences} sequences"

class NoPolicy:
    pass
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN, encoding="utf-8")
    return path


def test_a_policy_from_a_file_acts(own: Path) -> None:
    result = tersely.generate("tersely-tiny-small", "Compute 3 + 6.", policies=[f"{own}:Stop"], seed=0)
    assert [(d.policy, d.action) for d in result.trace] == [("stop", "close"), ("stop", "note")]
    assert result.trace[1].reason == "carried out: True"
    assert result.answer


def test_the_policy_that_followed_a_batch_is_the_one_that_reports_on_it(own: Path) -> None:
    prompts = ["Compute 3 + 6.", "Compute 4 + 6."]
    results = tersely.generate("tersely-tiny-small", prompts=prompts, policies=[f"{own}:Counter"], seed=0)
    assert [[(d.policy, d.reason) for d in result.trace] for result in results] == [[("counter", "2 sequences")]] * 2


@pytest.mark.parametrize(
    "spec", ["{own}:Missing", "{own}:NoPolicy", "nowhere.py:Stop", "no.such.module:Stop", "{own}:"]
)
def test_what_is_not_a_policy_is_refused(own: Path, spec: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_policy(spec.format(own=own))
    assert caught.value.code == "invalid_policy"


def test_an_object_that_is_not_a_policy_is_refused() -> None:
    with pytest.raises(OptionError) as caught:
        make_policies(policies=[object()])  # type: ignore[list-item]
    assert caught.value.code == "invalid_policy"
