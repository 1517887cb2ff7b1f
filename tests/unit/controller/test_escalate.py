"""Escalating: what the probe takes for lost goes to the helper, from the question on; all else stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from transformers.utils import logging

from tersely.controller.delegation import HelperError, HelperFuture, HelperRequest, HelperText
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.helpers import EngineHelper
from tersely.controller.options import GenerationOptions
from tersely.controller.policies import make_policies, make_policy
from tersely.controller.policies.speculative import Escalate
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult
from tersely.controller.types import SamplingParams
from tersely.errors import OptionError
from tersely.evaluation.tasks.toy_problems import stream
from tersely.probes.rule import StopRule

from ...support.planted_rules import stored_rule
from ...support.refusals import refused

SHELLS = "Tom has 3 shells. Tom finds 5 shells. How many shells does Tom have now?"
OTHER = "Set a to 5 + 4. Set b to a - 7. What is b?"
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def small() -> TransformersEngine:
    logging.disable_progress_bar()
    return load_engine("tersely-tiny-small")


@pytest.fixture(scope="module")
def large() -> Session:
    return Session(load_engine("tersely-tiny-large"))


class Fake:
    """Writes the same text for every request, None for none; keeps the requests."""

    reviews = False

    def __init__(self, text: str | None = "It is 51.") -> None:
        self.text = text
        self.asked: list[HelperRequest] = []

    def write(self, stretch: HelperRequest) -> HelperFuture:
        self.asked.append(stretch)
        future = HelperFuture()
        if self.text is None:
            future.set_exception(HelperError("down"))
        else:
            future.set_result(HelperText(self.text, closed=True))
        return future


def run(
    engine: Any, helper: Any, *policies: Any, prompts: Sequence[str] = (SHELLS, OTHER), **more: Any
) -> list[GenerationResult]:
    options = GenerationOptions(policies=policies, max_new_tokens=500, sampling=GREEDY, **more)
    return Session(engine, helper=helper).run(prompts, options)


def scripted(over: float, lost: float, stop: float | None = 0.9, **more: Any) -> Escalate:
    """A policy to whose probe all thoughts look alike: how likely thinking on repairs nothing, and all is lost."""
    scores = SimpleNamespace(scores=lambda rows: (np.array([over]), np.array([lost])))
    rule = stored_rule(cast(StopRule, SimpleNamespace(free=scores, paid=None)), threshold=stop)
    return Escalate(tokens=300, rule=rule, **more)


@pytest.fixture(scope="module")
def plain(small: TransformersEngine) -> list[GenerationResult]:
    return run(small, None)


def test_what_is_lost_is_thought_anew(small: TransformersEngine, plain: list[GenerationResult]) -> None:
    helper = Fake()
    done = run(small, helper, scripted(0.95, 0.9))
    assert all(s.whole and s.thinking == "" and s.tokens == 300 for s in helper.asked) and len(helper.asked) == 2
    for one, before in zip(done, plain, strict=True):
        assert one.thinking == "It is 51." and one.answer
        assert 0 < one.usage.discarded < before.usage.thinking, "after the first thought, all of which goes"
        assert [(d.policy, d.action) for d in one.trace] == [("escalate", "delegate"), ("helper", "close")]
        assert "0.0500" in one.trace[0].reason and "0.9500" in one.trace[0].reason


def test_what_stands_is_left_alone(small: TransformersEngine, plain: list[GenerationResult]) -> None:
    done = run(small, Fake(), scripted(0.95, 0.1))
    assert [one.token_ids for one in done] == [one.token_ids for one in plain]


def test_what_may_yet_be_repaired_is_left_alone_until_the_end(
    small: TransformersEngine, plain: list[GenerationResult]
) -> None:
    for stop in (0.9, None):
        for one, before in zip(run(small, Fake(), scripted(0.3, 0.0, stop)), plain, strict=True):
            assert one.thinking == "It is 51."
            assert one.usage.discarded >= before.usage.thinking - 1


def test_going_on_from_what_was_thought(small: TransformersEngine) -> None:
    helper = Fake("let me see. It is 51.")
    (done, _) = run(small, helper, scripted(0.95, 0.9, restart=False))
    assert not helper.asked[0].whole and helper.asked[0].thinking.endswith("Wait, ")
    assert done.usage.discarded == 0 and done.thinking.endswith("let me see. It is 51.")


def test_a_helper_that_is_down(small: TransformersEngine) -> None:
    for one in run(small, Fake(None), scripted(0.95, 0.9)):
        assert one.answer and one.trace[0].action == "error" and "down" in one.trace[0].reason


@pytest.mark.slow
def test_the_released_probe_and_a_helper_under_its_own_control(
    small: TransformersEngine, large: Session, plain: list[GenerationResult]
) -> None:
    everything = make_policy("escalate", {"min_right": 1.0})
    known = [problem.problem for problem in islice(stream("test", 8), 1)]  # which both probes know
    controlled = run(small, EngineHelper(large, sampling=GREEDY), everything, prompts=known)
    alone = run(small, EngineHelper(large, sampling=GREEDY, preset="off"), everything, prompts=known)
    for one, other in zip(controlled, alone, strict=True):
        assert one.trace[0].policy == other.trace[0].policy == "escalate"
        assert 0 < one.usage.helper_completion < other.usage.helper_completion, "the helper's own exit spares it some"
        assert other.thinking.startswith(one.thinking.rstrip()[:20]) and one.answer
    nothing = run(small, EngineHelper(large), make_policy("escalate", {"min_right": 1e-9}))
    assert [one.token_ids for one in nothing] == [one.token_ids for one in plain]


def test_the_cascade_decides_before_the_exit(small: TransformersEngine) -> None:
    assert [p.name for p in make_policies("cascade")] == ["budget", "escalate", "readiness"]


@pytest.mark.parametrize("least", [0, 1.5, -1])
def test_a_chance_that_is_none(least: float) -> None:
    with refused(OptionError):
        make_policy("escalate", {"min_right": least})
