"""Control inside a real vLLM: the decisions of the transformers engine, and never a harm to other requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions, with_seed
from tersely.controller.policies.readiness import Readiness
from tersely.controller.session import Session
from tersely.controller.streaming import TextDeltaEvent
from tersely.controller.trace import GenerationResult
from tersely.controller.types import KEEP, Directive, Request, SamplingParams, StepInfo
from tersely.errors import CapabilityError
from tersely.evaluation.tasks.questions import load
from tersely.probes.io import save_tier_probe
from tersely.probes.rule import FEATURES, HOPEFUL, READY, Evidence, StopRule
from tersely.probes.tier_selector import TierProbe, TierTable

from ..support.planted_records import linear
from ..support.planted_rules import stored_rule
from ..support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm import LLM

    from tersely.controller.vllm.engine import VllmEngine

pytestmark = pytest.mark.vllm

PROBLEMS = [question.problem for question in load("tiny", "test", 6, 5)]
GREEDY = GenerationOptions(max_new_tokens=128, sampling=SamplingParams(temperature=0.0))


@pytest.fixture(scope="module")
def ours() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def assert_same(found: Sequence[GenerationResult], expected: Sequence[GenerationResult]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.trace == other.trace
        assert one.usage == other.usage
        assert one.spans == other.spans


@pytest.mark.parametrize(
    ("preset", "acts"),
    [
        ("balanced", {"budget", "readiness"}),
        ("fast", {"budget", "convergence", "hint"}),
        ("trimr", {"budget", "trimr"}),
    ],
)
def test_greedy_decisions_are_those_of_the_transformers_engine(
    ours: TransformersEngine, vllm_engine: VllmEngine, preset: str, acts: set[str]
) -> None:
    options = replace(GREEDY, preset=preset, max_new_tokens=200, answer_reserve=24)  # long enough for each policy
    expected = Session(ours).run(PROBLEMS[:3], options)
    assert_same(Session(vllm_engine).run(PROBLEMS[:3], options), expected)
    assert {decision.policy for generation in expected for decision in generation.trace} == acts


def test_decisions_are_the_same_where_prompts_come_in_chunks_and_rows_are_preempted(
    ours: TransformersEngine, start_vllm: Callable[..., LLM]
) -> None:
    from tersely.controller.vllm.engine import PROCESSOR, VllmEngine

    crowded = start_vllm(
        "tersely-tiny-small",
        logits_processors=(PROCESSOR,),
        max_num_batched_tokens=48,
        max_num_seqs=6,
        max_model_len=512,
        block_size=32,
        num_gpu_blocks_override=40,
    )
    options = replace(GREEDY, preset="fast", max_new_tokens=200)
    scheduler = crowded.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
    with mock.patch.object(scheduler, "_preempt_request", wraps=scheduler._preempt_request) as preempted:
        found = Session(VllmEngine(crowded)).run(PROBLEMS, options)
    assert_same(found, Session(ours).run(PROBLEMS, options))
    assert preempted.called, "nothing was preempted: the test is too easy"


def chat(llm: LLM, problem: str) -> list[int]:
    message = [{"role": "user", "content": problem}]
    ids: list[int] = llm.get_tokenizer().apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    return ids


def raw(llm: LLM, controls: Sequence[Any], **params: Any) -> list[Any]:
    """The first problems through vLLM's own face, each with what is to control it."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": chat(llm, problem)} for problem, _ in zip(PROBLEMS, controls, strict=False)]
    settings = [
        SamplingParams(
            **{"temperature": 0, "max_tokens": 300, **params},
            extra_args=None if control is None else {"tersely": control},
        )
        for control in controls
    ]
    return [output.outputs[0] for output in llm.generate(prompts, settings, use_tqdm=False)]


def test_requests_are_controlled_each_by_its_own_arguments(vllm_llm: LLM) -> None:
    plain = raw(vllm_llm, [None] * 6, max_tokens=150)
    short = {"policies": {"budget": {}}, "thinking_budget": 40}
    as_text = '{"preset": "budget", "thinking_budget": 40}'
    mixed = raw(vllm_llm, [None, short, "off", as_text, {"effort": "none"}, "budget"], max_tokens=150)
    tokenizer = vllm_llm.get_tokenizer()
    for place in (0, 2, 4):
        assert mixed[place].token_ids == plain[place].token_ids
    for place in (1, 3):
        text = tokenizer.decode(mixed[place].token_ids)
        assert "Time is short, so I answer now." in text.split("</think>")[0]
        assert text.split("</think>")[1].strip()
        assert len(mixed[place].token_ids) < len(plain[place].token_ids)


def test_an_end_of_turn_within_the_thinking_becomes_an_answer(vllm_llm: LLM) -> None:
    tokenizer = vllm_llm.get_tokenizer()
    end = tokenizer.eos_token_id
    alone, controlled = raw(vllm_llm, [None, "budget"], logit_bias={end: 100.0})
    assert tokenizer.decode(alone.token_ids, skip_special_tokens=True) == ""
    text = tokenizer.decode(controlled.token_ids, skip_special_tokens=True)
    assert "</think>" in text
    assert controlled.token_ids[-1] == end
    assert end not in controlled.token_ids[:-1]


@pytest.mark.filterwarnings("ignore:max_rollback_tokens")  # how vLLM calls xgrammar
@pytest.mark.parametrize(("regex", "digits"), [("[0-9]{30,40}", 30), ("[0-9]+", 1)])
def test_what_a_grammar_forbids_stays_forbidden(vllm_llm: LLM, regex: str, digits: int) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    # Neither a cut after 16 tokens nor a closing in place of the end, where the model wants it, may be put out.
    grammar, control = StructuredOutputsParams(regex=regex), {"policies": {"budget": {}}, "thinking_budget": 16}
    (done,) = raw(vllm_llm, [control], structured_outputs=grammar, max_tokens=100)
    assert done.finish_reason != "error"
    assert done.text.isdigit() and len(done.text) >= digits


def test_each_of_several_samples_is_controlled(vllm_llm: LLM) -> None:
    from vllm import SamplingParams

    control = {"policies": {"budget": {}}, "thinking_budget": 40}
    params = SamplingParams(n=3, temperature=1.0, max_tokens=300, extra_args={"tersely": control})
    (output,) = vllm_llm.generate([{"prompt_token_ids": chat(vllm_llm, PROBLEMS[5])}], [params], use_tqdm=False)
    texts = [vllm_llm.get_tokenizer().decode(one.token_ids) for one in output.outputs]
    assert len(set(texts)) == 3
    assert all("Time is short, so I answer now." in text for text in texts)


@pytest.mark.parametrize(
    "control",
    [
        {"presett": "fast"},
        {"preset": "fats"},
        "balanecd",
        {"policies": {"budget": {"slak": 3}}},
        {"policies": ["reconsider"]},
        {"effort": "hardd"},
        {"thinking_budget": 0},
        {"thinking_budget": "many"},
        {"shadow": 1},
        "{'preset': 1}",
        7,
        {"answer_reserve": 400},
    ],
)
def test_a_wrong_control_is_refused_before_the_request_is_admitted(vllm_llm: LLM, control: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError):
        raw(vllm_llm, [control])
    assert not vllm_llm.llm_engine.has_unfinished_requests()


def test_a_mistake_of_ours_ends_control_and_nothing_else(
    vllm_llm: LLM, vllm_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersely.controller.vllm.request_controller import RequestController

    plain = raw(vllm_llm, [None, None], max_tokens=120)

    def breaks(self: RequestController, *_: Any) -> int | None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(RequestController, "read", breaks)
    assert [one.token_ids for one in raw(vllm_llm, ["fast", None], max_tokens=120)] == [one.token_ids for one in plain]


def test_policies_that_need_more_are_refused_at_construction(vllm_engine: VllmEngine) -> None:
    for policy in ("reconsider", "speculative", "escalate"):
        with pytest.raises(CapabilityError):
            Session(vllm_engine).run(PROBLEMS[:1], replace(GREEDY, preset=None, policies=(policy,)))
    with refused(CapabilityError):
        vllm_engine.generate([Request((1, 2), 4, layers=(2,))], SamplingParams())


class Eye:
    """A watcher that keeps what it sees of each token."""

    def __init__(self) -> None:
        self.entropies: list[float] = []
        self.states: list[Any] = []

    def observe(self, token: int, step: StepInfo | None = None) -> Directive:
        assert step is not None
        assert step.signals is not None
        self.entropies.append(step.signals.entropy)
        self.states.append(step.state(-1))
        return KEEP


def test_what_watchers_see_is_what_the_transformers_engine_shows(
    ours: TransformersEngine, vllm_engine: VllmEngine, vllm_llm: LLM
) -> None:
    seen = []
    for engine in (ours, vllm_engine):
        eyes = [Eye(), Eye()]
        requests = [
            Request(tuple(chat(vllm_llm, problem)), 30, eye, signals=True, layers=(-1,))
            for problem, eye in zip(PROBLEMS, eyes, strict=False)
        ]
        done = engine.generate(requests, SamplingParams(temperature=0.0))
        assert all(len(one.signals) == len(one.token_ids) for one in done)
        seen.append(eyes)
    for eye, other in zip(*seen, strict=True):
        size = min(len(eye.states), len(other.states))
        assert size >= 28
        assert eye.entropies[:size] == pytest.approx(other.entropies[:size], abs=1e-3)
        for one, two in zip(eye.states[:size], other.states[:size], strict=True):
            assert torch.cosine_similarity(torch.tensor(one), torch.tensor(two), dim=0) > 0.9999


def test_a_learnt_exit_decides_alike_where_it_reads_the_last_state(
    ours: TransformersEngine, vllm_engine: VllmEngine
) -> None:
    weights = np.zeros((len(FEATURES) + 128, 2))
    weights[len(FEATURES) : len(FEATURES) + 8] = [1.0, -1.0]
    rule = StopRule(Evidence(linear(weights, [0.0, 0.0]), (HOPEFUL, READY)))
    options = replace(GREEDY, preset=None, policies=("budget", Readiness(threshold=0.6, rule=stored_rule(rule, -1))))
    expected = Session(ours).run(PROBLEMS, options)
    found = Session(vllm_engine).run(PROBLEMS, options)
    places = [[(d.policy, d.position) for d in done.trace] for done in expected]
    assert [[(d.policy, d.position) for d in done.trace] for done in found] == places
    assert "readiness" in {policy for trace in places for policy, _ in trace}, "it never closed"
    with refused(CapabilityError):
        Session(vllm_engine).run(
            PROBLEMS[:1], replace(options, policies=(Readiness(threshold=0.6, rule=stored_rule(rule, 2)),))
        )


def test_a_tier_is_chosen_by_what_the_beginning_of_the_prompt_shows(
    ours: TransformersEngine, vllm_engine: VllmEngine, tmp_path: Path
) -> None:
    tiers = ("none", "easy", "normal", "hard")
    weights = np.random.default_rng(0).normal(size=(128, 4))
    table = TierTable(tiers, np.eye(4), np.full((4, 4), 100.0))
    about = {"name": ours.name, "fingerprint": ours.fingerprint()}
    save_tier_probe(
        TierProbe(linear(weights, [0.0] * 4), tiers, -1, table, 0.0), tmp_path / "difficulty", about, {}, {}
    )
    assert vllm_engine.fingerprint() == ours.fingerprint()
    options = replace(GREEDY, preset="off", effort="auto", probes=str(tmp_path))
    expected, found = (Session(engine).run(PROBLEMS, options) for engine in (ours, vllm_engine))
    assert [done.tier for done in found] == [done.tier for done in expected]
    assert [done.token_ids for done in found] == [done.token_ids for done in expected]
    assert len({done.tier for done in found}) > 1


def test_a_seed_decides_what_is_drawn(vllm_engine: VllmEngine) -> None:
    session, options = Session(vllm_engine), GenerationOptions(preset="fast", max_new_tokens=100)
    drawn = [[g.token_ids for g in session.run(PROBLEMS[:2], with_seed(options, seed))] for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_stream_shows_each_token_once_and_what_was_forced_in_one_piece(vllm_engine: VllmEngine) -> None:
    shown: list[TextDeltaEvent] = []
    options = replace(GREEDY, preset=None, policies=("budget",), max_new_tokens=120)
    done = Session(vllm_engine).run(PROBLEMS[:1], options, shown.append)[0]
    assert "".join(event.text for event in shown) == done.thinking + done.answer
    assert [event.decision for event in shown if event.decision is not None] == list(done.trace)


def test_a_watcher_may_end_its_row(vllm_engine: VllmEngine, vllm_llm: LLM) -> None:
    class Stop:
        left = 5

        def observe(self, token: int, step: StepInfo | None = None) -> Directive:
            self.left -= 1
            return KEEP if self.left else Directive(stop=True)

    done = vllm_engine.generate(
        [Request(tuple(chat(vllm_llm, PROBLEMS[0])), 50, Stop())], SamplingParams(temperature=0.0)
    )[0]
    assert (len(done.token_ids), done.finish_reason) == (5, "stopped")
