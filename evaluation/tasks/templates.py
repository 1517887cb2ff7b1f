"""How the embedded problems are said: paraphrases, distractors and padding, all drawn from a seeded generator."""

from __future__ import annotations

from random import Random

NAMES = (
    "Mia Tom Ana Ben Lea Max Ida Sam Eva Leo Zoe Jon Amy Kai Nia Rob Uma Ted Joy Ian".split()
)  # fmt: skip
THINGS = (
    "shells coins cards books pens stamps apples stones beads tickets keys boxes cups toys seeds maps".split()
)  # fmt: skip
GOODS = "pears plums figs lemons melons onions leeks beans eggs loaves cakes jars lamps ropes brushes candles".split()
VARIABLES = "a b c d e f g h k m n p q r s t u v w x y z".split()

LEADS = ("", "", "Then ", "Later ", "Next ")
START = ("has", "owns", "holds", "keeps")
EVENTS = {"+": ("finds", "gets", "buys", "wins"), "-": ("loses", "sells", "breaks", "drops")}
STORY = "{lead}{p} {verb} {n} {o}."
STORY_TIMES = "{lead}{p} makes {n} times the {o}."
ASK_STORY = (
    "How many {o} are there in the end, with {p}?",
    "Count the {o} that belong to {p}.",
    "What is the number of {o} now, for {p}?",
    "How many {o} remain, counting those of {p}?",
)
DEFINE = ("{v} = {e}.", "Let {v} be {e}.", "So {v} is {e}.", "Set {v} to {e}.")
ASK_CHAIN = ("What is {v}?", "Find {v}.", "Give the value of {v}.", "How much is {v}?")
ASK_EXPR = ("Compute {e}.", "What is {e}?", "Work out {e}.", "Find the value of {e}.")
BUY = ("{p} buys {k} {g} at {n} each.", "{p} takes {k} {g} for {n} each.", "{p} orders {k} {g}, {n} coins each.")
CHARGE = ("The bag costs {n} on top.", "The delivery costs {n} more.", "The fee is {n} on top.")
ASK_BASKET = (
    "What is the bill of {p}?",
    "How much is it in all, for {p}?",
    "Find the total of {p}.",
    "Add it up for {p}.",
)
CALL_OFF = ("Forget all that.", "Start anew.", "None of that counts.", "Erase it and begin again.")
CALL_OFF_EXPR = ("Do not compute {e}.", "Leave out {e}.", "Never mind {e}.")
NOISE = (
    "The shop opens at {n}.",
    "Bus {n} is late.",
    "There are {n} chairs in the room.",
    "The street has {n} trees.",
    "It is day {n} of the year.",
    "Page {n} is missing.",
    "A dog walked {n} steps.",
    "The hall seats {n} people.",
    "The train has {n} seats.",
    "Room {n} is empty today.",
    "{p} is {n} years old.",
    "{p} counts {n} birds.",
    "{p} waits {n} minutes.",
    "{p} lives in house {n}.",
)


def size(sentence: str) -> int:
    """Rough length in tokens: words plus digits plus signs."""
    return sum(1 + sum(c.isdigit() for c in word) for word in sentence.split())


def noise(cap: int, rng: Random) -> str:
    """A sentence about nothing that matters, with a number of the problem's own size."""
    return rng.choice(NOISE).format(n=rng.randint(2, max(12, cap)), p=rng.choice(NAMES))


def scatter(core: list[str], extra: list[str], rng: Random) -> list[str]:
    """Merge `extra` into `core` at random places, keeping the order of `core`."""
    slots = sorted(rng.randint(0, len(core)) for _ in extra)
    out: list[str] = []
    taken = 0
    for i in range(len(core) + 1):
        while taken < len(extra) and slots[taken] == i:
            out.append(extra[taken])
            taken += 1
        if i < len(core):
            out.append(core[i])
    return out
