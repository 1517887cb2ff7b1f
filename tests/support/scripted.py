"""Models that follow a script, so that the correct result of a benchmark is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

from tersely.controller.options import GenerationOptions
from tersely.controller.session import Session
from tersely.controller.trace import GenerationResult, Usage
from tersely.controller.types import Capability, Completion, Directive, Request, SamplingParams, Signals, TokenSink
from tersely.evaluation.bench.arms import Bench, make_arms, run_arm
from tersely.evaluation.bench.compare import compare
from tersely.evaluation.bench.records import ArmRecords
from tersely.evaluation.tasks.equality import AnswerChecker
from tersely.evaluation.tasks.questions import Question
from tersely.io import CheckpointLog
from tersely.models import get_model_path


def make_questions(n: int) -> list[Question]:
    return [Question(f"q{i}", f"What is {i}?", str(i), 1 + i % 3) for i in range(n)]


class ScriptedAnswers:
    """Answers `What is K?` with K; the balanced preset errs at every `errs`-th K and thinks `cost` times as much.

    `hidden` tokens of each answer are generated and not counted.
    """

    session = cast(Session, None)

    def __init__(self, errs: int = 0, cost: float = 0.5, hidden: int = 0) -> None:
        self.errs, self.cost, self.hidden = errs, cost, hidden
        self.generated_tokens = 0
        self.calls: list[tuple[str | None, int | None, list[str]]] = []

    def answer(self, problems: Sequence[str], options: GenerationOptions) -> list[GenerationResult]:
        self.calls.append((options.preset, options.sampling.seed, list(problems)))
        done = [self.answer_one(problem, options) for problem in problems]
        self.generated_tokens += sum(g.usage.thinking + g.usage.answer + g.usage.discarded + self.hidden for g in done)
        return done

    def answer_one(self, prompt: str, options: GenerationOptions) -> GenerationResult:
        number = int(re.findall(r"\d+", prompt)[0])
        ours = options.preset == "balanced"
        wrong = ours and self.errs and number % self.errs == 0
        thinking = round((100 + number % 7) * (self.cost if ours else 1))
        usage = Usage(prompt=5, thinking=thinking, answer=10, discarded=3 if ours else 0)
        answer = f"The answer is \\boxed{{{number + bool(wrong)}}}."
        return GenerationResult(answer, "", answer, "stop", "normal", usage)

    def continue_from(
        self, texts: Sequence[Sequence[int]], limits: Sequence[int], sampling: SamplingParams
    ) -> list[Completion]:
        raise NotImplementedError


def make_bench(runner: Any, n: int, checkpoints: CheckpointLog | None = None, **options: Any) -> Bench:
    """A benchmark of n questions on a scripted model."""
    options = {"seed": 3, "batch_size": 16, **options}
    return Bench(runner, make_questions(n), AnswerChecker(), checkpoints or CheckpointLog(None, {}), **options)


def run_both(bench: Bench) -> list[ArmRecords]:
    return [run_arm(bench, arm) for arm in make_arms("full,balanced", GenerationOptions())[:2]]


def compare_both(runner: Any, n: int, *, rollouts: int = 1, margin: float = 0.02) -> dict[str, Any]:
    """The comparison of `balanced` with `full`."""
    return compare(run_both(make_bench(runner, n, rollouts=rollouts)), margin, seed=3)


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(get_model_path("tersely-tiny-small"))


class ScriptedEngine:
    """Thinks about `What is K?` in thoughts that state a value each, and answers what the last thought stated.

    `script(K)` are the values. Sampled tokens are surer the later the thought: 0.5 after one, 0.75 after two, ...
    """

    name = "scripted"
    capabilities = frozenset(
        {Capability.KV_ROLLBACK, Capability.TRIALS, Capability.RAGGED_BATCH, Capability.LOGIT_SIGNALS}
    )
    hidden_layers: tuple[int, ...] | None = None
    context_length: int | None = None

    def __init__(self, script: Callable[[int], Sequence[int]]) -> None:
        self.script, self.tokenizer, self.requests = script, tokenizer(), 0

    def generate(
        self, requests: Sequence[Request], sampling: SamplingParams, sink: TokenSink | None = None
    ) -> list[Completion]:
        self.requests += len(requests)
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Completion:
        prompt = self.tokenizer.decode(request.prompt_ids)
        ids: list[int] = []
        forced: list[bool] = []
        queue = self._rest(prompt)
        while queue and len(ids) < request.max_new_tokens:
            token = queue.pop(0)
            ids.append(token)
            forced.append(False)
            directive = request.watcher.observe(token) if request.watcher else Directive()
            if directive.retract or directive.force:
                del ids[len(ids) - directive.retract :], forced[len(forced) - directive.retract :]
                ids += directive.force
                forced += [True] * len(directive.force)
                queue = self._rest(prompt + self.tokenizer.decode(ids))
        sure = 1 - 0.5 ** max(prompt.count("so it is"), 1)
        signals = tuple(None if f else Signals(0.1, sure, sure) for f in forced) if request.signals else ()
        return Completion(tuple(ids), tuple(forced), "length" if queue else "stop", signals=signals)

    def _rest(self, text: str) -> list[int]:
        """The rest of the script after this text."""
        number = int(re.findall(r"What is (\d+)", text)[0])
        values = self.script(number)
        body, closed, tail = text.rpartition("assistant\n")[2].partition("</think>")
        thought = body.count("so it is")
        stated = values[min(thought, len(values)) - 1] if thought else -1
        if closed:
            rest = "" if "}" in tail else f"{stated}}}." if "{" in tail else f"The answer is \\boxed{{{stated}}}."
        else:
            thoughts = [f"Wait, look at {i}, so it is {v}.\n\n" for i, v in enumerate(values)][thought:]
            rest = "".join([*thoughts, f"</think>\n\nThe answer is \\boxed{{{values[-1]}}}."])
        return list(self.tokenizer.encode(rest))

    def hidden_states(self, prompts: Sequence[Sequence[int]], layer: int) -> Any:
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        return None

    def close(self) -> None:
        pass
