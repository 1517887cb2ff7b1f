"""`tersely.LLM`: vLLM's class for batches, with what control made of each output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tersely.errors import CapabilityError, OptionError
from tersely.evaluation.tasks.questions import load

from ..support.readme import README, code_blocks
from ..support.refusals import refused

pytestmark = pytest.mark.vllm

MESSAGES = [[{"role": "user", "content": question.problem}] for question in load("tiny", "test", 6, 5)]


@pytest.fixture(scope="module")
def llm(tersely_llm: Any) -> Any:
    return tersely_llm


def greedy(**more: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=240, **more)


def test_outputs_are_vllms_own_and_say_what_control_made_of_them(llm: Any) -> None:
    from vllm import RequestOutput

    full = llm.chat(MESSAGES, greedy(), use_tqdm=False, preset="off")
    outputs = llm.chat(MESSAGES, greedy(), use_tqdm=False)
    assert all(isinstance(output, RequestOutput) for output in outputs)
    for output, plain in zip(outputs, full, strict=True):
        one, other = output.outputs[0].tersely, plain.outputs[0].tersely
        assert one.thinking + one.answer == len(output.outputs[0].token_ids)
        assert other.trace == ()
        assert one.thinking <= other.thinking
        assert one.trace == () or one.trace[0].policy in ("readiness", "budget")
    assert sum(len(output.outputs[0].tersely.trace) for output in outputs) > 3
    thinking = [sum(output.outputs[0].tersely.thinking for output in made) for made in (outputs, full)]
    assert thinking[0] < thinking[1]


def test_the_block_of_readme_runs(llm: Any) -> None:
    given: list[tuple[str, str]] = []

    def take(model: str, preset: str) -> Any:
        given.append((model, preset))
        return llm

    names = {"tersely": SimpleNamespace(LLM=take), "messages": MESSAGES[5], "sampling_params": greedy()}
    block = code_blocks(README, "python")[1]
    exec(block.replace("llm.chat", "trace = llm.chat"), names)
    assert given == [("Qwen/Qwen3-4B", "balanced")]
    assert names["trace"] == ()  # an easy effort of this model ends by itself


def test_a_call_may_be_controlled_otherwise_than_the_rest(llm: Any) -> None:
    short = llm.chat(MESSAGES, greedy(), use_tqdm=False, policies=["budget"], thinking_budget=40)
    assert all(output.outputs[0].tersely.thinking <= 40 for output in short)
    assert all(output.outputs[0].tersely.injected > 5 for output in short)
    none = llm.chat(MESSAGES, greedy(), use_tqdm=False, effort="none")
    assert all(output.outputs[0].tersely.thinking == 0 for output in none)
    shadow = llm.chat(MESSAGES[:2], greedy(), use_tqdm=False, shadow=True)
    full = llm.chat(MESSAGES[:2], greedy(), use_tqdm=False, preset="off")
    assert [o.outputs[0].token_ids for o in shadow] == [o.outputs[0].token_ids for o in full]
    assert any(decision for o in shadow for decision in o.outputs[0].tersely.trace)


def test_generate_takes_prompts_of_any_kind(llm: Any) -> None:
    tokenizer = llm.get_tokenizer()
    text = tokenizer.apply_chat_template(MESSAGES[0], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for prompt in (text, {"prompt_token_ids": ids}, [text]):
        (output,) = llm.generate(prompt, greedy(), use_tqdm=False, policies=["budget"], thinking_budget=40)
        assert 0 < output.outputs[0].tersely.thinking <= 40


def test_samples_of_one_prompt_have_traces_of_their_own(llm: Any) -> None:
    from vllm import SamplingParams

    params = SamplingParams(n=3, temperature=1.0, max_tokens=400)
    (output,) = llm.chat(MESSAGES[5], params, use_tqdm=False, policies=["budget"], thinking_budget=60)
    for one in output.outputs:
        assert one.tersely.trace
        assert one.tersely.trace[0].position < one.tersely.thinking


def test_what_cannot_be_done_is_refused_at_once(llm: Any) -> None:
    from tersely.controller.policies.base import Close, PolicyView, Wait, Watching

    class Own:
        name = "own"
        needs: frozenset[str] = frozenset()

        def watch(self, view: PolicyView) -> Watching:
            yield Wait(at=1)
            yield Close("mine")

    with refused(CapabilityError):
        llm.chat(MESSAGES[:1], greedy(), policies=[Own()])
    with refused(OptionError):
        llm.chat(MESSAGES[:1], greedy(), preset="fats")
    with refused(CapabilityError, code="missing_trials"):
        llm.chat(MESSAGES[:1], greedy(), preset="deer")
    with refused(OptionError):
        llm.chat(MESSAGES[:1], [greedy(), greedy()])
