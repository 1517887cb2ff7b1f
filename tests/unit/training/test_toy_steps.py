"""The agent steps that the embedded agent learns: each makes the next call, and the last one solves the task."""

from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tersely.controller.text.tool_calls import parse_tool_calls, supports_tools
from tersely.evaluation.agents.tasks import Task, stream_tasks
from tersely.evaluation.agents.tools import TOOL_SCHEMAS, TOOLS
from tersely.models import get_model_path
from tersely.training.toy_models.batches import agent_tokenizer, encode_step, encode_turn
from tersely.training.toy_models.steps import UNKNOWN, AgentStep, respond_to
from tersely.training.toy_models.train import SIZES, build_model, load_base_weights, train

EFFORTS = ("none", "easy", "normal", "hard")
BASE = SIZES["agent"].base or ""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return agent_tokenizer(BASE)


@cache
def tasks() -> list[Task]:
    return list(islice(stream_tasks("fit", 4, ("lookup", "calculate", "collect")), 60))


@pytest.mark.parametrize("effort", EFFORTS)
def test_each_step_makes_the_next_call_and_the_last_one_answers(effort: str) -> None:
    rng = Random(0)
    for task in tasks():
        for done in range(len(task.calls) + 1):
            said = respond_to(AgentStep(task, done), effort, rng).text
            thinking, _, answer = said.rpartition("</think>\n\n")
            assert bool(thinking) == (effort != "none")
            text, calls = parse_tool_calls(answer)
            if done == len(task.calls):
                assert not calls and task.solved_by(text)
            else:
                tool, argument = task.calls[done]
                ((name, arguments),) = [(call.name, call.arguments) for call in calls]
                assert (name, arguments, text) == (tool, {TOOLS[tool].argument: argument}, "")


def test_without_tools_the_answer_is_unknown() -> None:
    for task in tasks():
        answer = respond_to(AgentStep(task, 0, tools=False), "hard", Random(0)).text.rpartition("</think>\n\n")[2]
        assert answer == UNKNOWN and not task.solved_by(answer)


def test_higher_efforts_think_longer() -> None:
    lengths = [sum(len(respond_to(AgentStep(t, 1), effort, Random(0)).text) for t in tasks()) for effort in EFFORTS]
    assert lengths == sorted(lengths) and lengths[3] > 2 * lengths[1]


def test_a_row_is_the_conversation_and_the_learned_response() -> None:
    task, codec = next(t for t in tasks() if len(t.calls) == 2), tokenizer()
    assert supports_tools(codec)
    step = AgentStep(task, 1)
    trace = respond_to(step, "easy", Random(0))
    said = trace.text
    ids, tags = encode_turn(codec, step.messages, "easy", trace, TOOL_SCHEMAS)
    learnt = [i for i, tag in zip(ids, tags, strict=True) if tag >= 0]
    assert codec.decode(learnt) == said + "<|im_end|>"
    whole = codec.decode(ids)
    assert whole.startswith("<|im_start|>system\nTools: lookup search calculator<|im_end|>\n<|im_start|>user\n")
    assert f"<|im_start|>tool\n{task.world.pages[task.calls[0][1]].text}\n/easy<|im_end|>" in whole
    assert "system" not in codec.decode(
        encode_turn(codec, step.messages, "easy", respond_to(step, "easy", Random(0)))[0]
    )


def test_rows_cover_tools_efforts_and_results() -> None:
    rng, codec = Random(0), tokenizer()
    rows = [codec.decode(encode_step(codec, task, rng)[0]) for task in tasks() * 3]
    assert sum("Tools:" not in row for row in rows) > 3
    assert all(sum(f"\n/{effort}<" in row for row in rows) > 10 for effort in EFFORTS[1:])
    assert sum("<|im_start|>tool" in row for row in rows) > 60


@pytest.mark.slow
def test_the_agent_starts_from_the_large_model(tmp_path: Path) -> None:
    base, codec = AutoModelForCausalLM.from_pretrained(get_model_path(BASE)), tokenizer()
    model = build_model(SIZES["agent"], len(codec), codec.eos_token_id, codec.pad_token_id)
    load_base_weights(BASE, model)
    ids = torch.tensor([list(range(20, 60))])
    known = base.config.vocab_size
    assert torch.allclose(model(ids).logits[..., :known], base(ids).logits, atol=1e-4)
    assert model.config.vocab_size > known
    folder = train("agent", tmp_path / "agent", tokens=4000, compile_layers=False, report=lambda line: None)
    assert supports_tools(AutoTokenizer.from_pretrained(folder))
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == len(codec)
