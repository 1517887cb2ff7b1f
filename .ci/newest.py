"""Check the installed package against the newest dependencies: run by `make test-newest` in an environment of its own.

Three things that a user does first: a prompt is answered under control, preset "off" gives the tokens of
`model.generate`, and `tersely serve` answers a request. A failure names the versions it happened with.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import traceback
import urllib.request
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

MODEL = "tersely-tiny-small"
QUESTIONS = [
    "Kai has 9 shells. Kai finds 4 shells. Count the shells that belong to Kai.",
    "Mia has 12 coins. Mia loses 5 coins. Count the coins that belong to Mia.",
    "Ben has 7 pens. Ben makes 3 times the pens. Count the pens that belong to Ben.",
]


def check_answer() -> None:
    """The core answers a prompt under its default preset."""
    import tersely

    result = tersely.generate(MODEL, prompts=QUESTIONS[0], seed=0)
    assert result.answer.strip(), f"no answer: {result.text!r}"


def check_identity() -> None:
    """Preset "off" gives the tokens of `model.generate`, one by one and as a batch."""
    import torch

    import tersely

    engine = tersely.load_engine(MODEL)
    tokenizer = engine.tokenizer
    batch = tersely.generate(engine, prompts=QUESTIONS, preset="off", max_new_tokens=200, temperature=0)
    for question, together in zip(QUESTIONS, batch, strict=True):
        alone = tersely.generate(engine, prompts=question, preset="off", max_new_tokens=200, temperature=0)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        plain = engine.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=200, do_sample=False)
        expected = plain[0, ids.shape[1] :].tolist()
        if expected[-1] == tokenizer.eos_token_id:
            expected = expected[:-1]
        assert list(alone.token_ids) == expected, f"preset 'off' differs from model.generate on {question!r}"
        assert list(together.token_ids) == expected, f"a batch with preset 'off' differs on {question!r}"


def check_server() -> None:
    """`tersely serve` answers one request."""
    command = [str(Path(sys.executable).with_name("tersely")), "serve", MODEL, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            said: list[str] = []
            deadline = time.monotonic() + 120
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", "".join(said))):
                line = server.stdout.readline()
                assert line and time.monotonic() < deadline, f"the server did not start: {''.join(said)}"
                said.append(line)
            body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTIONS[0]}]}
            request = urllib.request.Request(
                f"{found[0]}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as reply:
                content = json.load(reply)["choices"][0]["message"]["content"]
            assert content.strip(), "the server's answer is empty"
        finally:
            server.terminate()


def installed_versions() -> str:
    """The dependencies of the core and of the server with the versions that were tried."""
    names = sorted({re.split(r"[^\w.-]", need)[0] for need in requires("tersely") or ()})
    found = []
    for name in names:
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            continue
    return " ".join(found)


def main() -> int:
    """Run the checks; the exit status is the number of those that failed."""
    failed = 0
    for check in (check_answer, check_identity, check_server):
        try:
            check()
            print(f"ok      {check.__doc__}")
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"FAILED  {check.__doc__}")
    print(f"{'failed' if failed else 'passed'} with {installed_versions()}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
