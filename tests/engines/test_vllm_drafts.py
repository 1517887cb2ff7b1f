"""Control where vLLM decodes speculatively: the tokens and traces are those of decoding without drafts.

Here the verification of runner V2 is played on its buffers, with what a real model says. `test_vllm_speculation.py`
runs vLLM itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tersely.evaluation.tasks.questions import load
from tersely.models import get_model_path

from ..support.vllm_buffers import Buffers, make_vllm_config

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # vLLM's own imports
]

FOLDER = str(get_model_path("tersely-tiny-large"))
DRAFTS, MOST = 3, 200
CONTROLS: dict[str, Any] = {
    "off": "off",
    "budget": {"policies": {"budget": {}}, "thinking_budget": 45},
    "balanced": {"preset": "balanced"},
    "concise": {"preset": "concise"},
}
Draft = Callable[[list[int], list[int]], Sequence[int]]
"""Drafts after some tokens, which are followed by others without speculation."""


def config(drafts: int = DRAFTS, **more: Any) -> Any:
    settings = {"num_speculative_tokens": drafts, "rejection_sample_method": "standard", **more}
    return make_vllm_config(
        FOLDER,
        speculative_config=SimpleNamespace(**settings) if drafts else None,
        parallel_config=SimpleNamespace(enable_batch_sharded_sampling=False),
    )


@dataclass
class Job:
    """One request: its prompt and control, and what the model says on the way that it takes without drafts."""

    prompt: list[int]
    control: Any
    output: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)
    cache: Any = None

    def ask(self, model: Any, output: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and hidden state after one more token of the output."""
        ids = torch.tensor([output[-1:] or self.prompt])
        with torch.inference_mode():
            found = model(ids, past_key_values=self.cache, use_cache=True, output_hidden_states=True)
        self.cache = found.past_key_values
        self.logits.append(found.logits[0, -1].float())
        self.states.append(found.hidden_states[-1][0, -1])
        return self.logits[-1], self.states[-1]

    def recall(self, output: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The same again; after other tokens anything."""
        place = len(output)
        if output == self.output[:place] and place < len(self.output):
            return self.logits[place], self.states[place]
        return torch.randn(self.logits[0].shape), torch.randn(self.states[0].shape)


class Runner(Buffers):
    """Runner V2's steps on its buffers: greedy verification of drafts, and the tokens that this accepts.

    `parts` are those in which vLLM verifies a large batch. `copied` is what a grammar of any request makes it do:
    drafts are copied before processors are called.
    """

    def __init__(self, jobs: list[Job], drafts: int, parts: int = 1, copied: bool = False) -> None:
        from tersely.controller.vllm.logits_processor import TerselyLogitsProcessor

        super().__init__(12, 512)
        self.parts, self.copied = parts, copied
        self.processor = TerselyLogitsProcessor(config(drafts), self)
        self.running: dict[int, Job] = {}
        self.outputs: dict[int, list[int]] = {}  # by job
        self.steps = self.rows = 0
        self.preempted: tuple[Job, list[int]] | None = None
        for slot, job in enumerate(jobs):
            self.add(slot, job, [])

    def add(self, slot: int, job: Job, output: list[int]) -> None:
        from vllm import SamplingParams

        self.fill(slot, job.prompt, output)
        self.running[slot], self.outputs[id(job)] = job, output
        self.processor.add_request(slot, SamplingParams(max_tokens=MOST, extra_args={"tersely": job.control}))

    def preempt(self, drop: int) -> None:
        """Take a request out without its latest tokens, and put the one that was taken out before into its slot."""
        slot = next(iter(self.running))
        job, back = self.running.pop(slot), self.preempted
        self.preempted = job, self.outputs[id(job)][: max(len(self.outputs[id(job)]) - drop, 1)]
        if back is not None:
            self.add(slot, *back)

    def step(self, look: Callable[[Job, list[int]], Any], draft: Draft | None) -> None:
        """One step of all requests; `look` gives logits and hidden state after an output."""
        from tersely.controller.vllm import step as worker_step

        self.processor.apply_staged_writes()
        self.steps, self.rows = self.steps + 1, self.rows + len(self.running)
        rows: list[tuple[int, int, int]] = []  # slot, number among the slot's, draft that leads there
        seen = []
        for slot, job in self.running.items():
            output = self.outputs[id(job)]
            given = list(draft(output, job.output[len(output) :]))[:DRAFTS] if draft and output else []
            rows += [(slot, local, token) for local, token in enumerate([0, *given])]
            seen += [look(job, output + given[:local]) for local in range(len(given) + 1)]
        worker_step._kept[:] = [torch.stack([state for _, state in seen])]
        logits, ids = torch.stack([one for one, _ in seen]), torch.tensor([row[2] for row in rows])
        given_ids, slots = ids.tolist(), list(self.running)
        cuts = [len(slots) * part // self.parts for part in range(self.parts + 1)]
        for first, last in pairwise(cuts):
            places = [place for place, row in enumerate(rows) if row[0] in slots[first:last]]
            if places:
                mine = slice(places[0], places[-1] + 1)
                self.processor.apply(logits[mine], self.context(slots[first:last], rows[mine], ids[mine]))
        self.verify(rows, logits.argmax(dim=1).tolist(), given_ids if self.copied else ids.tolist())

    def context(self, slots: list[int], rows: list[tuple[int, int, int]], ids: torch.Tensor) -> Any:
        return SimpleNamespace(
            idx_mapping_np=np.array(slots),
            idx_mapping=torch.tensor(slots),
            expanded_idx_mapping=torch.tensor([slot for slot, _, _ in rows]),
            expanded_local_pos=torch.tensor([local for _, local, _ in rows], dtype=torch.int32),
            input_ids=ids,
        )

    def verify(self, rows: list[tuple[int, int, int]], best: list[int], ids: list[int]) -> None:
        """Write the tokens of a step, and let requests leave that have ended."""
        for place, (slot, local, _) in enumerate(rows):
            if local:
                continue
            made, row = [best[place]], place + 1
            while row < len(rows) and rows[row][1] and ids[row] == made[-1]:
                made.append(best[row])
                row += 1
            length = int(self.total_len.gpu[slot])
            self.all_token_ids.gpu[slot, length : length + len(made)] = torch.tensor(made, dtype=torch.int32)
            self.total_len.gpu[slot] = length + len(made)
            output = self.outputs[id(self.running[slot])]
            for token in made:
                output.append(token)
                if token in self.processor.worker.end or len(output) == MOST:
                    del self.running[slot]
                    break


Traces = dict[str, list[Any]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Traces:
    """Collects the decisions about each request, by its tag and the number of the sample."""
    from tersely.controller.vllm import row_table

    found: Traces = {}

    def keep(tag: str, copy: int, decisions: Any, known: int = 0) -> int:
        found.setdefault(f"{tag} {copy}", [])[known:] = decisions[known:]
        return len(decisions)

    monkeypatch.setattr(row_table, "send_trace", keep)
    return found


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    """Two questions under each control, none decoded yet."""
    from transformers import AutoTokenizer

    tokenizer, made = AutoTokenizer.from_pretrained(FOLDER), list[Job]()
    for question in load("tiny", "test", 2, 5):
        for name, control in CONTROLS.items():
            message = [{"role": "user", "content": question.problem}]
            prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
            made.append(Job(prompt, control if name == "off" else {**control, "tag": f"1-0.{len(made)}"}))
    return made


@pytest.fixture(scope="module")
def traces(jobs: list[Job]) -> Traces:
    """The decisions without drafts; the jobs then know how they were decoded."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        found: Traces = sent.__wrapped__(patch)  # type: ignore[attr-defined]
        runner = Runner(jobs, 0)
        while runner.running:
            runner.step(lambda job, output: job.ask(model, output), None)
    for job in jobs:
        job.output = runner.outputs[id(job)]
    return found


def decode(jobs: list[Job], draft: Draft, preempt: int = 0, **options: Any) -> Runner:
    """Decode jobs with drafts; a request is preempted every so many steps."""
    torch.manual_seed(3)
    rng, runner = Random(7), Runner(jobs, DRAFTS, **options)
    while runner.running or runner.preempted:
        if preempt and runner.steps % preempt == 0 and len(runner.running) > 1:
            runner.preempt(rng.randrange(2 * DRAFTS + 3))
        elif not runner.running:
            back, runner.preempted = runner.preempted, None
            runner.add(0, *back)  # type: ignore[misc]
        runner.step(lambda job, output: job.recall(output), draft)
    return runner


def guess(chance: float) -> Draft:
    """Drafts that are each right with a probability."""
    rng = Random(1)
    return lambda output, rest: [t if rng.random() < chance else rng.randrange(900) for t in rest[: rng.randrange(5)]]


def look_up(output: list[int], rest: list[int]) -> list[int]:
    """What followed the last two tokens before: n-grams."""
    places = [at for at in range(2, len(output)) if output[at - 2 : at] == output[-2:]]
    return output[places[-1] : places[-1] + DRAFTS] if places else []


@pytest.mark.parametrize(
    ("draft", "options"),
    [
        (look_up, {}),
        (lambda output, rest: rest, {}),
        (guess(0.7), {}),
        (guess(0.8), {"parts": 3}),
        (guess(0.8), {"preempt": 9}),
    ],
    ids=["ngram", "right", "mixed", "in parts", "preempted"],
)
def test_drafts_change_no_token_and_no_decision(
    jobs: list[Job], traces: Traces, sent: Traces, draft: Draft, options: dict[str, Any]
) -> None:
    runner = decode(jobs, draft, **options)
    for job in jobs:
        assert runner.outputs[id(job)] == job.output, job.control
    assert sent == traces and all(sent.values())
    alone = sum(len(job.output) for job in jobs)
    assert runner.rows < (0.9 if draft is look_up else 0.75) * alone, "drafts are accepted"


def test_a_grammar_that_hides_the_rejection_makes_a_closing_late_and_no_more(
    jobs: list[Job], traces: Traces, sent: Traces
) -> None:
    from transformers import AutoTokenizer

    cut = [job for job in jobs if "thinking_budget" in job.control]
    runner = decode(cut, lambda output, rest: rest, copied=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for job in cut:
        assert "Time is short, so I answer now.\n</think>" in tokenizer.decode(runner.outputs[id(job)])
    assert len(sent) == len(cut) and all(decision.action == "close" for made in sent.values() for decision in made)
    assert any(runner.outputs[id(job)] != job.output for job in cut), "the test is too easy"


def test_an_end_of_the_turn_is_swapped_in_each_row_of_a_request(jobs: list[Job], traces: Traces) -> None:
    job = next(job for job in jobs if "thinking_budget" in job.control)
    runner = Runner([job], DRAFTS)
    for _ in range(3):
        runner.step(lambda job, output: job.recall(output), None)
    (end, *_), offered = runner.processor.worker.end, int(runner.processor.table.offered[0])
    (draft,) = {int(one) for one in job.output[3:4]}
    output, seen = runner.outputs[id(job)], []

    def look(job: Job, before: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The model writes the draft, and would then end its turn."""
        logits = torch.zeros_like(job.logits[0])
        logits[draft if len(before) == 3 else end] = 9.0
        seen.append(len(before))
        return logits, job.states[0]

    runner.step(look, lambda output, rest: [draft])
    assert seen == [3, 4] and offered >= 0
    assert output[3:] == [draft, offered]
    runner.step(look, None)
    row = runner.processor.table.rows[0]
    assert row.controller.forced == [False] * 4 + [True], "it stands for the end of the turn"
