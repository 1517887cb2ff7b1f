"""Learn which mode a question needs, from what agents in each mode came to on the same tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ...controller.integrations.langchain.middleware import MODES
from ...controller.integrations.langchain.routing import LAYER, prompt_hidden_states
from ...controller.session import Session
from ...errors import OptionError
from ...probes.estimator import ProbeClassifier
from ...probes.io import ModeProbe
from ...probes.tier_selector import label_tiers
from .episodes import Episode
from .tasks import Task

FEWEST = 20


def train_router(session: Session, tasks: Sequence[Task], by_mode: Mapping[str, Sequence[Episode]]) -> ModeProbe:
    """The probe of the cheapest mode that will do; by_mode: episodes of the tasks, in their order, for each of `MODES`.

    A task that no mode solved says nothing of which one it needs, and is left out: as one for the cheapest mode it
    would teach that what often fails is not worth trying. Raises OptionError for too few tasks, or where one mode does
    for all.
    """
    solved = np.array([[float(e.solved) for e in by_mode[mode]] for mode in MODES]).T
    written = np.array([[float(e.written) for e in by_mode[mode]] for mode in MODES]).T
    kept = np.asarray(solved.any(axis=1))
    if kept.sum() < FEWEST:
        raise OptionError(
            f"{kept.sum()} tasks that some mode solved are too few to learn a router from; accepted: {FEWEST} or more"
        )
    tasks, solved, written = [task for task, keep in zip(tasks, kept, strict=True) if keep], solved[kept], written[kept]
    labels = label_tiers(solved, written.mean(axis=0), tiers=MODES)
    counts = Counter(labels.tolist())
    if len(counts) < 2:
        raise OptionError(f"mode {labels[0]!r} is the best for all {len(tasks)} tasks: there is nothing to route")
    classifier = ProbeClassifier().fit(prompt_hidden_states(session, [task.question for task in tasks]), labels)
    return ModeProbe.from_estimator(
        classifier,
        layer=LAYER,
        base={"name": session.engine.name, "fingerprint": str(session.engine.fingerprint())},
        provenance={"tasks": len(tasks), "labels": dict(counts)},
        metrics={"held_out_loss": classifier.held_out_loss_},
    )
