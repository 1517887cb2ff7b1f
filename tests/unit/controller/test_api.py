"""The public functions on the embedded model: what goes in, what comes out, and that the answer always does."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

import tersely
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies.base import Policy, PolicyView, Wait, Watching
from tersely.controller.session import Session
from tersely.controller.streaming import TextDeltaEvent
from tersely.controller.text.markers import Markers
from tersely.controller.types import Capability
from tersely.errors import CapabilityError, MarkerError, OptionError, PromptError, TerselyError
from tersely.evaluation.tasks.toy_problems import stream
from tersely.models import get_model_path

from ...support.refusals import refused
from ...support.text_engine import TextEngine
from ...support.word_tokenizer import WordTokenizer

QUESTION = "Set a to 5 + 4. Set k to 5 + 5. What is a?"
LONGER = "Set a to 12 + 30. Set b to a - 7. Set k to 5 + 5. What is b?"
"""One at which control acts."""


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def ask(engine: Any, prompts: Any = QUESTION, **options: Any) -> Any:
    return tersely.generate(engine, prompts=prompts, **{"temperature": 0, "max_new_tokens": 512, **options})


def test_parts_and_usage_add_up(engine: TransformersEngine) -> None:
    result = ask(engine)
    usage = result.usage
    assert result.text.startswith(result.thinking)
    assert "</think>" in result.text and "</think>" not in result.thinking + result.answer
    assert usage.thinking + usage.answer == len(result.token_ids)
    assert usage.total == usage.thinking + usage.answer + usage.overhead
    assert "".join(span.text for span in result.spans) == result.text


@pytest.mark.slow
def test_control_shortens_and_off_is_longer_on_many_problems(engine: TransformersEngine) -> None:
    problems = [p.problem for p in islice(stream("fit", 7, levels=(1, 2, 3)), 8)]
    plain = ask(engine, problems, preset="off", temperature=None, seed=0, max_new_tokens=320)
    ours = ask(engine, problems, preset="balanced", temperature=None, seed=0, max_new_tokens=320)
    assert sum(g.usage.total for g in ours) < 0.95 * sum(g.usage.total for g in plain)
    assert all(g.answer for g in ours if g.finish_reason == "stop")
    for before, after in zip(plain, ours, strict=True):
        kept = after.token_ids[: after.trace[0].position] if after.trace else after.token_ids
        assert before.token_ids[: len(kept)] == kept


@pytest.mark.slow
def test_a_batch_gives_what_its_rows_give_alone(engine: TransformersEngine) -> None:
    problems = [p.problem for p in islice(stream("fit", 8), 3)]
    together = ask(engine, problems, preset="fast")
    assert [g.text for g in together] == [ask(engine, p, preset="fast").text for p in problems]


def test_a_tight_budget_is_kept_and_still_answers(engine: TransformersEngine) -> None:
    result = tersely.generate(
        engine, prompts=QUESTION, preset="budget", temperature=0, max_new_tokens=64, answer_reserve=32
    )
    assert result.usage.thinking <= 32
    assert result.answer and result.finish_reason == "stop"
    assert result.trace[0].policy == "budget"


@pytest.mark.parametrize("control", [{"preset": "off"}, {"policies": ["convergence"]}])
def test_a_requested_budget_needs_no_policy(engine: TransformersEngine, control: dict[str, Any]) -> None:
    result = ask(engine, LONGER, thinking_budget=30, **control)
    assert result.usage.thinking <= 30
    assert [decision.policy for decision in result.trace if decision.acted] == ["budget"]


def test_effort_none_does_not_think(engine: TransformersEngine) -> None:
    result = ask(engine, effort="none")
    assert (result.thinking, result.usage.thinking, result.tier) == ("", 0, "none")
    assert "boxed" in result.answer


@pytest.mark.parametrize(
    ("text", "notes"), [("a</think>\n\n", 1), ("a</think>\n\n5", 0), ("a<tool_call>{}</tool_call>", 0)]
)
def test_a_turn_without_an_answer_is_in_the_trace(text: str, notes: int) -> None:
    result = tersely.generate(TextEngine(lambda prompt: text), QUESTION, preset="off")
    assert [decision.policy for decision in result.trace] == ["controller"] * notes


def test_shadow_is_the_plain_run_with_a_trace(engine: TransformersEngine) -> None:
    problem = next(stream("test", 8)).problem
    shadow = ask(engine, problem, shadow=True)
    assert shadow.text == ask(engine, problem, preset="off").text
    assert shadow.trace and not any(d.acted for d in shadow.trace)


def test_events_add_up_to_thinking_and_answer_and_explain_forced_text(engine: TransformersEngine) -> None:
    events: list[TextDeltaEvent] = []
    result = ask(engine, next(stream("test", 8)).problem, on_event=events.append)
    assert "".join(e.text for e in events if e.channel == "thinking") == result.thinking
    assert [e.decision for e in events if e.decision] == list(result.trace)
    assert "".join(e.text for e in events if e.channel == "answer") == result.answer


def test_messages_and_single_prompts_are_told_apart(engine: TransformersEngine) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    single, chat, (batch,) = (ask(engine, given, effort="none") for given in (QUESTION, messages, [messages]))
    assert single.text == chat.text == batch.text


def test_the_same_seed_gives_the_same_tokens(engine: TransformersEngine) -> None:
    first, second, other = (ask(engine, temperature=None, seed=s, max_new_tokens=100).token_ids for s in (1, 1, 2))
    assert first == second
    assert first != other


@pytest.mark.slow
def test_custom_generate_in_generate_and_pipeline() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    folder = get_model_path("tersely-tiny-small")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": LONGER}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    policies = ["budget", "convergence"]  # which need no more than tokens
    control = tersely.custom_generate(tokenizer, policies=policies)
    ids = model.generate(**inputs, max_new_tokens=256, do_sample=False, custom_generate=control)
    text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    expected = tersely.generate(
        model, LONGER, tokenizer=tokenizer, policies=policies, temperature=0, max_new_tokens=256
    )
    assert text == expected.text and expected.trace
    with refused(OptionError, None):
        model.generate(**inputs, max_new_tokens=64, do_sample=False, custom_generate=control)  # which the reserve takes
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    reply = pipe(messages, max_new_tokens=256, do_sample=False, custom_generate=control)
    assert reply[0]["generated_text"][-1]["content"].endswith(expected.answer)


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"prompts": "  "}, PromptError, None),
        ({"prompts": "word " * 1500}, PromptError, None),
        ({"max_new_tokens": 32}, OptionError, None),
        ({"effort": "easi"}, OptionError, "unknown_name"),
        ({"preset": "balancd"}, OptionError, "unknown_name"),
        ({"policies": ["hints"]}, OptionError, "unknown_name"),
        ({"think_prompt": True}, OptionError, None),
        ({"think_prompt": True, "markers": Markers("<a>", "</a>")}, OptionError, None),
    ],
)
def test_bad_input_is_one_clear_error(
    engine: TransformersEngine, options: dict[str, Any], error: type[TerselyError], code: str | None
) -> None:
    with refused(error, code):
        tersely.generate(engine, **{"prompts": QUESTION, **options})


def test_a_model_object_needs_its_tokenizer(engine: TransformersEngine) -> None:
    with refused(OptionError, "missing_tokenizer"):
        tersely.generate(engine.model, prompts=QUESTION)


def test_a_session_refuses_what_it_cannot_steer(engine: TransformersEngine) -> None:
    class Plain:
        name, tokenizer, capabilities, context_length = "plain", WordTokenizer(), frozenset[Capability](), None

    class NoMarkers(WordTokenizer):
        def get_added_vocab(self) -> dict[str, int]:
            return {}

    class Needy(Policy):
        name, requires = "needy", frozenset({Capability.DRAFT_REVIEW})

        def watch(self, view: PolicyView) -> Watching:
            yield Wait()

    plain: Any = Plain()
    plain.tokenizer = NoMarkers()
    with refused(MarkerError):
        Session(plain)
    with refused(CapabilityError, "missing_draft_review"):
        Session(engine).run([QUESTION], GenerationOptions(policies=(Needy(),)))  # type: ignore[arg-type]
