"""Sampled traces, and how those of a controller are rewritten as the model's own."""

from __future__ import annotations

from pathlib import Path

from tersely.controller.engines.transformers.engine import load_engine
from tersely.training.config import Data, Rollouts
from tersely.training.offline import SampledTrace, collect_traces, to_sft
from tersely.training.rollouts import load_rows
from tersely.training.sampling import RolloutSampler

from ...support.trainings import make_recipe, make_run

BASE = "tersely-tiny-small"
CLOSE = 6


def test_forced_closings_are_learned_and_hints_removed() -> None:
    made = SampledTrace([9], [1, 2, 3, 4, 5, CLOSE, 7, 8], [1, 1, 0, 0, 1, 0, 0, 1], right=True, finished=True)
    assert to_sft(made, CLOSE) == SampledTrace([9], [1, 2, 5, CLOSE, 7, 8], [1] * 6, right=True, finished=True)
    alone = SampledTrace([9], [1, CLOSE, 8], [1, 1, 1], right=False, finished=True)
    assert to_sft(alone, CLOSE) == alone


def test_traces_of_a_real_controller_are_rewritten(tmp_path: Path) -> None:
    engine = load_engine(BASE)
    settings = Rollouts(max_new_tokens=400, policies={"hint": {"limit": 1}, "convergence": {"agree": 1}})
    sampler = RolloutSampler(engine, settings)
    rows = load_rows(Data(questions=6), BASE)
    traces = collect_traces(make_run(make_recipe("sft", tmp_path), sampler, rows), sampler, "traces", 1)
    ended = 0
    for (trace,) in traces:
        made = to_sft(trace, sampler.close)
        forced = [token for token, mine in zip(trace.ids, trace.loss_mask, strict=True) if not mine]
        before, after, said = (engine.tokenizer.decode(ids) for ids in (trace.ids, made.ids, forced))
        ended += sampler.close in forced
        assert ("concise" in before) == ("concise" in said) and "concise" not in after
        assert after.count("</think>") == before.count("</think>")
        assert made.loss_mask == [1] * len(made.ids) and made.length <= trace.length
    assert ended, "some were closed by the controller"
    assert any("concise" in engine.tokenizer.decode(trace.ids) for (trace,) in traces), "some had a hint"
