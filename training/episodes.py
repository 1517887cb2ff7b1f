"""Episodes: one completion after the other, with the results of the tools that each calls in between.

Each step stands under a prompt of its own, the conversation as the chat template has it. So what is learnt is read as
it will be read in use, where templates drop the thinking of earlier steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from ..controller.text.tool_calls import OPEN, read_calls
from ..controller.types import Request
from ..errors import PromptError
from ..evaluation.runner import batch_seed
from .environment import Environment
from .rewards.base import AGENTIC
from .rollouts import GroupRollouts
from .sampling import FREE, CompletionRequest, Rollout, Sampler, plain_sampling

CALLING = (FREE, AGENTIC)
"""How an episode is begun whose calls are carried out; the other modes have no tools."""


@dataclass(slots=True)
class TrainingEpisode:
    """What came of one question: its steps, and the conversation after them; calls: how many were carried out."""

    row: Mapping[str, Any]
    begun: str
    steps: list[Rollout]
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0
    called: bool = False

    @property
    def mode(self) -> str:
        """What it did: one that calls a tool is agentic, however it was begun."""
        return AGENTIC if self.called else self.steps[0].mode

    @property
    def stayed(self) -> bool:
        """Whether it did as it was begun."""
        return self.begun in (FREE, self.mode)

    @property
    def answer(self) -> str:
        """What it says in the end; "" where that is a call."""
        response = self.steps[-1].response
        return "" if self.called and read_calls(response)[1] else response

    @property
    def tokens(self) -> int:
        """Of all steps, prompts left out."""
        return sum(len(step.ids) for step in self.steps)

    def learnt_from(self, place: int, solved: bool | None) -> Rollout:
        """One of its steps in the place of all, with the figures of the whole.

        It counts for as many as there are, so that on average the loss is that of all steps; and for nothing in an
        episode that left its mode, which tells nothing of it.
        """
        return replace(
            self.steps[place],
            begun=self.begun,
            mode=self.mode,
            chance=self.steps[0].chance,
            response=self.answer,
            thinking_tokens=sum(step.thinking_tokens for step in self.steps),
            response_tokens=sum(step.response_tokens for step in self.steps),
            finish_reason=self.steps[-1].finish_reason,
            weight=float(len(self.steps)) if self.stayed else 0.0,
            solved=solved,
        )


def run_episode(
    sampler: Sampler,
    asks: Sequence[CompletionRequest],
    rows: Sequence[Mapping[str, Any]],
    environment: Environment | None,
    *,
    later: str,
    steps: int,
    seed: int,
) -> list[TrainingEpisode]:
    """Have the model do tasks, of which `rows` have the ids; all that are not done take their next step together.

    environment: None where there are no tools, and all is done in one step. later: the effort of steps that follow a
    tool's result. steps: most of an episode. One that was begun with a call and makes none has it opened for it after
    its thinking.
    """
    first = sampler(asks, seed)
    begun = [i for i, ask in enumerate(asks) if ask.begun == AGENTIC and not _calls(first[i])]
    for i, rollout in zip(begun, open_calls(sampler, [first[i] for i in begun], seed), strict=True):
        first[i] = rollout
    made = [
        TrainingEpisode(
            row, ask.begun, [rollout], list(row["prompt"]), called=environment is not None and _calls(rollout)
        )
        for row, ask, rollout in zip(rows, asks, first, strict=True)
    ]
    for number in range(1, steps):
        going = list(_going(sampler, made, environment, later))
        if not going:
            break
        found = sampler([CompletionRequest(one.messages, later) for one in going], batch_seed("steps", seed, number))
        for one, rollout in zip(going, found, strict=True):
            one.steps.append(rollout)
    return made


def _going(
    sampler: Sampler, made: Sequence[TrainingEpisode], environment: Environment | None, later: str
) -> Iterator[TrainingEpisode]:
    """The episodes that take another step, their calls carried out."""
    if environment is None:
        return
    room = sampler.engine.context_length
    for one in made:
        said, calls = read_calls(one.steps[-1].response)
        if not calls or one.begun not in CALLING or one.calls == len(one.steps):
            continue
        one.messages += environment.turns(one.row["id"], said, calls)
        one.calls += 1
        try:
            length = len(sampler.prompt_ids(one.messages, later)) + sampler.settings.max_new_tokens
        except PromptError:  # not even an answer would fit
            continue
        if room is None or length <= room:
            yield one


def _calls(rollout: Rollout) -> bool:
    return bool(read_calls(rollout.response)[1])


def open_calls(sampler: Sampler, made: Sequence[Rollout], seed: int) -> list[Rollout]:
    """Open a call after the thinking of these completions, and have the model go on from there.

    Those that never end their thinking, or have no room left, stay as they are.
    """
    words = tuple(sampler.session.codec.encode(f"{sampler.session.markers.close_suffix}{OPEN}"))
    found, limit, size = list(made), sampler.settings.max_new_tokens, sampler.settings.batch
    begun = {
        i: (*rollout.ids[: rollout.ids.index(sampler.close) + 1], *words)
        for i, rollout in enumerate(made)
        if sampler.close in rollout.ids
    }
    places = [i for i, ids in begun.items() if len(ids) < limit]
    for number, at in enumerate(range(0, len(places), size)):
        part = places[at : at + size]
        requests = [Request((*made[i].prompt_ids, *begun[i]), limit - len(begun[i])) for i in part]
        sampling = sampler.sampling(batch_seed("opened calls", seed, number))
        with plain_sampling(sampler.engine.model):
            done = sampler.decode(requests, sampling)
        for i, completion in zip(part, done, strict=True):
            forced = (*made[i].forced[: len(begun[i]) - len(words)], *(True for _ in words))
            found[i] = replace(made[i], **sampler.written(begun[i], forced, completion))
    return found


class EpisodeRollouts(GroupRollouts):
    """Whole episodes as TRL's completions, each by one of its steps, drawn at random; see `play`.

    How one was begun by force has no loss, and neither has one that does otherwise than it was begun.
    """

    def __init__(
        self,
        sampler: Sampler,
        plan: Sequence[str],
        seed: int,
        environment: Environment | None,
        *,
        later: str,
        steps: int,
    ) -> None:
        super().__init__(sampler, plan, seed)
        self.environment, self.later, self.steps = environment, later, steps

    def sample(self, asks: Sequence[CompletionRequest], rows: Sequence[Mapping[str, Any]], seed: int) -> list[Rollout]:
        """See `GroupRollouts`."""
        made = run_episode(self.sampler, asks, rows, self.environment, later=self.later, steps=self.steps, seed=seed)
        rng = Random(f"steps:{seed}")
        return [one.learnt_from(rng.randrange(len(one.steps)), self._solved(one)) for one in made]

    def _solved(self, one: TrainingEpisode) -> bool | None:
        """None where the reward for being right judges."""
        if self.environment is None:
            return None
        return one.stayed and self.environment.solved(one.row["id"], one.answer)

    def learnt(self, rollout: Rollout) -> list[int]:
        """See `GroupRollouts`."""
        mask = super().learnt(rollout)
        if rollout.drawn is not None:
            mask[0] = 0
        return mask
