"""The examples and the blocks of README, run as they stand; only models that are not here are replaced."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import tersely
from tersely.models import get_model_path

from ..support.readme import README, code_blocks

EXAMPLES = Path(__file__).parents[2] / "examples"
ANSWERS = {
    "custom_generate.py": ["pipeline: 79.", "\\boxed{79}"],
    "generate.py": ["answer: The answer is \\boxed{79}.", "agree on the answer 79"],
    "langchain_agent.py": ["\\boxed{Corsk}", "('result', 'easy')"],
    "langgraph_node.py": ["after thinking: The answer is \\boxed{39}."],
    "own_policy.py": ["plain: The answer is \\boxed{39}.", "one re-check: The answer is \\boxed{39}."],
}
QUESTION = "Kai has 48 shells. Kai finds 31 shells. Count the shells that belong to Kai."


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} - {"openai_client.py"} == set(ANSWERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_an_example_gives_the_right_answer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out = capsys.readouterr().out
    assert [text for text in ANSWERS[name] if text not in out] == []


@pytest.mark.slow
def test_the_blocks_of_readme_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart, _, custom, policy = code_blocks(README, "python")
    names: dict[str, Any] = {"question": QUESTION}
    replaced = quickstart.replace("Qwen/Qwen3-0.6B", "tersely-tiny-large").replace("What is 17 * 23?", QUESTION)
    assert replaced.count("tersely-tiny-large") == replaced.count(QUESTION) == 1
    generate = tersely.generate
    for seed in range(2):
        monkeypatch.setattr(tersely, "generate", partial(generate, seed=seed))
        exec(replaced, names)
        out = capsys.readouterr().out.splitlines()
        assert out[0] == f"The answer is \\boxed{{79}}. {names['result'].usage.thinking}"
        assert len(out) == 1 + len(names["result"].trace) > 1

    folder = get_model_path("tersely-tiny-small")
    names |= {"tokenizer": AutoTokenizer.from_pretrained(folder), "model": AutoModelForCausalLM.from_pretrained(folder)}
    names["inputs"] = names["tokenizer"].apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    exec(custom.replace("2048", "512"), names)
    (controlled,) = names["control"].results
    assert controlled.answer and isinstance(controlled.trace, tuple)

    exec(policy, names)
    monkeypatch.setattr(tersely, "generate", partial(generate, seed=0))
    exec("result = " + policy.splitlines()[-1].split("  #")[0], names)
    result: tersely.GenerationResult = names["result"]
    assert "one-recheck" in {decision.policy for decision in result.trace}
