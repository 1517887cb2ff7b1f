"""Answer a question with the embedded model under control, and look at what was done.

python examples/generate.py
"""

import tersely

QUESTION = (
    "Mia has 48 shells. Then Mia finds 27 shells. Tom sells 12 shells. Mia loses 36 shells. "
    "Count the shells that belong to Mia."
)

if __name__ == "__main__":
    result = tersely.generate("tersely-tiny-small", QUESTION, preset="balanced", seed=0)
    print(result.thinking)
    print("answer:", result.answer)
    for decision in result.trace:
        print(f"{decision.policy} at token {decision.position}: {decision.reason}")
    print(f"{result.usage.total} tokens, {result.usage.injected} of them injected")
