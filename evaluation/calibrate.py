"""The command `tersely calibrate`: probes from a collection of a model, or a text probe from logs of any model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import typer
from numpy.typing import NDArray

from ..controller.budgets import UNLIMITED, Budget
from ..controller.options import flag
from ..controller.policies.base import Action, PolicyView
from ..controller.policies.exits import Convergence
from ..controller.policies.readiness import wait_for_reader
from ..controller.replay import replay
from ..controller.text.answers import Finality, extract_answer
from ..controller.text.evidence import Claim
from ..controller.text.tokenizer_adapter import get_adapter
from ..controller.verification import NoVerdictError
from ..errors import OptionError
from ..io import render_text
from ..probes.artifact import to_json
from ..probes.calibrate import run
from ..probes.calibrate.data import split_questions
from ..probes.calibrate.text import RecordedThinking, fit_text_probe
from ..probes.fingerprint import question_hash
from ..probes.io import TEXT, save_text_probe
from ..probes.rule import TEXT_FEATURES
from .cli_utils import Json, show_progress, takes
from .replay.formats import RecordedOutput
from .replay.logs import LogOptions, RecordedSet
from .replay.reader import load_tokenizer
from .replay.run import MARKERS, is_right
from .tasks.equality import AnswerChecker

if TYPE_CHECKING:
    from ..controller.reader import StateReader


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateOptions(LogOptions):
    """The options of `tersely calibrate`."""

    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA", help="Folder of `tersely collect` or of shadow mode, or files of recorded outputs."
        ),
    ]
    out: Annotated[Path, flag("Output folder for the probes.")]
    calibrate: Annotated[Path | None, flag("Separate collection for the certificates; needs --test.")] = None
    test: Annotated[Path | None, flag("Separate collection for the report; needs --calibrate.")] = None
    alpha: Annotated[float, flag("Share of questions that stopping early may harm.")] = 0.02
    delta: Annotated[float, flag("Probability that more are harmed nevertheless.")] = 0.1
    margin: Annotated[float, flag("Accuracy that choosing tiers may cost.")] = 0.005
    layer: Annotated[int | None, flag("Hidden layer to read; default: the best of those collected.")] = None
    labels: Annotated[str, flag("Labels for difficulty: tiers (cheapest sufficient one) or diffadapt.")] = "tiers"
    reader: Annotated[
        str | None, flag("A small model whose hidden states a text probe also reads.", metavar="MODEL")
    ] = None
    curve: Annotated[Path | None, flag("Draw entropy by difficulty into a PNG or SVG file.")] = None
    seed: Annotated[int, flag("Random seed of the training.", min=0)] = 0
    as_json: Json = False


@takes(CalibrateOptions)
def calibrate(options: CalibrateOptions) -> None:
    """Train probes, certify thresholds, and compare them with simple baselines.

    From a folder: a difficulty and a readiness probe of its model. From logs of any model: a text probe, which makes
    the exit of `balanced` as strict or lenient as these outputs allow. One set of data is split by question: half for
    training, the rest for certificates and the report.
    """
    settings = run.CalibrationSettings(
        options.alpha, options.delta, options.margin, options.layer, options.labels, options.seed
    )
    folders = [path for path in options.logs if path.is_dir()]
    if not folders:
        report = calibrate_on_logs(options, settings)
        text = render_text(Path(__file__).with_name("calibrate.txt"), **report)
    elif len(options.logs) > 1:
        raise OptionError(
            f"{folders[0]} is a folder among {len(options.logs)} paths; accepted: one folder, or files of logs"
        )
    else:
        _refuse(options, _OF_LOGS, f"for files of recorded outputs, and {folders[0]} is a folder")
        if options.curve is not None:
            run.check_picture(options.curve)
        parts = split_questions(folders[0], options.calibrate, options.test)
        report = run.calibrate_into(options.out, parts, settings)
        if options.curve is not None:
            run.draw_entropy_curve(report, options.curve)
        text = run.format_report(report)
    typer.echo(json.dumps(to_json("report", report, nonfinite=True)) if options.as_json else text)


_OF_COLLECTIONS = ("calibrate", "test", "margin", "layer", "labels", "curve")
_OF_LOGS = ("tokenizer", "limit", "question_field", "thinking_field", "answer_field", "gold_field", "reader")


def _refuse(options: CalibrateOptions, names: Sequence[str], why: str) -> None:
    """Raise OptionError if one of these options was given."""
    defaults = {one.name: one.default for one in fields(options)}
    if given := [name for name in names if getattr(options, name) != defaults[name]]:
        raise OptionError(f"--{given[0].replace('_', '-')} is {why}; leave it out")


def calibrate_on_logs(options: CalibrateOptions, settings: run.CalibrationSettings) -> dict[str, Any]:
    """Fit, certify and save a text probe; returns the report in JSON form."""
    _refuse(options, _OF_COLLECTIONS, f"for a collection, and {options.logs[0]} is a file")
    sets = options.load()
    if not any(row.question for one in sets for row in one.rows):
        raise OptionError(
            "no output has its question, by which a text probe knows what it is certified for; give logs with "
            "questions, or name their field (--question-field)",
            code="no_questions",
        )
    reader = None if options.reader is None else load_reader(options.reader)
    thinking = read_logs(sets, load_tokenizer(options.tokenizer), reader)
    left_out = sum((one.left_out for one in sets), Counter[str]())
    left_out["no question"] = sum(not row.question for one in sets for row in one.rows)
    left_out["another output of the same question"] = (
        sum(len(one.rows) for one in sets) - len(thinking) - left_out["no question"]
    )
    about = {} if reader is None else reader.describe()
    probe, report = fit_text_probe(thinking, settings.alpha, settings.delta, settings.seed, **about)
    report["left_out"] = dict(+left_out)
    save_text_probe(probe, options.out / TEXT, {"logs": [one.name for one in sets], "seed": settings.seed}, report)
    return report


def load_reader(model: str) -> StateReader:
    """The reader for --reader; raises ModelError, or CapabilityError for what shows no hidden states."""
    from ..controller.engines.transformers.engine import load_engine, reading_dtype
    from ..controller.reader import StateReader

    return StateReader(load_engine(model, reading_dtype(), grouped=True))


def read_logs(sets: Sequence[RecordedSet], tokenizer: Any, reader: StateReader | None) -> list[RecordedThinking]:
    """The values that recorded outputs state; one output for each question, the first."""
    rows = {question_hash(row.question): row for one in reversed(sets) for row in reversed(one.rows) if row.question}
    with AnswerChecker() as checker, show_progress(len(rows)) as advance:
        found = []
        for row in rows.values():
            found.append(follow(row, tokenizer, checker, reader))
            advance("reading", 1)
    return found


_GROUP = 8  # places of a thinking that a reader reads at once


@dataclass(frozen=True, slots=True)
class _Listener(Convergence):
    """Keeps what the rule of `convergence` sees, and never acts."""

    name: ClassVar[str] = "listener"
    reads_all: bool = False
    found: list[tuple[int, int, bool, str]] = field(default_factory=list)
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def judge(self, view: PolicyView, claim: Claim, finality: Finality) -> Generator[Action, Any, str | None]:
        tokens, features = view.tokens, claim.features(view.tokens, finality)
        supported = finality is Finality.ANSWERS and self.find_support(claim) is not None
        if self.reads_all:
            yield wait_for_reader(view)
        self.found.append((tokens, view.tokens, supported, claim.answer))
        self.rows.append(features)
        return None


def follow(row: RecordedOutput, tokenizer: Any, checker: AnswerChecker, reader: StateReader | None) -> RecordedThinking:
    """Read one recorded output."""
    codec, listener = get_adapter(tokenizer), _Listener(reads_all=reader is not None)
    ids = codec.encode(row.thinking)
    replay(ids, (listener,), tokenizer, MARKERS, Budget("normal", UNLIMITED), prompt=row.question)
    stops = [stop for stop in listener.found if stop[1] < len(ids)]
    rows = np.array(listener.rows[: len(stops)], np.float32).reshape(-1, len(TEXT_FEATURES))
    if reader is not None:
        states = read_states(reader, row.question, [codec.decode(ids[:tokens]) for tokens, *_ in stops])
        # Live, only what the rule supports ends a thinking that the reader cannot read.
        judged = np.isfinite(states).all(axis=1) | np.array([supported for *_, supported, _ in stops], bool)
        rows = np.hstack([rows, states])[judged]
        stops = [stop for stop, kept in zip(stops, judged, strict=True) if kept]
    return RecordedThinking(
        question=row.question,
        hash=question_hash(row.question),
        tokens=max(1, len(ids)),
        right=row.gold is None or is_right(row, extract_answer(row.answer, row.question), checker),
        stops=np.array([end for _, end, *_ in stops], np.int64),
        rows=rows,
        supported=np.array([supported for *_, supported, _ in stops], bool),
        now=np.array([is_right(row, answer, checker) for *_, answer in stops], bool),
        late=np.array([end - tokens for tokens, end, *_ in stops], np.int64),
    )


def read_states(reader: StateReader, question: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """The states behind the texts of a growing thinking, NaN where they do not fit into the reader's context."""
    states = np.full((len(texts), reader.width), np.nan, np.float32)
    at, group = 0, _GROUP
    while at < len(texts):
        try:
            states[at : at + group] = reader.read(question, texts[at : at + group])[0]
        except NoVerdictError:
            if group == 1:
                break
            group = 1  # the first ones may fit
        else:
            at += group
    return states
