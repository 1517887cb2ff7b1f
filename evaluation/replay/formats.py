"""Recorded outputs in the forms that servers, gateways and evaluations log, told apart by their content.

OpenAI chat completions, completions and Responses, Anthropic messages, Ollama's and Bedrock's replies, runs of
LangSmith, conversations, each alone or with its request, samples of lm-eval, tersely's own records, and flat rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ...controller.text.markers import KNOWN, Markers
from ...controller.text.reasoning_parser import split_text
from ..trace_record import TraceRecord

_WRAPPERS = ("standard_logging_object", "payload")
_REQUESTS = ("request", "request_body", "input", "inputs", "kwargs")
_RESPONSES = ("response", "response_body", "output", "outputs")
_CUT = ("length", "max_tokens", "max_output_tokens", "incomplete", "MAX_TOKENS")
_ENDS = ("finish_reason", "done_reason", "stop_reason", "status", "stopReason", "finishReason")
_OF_CHOICES = ("message", "finish_reason", "finishReason")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_REASONING_BLOCKS = ("thinking_blocks", "reasoning_details")
_WRITTEN = (
    ("analysis", "assistantfinal"),  # gpt-oss without its special tokens
    ("Here is my thought process:", "Here is my response:"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""Markers that are plain text: only a reply that begins with the first of a pair has them."""
_SPECIAL = r"(?:(?:<[|｜][^<>\s]{1,40}[|｜]>|<seed:eos>)\s*)+"
_AROUND = re.compile(rf"^{_SPECIAL}|(?<![|｜]>)(?<!\s)\s*{_SPECIAL}$")  # special tokens before and behind an answer
_STREAM = ("data: {", "event: ")  # how server-sent events begin
_HARMLESS = ("note", "tier", "error")  # actions of a trace that change no text


class RowError(ValueError):
    """A row that is left out; the text is the reason, the same for all rows of its kind."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of flat rows that are tried in order; a dot leads into an object, as in `metadata.gold`."""

    question: tuple[str, ...] = ("problem", "question", "prompt", "query", "instruction")
    thinking: tuple[str, ...] = (*_REASONING, "thoughts", "cot")
    answer: tuple[str, ...] = (
        *("answer_text", "final_answer", "response", "completion", "generation", "output", "content", "answer", "text"),
    )
    gold: tuple[str, ...] = ("gold", "gold_answer", "ground_truth", "expected_answer", "reference_answer", "target")


@dataclass(frozen=True, slots=True)
class RecordedOutput:
    """What a model wrote on one question; `gold` is the right answer if the log knows it, or one of several."""

    id: str
    question: str
    thinking: str
    answer: str
    gold: str | None = None
    other_golds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reply:
    thinking: str
    answer: str
    cut: bool = False


def read_row(row: object, fields: Fields, name: str) -> list[RecordedOutput]:
    """The outputs of one logged row, usually one; `name` is its id where it has none. Raises RowError."""
    if not isinstance(row, dict):
        raise RowError("not an object")
    row = next((row[key] for key in _WRAPPERS if isinstance(row.get(key), dict)), row)
    request, response = _find_part(row, _REQUESTS), _find_part(row, _RESPONSES)
    if not row.get("uncontrolled") and _was_controlled(row, response):
        raise RowError("controlled already, and recorded without its uncontrolled run")
    flat = fields.thinking != Fields().thinking
    replies = _read_flat(row, fields) if flat else _read_response(response) or _read_flat(row, fields)
    document = _object(row.get("doc")) if "resps" in row else {}  # of lm-eval
    question = _find_text({**row, **document}, fields.question) or _read_question(request)
    golds = tuple(map(_clean, _find_texts(row, fields.gold)))
    own = row.get("id") or row.get("custom_id") or response.get("id") or name
    outputs, reason = [], ""
    for number, reply in enumerate(replies):
        if reply.cut or row.get("truncated") is True or _was_cut(row):
            reason = "truncated"
        elif not reply.thinking.strip():
            reason = "no thinking"
        elif not golds and not reply.answer.strip():
            reason = "no answer"
        else:
            row_id = _clean(f"{own}.{number}" if number else str(own))
            texts = _clean(question), _clean(reply.thinking), _clean(reply.answer)
            outputs.append(RecordedOutput(row_id, *texts, golds[0] if golds else None, golds[1:]))
    if not outputs:
        raise RowError(reason)
    return outputs


def _was_controlled(row: Mapping[str, Any], response: Mapping[str, Any]) -> bool:
    """Whether tersely changed this output: by its decisions, or by what `tersely serve` says in its replies."""
    served = [_object(one.get("tersely")) for one in (response, *_list_objects(response.get("choices"), "tersely"))]
    decisions = [each for one in (row, *served) for each in _list_objects(one.get("decisions"), "action")]
    return any(one.get("acted") and one["action"] not in _HARMLESS for one in decisions) or any(
        _object(one.get("usage")).get("injected") for one in served
    )


def _clean(text: str) -> str:
    """The text with lone surrogates, which JSON may hold and tokenizers refuse, replaced."""
    return text.encode(errors="replace").decode().strip()


def _find_part(row: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """The request or response that a row holds, perhaps as JSON text or as the body of an HTTP message; else itself."""
    for name in names:
        part = _parse_json(row.get(name))
        body = _parse_json(part.get("body")) if isinstance(part, dict) else part
        if isinstance(body, str) and body.lstrip().startswith(_STREAM):
            raise RowError("a stream as text; put its pieces together first")
        if isinstance(part, dict):
            return body if isinstance(body, dict) else part
    return row


def _parse_json(value: Any) -> Any:
    """The objects that a text may hold as JSON; any other value as it is."""
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith(("{", "[{")) else value
    except (ValueError, RecursionError):
        return value


def _find_text(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these fields that is a text or a number."""
    found = (_find_texts(row, [name], lists=False) for name in names)
    return next((texts[0] for texts in found if texts), None)


def _find_texts(row: Mapping[str, Any], names: Iterable[str], lists: bool = True) -> list[str]:
    """The texts of the first of these fields that has one, or a list of them."""
    for name in names:
        value: Any = row
        for key in name.split(".") if name not in row else [name]:
            value = value.get(key) if isinstance(value, dict) else None
        values = value if lists and isinstance(value, list) else [value]
        texts = [str(one) for one in values if isinstance(one, str | int | float) and not isinstance(one, bool)]
        if len(texts) == len(values) and any(text.strip() for text in texts):
            return [text for text in texts if text.strip()]
    return []


def _was_cut(ended: Mapping[str, Any]) -> bool:
    """Whether a reply ended at a limit, by the object that has the reason of its end."""
    return any(ended.get(name) in _CUT for name in _ENDS)


def _read_flat(row: Mapping[str, Any], fields: Fields) -> list[_Reply]:
    thinking, answer = _find_text(row, fields.thinking), _find_text(row, fields.answer)
    if thinking is not None and thinking.isdecimal():
        raise RowError("a number of thinking tokens and no text, as in an access log")
    if thinking is None and answer is None:
        failed = row.get("error") or row.get("status") == "failure"
        raise RowError("a failed call" if failed else "unknown format")
    return [_make_reply(thinking or "", answer or "", row)]


def _read_response(response: Mapping[str, Any]) -> list[_Reply]:
    """The replies of a response in a known form; none at all for another form."""
    if response.keys() >= {"version", "segments", "usage"}:
        return [_read_trace(response)]
    found = (_list_objects(response.get(key), *_OF_CHOICES) for key in ("choices", "outputs", "candidates"))
    if choices := next(filter(None, found), None):
        if "delta" in choices[0]:
            raise RowError("a piece of a stream")
        return [
            _read_message(choice.get("message") or _object(choice.get("content")) or choice, choice)
            for choice in choices
        ]
    if generations := _list_objects(_flatten(response.get("generations")), "message"):
        return [_read_generation(one) for one in generations]
    if samples := _flatten(response.get("resps")):
        return [_make_reply("", text, response) for text in samples if isinstance(text, str)]
    output = response.get("output")
    if isinstance(output, dict):
        others = {key: value for key, value in response.items() if key != "output"}
        return _read_response({**others, **output})
    if output := _list_objects(output, "type"):
        return [_read_message({"content": output}, response)]
    if isinstance(message := response.get("message"), dict):
        return [_read_message(message, response)]
    if response.get("role") == "assistant":
        return [_read_message(response, response)]
    for form in ("messages", "conversations"):
        messages = [_unwrap(one) for one in _list_objects(_flatten(response.get(form)), "role", "from", "type")]
        if messages and _role(messages[-1]) != "user":
            return [_read_message(messages[-1], response)]
    return []


def _flatten(value: Any) -> list[Any]:
    """A list, or a list of lists, as one list; empty if it is anything else."""
    lists = value if isinstance(value, list) else []
    return [one for part in lists for one in (part if isinstance(part, list) else [part])]


def _unwrap(message: Any) -> Any:
    """A message of LangChain, serialized or not, with its fields at the top."""
    if not isinstance(message, dict):
        return message
    inner = (_object(message.get(key)) for key in ("kwargs", "data"))
    fields = next((one for one in inner if "content" in one), message)
    return {**_object(fields.get("additional_kwargs")), **fields}


def _read_generation(generation: Mapping[str, Any]) -> _Reply:
    """A reply in LangChain's form."""
    message = _unwrap(generation["message"])
    ended = {**_object(_object(message).get("response_metadata")), **_object(generation.get("generation_info"))}
    return _read_message(message, ended)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list_objects(value: Any, *keys: str) -> list[dict[str, Any]]:
    """A list of objects that all have one of these keys; empty if it is anything else."""
    fits = isinstance(value, list) and all(isinstance(one, dict) and not one.keys().isdisjoint(keys) for one in value)
    return value if fits else []


def _read_message(message: Any, ended: Mapping[str, Any]) -> _Reply:
    if not isinstance(message, dict):
        raise RowError("unknown format")
    content = next((message[key] for key in ("content", "value", "text", "parts") if message.get(key) is not None), "")
    thinking, answer = _read_blocks(content)
    for name in _REASONING_BLOCKS:  # first, as they tell whether a text of `_REASONING` is only a summary
        thinking = _read_blocks(message.get(name) or "")[0] or thinking
    return _make_reply(_find_text(message, _REASONING) or thinking, answer, ended)


def _read_blocks(content: Any) -> tuple[str, str]:
    """The thinking and the answer of content: a text, a block, or a list of blocks; tool calls are neither."""
    if isinstance(content, str):
        return "", content
    if isinstance(content, list):
        pairs = [_read_blocks(part) for part in content]
        return "\n\n".join(filter(None, (one for one, _ in pairs))), "".join(other for _, other in pairs)
    if not isinstance(content, dict):
        return "", ""
    if isinstance(block := content.get("reasoningContent"), dict):  # of Bedrock
        content = {
            "type": "reasoning" if "reasoningText" in block else "redacted",
            **_object(block.get("reasoningText")),
        }
    kind, text = str(content.get("type", "thinking" if "thinking" in content else "text")), content.get("text")
    hidden = any(word in kind for word in ("redacted", "encrypted", "summary")) or content.get("thought") is True
    if hidden or (content.get("summary") and not content.get("content")):
        raise RowError("only a summary of the thinking, or an encrypted one")
    if "thinking" in kind or "reasoning" in kind:
        return "".join(_read_blocks(text or content.get("thinking") or content.get("content") or "")), ""
    if kind == "message":
        return _read_blocks(content.get("content"))
    return "", text if isinstance(text, str) and "text" in kind else ""


def _make_reply(thinking: str, answer: str, ended: Mapping[str, Any]) -> _Reply:
    """The reply, with thinking between markers taken out of its text; `ended` has the reason of its end."""
    thinking = thinking.strip()
    cut = _was_cut(ended)
    for opening, closing in (*KNOWN, *(pair for pair in _WRITTEN if answer.lstrip().startswith(pair[0]))):
        thinking = thinking.removeprefix(opening).removesuffix(closing)
        if closing in answer:
            state = "before" if opening in answer else "thinking"  # the prompt may have opened the thinking
            found, answer = split_text(answer, Markers(opening, closing), state)
            thinking = thinking or found
        elif not thinking and answer.lstrip().startswith(opening):
            cut = True
    return _Reply(thinking, _AROUND.sub("", answer.strip()), cut)


def _read_trace(response: Mapping[str, Any]) -> _Reply:
    try:
        record = TraceRecord.model_validate_json(json.dumps(response))
    except ValidationError:
        raise RowError("an invalid record of tersely, or one of another version") from None
    run = record.uncontrolled or record
    thinking = "".join(segment.text for segment in run.segments if segment.thinking)
    answer = "".join(segment.text for segment in run.segments if not segment.thinking)
    return _make_reply(thinking, answer, {"finish_reason": run.finish_reason})


def _role(message: Mapping[str, Any]) -> str:
    role = str(message.get("role") or message.get("from") or message.get("type"))
    return "user" if role == "human" else role


def _read_question(request: Mapping[str, Any]) -> str:
    """The text of the last message of the user; "" if there is none."""
    for key in ("messages", "conversations", "input", "prompt"):
        value = request.get(key)
        if isinstance(messages := _parse_json(value), list):
            known = [_unwrap(message) for message in _flatten(messages)]
            asked = [message for message in known if isinstance(message, dict) and _role(message) == "user"]
            value = asked[-1].get("content", asked[-1].get("value")) if asked else value
        if value and (text := "".join(_read_input(value))):
            return text
    return ""


def _read_input(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
