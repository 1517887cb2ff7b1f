"""One request under control inside vLLM, and how a worker makes the controllers of requests.

A controller reads its request's output, and says which token must come next. Only tokens that are in the output count,
never calls: chunked prefill and preemption make vLLM ask more often than it samples. Knows no tensors.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ...errors import CapabilityError
from ..budgets import canonical_effort, tier_by_length
from ..controller import Controller, ControllerState
from ..policies.base import Policy, TrialAnswer
from ..prompts import thinking_state_after
from ..text.markers import Markers, closing_text, find_markers
from ..text.tokenizer_adapter import TokenFlags, TokenizerAdapter, get_adapter
from ..trace import Decision
from ..trials import TrialDecoder
from ..types import BindContext, Capability, Signals, State, StepInfo, Watcher
from ..verification import RuleVerifier, Verifier
from ..verifiers import EndpointVerifier
from .engine_options import OPTIONS, check_endpoints, load_tokenizer
from .request_control import KEY, RequestControl, parse_control, read_control
from .trial_endpoint import TrialEndpoint, failed_trial, find_self_key, require_trials

UNKNOWN, QUIET, SENTENCE, LINE, PARAGRAPH, FENCE, LOUD = range(7)
"""Kinds of tokens: one that ends nothing wherever it stands, a sentence and no more, a line, or a paragraph, one that
may be part of a formula, code or a call but does not begin one, and any other."""
_BOUND = 256
"""Policies, with their settings, that are kept bound to the model."""
DRIVERS: dict[str, RequestController] = {}
"""Controllers of requests to an engine in this process, by the `driver` of their control."""


def end_token_ids(model_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a turn of a model that vLLM serves, the tokenizer's first."""
    configured = model_config.try_get_generation_config().get("eos_token_id", ())
    ids = [tokenizer.eos_token_id, *([configured] if isinstance(configured, int) else configured or ())]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def last_layer(model_config: Any) -> tuple[int, int]:
    """The only layer whose hidden states vLLM shows, by both of its numbers."""
    return -1, int(model_config.hf_text_config.num_hidden_layers)


def folder_fingerprint(model: str) -> str | None:
    """The fingerprint of a checkpoint; None unless it is a folder."""
    if not Path(model).is_dir():
        return None
    from ...probes.fingerprint import checkpoint_fingerprint

    return checkpoint_fingerprint(model)


class RequestController:
    """Drives one watcher over a growing output.

    `end` are the tokens that end a turn: vLLM ends the request at them before a watcher is called. `reads` says which
    of signals and hidden states the watcher reads; `keep_signals` keeps the signals of every token. `lazy` lets tokens
    that wake no policy wait, see `patience`. So many tokens as `late` may come between a decision and what it forces.
    """

    def __init__(
        self,
        watcher: Watcher | None,
        end: Sequence[int],
        reads: frozenset[Capability] = frozenset(),
        keep_signals: bool = False,
        lazy: bool = False,
        late: int = 0,
    ) -> None:
        self.lazy, self.late = lazy, late
        self.watcher, self.end, self.reads, self.keep_signals = watcher, tuple(end), reads, keep_signals
        self.controller = watcher if isinstance(watcher, Controller) else None
        self.forced: list[bool] = []  # of each token that was read
        self.signals: list[Signals | None] = []
        self.output: Sequence[int] = ()
        self.stopped = False  # by the watcher
        self.next_step: Callable[[], StepInfo] = lambda: _NO_STEP  # what the model says about the next token
        self.swap: Callable[[], bool] | None = None  # whether the end of the turn was swapped for the next token
        self._recalled = _Recall()
        self._finished = watcher is None  # nothing will be forced any more
        self._queue: deque[int] = deque()
        self._late = 0  # tokens that may still come before those of the queue
        self.unseen = 0  # tokens that came so, which the watcher does not know
        self._closings: dict[str, int] = {}  # their first tokens, by the separator before them

    @property
    def done(self) -> bool:
        """Whether nothing is left to do for this request."""
        return self._finished and not self.keep_signals

    @property
    def settled(self) -> int:
        """How many tokens were read, without those of a forced piece that is not complete yet."""
        if not self._queue:
            return len(self.forced)
        return next((n for n in range(len(self.forced), 0, -1) if not self.forced[n - 1]), 0)

    @property
    def thinks(self) -> bool:
        """Whether the sequence is thinking and chooses its next token itself."""
        thinking = self.controller is not None and self.controller.state is ControllerState.THINKING
        return thinking and not self._finished and not self._queue

    @property
    def decisions(self) -> Sequence[Decision]:
        """The trace so far; empty for a watcher that is no `Controller`."""
        return () if self.controller is None else self.controller.decisions

    def patience(self, offered: int | None) -> tuple[int, int, int, int, int]:
        """How many more tokens may come before this has to read them, by the kind of the last, `QUIET` to `FENCE`.

        `offered` is the present `closing_starts`' first.
        """
        controller = self.controller
        if not self.lazy or controller is None or self._queue or self._finished or self.keep_signals:
            return 0, 0, 0, 0, 0
        if offered is None and not controller.shadow and self.thinks:
            return 0, 0, 0, 0, 0  # what stands for an end of the turn may change with the next token
        quiet, sentence = controller.patience("token"), controller.patience("sentence")
        line, paragraph = (sentence, controller.patience("thought")) if self.thinks else (0, 0)
        return quiet, sentence, line, paragraph, 0 if controller.thinking.may_call else quiet

    @property
    def queued(self) -> Sequence[int]:
        """The tokens that must come next."""
        return self._queue

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """Tokens after which nothing more is forced: those that end the turn, and the marker that ends the thinking."""
        controller = self.controller
        close = None if controller is None else controller.codec.added_tokens.get(controller.markers.close)
        return self.end if close is None else (*self.end, close)

    @property
    def wants_signals(self) -> bool:
        """Whether the next token's signals or hidden states will be read."""
        reads = bool(self.reads) and not self._finished and (self.controller is None or self.thinks)
        return self.keep_signals or reads

    @property
    def wants_states(self) -> bool:
        """Whether the hidden state that the next token is sampled from will be read."""
        return self.wants_signals and Capability.HIDDEN_STATES in self.reads

    def read(self, output: Sequence[int]) -> int | None:
        """Read what the output has grown by; return the token that must come next, None if any may."""
        self.output = output
        for index in range(len(self.forced), len(output)):
            latest = index == len(output) - 1
            step = self._step(index, latest) if self.reads or self.keep_signals else _NO_STEP
            swapped = latest and self.swap is not None and self.swap()
            self._read_token(output[index], step, swapped)
        return self._queue[0] if self._queue else None

    def skip(self, tokens: Sequence[int], signals: Sequence[Signals | None]) -> None:
        """Take the next tokens of the output, within `patience`; `signals` is empty or has one for each."""
        if signals:
            known = self._recalled.signals
            known += [None] * (len(self.forced) - len(known))
            known += signals
        self.forced += [False] * len(tokens)
        if self.controller is not None:
            self.controller.skip(tokens, signals)

    def _step(self, index: int, latest: bool) -> StepInfo:
        """What the model said about a token; kept, as far as it is read, for `replay`."""
        known = self._recalled
        if index < len(known.signals):
            return StepInfo(known.signals[index], known.states.get(index, _no_state))
        step = self.next_step() if latest else _NO_STEP
        known.signals += [None] * (index - len(known.signals))
        known.signals.append(step.signals)

        def state(layer: int) -> State:
            found = step.state(layer)
            known.states[index] = lambda layer: found
            return found

        return StepInfo(step.signals, state)

    def replay(self, before: RequestController, tokens: int) -> None:
        """Read again, for so many tokens, what the controller of this request read before it was preempted."""
        known = before._recalled
        states = {index: state for index, state in known.states.items() if index < tokens}
        self._recalled = _Recall(known.signals[:tokens], states)

    def _read_token(self, token: int, step: StepInfo, swapped: bool) -> None:
        if self.keep_signals:
            self.signals.append(None if self._queue else step.signals)
        if self._finished:
            self.forced.append(False)
            return
        if self._queue and self._late and token not in (self._queue[0], *self._ends):
            self._late -= 1
            self.unseen += 1
            self.forced.append(False)
            return
        if self._queue:
            self.forced.append(True)
            self._late = 0
            if self._queue.popleft() != token:
                self._give_up("vLLM wrote another token than the forced one (a grammar, or a limit of its own)")
            elif not self._queue:
                self._update_finished()
            return
        self.forced.append(False)
        if swapped and (starts := self.closing_starts()) is not None and starts[0] == token:
            self.forced[-1] = True
            self._observe(self.end[0], step, written=1)
        else:
            self._observe(token, step)

    def _observe(self, token: int, step: StepInfo, written: int = 0) -> None:
        """Show a token to the watcher, and queue what it forces; this many tokens of that are written already."""
        assert self.watcher is not None
        directive = self.watcher.observe(token, step) if self.reads else self.watcher.observe(token)
        if directive.retract > written or directive.trial is not None or directive.wait_for is not None:
            self._give_up("inside vLLM tokens cannot be retracted, tried or waited for")
            return
        self._queue.extend(directive.force[written:])
        self._late = 0 if written else self.late
        if directive.stop:
            self.stopped = True
            self._queue.extend(self.end[:1])
        self._update_finished()

    def _update_finished(self) -> None:
        self._finished = not self._queue and self.controller is not None and self.controller.finished

    def _give_up(self, reason: str) -> None:
        self._queue.clear()
        self._finished = True
        if self.controller is not None:
            self.controller.decisions.append(Decision("engine", "error", f"goes on alone: {reason}", len(self.forced)))

    def fail(self, error: Exception) -> None:
        """Leave the request alone after an error of ours, which must never reach vLLM."""
        self._give_up(f"{type(error).__name__}: {error}")

    def closing_starts(self) -> tuple[int, int, int, int] | None:
        """The first token of what closes the thinking here, and behind a next token in a line, of a line, a paragraph.

        It replaces an end of the turn. None where the sequence is not thinking, or nothing may be done.
        """
        controller = self.controller
        if controller is None or not self.thinks or controller.shadow or not self.end:
            return None
        thinking = controller.thinking
        if thinking.ends_in_call:
            return None  # the turn ends with the call
        behind, line, paragraph = map(self._closing_start, ("\n\n", "\n", ""))
        return self._closing_start(thinking.separator) if thinking.ends_line else behind, behind, line, paragraph

    def _closing_start(self, separator: str) -> int:
        """The first token of a closing behind a separator."""
        found = self._closings.get(separator)
        if found is None:
            assert self.controller is not None
            text = closing_text(self.controller.markers, "", separator)
            found = self._closings[separator] = self.controller.codec.encode(text)[0]
        return found


def kind_of(token: int, codec: TokenizerAdapter, markers: Markers, end: Sequence[int]) -> int:
    """The kind of a token. One that may end the turn or a marker, begin a call or a line, is loud."""
    added, flags = codec.added_tokens, codec.flags[token] & ~TokenFlags.DIGIT
    for marker in (markers.open, markers.close):
        if added.get(marker) == token or (marker not in added and codec.holds(token, marker[-1])):
            return LOUD
    if token in end or flags & TokenFlags.CALL:
        return LOUD
    if flags & TokenFlags.FENCE or codec.holds(token, "="):  # which begins a call in "<function="
        return LOUD if flags & (TokenFlags.SENTENCE | TokenFlags.NEWLINE) else FENCE
    if not flags & TokenFlags.NEWLINE:
        return SENTENCE if flags else QUIET
    ending = "\n\n" if flags & TokenFlags.BLANK else "\n"
    return (PARAGRAPH if flags & TokenFlags.BLANK else LINE) if codec.decode([token]).endswith(ending) else LOUD


@dataclass
class _Recall:
    """What was read of the model: signals of each token, and the state of those where it was asked for."""

    signals: list[Signals | None] = field(default_factory=list)
    states: dict[int, Callable[[int], State]] = field(default_factory=dict)


def _no_state(layer: int) -> State:
    raise CapabilityError(f"the hidden state of layer {layer} is not available inside vLLM; only the last one (-1) is")


_NO_STEP = StepInfo(None, _no_state)


class WorkerContext:
    """The model of one vLLM worker: its tokenizer, markers, probes and default control.

    `additional_config["tersely"]` of the engine may have `default`, the control of requests that bring none, and
    `markers`, [open, close], where they cannot be found, `verifier`, the URL of a server that answers what rules cannot
    decide, and `trials`, that of a vLLM server of the same model that decodes trial answers; no step waits for them.
    Policies bind to it; implements `types.ModelHandle`.
    """

    def __init__(self, vllm_config: Any, drafts: int = 0) -> None:
        self._drafts = drafts  # the most that vLLM makes in a step
        self.config = vllm_config.model_config
        self.name = str(self.config.served_model_name or self.config.model)
        self.hidden_layers: tuple[int, ...] | None = last_layer(self.config)
        settings = (vllm_config.additional_config or {}).get(KEY, {})
        self._default = settings.get("default")
        self._markers = settings.get("markers")
        self._verifier_url, self._trials_url = settings.get("verifier"), settings.get("trials")
        capabilities = {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES}
        self.capabilities = frozenset(capabilities | ({Capability.TRIALS} if self._trials_url else set()))
        parallel = getattr(vllm_config, "parallel_config", None)
        check_endpoints(settings, getattr(parallel, "tensor_parallel_size", 1))
        self._bind = lru_cache(maxsize=_BOUND)(lambda policy: policy.bind(BindContext(self)))
        self._fingerprint: str | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded when the first request is controlled."""
        return load_tokenizer(self.config.model, {name: getattr(self.config, name, None) for name in OPTIONS})

    @cached_property
    def verifier(self) -> Verifier | None:
        """What answers the policies' questions; None decides by rules only."""
        if not self._verifier_url:
            return None
        return RuleVerifier(EndpointVerifier(self._verifier_url))

    @cached_property
    def trials(self) -> TrialEndpoint | None:
        """What decodes trial answers; None refuses policies that need them."""
        if not self._trials_url:
            return None
        return TrialEndpoint(self._trials_url, self.name if find_self_key(self._trials_url) else None)

    @cached_property
    def markers(self) -> Markers:
        """How this model opens and closes its thinking; raises MarkerError if unknown."""
        return Markers(*self._markers) if self._markers else find_markers(self.tokenizer)

    @cached_property
    def end(self) -> tuple[int, ...]:
        """The tokens that end a turn."""
        return end_token_ids(self.config, self.tokenizer)

    @cached_property
    def default(self) -> RequestControl | None:
        """The control of a request that brings none."""
        return None if self._default is None else read_control(self._default)

    def check(self) -> None:
        """Raise the error of settings that would leave every request without control, and load the tokenizer."""
        _ = self.verifier, self.trials
        require_trials(self.default, self.trials is not None)
        with contextlib.suppress(Exception):  # each request that needs it says what is wrong
            _ = self.markers, self.end
        if self.default is not None:
            for policy in self.default.make_policies():
                self._bind(policy)

    def kind_of(self, token: int) -> int:
        """The kind of a token; see `kind_of`."""
        try:
            return kind_of(token, get_adapter(self.tokenizer), self.markers, self.end)
        except Exception:  # no token of the tokenizer; or no markers, and every token is read
            return LOUD

    def fingerprint(self) -> str | None:
        """See `ModelHandle.fingerprint`."""
        self._fingerprint = self._fingerprint or folder_fingerprint(self.config.model)
        return self._fingerprint

    def make_controller(
        self, extra_args: Mapping[str, Any] | None, prompt: Sequence[int] | None, max_tokens: int
    ) -> RequestController | None:
        """The controller of a request; None where there is nothing to control.

        `prompt` is None where it came as embeddings. Raises OptionError for a wrong setting, MarkerError for a model
        without markers.
        """
        control = parse_control(extra_args, self.default)
        if control is None:
            return None
        if control.driver:
            return DRIVERS[control.driver]
        require_trials(control, self.trials is not None)
        codec, ids = get_adapter(self.tokenizer), list(prompt or ())
        state = thinking_state_after(codec.decode(ids[-32:]), self.markers)
        if state == "answer":
            return None
        tier = canonical_effort(control.effort)
        if tier == "auto":
            tier = tier_by_length(codec.decode(ids))
        policies: tuple[Policy, ...] = tuple(map(self._bind, control.make_policies()))

        def ask(position: int, forced: Sequence[int], trial: TrialDecoder) -> Future[TrialAnswer]:
            assert self.trials is not None
            if prompt is None:
                return failed_trial("the prompt came as embeddings, which a trial cannot repeat")
            return self.trials.submit([*ids, *request.output[: position + request.unseen], *forced], trial)

        controller = Controller(
            policies,
            codec,
            self.markers,
            control.make_budget(tier, max_tokens),
            opened=state == "thinking",
            shadow=control.shadow,
            prompt=control.question,
            prompt_tokens=len(ids),
            verifier=self.verifier,
            ask_trial=None if self.trials is None else ask,
        )
        required = {need for policy in policies for need in policy.requires}
        reads = frozenset(required & {Capability.LOGIT_SIGNALS, Capability.HIDDEN_STATES})
        request = RequestController(controller, self.end, reads, lazy=True, late=self._drafts)
        return request
