"""A whole collection: batch by batch into a folder, gone on with where it stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from ...controller.session import Session
from ...probes.features import FEATURES
from ...probes.records import RecordStore
from ..progress import show_progress
from ..runner import batches
from ..tasks.equality import AnswerChecker
from ..tasks.questions import load
from .rollouts import Collector


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """All that decides what is collected."""

    model: str
    task: str
    split: str
    limit: int | None
    seed: int
    tiers: tuple[str, ...]
    rollouts: int
    layers: tuple[int, ...]
    batch_size: int
    max_new_tokens: int
    think_prompt: bool = False


def collect_into(folder: Path, plan: CollectPlan) -> str:
    """Collect into a folder; a sentence that says what is there."""
    from ...controller.engines.transformers.engine import load_engine

    questions = load(plan.task, plan.split, plan.limit, plan.seed)
    engine = load_engine(plan.model, grouped=True)
    session = Session(engine, think_prompt=plan.think_prompt)
    closing = len(
        session.codec.encode(session.markers.close + session.markers.close_suffix + session.markers.answer_prefix)
    )
    facts = {"features": FEATURES, "fingerprint": engine.fingerprint(), "closing": closing}
    store = RecordStore(folder, {**asdict(plan), **facts})
    groups = batches(questions, plan.batch_size)
    tokens = 0
    each = len(plan.tiers) * plan.rollouts
    with AnswerChecker() as checker, show_progress(each * len(questions)) as advance:
        collector = Collector(session, checker, plan.tiers, plan.rollouts, plan.layers, plan.max_new_tokens, plan.seed)
        # Batches go by level. Taken at random, what a stopped collection holds is still a fair sample.
        for number in Random(plan.seed).sample(range(len(groups)), len(groups)):
            rows = groups[number]
            if store.has(number):
                advance("kept", each * len(rows))
                continue
            columns, texts = collector.batch(number, [questions[i] for i in rows], lambda n: advance("collecting", n))
            store.put(number, columns, texts)
            tokens += int(columns["boundaries.trial"].sum())
    trials = f"; trial answers cost {tokens} tokens" if tokens else ""
    return f"{folder} holds {each} rollouts of each of {len(questions)} questions{trials}"
