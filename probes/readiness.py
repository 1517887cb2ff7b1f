"""Readiness: at the end of a thought, would an answer now be as right as one after thinking on?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import OptionError
from .network import Array
from .probe import Probe

READY, HOPEFUL, HOPELESS = "ready", "hopeful", "hopeless"
CLASSES = (READY, HOPEFUL, HOPELESS)
"""An answer now is right; it is wrong, and thinking on repairs it; it is wrong, and so will be the last one."""


class ReadinessProbe(Probe):
    """Chances of the three classes, in the order of `CLASSES`; one that never occurred in training has none."""

    kind: ClassVar[str] = "readiness"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the columns of `proba`."""
        return CLASSES

    def proba(self, X: ArrayLike) -> Array:  # noqa: N803 - as scikit-learn calls it
        """Probabilities [n, 3] of rows [n, d]; raises OptionError for another width or what is not finite."""
        known = super().proba(X)
        chances = np.zeros((len(known), len(CLASSES)), np.float32)
        chances[:, [CLASSES.index(name) for name in self.artifact.classes]] = known
        return chances


def labels(now_right: ArrayLike, final_right: ArrayLike) -> NDArray[np.str_]:
    """Classes of boundaries [n], by whether an answer at once is right and whether that after all thinking is."""
    now, final = _yes_or_no(now_right), _yes_or_no(final_right)
    if now.shape != final.shape:
        raise OptionError(f"{now.size} answers now and {final.size} in the end; accepted: one of each a boundary")
    return np.where(now, READY, np.where(final, HOPEFUL, HOPELESS))


def labels_by_agreement(now_same: ArrayLike) -> NDArray[np.str_]:
    """Classes of boundaries [n] where nobody knows what is right, by whether an answer at once is that in the end."""
    return np.where(_yes_or_no(now_same), READY, HOPEFUL)


def score(proba: Array) -> Array:
    """The chance that stopping does no harm, 1 - P(hopeful): [n, 3] -> [n]."""
    return np.asarray(1 - proba[:, CLASSES.index(HOPEFUL)])


def unrecoverable(proba: Array) -> Array:
    """The chance that neither an answer now nor thinking on will be right: [n, 3] -> [n]."""
    return np.asarray(proba[:, CLASSES.index(HOPELESS)])


def _yes_or_no(values: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if not np.isin(array, (0, 1)).all():
        raise OptionError(f"outcomes hold {array[~np.isin(array, (0, 1))].flat[0]}; accepted: true and false")
    return array.astype(bool)
