"""Episodes of agent tasks: completions with the results of the tool calls in between.

Each step has the prompt that it will have in use, where templates drop the thinking of earlier steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from ...controller.text.tool_calls import OPEN, ToolCall, parse_tool_calls
from ...controller.types import Request
from ...errors import PromptError
from ...evaluation.agents.tasks import Task
from ...evaluation.agents.tools import ToolError, World, call_tool
from ...evaluation.runner import batch_seed
from ..rewards import AGENTIC
from ..rollouts import GroupRollouts
from ..sampling import FREE, CompletionRequest, Rollout, RolloutSampler

CALLING = (FREE, AGENTIC)  # start modes of episodes whose calls are executed; the others have no tools


def run_calls(world: World, text: str, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """The messages that follow from calls: the model's own, and each call's result or error."""
    valid = [call for call in calls if call.error is None]
    invalid = "".join(call.text for call in calls if call.error is not None)
    functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in valid]
    message: dict[str, Any] = {"role": "assistant", "content": f"{text}{invalid}"}
    if valid:
        message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    results = []
    for call in calls:
        try:
            if call.error is not None or call.name is None:
                raise ToolError(f"invalid tool call: {call.error}")
            result = call_tool(world, call.name, call.arguments)
        except ToolError as error:
            result = str(error)
        results.append({"role": "tool", "content": result})
    return [message, *results]


@dataclass(slots=True)
class TrainingEpisode:
    """The steps taken for one question, and the conversation after them."""

    row: Mapping[str, Any]
    start_mode: str
    steps: list[Rollout]
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0  # steps whose calls were executed
    called: bool = False  # whether the first step called a tool

    @property
    def mode(self) -> str:
        """The mode that it turned out to be in; an episode that calls a tool is agentic."""
        return AGENTIC if self.called else self.steps[0].mode

    @property
    def followed_start(self) -> bool:
        return self.start_mode in (FREE, self.mode)

    @property
    def answer(self) -> str:
        """The final answer; "" if the last step is a call."""
        response = self.steps[-1].response
        return "" if self.called and parse_tool_calls(response)[1] else response

    @property
    def tokens(self) -> int:
        """Completion tokens of all steps."""
        return sum(len(step.ids) for step in self.steps)

    def to_rollout(self, step: int, solved: float | None) -> Rollout:
        """One step as a rollout for the whole episode.

        Its weight is the number of steps, as with a random step the loss is on average that of all; 0 if it left its
        mode.
        """
        return replace(
            self.steps[step],
            start_mode=self.start_mode,
            mode=self.mode,
            p_no_think=self.steps[0].p_no_think,
            response=self.answer,
            thinking_tokens=sum(step.thinking_tokens for step in self.steps),
            response_tokens=sum(step.response_tokens for step in self.steps),
            finish_reason=self.steps[-1].finish_reason,
            weight=float(len(self.steps)) if self.followed_start else 0.0,
            solved=solved,
        )


def _has_calls(rollout: Rollout) -> bool:
    return bool(parse_tool_calls(rollout.response)[1])


def open_calls(sampler: RolloutSampler, rollouts: Sequence[Rollout], seed: int) -> list[Rollout]:
    """Open a tool call after the thinking of these completions, if it is closed with tokens left, and continue them."""
    opening = tuple(sampler.session.codec.encode(f"{sampler.session.markers.close_suffix}{OPEN}"))
    opened, limit, size = list(rollouts), sampler.settings.max_new_tokens, sampler.settings.batch
    heads = {
        i: (*rollout.ids[: rollout.ids.index(sampler.close) + 1], *opening)
        for i, rollout in enumerate(rollouts)
        if sampler.close in rollout.ids
    }
    indices = [i for i, head in heads.items() if len(head) < limit]
    completions = sampler.decode_batches(
        [Request((*rollouts[i].prompt_ids, *heads[i]), limit - len(heads[i])) for i in indices],
        lambda at: sampler.sampling(batch_seed("opened calls", seed, at // size)),
    )
    for i, completion in zip(indices, completions, strict=True):
        forced = (*rollouts[i].forced[: len(heads[i]) - len(opening)], *(True for _ in opening))
        opened[i] = replace(rollouts[i], **sampler.parse_completion(heads[i], forced, completion))
    return opened


class EpisodeRollouts(GroupRollouts):
    """Episodes as completions for TRL, each represented by one of its steps, drawn at random.

    All unfinished episodes take their next step in one batch. Forced starts are masked from the loss; episodes that do
    not follow their forced start get weight 0.
    """

    def __init__(
        self,
        sampler: RolloutSampler,
        tasks: Mapping[str, Task] | None,  # by id; None for questions without tools, which take one step
        followup_effort: str,  # the tier of steps after a tool result
        max_steps: int,  # of an episode
        plan: Sequence[str] = (),
        seed: int = 0,
        omega: float | None = None,  # of the F score that rewards answers with several names, see `Task.score`
    ) -> None:
        super().__init__(sampler, seed, plan)
        self.tasks, self.followup_effort, self.max_steps, self.omega = tasks, followup_effort, max_steps, omega

    def sample(
        self, requests: Sequence[CompletionRequest], rows: Sequence[Mapping[str, Any]], seed: int
    ) -> list[Rollout]:
        rng = Random(f"steps:{seed}")
        return [
            episode.to_rollout(rng.randrange(len(episode.steps)), self.score(episode))
            for episode in self.run(requests, rows, seed)
        ]

    def loss_mask(self, rollout: Rollout) -> list[int]:
        mask = super().loss_mask(rollout)
        if rollout.first_token_logprob is not None:
            mask[0] = 0
        return mask

    def run(
        self, requests: Sequence[CompletionRequest], rows: Sequence[Mapping[str, Any]], seed: int
    ) -> list[TrainingEpisode]:
        """Run one episode per request and its dataset row.

        An episode started as agentic whose first step makes no call gets one opened after its thinking.
        """
        first = self.sampler(requests, seed)
        silent = [i for i, r in enumerate(requests) if r.start_mode == AGENTIC and not _has_calls(first[i])]
        for i, rollout in zip(silent, open_calls(self.sampler, [first[i] for i in silent], seed), strict=True):
            first[i] = rollout
        episodes = [
            TrainingEpisode(
                row,
                request.start_mode,
                [rollout],
                list(row["prompt"]),
                called=self.tasks is not None and _has_calls(rollout),
            )
            for row, request, rollout in zip(rows, requests, first, strict=True)
        ]
        for number in range(1, self.max_steps):
            active = list(self._advance(episodes))
            if not active:
                break
            followups = [CompletionRequest(episode.messages, self.followup_effort) for episode in active]
            rollouts = self.sampler(followups, batch_seed("steps", seed, number))
            for episode, rollout in zip(active, rollouts, strict=True):
                episode.steps.append(rollout)
        return episodes

    def judge(self, episode: TrainingEpisode) -> bool | None:
        """Whether the task is solved as it was started; None if `Correctness` decides."""
        if self.tasks is None:
            return None
        return episode.followed_start and self.tasks[episode.row["id"]].solved_by(episode.answer)

    def score(self, episode: TrainingEpisode) -> float | None:
        """As `judge`; with an omega, by WebLeaper's hybrid reward (arXiv 2510.24697) how far the task is solved."""
        if self.tasks is None or self.omega is None or not episode.followed_start:
            return self.judge(episode)
        return self.tasks[episode.row["id"]].score(episode.answer, self.omega)

    def _advance(self, episodes: Sequence[TrainingEpisode]) -> Iterator[TrainingEpisode]:
        """Execute the pending calls; yields the episodes that take another step."""
        if self.tasks is None:
            return
        context = self.sampler.engine.context_length
        for episode in episodes:
            text, calls = parse_tool_calls(episode.steps[-1].response)
            if not calls or episode.start_mode not in CALLING or episode.calls == len(episode.steps):
                continue
            episode.messages += run_calls(self.tasks[episode.row["id"]].world, text, calls)
            episode.calls += 1
            try:
                prompt = self.sampler.prompt_ids(episode.messages, self.followup_effort)
            except PromptError:  # not even an answer would fit
                continue
            if context is None or len(prompt) + self.sampler.settings.max_new_tokens <= context:
                yield episode
