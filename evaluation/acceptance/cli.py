"""The model card of the embedded models: `python -m tersely.evaluation.acceptance MODEL_DIR... --n 1200 --seed S`.

With two models, the small one first, it also checks the bars of the pair.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ...controller.options import GenerationOptions
from ...controller.trace import GenerationResult
from ...errors import TerselyError
from ..runner import ENGINES, answer_all, load_runner
from ..tasks.questions import TINY, Question, load
from .criteria import check_criteria, model_criteria
from .measure import measure

_COLUMNS = {
    "accuracy": "accuracy",
    "thinking": "thinking tokens",
    "after_share": "after last change",
    "first_accuracy": "first stated",
    "repaired": "repaired",
    "spoilt": "spoilt",
    "rechecks": "re-checks",
    "honest_verdicts": "honest verdicts",
    "helped": "helped",
    "harmed": "harmed",
    "capped": "cut off",
}
FORETOLD = 4
"""How many times the problems of the card are asked to see what can be foretold of success: mistakes are few."""
_SHARES = ("accuracy", "after_share", "first_accuracy", "honest_verdicts", "capped")


def make_card(model: str, n: int, seed: int, *, engine: str, batch: int, greedy: bool) -> dict[str, Any]:
    """Measure one model on `n` fresh test problems."""
    questions = load(TINY, "test", FORETOLD * n, seed)
    answerer = load_runner(model, engine)
    started = time.monotonic()

    def answer(questions: Sequence[Question], options: GenerationOptions) -> list[GenerationResult]:
        def told(rows: int) -> None:
            if sys.stderr.isatty():
                print(f"{options.effort}: {rows} rows, {time.monotonic() - started:.0f} s", file=sys.stderr)

        return answer_all(answerer, questions, options, seed=seed, size=batch, advance=told)

    facts = measure(answer, answerer.session.codec, questions[:n], questions[n:], greedy=greedy)
    return {"model": Path(model).name, "n": n, "seed": seed, **facts, "seconds": time.monotonic() - started}


def as_text(card: dict[str, Any], *, markdown: bool) -> str:
    """The card as aligned text or as Markdown."""
    lines = [f"## {card['model']}", "", f"{card['n']} problems, seed {card['seed']}, sampling: {card['sampling']}.", ""]
    for mode, cells in card["modes"].items():
        lines += [f"### {mode}", "", *_table(cells, markdown), ""]
    hint = card["hint"]
    low, high = hint["delta_accuracy_ci"]
    lines += [
        "### a hint in mid-thought",
        "",
        f"Thinking shorter by {hint['shortening']:.1%}, accuracy {hint['delta_accuracy']:+.1%} "
        f"(95% CI {low:+.1%} to {high:+.1%}); the hint was reached by {hint['reached']:.1%}.",
        "",
        *_table(hint["levels"], markdown),
        "",
        "### what prompt length and kind alone foretell",
        "",
        f"AUROC of success over {card['foretold']['n']} problems, {card['foretold']['wrong']} of them wrong: "
        + ", ".join(f"{k} {v:.3f}" for k, v in card["auroc"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def _table(cells: dict[str, dict[str, float]], markdown: bool) -> list[str]:
    keys = [k for k in next(iter(cells.values())) if k != "n"]
    rows = [["level", *(_COLUMNS.get(k, k.replace("_", " ")) for k in keys)]]
    for name, values in cells.items():
        rows.append([name, *(_shown(k, values[k]) for k in keys)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    edge, gap = ("| ", " | ") if markdown else ("", "  ")
    lines = [edge + gap.join(t.rjust(w) for t, w in zip(row, widths, strict=True)) + edge[::-1] for row in rows]
    if markdown:
        lines.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return lines


def _shown(key: str, value: float) -> str:
    if key in _SHARES or key == "hinted_accuracy":
        return f"{value:.1%}"
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def card(
    models: Annotated[list[str], typer.Argument(help="Folders of models; of a pair, the small one first.")],
    n: Annotated[int, typer.Option(help="Fresh problems of the test split.")] = 1200,
    seed: Annotated[int, typer.Option(help="Seed of problems and sampling.")] = 0,
    engine: Annotated[str, typer.Option(help="transformers, or vllm where it is installed.")] = ENGINES[0],
    batch: Annotated[int, typer.Option(help="Rows decoded at a time.")] = 256,
    greedy: Annotated[bool, typer.Option(help="Decode greedily instead of as the model's defaults say.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    markdown: Annotated[bool, typer.Option(help="Print Markdown tables.")] = False,
) -> None:
    """Measure embedded models and check what is asked of them; exit 1 if a bar is missed."""
    cards = [make_card(m, n, seed, engine=engine, batch=batch, greedy=greedy) for m in models]
    bars = check_criteria(*cards) if len(cards) == 2 else [bar for c in cards for bar in model_criteria(c["model"], c)]
    if as_json:
        typer.echo(json.dumps({"cards": cards, "bars": [{**asdict(b), "passed": b.passed} for b in bars]}, indent=2))
    else:
        for one in cards:
            typer.echo(as_text(one, markdown=markdown))
        typer.echo("\n".join(map(str, bars)))
    if not all(bar.passed for bar in bars):
        raise typer.Exit(1)


def main() -> None:
    """Run the command; an error on purpose is one line and exit code 2."""
    try:
        typer.run(card)
    except TerselyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
