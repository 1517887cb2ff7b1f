"""The command `tersely train prm`: a process reward model, from completions of a model's own steps (Monte Carlo).

After arXiv 2510.01167; it guides decoding by the rule `guided` (`controller/sampling/research/guided.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ...controller.engines.transformers.engine import load_engine
from ...controller.options import GenerationOptions, flag
from ...controller.sampling import SampleResult, sample_all
from ...controller.sampling.research.guided import Forks
from ...controller.session import Session
from ...controller.text.answers import extract_answer
from ...controller.types import SamplingParams, State
from ...errors import OptionError
from ...io import check_new_folder
from ...probes.artifact import Artifact, save
from ...probes.estimator import Examples, fit_calibrated
from ...probes.rule import HOPEFUL, HOPELESS, READY
from ...probes.stats import measure_quality
from .. import cli_utils as cli
from ..runner import batch_seed
from ..tasks.equality import AnswerChecker
from ..tasks.questions import Question, hash_question, load_all

FEWEST = 20  # questions, of which a fifth calibrates and a fifth is held out


@dataclass(frozen=True, slots=True)
class PrmOptions:
    """The options of `tersely train prm`."""

    model: cli.Model
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; the probe is in its folder `readiness`.")]
    tasks: cli.Tasks = "tiny"
    limit: Annotated[int, flag("Questions to answer.", min=FEWEST)] = 200
    places: Annotated[int, flag("Ends of thoughts of each answer to fork at.", min=1)] = 4
    width: Annotated[int, flag("Completions from each of them.", min=1)] = 4
    layer: Annotated[int, flag("Hidden layer to read; -1 is the last.")] = -1
    seed: cli.Seed = 0
    batch_size: cli.BatchSize = 16
    max_new_tokens: cli.MaxNewTokens = 2048


@dataclass(frozen=True, slots=True)
class Completions:
    """Completions of steps: the state and the question of each step, and the outcome of each completion, [n]."""

    states: list[State]
    questions: list[int]
    right: list[bool]
    further: list[int]  # tokens of the thinking that a completion adds to its step

    def make_examples(self, near: float) -> Examples:
        """The outcomes as labels: wrong, or right after more than `near` further tokens, or sooner."""
        right = np.where(np.array(self.further) > near, HOPEFUL, READY)
        labels = np.where(self.right, right, HOPELESS)
        return Examples(np.array(self.states), labels, np.array(self.questions))


@cli.takes(PrmOptions)
def prm(options: PrmOptions) -> None:
    """Train a process reward model: the value of a thought is the share of its completions that are right."""
    check_new_folder(options.out)
    questions = load_all(cli.parse_list("--tasks", options.tasks, str), "fit", options.limit, options.seed)
    session = Session(load_engine(options.model, grouped=True))
    found = sample_completions(session, questions, options)
    if not found.states:
        raise OptionError("no answer has a thought that ends, so there is nothing to learn", code="nothing_to_learn")
    near = float(np.median([n for n, right in zip(found.further, found.right, strict=True) if right] or [0]))
    examples = found.make_examples(near)
    order = np.argsort([hash_question(question) for question in questions])
    parts = np.argsort(order)[examples.questions] % 5
    if not {HOPELESS} < {*examples.labels[parts > 1].tolist()} or len({*parts.tolist()} & {0, 1}) < 2:
        raise OptionError(
            "completions of too few questions, or all of them alike; use more or other questions",
            code="nothing_to_learn",
        )
    estimator = fit_calibrated(examples.select(parts > 1), examples.select(parts == 1), options.seed)
    base = {"name": options.model, "fingerprint": session.engine.fingerprint() or ""}
    asked = {**cli.identify(options, "out model"), "near": near}
    learned = sorted({hash_question(questions[i]) for i in examples.questions[parts > 0]})
    held, wrong = examples.select(parts == 0), estimator.classes_.tolist().index(HOPELESS)
    values = 1.0 - estimator.predict_proba(held.rows)[:, wrong].astype(np.float64)
    right = held.labels != HOPELESS
    metrics = asdict(measure_quality(right, values)) if 0 < right.sum() < len(right) else {}
    save(
        Artifact(
            kind="readiness",
            network=estimator.to_network(),
            classes=tuple(map(str, estimator.classes_)),
            layer=options.layer,
            features=(),
            base=base,
            provenance={**asked, "learned_from": learned},
            metrics=metrics,
        ),
        options.out / "readiness",
    )
    quality = "those of held-out questions all end alike, so how good it is was not measured"
    if metrics:
        area = f"{metrics['auroc']:.3f} [{metrics['low']:.3f}, {metrics['high']:.3f}]"
        quality = f"on those of held-out questions, the value tells right from wrong ones by an AUROC of {area}"
    typer.echo(f"{len(examples.labels)} completions; {quality}; saved to {options.out}")


def sample_completions(session: Session, questions: Sequence[Question], options: PrmOptions) -> Completions:
    """Answer the questions once each, and complete those answers from places where a thought ends."""
    found = Completions([], [], [], [])
    k = 1 + options.places * options.width
    with AnswerChecker() as checker:
        for start in range(0, len(questions), options.batch_size):
            part, places = questions[start : start + options.batch_size], list[dict[int, State]]()
            sampling = SamplingParams(seed=batch_seed("prm", options.seed, start))
            plain = GenerationOptions(preset="off", max_new_tokens=options.max_new_tokens, sampling=sampling)
            rule = Forks(places, options.layer, options.places, options.width)
            results = sample_all(session, [question.problem for question in part], plain, rule, k)
            for number, (question, result) in enumerate(zip(part, results, strict=True)):
                answers = [one.answer if question.drawn else extract_answer(one.answer) for one in result.samples]
                grade = [checker.grade(question, answer).equal for answer in answers]
                _add(found, start + number, places[number], result, grade, options.width)
    return found


def _add(
    found: Completions, number: int, places: dict[int, State], result: SampleResult, right: Sequence[bool], width: int
) -> None:
    """Add the completions of one answer's steps; the answer itself is one of each."""
    for place, (at, state) in enumerate(places.items()):
        for sample in (0, *range(1 + place * width, 1 + (place + 1) * width)):
            usage = result.samples[sample].usage
            found.states.append(state)
            found.questions.append(number)
            found.right.append(right[sample])
            found.further.append(usage.thinking - (0 if sample else at))
