"""One request under control inside vLLM: reads what was put out, and says which token must come next.

Only tokens that stand in the output count, never calls: prompts that are read in chunks and rows that pause make the
engine ask more often than it puts out. Knows no tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import CapabilityError
from ..controller import Controller
from ..text.closing import closing_text, paragraph_separator
from ..trace import Decision
from ..types import Directive, Signals, State, StepInfo, Watcher

if TYPE_CHECKING:
    from torch import Tensor


def end_token_ids(model_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a turn of a model that vLLM serves, the tokenizer's first."""
    told = model_config.try_get_generation_config().get("eos_token_id", ())
    ids = [tokenizer.eos_token_id, *([told] if isinstance(told, int) else told or ())]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def last_layer(model_config: Any) -> tuple[int, int]:
    """Whose hidden states there are inside vLLM: the last layer's, by both of its numbers."""
    return -1, int(model_config.hf_text_config.num_hidden_layers)


class EosSwap:
    """Of which rows the end of the turn was moved: fetched from the device once, when a token after that is read."""

    def __init__(self, won: Tensor) -> None:
        self.won = won
        self._known: list[bool] | None = None

    def of(self, number: int) -> bool:
        """Whether it was of this one."""
        if self._known is None:
            self._known = self.won.tolist()
        return self._known[number]


class RequestController:
    """Drives one watcher over a growing output.

    end: the tokens that end a turn; vLLM ends the request at them before a watcher hears of it. wants: of `signals`
    and `hidden`, what the watcher looks at. measured: signals are kept of every token. forced, signals: of each token
    that was read. stopped: the watcher ended the row. Asked when the next token is there are ahead, what the model made
    of it, and offer: whether the end of the turn was put there in place of a closing's first token, and which of the
    rows this is, see `closing_start`.
    """

    def __init__(
        self, watcher: Watcher | None, end: Sequence[int], wants: frozenset[str] = frozenset(), measured: bool = False
    ) -> None:
        self.watcher, self.end, self.wants, self.measured = watcher, tuple(end), wants, measured
        self.controller = watcher if isinstance(watcher, Controller) else None
        self.forced: list[bool] = []
        self.signals: list[Signals | None] = []
        self.stopped = False
        self.ahead: Callable[[], StepInfo] = lambda: _NOTHING_SEEN
        self.offer: tuple[EosSwap, int] | None = None
        self._through = watcher is None  # nothing will be forced any more
        self._queue: deque[int] = deque()
        self._closing: dict[str, tuple[int, ...]] = {}

    @property
    def done(self) -> bool:
        """Whether nothing is left to do for this request."""
        return self._through and not self.measured

    @property
    def settled(self) -> int:
        """How many tokens were read, without those of a forced piece that is not whole yet."""
        if not self._queue:
            return len(self.forced)
        return next((n for n in range(len(self.forced), 0, -1) if not self.forced[n - 1]), 0)

    @property
    def thinks(self) -> bool:
        """Whether the row is in its thinking, and chooses its next token itself."""
        controller = self.controller
        return not self._through and not self._queue and controller is not None and controller.phase == "thinking"

    @property
    def looks(self) -> bool:
        """Whether somebody wants to know what the model makes of the next token."""
        return self.measured or (bool(self.wants) and not self._through and (self.controller is None or self.thinks))

    def read(self, output: Sequence[int]) -> int | None:
        """Take in what was put out since the last call; the token that must come next, None if any may."""
        for place in range(len(self.forced), len(output)):
            latest = place == len(output) - 1
            seen = self.ahead() if latest and (self.wants or self.measured) else _NOTHING_SEEN
            self._take(output[place], seen, latest and self._moved())
        return self._queue[0] if self._queue else None

    def _moved(self) -> bool:
        return self.offer is not None and self.offer[0].of(self.offer[1])

    def _take(self, token: int, seen: StepInfo, moved: bool) -> None:
        if self.measured:
            self.signals.append(None if self._queue else seen.signals)
        if self._through:
            self.forced.append(False)
            return
        if self._queue:
            self.forced.append(True)
            if self._queue.popleft() != token:
                self._give_up("the engine put out another token than the forced one (a grammar, or a limit of its own)")
            elif not self._queue:
                self._settle()
            return
        self.forced.append(False)
        if moved and self.closing_start() == token:
            self.forced[-1] = True
            self._follow(self._observe(self.end[0], seen), standing=1)
        else:
            self._follow(self._observe(token, seen))

    def _observe(self, token: int, seen: StepInfo) -> Directive:
        assert self.watcher is not None
        return self.watcher.observe(token, seen) if self.wants else self.watcher.observe(token)

    def _follow(self, directive: Directive, standing: int = 0) -> None:
        """Queue what a directive forces, of which so many tokens stand already."""
        if directive.drop > standing or directive.trial is not None or directive.until is not None:
            self._give_up("vLLM can neither take back what it has put out, nor try something, nor let a row rest")
            return
        self._queue.extend(directive.force[standing:])
        if directive.stop:
            self.stopped = True
            self._queue.extend(self.end[:1])
        self._settle()

    def _settle(self) -> None:
        """Know whether there is nothing left to do."""
        self._through = not self._queue and self.controller is not None and self.controller.phase == "answer"

    def _give_up(self, reason: str) -> None:
        self._queue.clear()
        self._through = True
        if self.controller is not None:
            self.controller.decisions.append(Decision("engine", "error", f"goes on alone: {reason}", len(self.forced)))

    def fail(self, error: Exception) -> None:
        """Leave the request alone after an error of ours, which must never reach the engine."""
        self._give_up(f"{type(error).__name__}: {error}")

    def closing_start(self) -> int | None:
        """The first token of what closes the thinking here, to be put out in place of an end of the turn.

        None where the row is not thinking, or nothing may be done.
        """
        controller = self.controller
        if self._through or self._queue or controller is None or controller.phase != "thinking":
            return None
        if controller.shadow or not self.end:
            return None
        lead = paragraph_separator(controller.thinking.tail(4)) if controller.thinking.ends_line else "\n\n"
        if lead not in self._closing:
            self._closing[lead] = controller.codec.encode(closing_text(controller.markers, "", lead))
        return self._closing[lead][0]


def _no_state(layer: int) -> State:
    raise CapabilityError(f"the hidden state of layer {layer} is not at hand inside vLLM; only the last one (-1) is")


_NOTHING_SEEN = StepInfo(None, _no_state)
