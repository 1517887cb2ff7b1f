"""Arithmetic as it is written down: column work of one operation, and believable slips."""

from __future__ import annotations

from random import Random

_SLIPS = (1, -1, 2, -2, 10, -10, 10, -10, 20, 100, -100, 9, -9)


def columns(op: str, left: int, right: int) -> str:
    """The column work of one operation, lowest digit first; empty where a look at two digits does it."""
    if op == "*":
        return _product(left, right)
    x, y = str(left)[::-1], str(right)[::-1]
    if (len(x) == 1 and len(y) == 1) or (op == "-" and left < right):
        return ""
    carry, lines = 0, []
    for i in range(max(len(x), len(y))):
        a = int(x[i]) if i < len(x) else 0
        b = int(y[i]) if i < len(y) else 0
        if op == "+":
            total = a + b + carry
            lines.append(f"{a}+{b}{f'+{carry}' if carry else ''}={total}")
            carry = total // 10
        else:
            a -= carry
            carry = int(a < b)
            lines.append(f"{a + 10 * carry}-{b}={a + 10 * carry - b}")
    return ";".join(lines)


def _product(left: int, right: int) -> str:
    digits = str(left)[::-1]
    if len(digits) == 1:
        return ""
    carry, lines = 0, []
    for digit in digits:
        part = int(digit) * right
        lines.append(f"{digit}*{right}={part}" + (f"+{carry}={part + carry}" if carry else ""))
        carry = (part + carry) // 10
    return ";".join(lines)


def wrong_value(value: int, rng: Random) -> int:
    """A believable slip: a digit off, a carry lost, two digits swapped."""
    digits = list(str(value))
    if len(digits) > 1 and digits[-1] != digits[-2] and rng.random() < 0.15:
        digits[-1], digits[-2] = digits[-2], digits[-1]
        swapped = int("".join(digits))
        if len(str(swapped)) == len(digits):
            return swapped
    while True:
        off = value + rng.choice(_SLIPS)
        if 0 <= off <= 9999:
            return off
