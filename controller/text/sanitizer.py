"""Makes untrusted text, such as tool output, safe for a prompt: special tokens and thinking markers become plain text.

A broken marker stays readable: `<|im_start|>` becomes `<·|im_start|>`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from .markers import KNOWN, Markers

BREAK = "·"
_LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "[": "⟦", "]": "⟧", "|": "¦", "◁": "‹", "▷": "›"})
_ROLES = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "<|endoftext|>", "[INST]", "[/INST]")
_CALLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")
_MEDIA = frozenset(
    {"type", "url", "data", "image_url", "input_audio", "audio_url", "video_url", "file_data", "file_id"}
)
# Switches that turn thinking up or down; templates and models obey them in any message.
_SWITCHES = re.compile(
    r"(?<!\S)/(?=(?:no_)?think\b)|"
    r"^[ \t]*/(?=(?:none|minimal|low|easy|medium|normal|high|hard|xhigh|max)[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_NAMES = ("name", "tool_call_id", "call_id", "tool_use_id")
_OWN_ROLES = ("system", "developer", "assistant")
_RESULTS = ("tool_result", "function_call_output")
"""Types of items and blocks with what a tool returned."""
RENDERED = ("tools", "documents", "chat_template_kwargs")
"""Fields that chat templates render: all their text is sanitized."""


class SpecialTokenSanitizer:
    """Breaks special tokens, thinking markers, role tags and effort switches in texts; idempotent.

    The special tokens of a tokenizer are broken as well, and it checks that none is left; without one only the common
    markers are, and the model's own `markers`.
    """

    def __init__(self, tokenizer: Any = None, markers: Markers | None = None) -> None:
        self._tokenizer = tokenizer
        added = {} if tokenizer is None else dict(tokenizer.added_tokens_decoder)
        special = {token_id: str(token.content) for token_id, token in added.items() if _is_markup(token)}
        self._ids = frozenset(special) - {getattr(tokenizer, "unk_token_id", None)}
        own = () if markers is None else (markers.open, markers.close)
        known = (marker for pair in KNOWN for marker in pair)
        self._pattern = _compile_pattern([*special.values(), *own, *_ROLES, *_CALLS, *known])

    def __call__(self, text: str) -> str:
        """Break all markers and effort switches in a text."""
        return self._break(text, switches=True)

    def break_markers(self, text: str) -> str:
        """Break all markers in a text of a user, who may switch efforts."""
        return self._break(text, switches=False)

    def _break(self, text: str, switches: bool) -> str:
        text = text.encode("utf-8", "replace").decode("utf-8")  # tokenizers reject lone surrogates
        broken = self._pattern.sub(lambda match: f"{match[0][0]}{BREAK}{match[0][1:]}", text)
        if switches:
            broken = _SWITCHES.sub(lambda match: f"{match[0]}{BREAK}", broken)
        # A tokenizer's own normalization may still turn text into a marker, so the tokenizer has the last word.
        return unicodedata.normalize("NFKC", broken).translate(_LOOKALIKES) if self._leaks(broken) else broken

    def sanitize_content(self, content: Any, switches: bool = True) -> Any:
        """Break all markers, and effort switches, in a message's content, which is a text or a list of blocks.

        Blocks of text are joined by chat templates, so a marker may also lie across them: then the first one takes all
        the text, and the others are left empty. Images and other media are left alone.
        """
        if isinstance(content, str):
            return self._break(content, switches)
        if isinstance(content, list):
            return self._join_texts([self.sanitize_content(block, switches) for block in content], switches)
        if isinstance(content, dict):
            return {
                key: value if key in _MEDIA else self.sanitize_content(value, switches)
                for key, value in content.items()
            }
        return content

    def sanitize_all(self, value: Any) -> Any:
        """Break all markers and switches in a JSON value, names included, such as a tool's description."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, Mapping):
            return {self(str(key)): self.sanitize_all(one) for key, one in value.items()}
        return [self.sanitize_all(one) for one in value] if isinstance(value, (list, tuple)) else value

    def _join_texts(self, blocks: list[Any], switches: bool) -> list[Any]:
        places = [place for place, block in enumerate(blocks) if _text_of(block) is not None]
        joined = "".join(str(_text_of(blocks[place])) for place in places)
        if (broken := self._break(joined, switches)) == joined:
            return blocks
        for place in places:
            block = blocks[place]
            blocks[place] = broken if isinstance(block, str) else {**block, "text": broken}
            broken = ""
        return blocks

    def _leaks(self, text: str) -> bool:
        if self._tokenizer is None or not text:
            return False
        return not self._ids.isdisjoint(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _text_of(block: Any) -> str | None:
    text = block.get("text") if isinstance(block, dict) else block
    return text if isinstance(text, str) else None


def _is_markup(token: Any) -> bool:
    """Whether an added token is a control token or markup, not just a frequent word."""
    text = str(token.content).strip()
    return bool(text) and (bool(token.special) or (not text.isalnum() and any(c in text for c in "<>[]|◁▷")))


def _compile_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of the texts of two characters or more, longest first, without surrounding white space."""
    markers = sorted({text.strip() for text in texts if len(text.strip()) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, markers)), re.IGNORECASE)


_CACHE: WeakKeyDictionary[Any, dict[Markers | None, SpecialTokenSanitizer]] = WeakKeyDictionary()


def get_sanitizer(tokenizer: Any, markers: Markers | None = None) -> SpecialTokenSanitizer:
    """The cached sanitizer of a tokenizer object."""
    sanitizers = _CACHE.setdefault(tokenizer, {})
    if markers not in sanitizers:
        sanitizers[markers] = SpecialTokenSanitizer(tokenizer, markers)
    return sanitizers[markers]


def sanitize_messages(
    messages: Sequence[Mapping[str, Any]], sanitize: SpecialTokenSanitizer
) -> list[Mapping[str, Any]]:
    """Messages in which the texts of users and tools, and all names, hold no special tokens.

    System prompts and earlier replies are the client's own.
    """
    return [_sanitize_message(message, sanitize) for message in messages]


def sanitize_body(body: Mapping[str, Any], sanitize: SpecialTokenSanitizer) -> dict[str, Any]:
    """A request to one of vLLM's chat APIs, as JSON, likewise; fields of a wrong form are left to vLLM."""
    changed = dict(body)
    for field in ("messages", "input"):
        if isinstance(given := body.get(field), list):
            changed[field] = sanitize_messages(given, sanitize)
    if isinstance(body.get("input"), str):
        changed["input"] = sanitize.break_markers(body["input"])
    return changed | {field: sanitize.sanitize_all(body[field]) for field in RENDERED if field in body}


def _sanitize_message(message: Any, sanitize: SpecialTokenSanitizer) -> Any:
    """A message, or a block or an item of one of the APIs."""
    if not isinstance(message, Mapping):
        return message
    changed = dict(message)
    for field in _NAMES:
        if isinstance(changed.get(field), str):
            changed[field] = sanitize(changed[field])
    if message.get("type") in _RESULTS or message.get("role") in ("tool", "function"):
        for field in ("content", "output"):
            if field in changed:
                changed[field] = sanitize.sanitize_content(changed[field])
    elif message.get("role") not in _OWN_ROLES and "content" in changed:
        changed["content"] = _sanitize_user(changed["content"], sanitize)
    return changed


def _sanitize_user(content: Any, sanitize: SpecialTokenSanitizer) -> Any:
    """What a user wrote; Anthropic's clients put the results of tools there as well."""
    if isinstance(content, list):
        content = [_sanitize_message(block, sanitize) for block in content]
    return sanitize.sanitize_content(content, switches=False)
