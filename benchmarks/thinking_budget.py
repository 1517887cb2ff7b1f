"""Our presets compared with vLLM's own `thinking_token_budget` at equal tokens: same questions, same vLLM, greedy.

It searches the fixed budget that costs as many tokens as a preset, and pairs the accuracies by question. A positive
difference favours the preset. Tokens are all output tokens, forced ones included.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from measuring import make_parser, print_figures

from tersely.controller.text.answers import extract_answer
from tersely.evaluation.stats import paired_bootstrap
from tersely.evaluation.tasks.questions import Question, is_right, load

os.environ.update(VLLM_CPU_CI_ENV="1")  # no warm-up
TRIES = 6


class Bench:
    """A vLLM with a reasoning parser, for its own budgets, and with control, for ours."""

    def __init__(self, model: str, questions: Sequence[Question], max_tokens: int) -> None:
        from tersely.controller.vllm.engine import prepare_environment

        prepare_environment(on_cpu=True)
        import tersely

        self.questions, self.max_tokens = questions, max_tokens
        self.llm = tersely.LLM(
            model,
            dtype="float32",
            max_model_len=2048,
            enforce_eager=True,
            gpu_memory_utilization=0.3,
            disable_log_stats=True,
            reasoning_parser="qwen3",
        )

    def run(self, budget: int | None = None, **control: Any) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and correctness of each question."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=self.max_tokens, skip_special_tokens=False)
        params.thinking_token_budget = budget
        messages = [[{"role": "user", "content": question.problem}] for question in self.questions]
        outputs = [output.outputs[0] for output in self.llm.chat(messages, params, use_tqdm=False, **control)]
        answers = [extract_answer(output.text.partition("</think>")[2]) for output in outputs]
        rights = [is_right(answer, question.answer) for answer, question in zip(answers, self.questions, strict=True)]
        return np.array([len(output.token_ids) for output in outputs], float), np.array(rights, float)

    def matched(self, tokens: float) -> tuple[int, np.ndarray, np.ndarray]:
        """The fixed budget that costs about this many tokens per question, and its results."""
        low, high = 8, self.max_tokens
        best: tuple[int, np.ndarray, np.ndarray] | None = None
        for _ in range(TRIES):
            middle = (low + high) // 2
            made = (middle, *self.run(middle, preset="off"))
            if best is None or abs(made[1].mean() - tokens) < abs(best[1].mean() - tokens):
                best = made
            low, high = (middle, high) if made[1].mean() < tokens else (low, middle)
        assert best is not None
        return best


def main(argv: list[str] | None = None) -> None:
    """Run presets and matched budgets, and print what they cost and how often they are right."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="tersely-tiny-large", help="name or folder (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=1000, help="questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=23, help="of the questions (default: %(default)s)")
    parser.add_argument("--presets", default="balanced,fast", help="separated by commas (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="of an answer (default: %(default)s)")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")

    bench = Bench(options.model, load("tiny", "test", options.limit, options.seed), options.max_tokens)
    full = bench.run(preset="off")
    found: dict[str, Any] = {"full_accuracy": full[1].mean(), "full_tokens": full[0].mean()}
    for preset in options.presets.split(","):
        tokens, rights = bench.run(preset=preset)
        budget, theirs_tokens, theirs = bench.matched(tokens.mean())
        interval = paired_bootstrap(rights - theirs)
        found |= {
            f"{preset}_accuracy": rights.mean(),
            f"{preset}_tokens": tokens.mean(),
            f"{preset}_budget": budget,
            f"{preset}_budget_accuracy": theirs.mean(),
            f"{preset}_budget_tokens": theirs_tokens.mean(),
            f"{preset}_difference": float((rights - theirs).mean()),
            f"{preset}_difference_low": interval.low,
            f"{preset}_difference_high": interval.high,
        }
        print(f"{preset} done", file=sys.stderr)
    bench.llm.close()
    print_figures({name: float(value) for name, value in found.items()}, options.json, 4)


if __name__ == "__main__":
    main()
