"""The official OpenAI client against `tersely serve`: efforts, the thinking as it comes, and why it ended.

tersely serve tersely-tiny-small --port 8000
python examples/openai_client.py http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import sys

from openai import OpenAI

QUESTION = "Kai has 48 shells. Kai finds 31 shells. Count the shells that belong to Kai."


def main(base_url: str) -> None:
    with OpenAI(base_url=base_url, api_key="none needed here") as client:
        model = client.models.list().data[0].id
        for effort in ("none", "low"):
            reply = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": QUESTION}],
                reasoning_effort=effort,  # type: ignore[arg-type]  # a name from the loop, which the client types as literals
            )
            usage = reply.usage.completion_tokens_details if reply.usage else None
            thought = usage.reasoning_tokens if usage else 0
            print(f"{effort}: {thought} thinking tokens, {reply.choices[0].message.content}")
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            stream=True,
            extra_body={"thinking_token_budget": 60, "tersely": {"preset": "balanced"}},
        )
        for chunk in stream:
            choice = chunk.choices[0]
            print(getattr(choice.delta, "reasoning_content", None) or choice.delta.content or "", end="", flush=True)
            for decision in getattr(choice, "tersely", {}).get("decisions", ()):
                print(f"\n[{decision['policy']}: {decision['reason']}]")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1")
