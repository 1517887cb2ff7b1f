"""Text from tools on its way into a prompt: what a tokenizer or template takes for more than text is broken.

A broken marker stays readable: `<|im_start|>` becomes `<·|im_start|>`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from ...text.markers import KNOWN, Markers

BREAK = "·"
_LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "[": "⟦", "]": "⟧", "|": "¦", "◁": "‹", "▷": "›"})
_ROLES = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "<|endoftext|>", "[INST]", "[/INST]")
_CALLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")
# Switches by which users of some models turn thinking up or down; templates and models obey them in any message.
_SWITCHES = re.compile(
    r"(?<!\S)/(?=(?:no_)?think\b)|"
    r"^[ \t]*/(?=(?:none|minimal|low|easy|medium|normal|high|hard|xhigh|max)[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)


class SpecialTokenSanitizer:
    """Breaks special tokens, thinking markers, role tags and effort switches in texts; twice does what once does.

    tokenizer: whose special tokens are broken too, and which is asked afterwards whether any is left; None knows the
    common ones only. markers: of a model with markers of its own.
    """

    def __init__(self, tokenizer: Any = None, markers: Markers | None = None) -> None:
        self._tokenizer = tokenizer
        added = {} if tokenizer is None else dict(tokenizer.added_tokens_decoder)
        special = {number: str(token.content) for number, token in added.items() if _is_marker(token)}
        self._ids = frozenset(special) - {getattr(tokenizer, "unk_token_id", None)}
        own = () if markers is None else (markers.open, markers.close)
        self._pattern = _pattern([*special.values(), *own, *_ROLES, *_CALLS, *(m for pair in KNOWN for m in pair)])

    def __call__(self, text: str) -> str:
        """The text with all of them broken."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # no tokenizer takes half a surrogate pair
        broken = self._pattern.sub(lambda found: f"{found[0][0]}{BREAK}{found[0][1:]}", text)
        broken = _SWITCHES.sub(lambda found: f"{found[0]}{BREAK}", broken)
        # What a tokenizer normalises may become a marker only there, so it has the last word.
        return unicodedata.normalize("NFKC", broken).translate(_LOOKALIKES) if self._leaks(broken) else broken

    def content(self, content: Any) -> Any:
        """A message's content, a text or a list of blocks, with the texts in it broken."""
        if isinstance(content, str):
            return self(content)
        if isinstance(content, list):
            return [self.content(block) for block in content]
        if isinstance(content, dict):
            return {key: self.content(value) if key != "type" else value for key, value in content.items()}
        return content

    def _leaks(self, text: str) -> bool:
        if self._tokenizer is None or not text:
            return False
        return not self._ids.isdisjoint(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _is_marker(token: Any) -> bool:
    """Whether an added token is more than a frequent piece of text."""
    text = str(token.content).strip()
    return bool(text) and (bool(token.special) or (not text.isalnum() and any(c in text for c in "<>[]|◁▷")))


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Any of the texts of two characters or more, the longest first; white space around an added token is no matter."""
    found = sorted({text.strip() for text in texts if len(text.strip()) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)), re.IGNORECASE)


_KNOWN: WeakKeyDictionary[Any, dict[Markers | None, SpecialTokenSanitizer]] = WeakKeyDictionary()


def get_sanitizer(tokenizer: Any, markers: Markers | None = None) -> SpecialTokenSanitizer:
    """The shared neutraliser of a tokenizer object."""
    made = _KNOWN.setdefault(tokenizer, {})
    if markers not in made:
        made[markers] = SpecialTokenSanitizer(tokenizer, markers)
    return made[markers]
