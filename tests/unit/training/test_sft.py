"""Completions that a controller shortened are learnt as if the model had made them so by itself."""

from __future__ import annotations

from pathlib import Path

from tersely.controller.engines.transformers.engine import load_engine
from tersely.training.config import Data, Rollouts
from tersely.training.data import load_rows
from tersely.training.rewards import Correctness
from tersely.training.sampling import Sampler
from tersely.training.traces import SampledTrace, collect, to_sft

BASE = "tersely-tiny-small"
CLOSE = 6


def test_what_ended_the_thinking_is_learnt_and_what_was_said_in_between_left_out() -> None:
    made = SampledTrace([9], [1, 2, 3, 4, 5, CLOSE, 7, 8], [1, 1, 0, 0, 1, 0, 0, 1], right=True, whole=True)
    assert to_sft(made, CLOSE) == SampledTrace([9], [1, 2, 5, CLOSE, 7, 8], [1] * 6, right=True, whole=True)
    alone = SampledTrace([9], [1, CLOSE, 8], [1, 1, 1], right=False, whole=True)
    assert to_sft(alone, CLOSE) == alone


def test_hints_and_ends_of_a_real_controller(tmp_path: Path) -> None:
    engine = load_engine(BASE)
    settings = Rollouts(max_new_tokens=400, policies={"hint": {"limit": 1}, "convergence": {"agree": 1}})
    sampler = Sampler(engine, settings)
    rows = load_rows(Data(questions=6), BASE)
    with Correctness() as correct:
        traces = collect(sampler, rows, 1, tmp_path / "traces.jsonl", seed=0, correct=correct)
    ended = 0
    for (trace,) in traces:
        made = to_sft(trace, sampler.close)
        forced = [token for token, mine in zip(trace.ids, trace.learnt, strict=True) if not mine]
        before, after, said = (engine.tokenizer.decode(ids) for ids in (trace.ids, made.ids, forced))
        ended += sampler.close in forced
        assert ("concise" in before) == ("concise" in said) and "concise" not in after
        assert after.count("</think>") == before.count("</think>")
        assert made.learnt == [1] * len(made.ids) and made.length <= trace.length
    assert ended, "some of them were ended by the controller"
    assert any("concise" in engine.tokenizer.decode(trace.ids) for (trace,) in traces), "some had a hint"
