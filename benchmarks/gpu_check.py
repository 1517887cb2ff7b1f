"""Control inside vLLM on your machine: does it work with your model and flags, and what does it cost?

Starts vLLM three times, each in a process of its own: plain, with `tersely.LLM`, and in one process for the hidden
states. Checks that uncontrolled requests decode what plain vLLM decodes, alone and next to controlled ones, that a
budget cuts, that a hint appears, and that hidden states arrive. With a speculative_config it starts a fourth time,
without that, and checks that controlled requests decode the same. Then times requests of equal length at several
concurrencies: `plain`, `inactive` (the processor loaded, nothing under control) and `active` (every row under a policy
that reads everything and finds no reason to act). `latency` is that of whole requests.

    python benchmarks/gpu_check.py Qwen/Qwen3-8B --json
    python benchmarks/gpu_check.py MODEL --vllm '{"tensor_parallel_size": 2}'
    VLLM_GPU_SYNC_CHECK=error python benchmarks/gpu_check.py MODEL   # fails where a step waits for the device
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BUDGET = 48
READS = {"policies": {"convergence": {"agree": 64}}, "answer_reserve": 1}
"""A control that reads everything and never acts."""
CUTS = {"tersely": {"policies": {"budget": {}}, "thinking_budget": BUDGET, "answer_reserve": 1}}
SPECULATION = ("speculative_config", "spec_method", "spec_model", "spec_tokens")
Check = tuple[bool, str]


def start(options: argparse.Namespace, ours: bool) -> Any:
    """A vLLM with the given flags, plain or ours."""
    import torch

    from tersely.controller.vllm.engine import prepare_environment
    from tersely.models import resolve_checkpoint

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # as people run it
    prepare_environment(on_cpu=not torch.cuda.is_available())
    flags = {"seed": 0, "enable_prefix_caching": False, **json.loads(options.vllm)}
    if ours:
        import tersely

        return tersely.LLM(options.model, **flags)
    from vllm import LLM

    return LLM(resolve_checkpoint(options.model), **flags)


def chats(llm: Any, count: int) -> list[dict[str, Any]]:
    """Questions as prompts; those of models that think on request are opened."""
    from tersely.controller.prompts import thinking_state_after
    from tersely.controller.text.markers import find_markers
    from tersely.evaluation.tasks.questions import load

    tokenizer = llm.get_tokenizer()
    markers, prompts = find_markers(tokenizer), []
    for question in load("tiny", "test", count, 3):
        message = [{"role": "user", "content": question.problem}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        if thinking_state_after(text, markers) == "before":
            text = f"{text}{markers.open}\n"
        prompts.append({"prompt_token_ids": tokenizer(text, add_special_tokens=False)["input_ids"]})
    return prompts


def decode(llm: Any, prompts: list[Any], tokens: int, controls: list[Any]) -> list[list[int]]:
    """Greedy tokens of prompts, each under its control."""
    from vllm import SamplingParams

    params = [SamplingParams(temperature=0, max_tokens=tokens, extra_args=one) for one in controls]
    return [list(out.outputs[0].token_ids) for out in llm.generate(prompts, params, use_tqdm=False)]


def time_load(llm: Any, prompts: list[Any], tokens: int, concurrency: int, extra: Any) -> dict[str, float]:
    """Tokens a second and latencies in milliseconds, with so many requests in flight until all are answered."""
    from vllm import SamplingParams

    engine, begun, latencies, sent = llm.llm_engine, dict[str, float](), list[float](), 0
    total = max(2 * concurrency, 8)
    params = SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens, detokenize=False, extra_args=extra)
    start_time = time.perf_counter()
    while len(latencies) < total:
        while sent < total and len(begun) < concurrency:
            name = f"{concurrency}-{sent}-{start_time}"
            begun[name] = time.perf_counter()
            engine.add_request(name, prompts[sent % len(prompts)], params.clone())
            sent += 1
        for output in engine.step():
            if output.finished:
                latencies.append(1e3 * (time.perf_counter() - begun.pop(output.request_id.split("#")[0])))
    seconds = time.perf_counter() - start_time
    p50, p99 = np.percentile(latencies, (50, 99))
    return {"tokens_per_second": total * tokens / seconds, "latency_p50_ms": float(p50), "latency_p99_ms": float(p99)}


def time_arms(llm: Any, options: argparse.Namespace, arms: dict[str, Any]) -> list[dict[str, Any]]:
    """Each arm at each concurrency, after a run that warms up."""
    prompts, rows = chats(llm, 64), []
    for concurrency in options.concurrency:
        for name, extra in arms.items():
            time_load(llm, prompts, options.tokens, concurrency, extra)
            found = time_load(llm, prompts, options.tokens, concurrency, extra)
            rows.append({"concurrency": concurrency, "arm": name, **found})
    return rows


def run_plain(options: argparse.Namespace) -> dict[str, Any]:
    """Plain vLLM: the tokens to compare with, and its times."""
    llm = start(options, ours=False)
    prompts = chats(llm, 8)
    return {
        "tokens": decode(llm, prompts, options.tokens, [None] * len(prompts)),
        "load": time_arms(llm, options, {"plain": None}),
    }


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    """`tersely.LLM`: what control does, and its times."""
    from vllm import SamplingParams

    from tersely.controller.policies.hint import BrevityHint

    llm = start(options, ours=True)
    prompts = chats(llm, 8)
    greedy, off = SamplingParams(temperature=0, max_tokens=options.tokens + BUDGET), {"tersely": "off"}
    cut = llm.generate(prompts, greedy, use_tqdm=False, policies=["budget"], thinking_budget=BUDGET, answer_reserve=1)
    most = max(out.outputs[0].tersely.thinking for out in cut)
    closed = sum(any(d.action == "close" and d.acted for d in out.outputs[0].tersely.trace) for out in cut)
    hint = BrevityHint(alpha=16, earliest=8)
    hinted = llm.generate(prompts, greedy, use_tqdm=False, policies=[hint], answer_reserve=1)
    shown = sum(hint.text in llm.get_tokenizer().decode(out.outputs[0].token_ids) for out in hinted)
    checks = {
        "cut": (closed > 0 and most <= BUDGET, f"{closed} of {len(cut)} closed, at most {most} of {BUDGET} tokens"),
        "hint": (shown > 0, f"in {shown} of {len(hinted)} outputs"),
    }
    beside = [off if index % 2 else CUTS for index in range(len(prompts))]
    return {
        "tokens": decode(llm, prompts, options.tokens, [off] * len(prompts)),
        "beside": decode(llm, prompts, options.tokens, beside)[1::2],
        "controlled": decode(llm, prompts, options.tokens, [CUTS] * len(prompts)),
        "checks": checks,
        "load": time_arms(llm, options, {"inactive": {"tersely": "off"}, "active": {"tersely": READS}}),
    }


def run_serial(options: argparse.Namespace) -> dict[str, Any]:
    """`tersely.LLM` without speculative decoding: the controlled tokens to compare with."""
    flags = json.loads(options.vllm)
    options.vllm = json.dumps({name: value for name, value in flags.items() if name not in SPECULATION})
    llm = start(options, ours=True)
    prompts = chats(llm, 8)
    return {"controlled": decode(llm, prompts, options.tokens, [CUTS] * len(prompts))}


def run_states(options: argparse.Namespace) -> dict[str, Any]:
    """An engine in this process: whether hidden states arrive, and are those of their prompts."""
    from tersely.controller.vllm.engine import load_vllm

    flags = {"enable_prefix_caching": False, **json.loads(options.vllm)}
    own = flags.pop("dtype", "auto"), flags.pop("max_model_len", None)
    engine = load_vllm(options.model, *own, options=flags)
    prompts = [prompt["prompt_token_ids"] for prompt in chats(engine.llm, 4)]
    states = np.stack(engine.hidden_states([*prompts, prompts[0]], -1)).astype(np.float64)
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    same, others = float(unit[0] @ unit[-1]), float(np.max(unit[0] @ unit[1:-1].T))
    good = bool(np.isfinite(states).all()) and same > 0.99 and same > others
    return {"checks": {"hidden states": (good, f"cosine {same:.4f} of equal prompts, {others:.4f} of others")}}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "plain": run_plain,
    "ours": run_ours,
    "serial": run_serial,
    "states": run_states,
}


def run_part(name: str, arguments: list[str]) -> dict[str, Any]:
    """Run a part in a process of its own; what it says is its last line."""
    command = [sys.executable, __file__, *arguments, "--part", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"checks": {name: (False, f"ended with {done.returncode}, see its output above")}}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(plain: dict[str, Any], ours: dict[str, Any], serial: dict[str, Any]) -> dict[str, Check]:
    """Whether uncontrolled requests decode what plain vLLM decodes, and controlled ones the same without drafts."""
    if "tokens" not in plain or "tokens" not in ours:
        return {}
    drafts: dict[str, Check] = {}
    hint = "; kernels that depend on the batch change tokens too, see VLLM_BATCH_INVARIANT"
    if "controlled" in serial:
        same = sum(a == b for a, b in zip(serial["controlled"], ours["controlled"], strict=True))
        said = f"{same} of {len(ours['controlled'])} controlled outputs as without speculation"
        good = same == len(ours["controlled"])
        drafts["drafts"] = (good, said + ("" if good else hint))
    off = sum(a == b for a, b in zip(plain["tokens"], ours["tokens"], strict=True))
    beside = sum(a == b for a, b in zip(plain["tokens"][1::2], ours["beside"], strict=True))
    note = hint if beside < 4 else ""
    return drafts | {
        "off": (off == len(plain["tokens"]), f"{off} of {len(plain['tokens'])} outputs as in plain vLLM"),
        "off next to control": (beside == 4, f"{beside} of 4 outputs as in plain vLLM{note}"),
    }


def print_table(result: dict[str, Any]) -> None:
    """The result in words."""
    for name, (good, detail) in result["checks"].items():
        print(f"{'ok  ' if good else 'FAIL'} {name}: {detail}")
    print("| at once | arm | tokens/s | latency p50, ms | p99, ms | time of plain / time |\n|---|---|---|---|---|---|")
    plain = {row["concurrency"]: row["tokens_per_second"] for row in result["load"] if row["arm"] == "plain"}
    for row in sorted(result["load"], key=lambda row: row["concurrency"]):
        speed, base = row["tokens_per_second"], plain.get(row["concurrency"])
        ratio = f"{speed / base:.3f}" if base else ""
        times = f"{row['latency_p50_ms']:.0f} | {row['latency_p99_ms']:.0f}"
        print(f"| {row['concurrency']} | {row['arm']} | {speed:.0f} | {times} | {ratio} |")


def main() -> None:
    """Run all parts and print; ends with 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a hub id or an embedded model")
    parser.add_argument("--vllm", default="{}", help="arguments of vllm.LLM as a JSON object")
    parser.add_argument("--concurrency", default="1,16,64,256", help="requests at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each timed request (default: %(default)s)")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    options.concurrency = [int(number) for number in options.concurrency.split(",")]
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return
    speculates = any(json.loads(options.vllm).get(name) for name in SPECULATION)
    found = {name: run_part(name, sys.argv[1:]) for name in PARTS if speculates or name != "serial"}
    checks = compare(found["plain"], found["ours"], found.get("serial", {}))
    for part in found.values():
        checks |= part.get("checks", {})
    result = {"checks": checks, "load": [row for part in found.values() for row in part.get("load", ())]}
    if options.json:
        print(json.dumps(result))
    else:
        print_table(result)
    sys.exit(0 if all(good for good, _ in checks.values()) else 1)


if __name__ == "__main__":
    main()
