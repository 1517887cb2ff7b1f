"""A policy of your own: a generator that waits, looks and acts. This one allows a single re-check.

python examples/own_policy.py
tersely run "Compute (48 + 27) - 36." --policy examples/own_policy.py:OneRecheck
"""

import tersely


class OneRecheck(tersely.Policy):
    """Close the thinking at the end of the first re-check."""

    name = "one-recheck"

    def watch(self, view):  # type: ignore[no-untyped-def]  # shown as a user would write it
        """See `tersely.Policy.watch`."""
        while sum(thought.reflective for thought in view.thinking.thoughts) < 1:
            yield tersely.Wait(at=view.tokens + 1, boundary="thought")
        yield tersely.Close("one re-check is enough", phrase="")


if __name__ == "__main__":
    question = "Compute (48 + 27) - 36."
    engine = tersely.load_engine("tersely-tiny-small")
    plain = tersely.generate(engine, question, preset="off", seed=1)
    ours = tersely.generate(engine, question, policies=["budget", OneRecheck()], seed=1)
    print(f"plain: {plain.answer} in {plain.usage.total} tokens; one re-check: {ours.answer} in {ours.usage.total}")
