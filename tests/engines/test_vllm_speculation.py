"""vLLM's own speculative decoding on its V2 runner, under control: the tokens and decisions of no speculation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.controller.options import GenerationOptions
from tersely.controller.policies import make_policy
from tersely.controller.session import Session
from tersely.controller.types import SamplingParams
from tersely.evaluation.tasks.questions import load
from tersely.models import get_model_path

from ..support import vllm_v2

MODEL = "tersely-tiny-large"
ACTS = {
    "balanced": {"readiness"},
    "fast": {"hint", "budget"},
    "trimr": {"trimr"},
    "trimr in time": {"budget"},
    "convergence": {"convergence"},
}
"""The policies that act in each arm."""
AGREE = {"convergence": {"agree": 1}}  # the first answer is enough, as nothing here is long enough for two
ARMS: dict[str, dict[str, Any]] = {name: {"preset": name.split()[0], "answer_reserve": 16} for name in ("off", *ACTS)}
ARMS["convergence"] = {"policies": AGREE, "answer_reserve": 16}
ENGINE: dict[str, Any] = {
    "model": MODEL, "dtype": "float32", "max_model_len": 512, "max_num_seqs": 4,
    "max_num_batched_tokens": 512, "enforce_eager": True, "seed": 0,
}  # fmt: skip
QUESTIONS = load("tiny", "test", 40, 6)
PROBLEMS = {name: QUESTIONS[number].problem for name, number in zip(ARMS, (0, 36, 13, 7, 0, 12), strict=True)}
"""The shortest answer of each arm in which its policies act, as interpreted kernels are slow."""
NGRAM = {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 2, "num_speculative_tokens": 3}
MODEL_DRAFTS = {
    "method": "draft_model", "model": str(get_model_path("tersely-tiny-small")), "num_speculative_tokens": 3,
}  # fmt: skip
CROWDED = {
    "async_scheduling": True,
    "max_num_batched_tokens": 48,
    "block_size": 32,
    "num_gpu_blocks_override": 13,
    "max_model_len": 384,
}


ENGINES: dict[str, dict[str, Any]] = {
    "n-grams": {"speculative_config": NGRAM},
    "draft model, one step ahead, in chunks": {"speculative_config": MODEL_DRAFTS, **CROWDED},
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.attack) if name == "n-grams" else name for name in ENGINES],
)
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What vLLM answers with drafts."""
    messages = [[{"role": "user", "content": problem}] for problem in PROBLEMS.values()]
    command = [sys.executable, vllm_v2.__file__, *map(json.dumps, [ARMS, messages, ENGINE | ENGINES[request.param]])]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=dict(os.environ), text=True, timeout=500, check=True)
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.fixture(scope="module")
def expected() -> dict[str, list[Any]]:
    """What the transformers engine writes without drafts."""
    session, made = Session(load_engine(MODEL)), {}
    greedy = GenerationOptions(max_new_tokens=vllm_v2.LIMIT, sampling=SamplingParams(temperature=0.0))
    for name, arm in ARMS.items():
        own = {"policies": [make_policy(*one) for one in AGREE.items()]} if "policies" in arm else {}
        done = session.run([PROBLEMS[name]], replace(greedy, **{**arm, **own}))[0]
        made[name] = [list(done.token_ids), [asdict(d) for d in done.trace]]
    return made


@pytest.mark.vllm
@pytest.mark.parametrize("arm", ARMS)
def test_tokens_and_decisions_are_those_of_no_speculation(
    found: dict[str, Any], expected: dict[str, list[Any]], arm: str
) -> None:
    (tokens, trace), (ids, decisions) = found["answers"][arm], expected[arm]
    assert tokens[: len(ids)] == ids and len(tokens) <= len(ids) + 1  # vLLM's have the end of the turn
    assert trace == decisions
    assert {decision["policy"] for decision in decisions} == ACTS.get(arm, set())


@pytest.mark.vllm
def test_drafts_are_accepted_and_requests_are_preempted(found: dict[str, Any], request: pytest.FixtureRequest) -> None:
    assert found["accepted"] > 20
    assert found["preempted"] > 0 or "n-grams" in request.node.name
