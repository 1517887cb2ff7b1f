"""`tersely doctor`: does everything work here, with this model?"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import typer

from ..controller.budgets import TIERS
from ..controller.options import GenerationOptions
from ..controller.policies import make_policy
from ..controller.prompts import render
from ..controller.text.tokenizer_adapter import count_common
from ..controller.trace import GenerationResult
from ..controller.types import Capability, Engine, Request, SamplingParams
from ..errors import TerselyError
from ..io import find_version
from . import options as o
from .options import ModelSource, load, start_session

if TYPE_CHECKING:
    from ..controller.session import Session

Status = Literal["ok", "warn", "fail"]
QUESTION = "What is 12 + 7?"
_OPTIONAL = {
    "vllm": "the engine for many requests at once",
    "trl": "training scripts",
    "langchain-core": "the chat model for agents",
}
_SHORT = 24  # tokens compared with the model's own generate
_THINKING, _RESERVE = 48, 32  # of the run whose thinking must be cut


@dataclass(frozen=True, slots=True)
class DoctorCheck:
    """One result; `remedy` says what to do if the status is not ok."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine(wanted: ModelSource) -> Iterator[DoctorCheck]:
    """Run all checks in order, lazily; checks that need one that failed are left out."""
    yield from _versions()
    engine: Engine | None = None
    try:
        engine = load(wanted)
    except Exception as error:  # a doctor reports what breaks, whatever it is
        yield _failed("model", error)
        return
    yield DoctorCheck("model", "ok", f"{engine.name} loads")
    yield from _facts(engine, wanted.engine)
    try:
        session = start_session(engine, wanted)
    except Exception as error:
        yield _failed("markers", error)
        return
    markers = session.markers
    yield DoctorCheck("markers", "ok", f"{markers.open} ... {markers.close} ({markers.source})")
    off = _off_is_off if wanted.engine == "transformers" else _off_next_to_control

    def cut(session: Session) -> DoctorCheck:
        return _judge_cut(session.run([QUESTION], _cutting())[0], session.markers.close)

    checks = {"probes": _probes, "kernels": _kernels, "off": off, "cut": cut, "hint": _hint_appears}
    for name, check in checks.items():
        try:
            yield check(session)
        except Exception as error:
            yield _failed(name, error)


def _failed(name: str, error: Exception) -> DoctorCheck:
    detail = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, TerselyError):
        what, _, remedy = detail.partition("; ")
        return DoctorCheck(name, "fail", what, remedy)
    return DoctorCheck(name, "fail", f"{type(error).__name__}: {detail}", "please report this with the model's name")


def _versions() -> Iterator[DoctorCheck]:
    from packaging.requirements import Requirement

    yield DoctorCheck("python", "ok", platform.python_version())
    wanted = [Requirement(text) for text in metadata.requires("tersely") or ()]
    for package in ("torch", "transformers"):
        rule = next((r.specifier for r in wanted if r.name == package), None)
        version = find_version(package)
        remedy = f"pip install '{package}{rule or ''}'"
        if version is None:
            yield DoctorCheck(package, "fail", "not installed", remedy)
        elif rule is not None and not rule.contains(version, prereleases=True):
            yield DoctorCheck(package, "warn", f"{version}, outside {rule}", remedy)
        else:
            yield DoctorCheck(package, "ok", version)
    for package, use in _OPTIONAL.items():
        version = find_version(package, f"{package}-cpu")  # as vLLM's wheels for CPUs are called
        yield DoctorCheck(package, "ok", version or f"not installed; optional: {use}")


def _facts(engine: Engine, kind: str) -> Iterator[DoctorCheck]:
    """What an engine of this kind says about its model."""
    if engine.context_length is None:
        remedy = "keep prompt and --max-new-tokens within the length that the model was trained for"
        yield DoctorCheck("context", "warn", "the model's context length is unknown", remedy)
    else:
        yield DoctorCheck("context", "ok", f"{engine.context_length} tokens")
    missing = sorted({Capability.KV_ROLLBACK, Capability.RAGGED_BATCH} - engine.capabilities)
    has = f"{kind}: {', '.join(sorted(engine.capabilities)) or 'none'}"
    if missing and kind == "transformers":  # elsewhere it does not depend on the model
        remedy = "nothing to do: cuts and hints work, forced tokens cost one step each; full attention would save that"
        yield DoctorCheck("engine", "warn", f"{has}; lacks {', '.join(missing)}", remedy)
    else:
        yield DoctorCheck("engine", "ok", has)
    template = getattr(engine.tokenizer, "chat_template", None)
    if not template:
        remedy = "set tokenizer.chat_template and save it, or use a chat model"
        yield DoctorCheck("chat template", "fail", "none", remedy)
    elif "reasoning_effort" in str(template):
        yield DoctorCheck("chat template", "ok", "supports efforts")
    else:
        what = "does not support efforts, so they are written into the prompt"
        yield DoctorCheck("chat template", "ok", what)


def _probes(session: Session) -> DoctorCheck:
    """Whether there are pretrained probes for this model; a user's own come by --probes."""
    from ..probes.io import find_pretrained

    mark = session.engine.fingerprint()
    kinds = [kind for kind in ("difficulty", "readiness") if mark is not None and find_pretrained(mark, kind)]
    if kinds:
        return DoctorCheck("probes", "ok", f"pretrained for this model: {', '.join(kinds)}")
    remedy = "make some with `tersely collect` and `tersely calibrate`; until then effort auto uses the prompt's length"
    return DoctorCheck("probes", "warn", "none pretrained for this model", remedy)


def _kernels(session: Session) -> DoctorCheck:
    from ..kernels.w4a8 import compiled

    if compiled():
        return DoctorCheck("kernels", "ok", "compiled for this processor")
    what = "not compiled, or for another torch; the operations run in torch"
    return DoctorCheck("kernels", "warn", what, "install a C compiler, then reinstall tersely")


def _off_is_off(session: Session) -> DoctorCheck:
    """The engine without policies against the model's own generate, token for token."""
    engine: Any = session.engine
    rendered = render(engine.tokenizer, QUESTION, TIERS["normal"], session.markers)
    mine = engine.generate([Request(rendered.ids, _SHORT)], SamplingParams(seed=0))[0].token_ids
    theirs = _plain_generate(engine, rendered.ids)
    if mine == theirs:
        return DoctorCheck("off", "ok", f"identical to model.generate over {len(mine)} tokens")
    same = count_common(mine, theirs)
    remedy = "report the model's name; until then compare results with preset off, not with model.generate"
    return DoctorCheck("off", "fail", f"differs from model.generate at token {same}", remedy)


def _off_next_to_control(session: Session) -> DoctorCheck:
    """Compare a request without policies alone and next to a controlled one."""
    engine = session.engine
    rendered = render(engine.tokenizer, QUESTION, TIERS["normal"], session.markers)
    plain = Request(rendered.ids, _SHORT)
    controlled = session.prepare([QUESTION], _cutting())[0].request
    alone = engine.generate([plain], SamplingParams(temperature=0.0))[0]
    together = engine.generate([controlled, plain], SamplingParams(temperature=0.0))
    if not any(together[0].forced):
        remedy = "report the server's name and version"
        return DoctorCheck("off", "fail", "the controlled request was not controlled", remedy)
    if together[1].token_ids != alone.token_ids:
        remedy = "batches change this model's results; with dtype float32 they should not"
        return DoctorCheck("off", "warn", "a request without policies differs next to a controlled one", remedy)
    same = f"a request without policies is the same next to a controlled one, over {_SHORT} tokens"
    return DoctorCheck("off", "ok", same)


def _plain_generate(engine: Any, ids: tuple[int, ...]) -> tuple[int, ...]:
    import torch

    model = engine.model
    end = model.generation_config.eos_token_id
    end = engine.tokenizer.eos_token_id if end is None else end
    prompt = torch.tensor([ids], device=model.device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=_SHORT, max_length=None, eos_token_id=end
        )
    tokens = output[0, len(ids) :].tolist()
    ends = set(end) if isinstance(end, list) else {end}
    return tuple(tokens[:-1] if tokens and tokens[-1] in ends else tokens)


def _cutting() -> GenerationOptions:
    """Options with a budget that is too small, so that thinking must be cut."""
    return GenerationOptions(
        preset=None,
        policies=("budget",),
        max_new_tokens=_THINKING + _RESERVE,
        answer_reserve=_RESERVE,
        sampling=SamplingParams(seed=0),
    )


def _hint_appears(session: Session) -> DoctorCheck:
    hint = make_policy("hint", {"alpha": 16, "earliest": 8, "limit": 1})
    done = session.run([QUESTION], replace(_cutting(), policies=(hint,), max_new_tokens=160))[0]
    forced = [span.text for span in done.spans if span.kind == "forced"]
    if any("[Be concise.]" in text for text in forced):
        return DoctorCheck("hint", "ok", f"appears after {done.trace[0].position} tokens")
    if not done.trace:
        return DoctorCheck("hint", "ok", f"not needed: thinking ended by itself after {done.usage.thinking} tokens")
    return DoctorCheck("hint", "fail", "was decided, but is not in the output", "report this with the model's name")


def _judge_cut(done: GenerationResult, close: str) -> DoctorCheck:
    cuts = [d for d in done.trace if d.acted and d.action == "close"]
    if not cuts and close in done.text:
        return DoctorCheck("cut", "ok", f"not needed: thinking ended by itself after {done.usage.thinking} tokens")
    if not cuts:
        remedy = "check the markers, or use --think-prompt: the model does not seem to open its thinking"
        return DoctorCheck("cut", "warn", f"did not fire: {done.usage.thinking} tokens of thinking were seen", remedy)
    forced = any(span.kind == "forced" and close in span.text for span in done.spans)
    if not forced or done.usage.answer < 1:
        remedy = "check the markers: the closing one must end the thinking of this model"
        what = "no answer followed" if forced else f"{close} did not reach the output"
        return DoctorCheck("cut", "fail", f"fired at {cuts[0].position} tokens, but {what}", remedy)
    after = f"then {done.usage.answer} tokens of answer"
    return DoctorCheck("cut", "ok", f"{close} forced at {cuts[0].position} tokens, {after}")


_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    model: o.Model = None,
    engine: o.Engine = "transformers",
    base_url: o.BaseUrl = None,
    tokenizer: o.Tokenizer = None,
    markers: o.Markers = None,
    think_prompt: o.ThinkPrompt = False,
    as_json: o.Json = False,
) -> None:
    """Check installation, engine and model: versions, markers, off is off, cut and hint happen; exit 1 if one fails."""
    checks: list[DoctorCheck] = []
    for check in examine(ModelSource(model, engine, markers, think_prompt, base_url, tokenizer)):
        checks.append(check)
        if not as_json:  # at once, since the next may take a while
            word = typer.style(f"{check.status:<4}", fg=_COLOURS[check.status], bold=True)
            typer.echo(f"{word}  {check.name:<14}  {check.detail}" + f"\n{'':<22}{check.remedy}" * bool(check.remedy))
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
    if failed:
        raise typer.Exit(1)
