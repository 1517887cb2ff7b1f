"""The harmony format of gpt-oss: analysis, perhaps several times, then the final message."""

from __future__ import annotations

import pytest

from tersely.controller.text.markers import Markers, closing_text
from tersely.controller.text.reasoning_parser import ReasoningParser, split_text

HARMONY = Markers("<|channel|>analysis<|message|>", "<|end|>")
HEADER = "<|start|>assistant<|channel|>final<|message|>"
OUTPUT = f"<|channel|>analysis<|message|>2 and 2.<|end|>{HEADER}It is **4**."
TWICE = f"<|channel|>analysis<|message|>One.<|end|><|start|>assistant{OUTPUT}"


def test_a_closing_leads_into_the_final_message() -> None:
    assert closing_text(HARMONY, "", "\n\n") == f"\n\n<|end|>{HEADER}"


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(("text", "thinking"), [(OUTPUT, "2 and 2."), (TWICE, "One.\n\n2 and 2.")])
def test_messages_are_split(text: str, thinking: str, size: int) -> None:
    assert split_text(text, HARMONY, "before") == (thinking, "It is **4**.")
    parser = ReasoningParser(HARMONY, "before")
    deltas = [d for at in range(0, len(text), size) for d in parser.feed(text[at : at + size])] + parser.finish()
    assert "".join(d.text for d in deltas if d.channel == "answer") == "It is **4**."
    assert "".join(d.text for d in deltas if d.channel == "thinking") == thinking
