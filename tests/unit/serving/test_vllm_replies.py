"""What is added to vLLM's replies, and to what is none."""

from __future__ import annotations

import json

from tersely.controller.serving.metrics import Metrics
from tersely.controller.serving.vllm_server import ReplyAnnotator
from tersely.controller.serving.vllm_translation import CHAT, MESSAGES, VllmRequestMapping


def test_what_vllm_says_to_a_client_that_has_left_passes_unchanged() -> None:
    for path in (CHAT, MESSAGES):
        reply = ReplyAnnotator(path, VllmRequestMapping({}, "normal", None), dict, Metrics())
        assert reply.rewrite_body(b"null") == b"null" and reply.left
        assert (
            "tersely" in json.loads(reply.rewrite_body(b"{}" if path == MESSAGES else b'{"choices": [{}]}')).__str__()
        )
