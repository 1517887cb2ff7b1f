"""Answer a question with the embedded model under control, and look at what was done.

python examples/generate.py
"""

import tersely

QUESTION = "Kai has 48 shells. Kai finds 31 shells. Count the shells that belong to Kai."

if __name__ == "__main__":
    result = tersely.generate("tersely-tiny-small", QUESTION, preset="balanced", seed=0)
    print(result.thinking)
    print("answer:", result.answer)
    for decision in result.trace:
        print(f"{decision.policy} at token {decision.position}: {decision.reason}")
    print(f"{result.usage.total} tokens, {result.usage.injected} of them injected")
