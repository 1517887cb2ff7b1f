"""What every engine promises: one suite for transformers, vLLM in this process, and a server behind HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tersely.controller.engines.openai.completions import connect
from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.session import Session
from tersely.controller.text.tokenizer_adapter import get_adapter
from tersely.controller.types import Capability, Directive, Engine, Request, SamplingParams
from tersely.errors import CapabilityError, TerselyError
from tersely.evaluation.tasks.questions import load

from ..support.remote_servers import TextServer
from ..support.script import Script

MODEL = "tersely-tiny-small"
GREEDY = SamplingParams(temperature=0)
PROBLEMS = [question.problem for question in load("tiny", "test", 3, 5)]
LENGTHS = (40, 60, 24)


@pytest.fixture(scope="module")
def local() -> TransformersEngine:
    return load_engine(MODEL)


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm), "server"])
def engine(request: pytest.FixtureRequest, local: TransformersEngine) -> Iterator[Engine]:
    if request.param == "transformers":
        yield local
    elif request.param == "vllm":
        yield request.getfixturevalue("vllm_engine")
    else:
        with TextServer(local, ids=True).serve() as server:
            remote = connect(server.url, tokenizer=MODEL)
            yield remote
            remote.close()


@pytest.fixture(scope="module")
def prompts(local: TransformersEngine) -> list[tuple[int, ...]]:
    """Prompts that have opened the thinking."""
    rows = Session(local).prepare(PROBLEMS, GenerationOptions(preset="off"))
    return [row.request.prompt_ids for row in rows]


def make_requests(prompts: list[tuple[int, ...]], *watchers: Script | None) -> list[Request]:
    return [Request(ids, length, own) for ids, length, own in zip(prompts, LENGTHS, watchers, strict=True)]


def test_it_describes_itself(engine: Engine) -> None:
    assert engine.name and isinstance(engine.fingerprint(), str | None)
    assert engine.context_length is None or engine.context_length > 500
    assert engine.capabilities <= set(Capability)
    assert engine.tokenizer.decode(engine.tokenizer.encode("So 7.", add_special_tokens=False)) == "So 7."


def test_completions_come_in_order_within_their_limits(
    engine: Engine, local: TransformersEngine, prompts: list[tuple[int, ...]]
) -> None:
    streamed: dict[int, list[int]] = {0: [], 1: [], 2: []}
    done = engine.generate(
        make_requests(prompts, None, None, None), GREEDY, lambda row, tokens, forced: streamed[row].extend(tokens)
    )
    expected = local.generate(make_requests(prompts, None, None, None), GREEDY)
    assert [one.token_ids for one in done] == [one.token_ids for one in expected], (
        "greedy output is the same everywhere"
    )
    for row, (one, length) in enumerate(zip(done, LENGTHS, strict=True)):
        assert len(one.token_ids) == len(one.forced) <= length and not any(one.forced)
        assert (one.finish_reason == "length") == (len(one.token_ids) == length)
        assert tuple(streamed[row]) == one.token_ids


def test_forced_tokens_follow_the_sampled_one_and_count_as_output(
    engine: Engine, local: TransformersEngine, prompts: list[tuple[int, ...]]
) -> None:
    hint = tuple(get_adapter(local.tokenizer).encode("\n\n[Be concise.]\n\n"))
    script = Script(t10=Directive(hint))
    plain = engine.generate(make_requests(prompts, None, None, None), GREEDY)
    done = engine.generate(make_requests(prompts, script, None, None), GREEDY)
    size = 10 + len(hint)
    assert done[0].token_ids[:size] == (*plain[0].token_ids[:10], *hint)
    assert done[0].forced[:size] == (*[False] * 10, *[True] * len(hint))
    assert len(done[0].token_ids) == LENGTHS[0], "forced tokens are part of the limit"
    assert script.seen == [t for t, forced in zip(done[0].token_ids, done[0].forced, strict=True) if not forced]
    assert [one.token_ids for one in done[1:]] == [one.token_ids for one in plain[1:]], "other sequences do not change"


def test_a_watcher_ends_its_sequence_only(engine: Engine, prompts: list[tuple[int, ...]]) -> None:
    plain = engine.generate(make_requests(prompts, None, None, None), GREEDY)
    done = engine.generate(make_requests(prompts, None, Script(t7=Directive(stop=True)), None), GREEDY)
    assert done[1].token_ids == plain[1].token_ids[:7]
    assert [done[row].token_ids for row in (0, 2)] == [plain[row].token_ids for row in (0, 2)]


def test_tokens_are_taken_back_where_that_is_offered(engine: Engine, prompts: list[tuple[int, ...]]) -> None:
    if Capability.RETRACT not in engine.capabilities:
        pytest.skip("it keeps every token")
    plain = engine.generate(make_requests(prompts, None, None, None), GREEDY)
    other = plain[1].token_ids[3]
    script = Script(t5=Directive((other,), retract=1))
    done = engine.generate(make_requests(prompts, script, None, None), GREEDY)
    assert done[0].token_ids[:5] == (*plain[0].token_ids[:4], other)
    assert done[0].dropped >= 1, "a server may have sent more than was read"


def test_hidden_states_are_those_of_the_last_token(
    engine: Engine, local: TransformersEngine, prompts: list[tuple[int, ...]]
) -> None:
    if Capability.HIDDEN_STATES not in engine.capabilities:
        with pytest.raises(CapabilityError):
            engine.hidden_states(prompts, -1)
        return
    found, expected = engine.hidden_states(prompts, -1), local.hidden_states(prompts, -1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_what_it_lacks_is_refused(engine: Engine, prompts: list[tuple[int, ...]]) -> None:
    modifier: Any = object()
    if Capability.FORWARD_MODIFIERS not in engine.capabilities:
        with pytest.raises(CapabilityError):
            engine.generate([Request(prompts[0], 10, modifiers=(modifier,))], GREEDY)
    if engine.context_length is not None:
        with pytest.raises(TerselyError):
            engine.generate([Request(prompts[0] * (engine.context_length // len(prompts[0]) + 1), 10)], GREEDY)
    with pytest.raises(TerselyError):
        engine.generate([Request(prompts[0], 0)], GREEDY)
    assert engine.generate([], GREEDY) == []
