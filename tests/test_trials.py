"""Trial answers and thinking on after the model's own close: paid for, acted on, and without a trace in the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import tersely
from tersely.controller.budgets import Budget
from tersely.controller.core import Controller
from tersely.controller.engines.base import KEEP, Completion, Directive, Request, Sampling, Seen, Signals, State
from tersely.controller.engines.custom_generate import as_custom_generate
from tersely.controller.engines.transformers import TransformersEngine, load_engine
from tersely.controller.markers import PROMPTED, Markers
from tersely.controller.options import Options
from tersely.controller.policies.base import Close, Inject, Trial, View, Wait, Watching
from tersely.controller.replay import WordTokenizer
from tersely.controller.session import Session
from tersely.controller.stream import Event
from tersely.controller.text import Codec, codec_for
from tersely.controller.trace import Generation
from tersely.controller.trial import LEAD, MOST_TOKENS, TrialAnswer, depth_after, inside
from tersely.errors import CapabilityError

from .models import letters, random_model

GREEDY = Sampling(temperature=0)
MARKERS = Markers("<think>", "</think>")
PROBLEMS = ["Set a to 6 + 4. What is a?", "Compute 3 + 6.", "Compute 9 - 4 + 2."]
CLOSE, INJECT = Close("asked enough", phrase=""), Inject("Once more.", "asked enough")


@dataclass(frozen=True)
class Asking:
    """Asks after each thought and keeps what it hears, a list a row; `then` it acts once, and asks no more."""

    name: ClassVar[str] = "asking"
    needs: ClassVar[frozenset[str]] = frozenset({"signals", "crop"})
    then: Close | Inject | Trial | None = None
    asks: bool = True
    heard: list[list[tuple[int, TrialAnswer | None]]] = field(default_factory=list)

    def watch(self, view: View) -> Watching:
        mine: list[tuple[int, TrialAnswer | None]] = []
        self.heard.append(mine)
        while True:
            view = yield Wait(at=view.tokens + 1, boundary="thought")
            end = view.tokens
            if self.asks:
                view = yield Trial()
                mine.append((end, view.reply))
            if self.then is not None:
                yield self.then
                return


class Also(Asking):
    name: ClassVar[str] = "also"


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine("tersely-tiny-small")


def ask(
    engine: TransformersEngine, *policies: Any, prompts: Sequence[str] = PROBLEMS, **options: Any
) -> list[Generation]:
    options = {"temperature": 0, "max_new_tokens": 256, **options}
    made: list[Generation] = tersely.generate(engine, prompts=prompts, policies=policies, **options)
    return made


@pytest.fixture(scope="module")
def plain(engine: TransformersEngine) -> list[Generation]:
    return ask(engine)


def test_trials_are_paid_for_and_change_nothing(engine: TransformersEngine, plain: list[Generation]) -> None:
    policy, events, sizes = Asking(), list[Event](), list[int]()
    hook = engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    tried = ask(engine, policy, on_event=events.append)
    hook.remove()
    assert sizes[0] == 3 > sizes[-1], "rows that have ended leave the batch"
    assert [g.token_ids for g in tried] == [g.token_ids for g in plain]
    for row, (generation, heard) in enumerate(zip(tried, policy.heard, strict=True)):
        usage = generation.usage
        assert len(heard) == generation.thinking.count("\n\n") + 1 >= 3
        assert usage.probe == sum(reply.tokens for _, reply in heard if reply is not None) > 30
        assert (usage.forced, usage.discarded) == (0, 0)
        assert usage.total == len(generation.token_ids) + usage.probe
        assert "".join(event.text for event in events if event.row == row) == generation.text
    _check_replies(engine, tried, policy.heard)


def _check_replies(
    engine: TransformersEngine, done: list[Generation], heard: list[list[tuple[int, TrialAnswer | None]]]
) -> None:
    """Against plain greedy decoding of the texts closed by hand."""
    codec = codec_for(engine.tokenizer)
    closed = codec.encode("</think>\n\nThe answer is \\boxed{")
    rows = [
        ((*row.request.prompt_ids, *one.token_ids[:end], *closed), reply)
        for row, one, mine in zip(Session(engine).prepare(PROBLEMS, Options()), done, heard, strict=True)
        for end, reply in mine
    ]
    by_hand = engine.generate([Request(text, MOST_TOKENS, signals=True) for text, _ in rows], GREEDY)
    for (_, reply), one in zip(rows, by_hand, strict=True):
        pieces = [codec.decode([token]) for token in one.token_ids]
        size = next(i for i, piece in enumerate(pieces, 1) if "}" in piece)
        chances = [signals.chosen for signals in one.signals[:size] if signals is not None]
        assert reply is not None
        assert reply.answer == "".join(pieces[:size]).partition("}")[0]
        assert reply.answer.isdigit()
        assert reply.confidence == pytest.approx(math.prod(chances) ** (1 / size), rel=1e-3)
        assert reply.tokens == len(closed) + size


@pytest.mark.parametrize("then", [CLOSE, INJECT])
def test_what_follows_a_trial_stands_where_the_trial_stood(engine: TransformersEngine, then: Close | Inject) -> None:
    asking, acting = Asking(then), Asking(then, asks=False)
    tried, untried = (ask(engine, p, prompts=PROBLEMS[:2], max_new_tokens=100) for p in (asking, acting))
    for one, other, ((_, reply),) in zip(tried, untried, asking.heard, strict=True):
        assert reply is not None
        assert (one.token_ids, one.trace) == (other.token_ids, other.trace)
        assert (one.usage.probe, one.usage.discarded) == (reply.tokens, 0)
        assert one.usage.total == other.usage.total + reply.tokens


def test_in_shadow_and_without_room_none_is_asked(engine: TransformersEngine, plain: list[Generation]) -> None:
    shadow, tight = Asking(), Asking()
    (unasked,) = ask(engine, shadow, prompts=PROBLEMS[:1], shadow=True)
    assert (unasked.token_ids, unasked.usage.probe) == (plain[0].token_ids, 0)
    assert {reply for _, reply in shadow.heard[0]} == {None}
    (cut,) = ask(engine, tight, prompts=PROBLEMS[:1], max_new_tokens=len(plain[0].token_ids) + 1)
    assert cut.token_ids == plain[0].token_ids
    asked = [reply is not None for _, reply in tight.heard[0]]
    assert asked == sorted(asked, reverse=True) and set(asked) == {True, False}


def test_an_engine_that_cannot_crop_takes_no_trials(engine: TransformersEngine) -> None:
    sliding = TransformersEngine(random_model("sliding"), engine.tokenizer, name="sliding")
    with pytest.raises(CapabilityError, match="'sliding' lacks crop, which is needed here"):
        Session(sliding).prepare(PROBLEMS, Options(policies=(Asking(),)))


@dataclass(frozen=True)
class Reading(Asking):
    """Reads a hidden state before and after its first question."""

    needs: ClassVar[frozenset[str]] = frozenset({"signals", "crop", "hidden"})
    layers: ClassVar[tuple[int, ...]] = (-1,)
    states: list[State] = field(default_factory=list)

    def watch(self, view: View) -> Watching:
        view = yield Wait(at=view.tokens + 1, boundary="thought")
        self.states.append(view.state(-1))
        view = yield Trial()
        self.states.append(view.state(-1))


def test_a_trial_leaves_the_state_that_a_policy_reads(engine: TransformersEngine) -> None:
    policy = Reading()
    ask(engine, policy, prompts=PROBLEMS[:1], max_new_tokens=100)
    before, after = policy.states
    np.testing.assert_array_equal(before, after)


class Script:
    """Does given directives after given numbers of sampled tokens."""

    def __init__(self, **directives: Directive) -> None:
        self.at = {int(key.removeprefix("t")): value for key, value in directives.items()}
        self.heard: list[int] = []

    def observe(self, token: int, seen: Seen | None = None) -> Directive:
        self.heard.append(token)
        return self.at.get(len(self.heard), KEEP)


ASKS, DONE = Directive((40, 41, 42), trial=True), Directive(drop=9, trial=False)
"""A trial of three forced tokens and six sampled ones."""


def twice() -> Script:
    """Tries after the fifth token, and once more three tokens later."""
    return Script(t5=ASKS, t11=DONE, t14=ASKS, t20=DONE)


def decode(model: Any, *watchers: Script | None, sampling: Sampling = GREEDY, **more: Any) -> list[Completion]:
    asked = [Request((9, 9, 5)[row % 2 :], 30 - 6 * row, watcher) for row, watcher in enumerate(watchers)]
    return TransformersEngine(model, letters(), name="random").generate(asked, sampling, **more)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trial_is_greedy_and_leaves_no_trace_in_any_row(temperature: float) -> None:
    model, sampling = random_model(eos=126), Sampling(temperature=temperature, seed=3)
    heard: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def sink(row: int, ids: Sequence[int], forced: bool) -> None:
        heard[row] = [*heard[row], *ids] if ids else heard[row][:-1]

    script = twice()
    untried = decode(model, None, None, None, sampling=sampling)
    tried = decode(model, script, None, twice(), sampling=sampling, sink=sink)
    assert tried[1] == untried[1]
    size = len(untried[0].token_ids) if temperature == 0 else 5
    assert tried[0].token_ids[:size] == untried[0].token_ids[:size]
    assert [(one.trial, one.dropped) for one in tried] == [(18, 0), (0, 0), (18, 0)]
    assert not any(any(one.forced) for one in tried)
    assert heard == {row: list(one.token_ids) for row, one in enumerate(tried)}
    for place, begin in ((5, 5), (8, 14)):
        text = (9, 9, 5, *tried[0].token_ids[:place], 40, 41, 42)
        (by_hand,) = TransformersEngine(model, letters()).generate([Request(text, 6)], GREEDY)
        assert script.heard[begin : begin + 6] == list(by_hand.token_ids)


def test_neither_an_end_of_sequence_nor_a_criterion_ends_a_trial() -> None:
    model = random_model(eos=126)
    script = twice()
    untried, tried = decode(model, None), decode(model, script)
    said = [token for token in script.heard[5:11] if token not in untried[0].token_ids]
    model.generation_config.eos_token_id = [126, said[0]]
    assert decode(model, twice()) == tried
    model.generation_config.eos_token_id = 126
    seen: list[list[int]] = []

    def says_it(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        seen.append(ids[0].tolist())
        return ids[:, -1] == said[0]

    criteria: Any = StoppingCriteriaList([says_it])
    ids = torch.tensor([[9, 9, 5]])
    fn = as_custom_generate(lambda prompt: twice())
    out = model.generate(ids, max_new_tokens=30, stopping_criteria=criteria, custom_generate=fn)
    assert out[0].tolist() == [9, 9, 5, *untried[0].token_ids]
    assert any(row[-1] == said[0] for row in seen), "it was asked, and said stop"
    assert seen[-1] == out[0].tolist(), "what it sees is rid of trials"


def test_a_streamer_is_shown_no_trial() -> None:
    class Recorder(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            values.extend(value.flatten().tolist())

        def end(self) -> None:
            pass

    values: list[int] = []
    fn = as_custom_generate(lambda prompt: twice(), streamer=Recorder())
    out = random_model(eos=126).generate(torch.tensor([[9, 9, 5]]), max_new_tokens=20, custom_generate=fn)
    assert values == out[0].tolist()


def no_state(layer: int) -> State:
    raise AssertionError


class Row:
    """Feeds text to a controller as an engine would, and keeps the output; `said` are its directives."""

    def __init__(self, *policies: Any, markers: Markers = MARKERS, tokenizer: Any = None, **options: Any) -> None:
        self.codec = Codec(tokenizer or WordTokenizer())
        budget = options.pop("budget", Budget("normal", 500))
        self.controller = Controller(policies, self.codec, markers, budget, **options)
        self.out: list[int] = []
        self.said: list[Directive] = []

    def feed(self, text: str, chance: float = 0.5) -> str:
        for token in self.codec.encode(text):
            directive = self.controller.observe(token, Seen(Signals(0.1, chance, chance), no_state))
            self.out = [*self.out, token][: len(self.out) + 1 - directive.drop] + list(directive.force)
            if directive is not KEEP:
                self.said.append(directive)
        return self.codec.decode(self.out)


OPENED = "So 5.\n\n</think>\n\nThe answer is \\boxed{"


def test_two_policies_share_a_trial_and_brackets_nest() -> None:
    first, second = Asking(), Also()
    row = Row(first, second)
    assert row.feed("So 5.\n\n") == OPENED
    assert row.feed("\\frac{1") == OPENED + "\\frac{1"
    assert row.feed("}", 0.25) == OPENED + "\\frac{1}"
    assert row.feed("}", 0.125) == "So 5.\n\n"
    ((end, reply),) = first.heard[0]
    assert first.heard == second.heard
    forced = len(row.codec.encode(OPENED)) - len(row.codec.encode("So 5.\n\n"))
    assert reply is not None
    assert (end, reply.answer, reply.tokens) == (5, "\\frac{1}", forced + 6)
    assert reply.confidence == pytest.approx((0.5**4 * 0.25 * 0.125) ** (1 / 6))
    assert [(d.drop, d.trial) for d in row.said] == [(0, True), (forced + 6, False)]
    assert row.feed("And on.") == "So 5.\n\nAnd on."
    assert row.controller.position == len(row.out) == row.controller.view.tokens


def test_a_trial_that_never_closes_its_box_is_cut() -> None:
    policy = Asking()
    row = Row(policy)
    row.feed("So 5.\n\n")
    row.feed("7 " * (MOST_TOKENS // 2 - 1) + "7")
    assert policy.heard == [[]]
    assert row.feed(" ") == "So 5.\n\n"
    ((_, reply),) = policy.heard[0]
    assert reply is not None
    assert reply.answer == " ".join("7" * (MOST_TOKENS // 2))


@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize("opened", [True, False])
def test_a_trial_needs_room_for_the_longest(opened: bool, short: int) -> None:
    before = "" if opened else "<think>"
    row = Row(Asking())
    size = len(row.codec.encode(before + OPENED)) + MOST_TOKENS
    row = Row(policy := Asking(), budget=Budget("normal", size - 10 - short, 10), opened=opened)
    row.feed(before + "So 5.\n\n")
    assert bool(row.said) != bool(short)
    assert policy.heard == ([[(5, None)]] if short else [[]])


def test_two_trials_without_a_wait_between_them_are_a_mistake() -> None:
    row = Row(Asking(Trial()))
    row.feed("So 5.\n\n")
    assert row.feed("5} And on.") == "So 5.\n\n And on."
    (decision,) = row.controller.decisions
    assert decision.action == "error" and "must wait between two trials" in decision.reason


@pytest.mark.parametrize("options", [{"shadow": True}, {"budget": Budget("normal", 12, 4)}])
def test_a_policy_may_act_where_no_trial_was_asked(options: dict[str, Any]) -> None:
    row = Row(Asking(CLOSE), **options)
    row.feed("So 5.\n\n")
    assert [d.action for d in row.controller.decisions] == ["close"]


def test_a_turn_that_ends_within_a_trial_ends_the_trial_alone() -> None:
    row = Row(policy := Asking())
    (row.codec.tokenizer.eos_token_id,) = row.codec.encode("END")
    assert row.feed("So 5.\n\n7 END") == "So 5.\n\n"
    assert row.controller.phase == "thinking" and not row.controller.decisions
    ((_, reply),) = policy.heard[0]
    assert reply is not None
    assert reply.tokens == row.said[-1].drop


def test_a_trial_answer_is_what_stands_before_the_end_of_the_turn() -> None:
    row = Row(policy := Asking())
    (row.codec.tokenizer.eos_token_id,) = row.codec.encode("END")
    row.feed("So 5.\n\n7 END")
    ((_, reply),) = policy.heard[0]
    assert reply is not None
    assert reply.answer == "7"


def test_a_model_that_was_asked_to_think_reads_one_sentence() -> None:
    row = Row(Asking(), markers=PROMPTED)
    said = row.feed("So 5.\n\n").partition("</think>")[2]
    assert said.endswith("\\boxed{") and "isThe" not in said


def test_braces_are_counted_to_the_one_that_closes_the_first() -> None:
    assert [depth_after(1, text) for text in ("a{b}", "{{", "a}{{", "")] == [1, 3, 0, 1]
    assert [inside(text) for text in ("a{b}c}d}", "5", "}", "{a}")] == ["a{b}c", "5", "", "{a}"]
    assert LEAD.count("{") == 1


@dataclass(frozen=True)
class Again:
    """Where the model ends its thinking, does `moves`; each but the first after one more token."""

    name: ClassVar[str] = "again"
    needs: ClassVar[frozenset[str]] = frozenset()
    moves: tuple[Close | Inject | Trial, ...] = (Inject("Wait, a quick look again.", "too soon", after="\n"),)
    at: int = 0
    seen: list[tuple[int, str]] = field(default_factory=list)

    def watch(self, view: View) -> Watching:
        wait = Wait(self.at, "close")
        for move in self.moves:
            view = yield wait
            self.seen.append((view.tokens, view.thinking.text))
            yield move
            wait = Wait(view.tokens + 1, "token")


def test_a_model_that_ends_its_thinking_thinks_on(engine: TransformersEngine, plain: list[Generation]) -> None:
    events = list[Event]()
    done = ask(engine, Again(), on_event=events.append)
    forced = codec_for(engine.tokenizer).encode("Wait, a quick look again.\n")
    kept = [before.token_ids[: before.usage.thinking - 1] for before in plain]
    rows = Session(engine).prepare(PROBLEMS, Options())
    texts = [(*row.request.prompt_ids, *begun, *forced) for row, begun in zip(rows, kept, strict=True)]
    by_hand = engine.generate([Request(text, 256) for text in texts], GREEDY)
    for number, (one, begun, rest) in enumerate(zip(done, kept, by_hand, strict=True)):
        assert one.token_ids == (*begun, *forced, *rest.token_ids)
        assert (one.usage.forced, one.usage.discarded, one.usage.probe) == (len(forced), 1, 0)
        assert one.usage.total == len(one.token_ids) + 1
        assert one.usage.thinking > len(begun) + len(forced) + 9
        assert one.text.count("</think>") == 1 and one.answer.startswith("The answer is")
        assert [(d.policy, d.action, d.position, d.acted) for d in one.trace] == [("again", "inject", len(begun), True)]
        assert "".join(event.text for event in events if event.row == number) == one.text


@pytest.mark.parametrize(
    "options",
    [{"moves": (CLOSE,)}, {"moves": (Trial(),)}, {"moves": ()}, {"at": 500}],
)
def test_what_is_no_injection_lets_the_thinking_end(
    engine: TransformersEngine, plain: list[Generation], options: dict[str, Any]
) -> None:
    (done,) = ask(engine, policy := Again(**options), prompts=PROBLEMS[:1])
    assert (done.token_ids, done.usage, done.trace) == (plain[0].token_ids, plain[0].usage, ())
    assert len(policy.seen) == (1 if options.get("moves") else 0)


def test_thinking_on_in_shadow_is_recorded_only(engine: TransformersEngine, plain: list[Generation]) -> None:
    (done,) = ask(engine, Again(), prompts=PROBLEMS[:1], shadow=True)
    assert (done.token_ids, done.usage) == (plain[0].token_ids, plain[0].usage)
    (decision,) = done.trace
    assert (decision.policy, decision.action, decision.acted) == ("again", "inject", False)
    assert decision.text == "Wait, a quick look again.\n"


def test_in_shadow_a_decision_stands_where_it_would_have(engine: TransformersEngine, plain: list[Generation]) -> None:
    (done,) = ask(engine, Again(), prompts=PROBLEMS[:1], shadow=True)
    assert done.trace[0].position == plain[0].usage.thinking - 1


def test_a_marker_of_several_tokens_goes_as_a_whole() -> None:
    """Two tokens that a random model happens to write are its marker; the sink hears the first, and that it went."""
    model, tokenizer = random_model(eos=126), letters()
    engine, codec = TransformersEngine(model, tokenizer), codec_for(tokenizer)
    (untried,) = engine.generate([Request((9, 9, 5), 40)], GREEDY)
    place = next(i for i in range(5, 30) if min(untried.token_ids[i : i + 2]) > 30)
    markers = Markers("<open>", codec.decode(untried.token_ids[place : place + 2]))
    again = Again((Inject("abc", "too soon", after=""),))
    controller = Controller((again,), codec, markers, Budget("normal", 200))
    heard: list[int | None] = []
    asked = [Request((9, 9, 5), 40, controller), Request((9, 5), 12)]
    done, other = engine.generate(asked, GREEDY, lambda row, ids, forced: heard.extend([] if row else ids or [None]))
    kept, forced = untried.token_ids[:place], codec.encode("\n\nabc")
    assert done.token_ids[: place + len(forced)] == (*kept, *forced)
    assert done.dropped == 2
    (rest,) = engine.generate([Request((9, 9, 5, *kept, *forced), 40 - place - len(forced))], GREEDY)
    assert done.token_ids[place + len(forced) :] == rest.token_ids
    assert heard[: place + 3] == [*kept, untried.token_ids[place], None, forced[0]]
    assert (other,) == tuple(engine.generate([Request((9, 5), 12)], GREEDY))
    assert controller.decisions[0].position == place
    assert controller.position == len(done.token_ids) == controller.view.tokens


class NoMarkers(WordTokenizer):
    def get_added_vocab(self) -> dict[str, int]:
        return {}


def test_nothing_is_left_of_a_marker_of_several_tokens() -> None:
    row = Row(Again(), markers=Markers("[go]", "[stop]"), tokenizer=NoMarkers())
    assert row.feed("So 5.\n\nThat is all. [stop]") == "So 5.\n\nThat is all. \n\nWait, a quick look again.\n"
    assert [(d.drop, d.trial) for d in row.said] == [(3, None)]
    row.feed("So 6.\n\n")
    thinking = row.controller.thinking
    assert [thought.text for thought in thinking.thoughts] == ["So 5.\n\n", "That is all. ", "So 6.\n\n"]
    assert len(thinking.signals) == len(thinking) == len(row.out) == row.controller.position
    assert row.feed("[stop] 6.").endswith("So 6.\n\n[stop] 6.")
    assert row.controller.phase == "answer" and len(row.said) == 1


def test_a_policy_that_waits_for_the_close_may_have_a_deadline() -> None:
    class Impatient(Again):
        def watch(self, view: View) -> Watching:
            yield Wait(0, "close", deadline=4)
            yield CLOSE

    assert Row(Impatient()).feed("one two three.") == "one two \n\n</think>\n\nthree."
    assert Row(Impatient()).feed("one</think>two three.") == "one</think>two three."


def test_after_an_injection_at_the_close_a_policy_wakes_when_it_said() -> None:
    row = Row(Again((Inject("Wait.", "too soon"), Inject("HINT", "one token later"))))
    assert row.feed("So 5.\n\n</think>one two three four") == "So 5.\n\nWait.\n\none\n\nHINT\n\n two three four"
