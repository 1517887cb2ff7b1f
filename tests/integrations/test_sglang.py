"""The logit processor for SGLang, in a decode loop that gives it what SGLang's scheduler does.

With sglang installed, the base class is SGLang's own, and its sampler calls the processor.
"""

from __future__ import annotations

import sys
import weakref
from array import array
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tersely
from tersely.models import get_model_path

FOLDER = Path(__file__).parents[2] / "examples" / "integrations"
QUESTION = "Kai has 48 shells. Kai finds 31 shells. Count the shells that belong to Kai."
CONVERGES = """Amy counts 37 birds. Sam waits 30 minutes. It is day 32 of the year. Do not compute ((((263 * 2) + 71) \
- 134) - 276) + 271. It is day 12 of the year. Ian is 125 years old. Compute 3 + 5."""  # two derivations agree
REAL = find_spec("sglang") is not None
MOST = 120
pytestmark = [pytest.mark.filterwarnings("default")] if REAL else []  # SGLang's imports warn
BUDGET = {"policies": {"budget": {}}, "thinking_budget": 40}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the example."""
    if not REAL:
        base = ModuleType("sglang.srt.sampling.custom_logit_processor")
        base.CustomLogitProcessor = object  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "sglang_processor", raising=False)
    return import_module("sglang_processor")


@cache
def load() -> tuple[Any, Any]:
    path = get_model_path("tersely-tiny-small")
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


@dataclass
class Req:
    """A request with the fields of SGLang's that processors read."""

    origin_input_ids: array[int]
    tokenizer: Any
    sampling_params: Any
    output_ids: array[int] = field(default_factory=lambda: array("q"))
    decode_batch_idx: int = 0
    eos_token_ids: set[int] | None = None


class Loop:
    """Decodes one request greedily; so many tokens as `late` of the output are not stored when one is sampled."""

    def __init__(self, example: Any, settings: Any, late: int, question: str = QUESTION) -> None:
        self.model, self.tokenizer = load()
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        prompt = array("q", self.tokenizer(text, add_special_tokens=False)["input_ids"])
        self.req, self.late = Req(prompt, self.tokenizer, SimpleNamespace(max_new_tokens=MOST)), late
        self.params = {"tersely": settings, "__req__": weakref.proxy(self.req)}
        self.processor = example.TerselyLogitProcessor()
        if REAL:
            self.processor = self.processor.from_str(self.processor.to_str())
        self.output: list[int] = []
        self.place = 0

    def step(self) -> int:
        """Sample one more token."""
        ids = torch.tensor([[*self.req.origin_input_ids, *self.output]])
        with torch.no_grad():
            logits = self.model(ids).logits[:, -1]
        self.req.output_ids = array("q", self.output[: max(0, len(self.output) - self.late)])
        if self.place == 0:
            self.req.output_ids = array("q", self.output)
        self.req.decode_batch_idx = self.place
        logits = torch.cat([logits, logits])  # the other row is not controlled
        before = logits[1].clone()
        apply(self.processor, logits, [self.params, None])
        assert torch.equal(logits[1], before)
        self.output.append(int(logits[0].argmax()))
        self.place += 1
        return self.output[-1]

    def run(self, most: int = MOST) -> str:
        while len(self.output) < most and self.step() != self.tokenizer.eos_token_id:
            pass
        return str(self.tokenizer.decode(self.output))


def apply(processor: Any, logits: torch.Tensor, params: list[Any]) -> None:
    if not REAL:
        processor(logits, params)
        return
    from sglang.srt.layers.sampler import apply_custom_logit_processor

    class Batch(SimpleNamespace):
        def __len__(self) -> int:
            return len(params)

    rows = [row for row, given in enumerate(params) if given is not None]
    entry = SimpleNamespace(processor=processor, rows=rows, indices=torch.tensor(rows))
    apply_custom_logit_processor(
        logits, Batch(custom_params=params, custom_logit_processor={0: entry}, device=logits.device)
    )


def expected(question: str, **settings: Any) -> tuple[list[int], Any]:
    """What our own decode loop gives."""
    model, tokenizer = load()
    control = tersely.custom_generate(tokenizer, **settings)
    chat: list[Any] = [{"role": "user", "content": question}]
    batch = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**batch, max_new_tokens=MOST, do_sample=False, custom_generate=control)
    return ids[0, batch["input_ids"].shape[1] :].tolist(), control.results[0]


@pytest.mark.parametrize(
    ("question", "settings", "acted"),
    [
        (QUESTION, {"preset": "budget", "effort": "easy"}, ["budget"]),
        (CONVERGES, {"policies": {"convergence": {}}}, ["convergence"]),
        (CONVERGES, {"preset": "off"}, []),
    ],
    ids=["budget", "convergence", "off"],
)
def test_it_decodes_as_our_own_loop(example: Any, question: str, settings: Any, acted: list[str]) -> None:
    loop = Loop(example, settings, late=0, question=question)
    text = loop.run()
    ids, result = expected(question, **({"preset": None, "policies": acted} if "policies" in settings else settings))
    assert loop.output == ids, text
    assert [d.policy for d in result.trace if d.acted] == acted


def test_a_loop_is_ended(example: Any) -> None:
    loop = Loop(example, {"policies": {"repetition": {"tokens": 30}}}, late=0)
    for _ in range(5):
        loop.step()
    for token in loop.tokenizer("Now 79, before 79: the same.\n")["input_ids"] * 8:
        loop.step()
        if loop.params["__tersely__"].controller.queue:
            break
        loop.output[-1] = token  # what the model says again and again
    else:
        pytest.fail("the loop is not ended")
    assert "before\n\n</think>\n\nThe answer" in loop.run()  # in the middle of a sentence


@pytest.mark.parametrize("late", [0, 1])
def test_a_budget_closes_once_and_answers(example: Any, late: int) -> None:
    loop = Loop(example, BUDGET, late)
    thinking, close, answer = loop.run().partition("</think>")
    assert close and "</think>" not in answer and "boxed" in answer
    assert "\n\n\n" not in thinking and "\n\n\n" not in answer
    assert len(loop.tokenizer(thinking)["input_ids"]) <= 40 + late + 1


def test_a_token_in_between_may_equal_the_forced_one(example: Any) -> None:
    loop = Loop(example, BUDGET, late=1)
    while not loop.params.get("__tersely__") or not loop.params["__tersely__"].controller.queue:
        loop.step()
    forced = [*loop.params["__tersely__"].controller.queue]
    loop.output[-2] = forced[0]  # the token in between, which the request has not stored yet
    for _ in forced[1:]:
        loop.step()
    assert loop.output[-len(forced) :] == forced


def test_a_closing_of_the_model_s_own_wins(example: Any) -> None:
    loop = Loop(example, BUDGET, late=1)
    while not loop.params.get("__tersely__") or not loop.params["__tersely__"].controller.queue:
        loop.step()
    loop.output[-2] = loop.tokenizer.convert_tokens_to_ids("</think>")
    text = loop.run()
    assert text.count("</think>") == 1 and loop.params["__tersely__"] is None


def test_a_request_that_is_put_back_goes_on(example: Any) -> None:
    whole, again = Loop(example, BUDGET, late=1), Loop(example, BUDGET, late=1)
    for _ in range(20):
        again.step()
    again.place = 0  # the prompt is read again, with what there was of the output
    assert again.run() == whole.run()


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "nothing"},
        {"preset": "certified"},
        {"policies": {"deer": {}}},
        {"preset": "trimr"},
        5,
        "{",
        {"driver": "x"},
    ],
)
def test_what_cannot_be_controlled_is_left_alone(example: Any, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(example, settings, late=0)
    text = loop.run(8)
    assert loop.params["__tersely__"] is None and "without control" in caplog.text
    assert text == Loop(example, {"preset": "off"}, late=0).run(8)


def test_a_state_that_a_client_sends_is_not_used(example: Any) -> None:
    loop = Loop(example, BUDGET, late=0)
    loop.params["__tersely__"] = {"controller": None}
    assert loop.run() == Loop(example, BUDGET, late=0).run()


def test_an_unknown_place_ends_control(example: Any) -> None:
    loop = Loop(example, BUDGET, late=2)
    for _ in range(3):
        loop.step()
    assert loop.params["__tersely__"] is None
