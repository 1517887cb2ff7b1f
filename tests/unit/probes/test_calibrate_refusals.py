"""What nothing can be learnt from is refused and said; layers are chosen and named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tersely.errors import OptionError, TerselyError
from tersely.probes.calibrate.data import read_boundaries, read_questions
from tersely.probes.calibrate.difficulty import fit_difficulty
from tersely.probes.calibrate.run import FEWEST, CalibrationSettings, QuestionParts, best_layer, calibrate_into
from tersely.probes.records import RecordsError, RecordTable

from ...support.planted_records import changed, planted

MARK = "fe" * 32
N = 460
ALPHA = 0.1


def whole(records: RecordTable) -> QuestionParts:
    return QuestionParts(records, records, records, True)


def test_too_few_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecordsError, match=rf"the part to learn has \d+ questions; accepted: {FEWEST} or more; collect"
    ):
        calibrate_into(tmp_path, whole(planted(60)), CalibrationSettings())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("solved", [0.0, 1.0])
def test_questions_that_are_all_alike_teach_nothing(tmp_path: Path, solved: float) -> None:
    records = planted(N, solved=solved)
    with pytest.raises(OptionError, match="there is nothing to learn; collect harder"):
        calibrate_into(tmp_path, whole(records), CalibrationSettings())
    both = (read_questions(records, -1),) * 2
    with pytest.raises(OptionError, match=r"tier 'none' is the cheapest that will do for all \d+ questions, so there"):
        fit_difficulty(both, both, -1, 0.01)


def test_thinking_that_repairs_nothing_teaches_nothing(tmp_path: Path) -> None:
    records = planted(N, live=True)
    settled = changed(records, boundaries__same=np.ones_like(records["boundaries.same"]))
    with pytest.raises(
        OptionError, match=r"in none of these rollouts did thinking on repair .*collect harder questions"
    ):
        calibrate_into(tmp_path, whole(settled), CalibrationSettings())


@pytest.mark.parametrize("table", ["questions", "boundaries"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_states_that_are_no_numbers_are_refused(table: str, value: float) -> None:
    records = planted(20, layers=(2, -1))
    states = records[f"{table}.state.2"].copy()
    states[3, 4] = value
    broken = changed(records, **{f"{table}__state.2": states})
    take = read_questions if table == "questions" else read_boundaries
    with pytest.raises(RecordsError, match="layer 2 hold NaN or infinity; take another layer, or collect in float32"):
        take(broken, 2)
    take(broken, -1)


def test_a_layer_that_was_not_collected_is_named() -> None:
    records = planted(10, layers=(2, 12))
    with pytest.raises(OptionError, match=r"unknown layer '1'; did you mean '12'\? accepted: 2, 12"):
        best_layer(records, 1, lambda layer: 0.0)
    with pytest.raises(OptionError, match="unknown layer '-1'"):
        read_questions(records, -1)


def test_the_layer_with_the_least_loss_is_taken_unless_one_is_wanted() -> None:
    records, asked = planted(10, layers=(2, 3, 12)), list[int]()

    def loss(layer: int) -> float:
        asked.append(layer)
        return {2: 0.5, 3: 0.1, 12: 0.3}[layer]

    assert best_layer(records, None, loss) == 3
    assert asked == [2, 3, 12]
    assert best_layer(records, 12, loss) == 12
    assert best_layer(planted(10), None, loss) == -1
    assert asked == [2, 3, 12], "nothing is fitted where there is no choice"


def test_another_layer_has_its_own_states() -> None:
    records = planted(10, layers=(2, -1))
    one, other = read_questions(records, 2), read_boundaries(records, 2)
    assert np.array_equal(one.state, records["questions.state.2"])
    assert np.array_equal(other.rows[:, -8:], read_boundaries(records, -1).rows[:, :-9:-1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alpha": 0.0}, "alpha is 0.0; accepted: a share above 0 and below 1"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"delta": 1.5}, "delta is 1.5"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"labels": "tier"}, "unknown labels 'tier'; did you mean 'tiers'"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        CalibrationSettings(**settings)


@pytest.mark.parametrize("live", [False, True])
def test_a_collection_without_the_base_tier_is_refused(tmp_path: Path, live: bool) -> None:
    records = planted(N, tiers=("none", "easy"), live=live)
    with pytest.raises(TerselyError, match="no rollout of tier 'normal' here"):
        calibrate_into(tmp_path, whole(records), CalibrationSettings())


def test_calibrations_with_the_same_seed_are_the_same() -> None:
    records = planted(N, seed=3, tiers=("none", "normal"))
    sets = [read_questions(records, -1, whole(records).keep(name)[1]) for name in ("learn", "tune")]
    one, other = (fit_difficulty((sets[0], sets[0]), (sets[1], sets[1]), -1, 0.01, seed=5) for _ in range(2))
    assert one.network == other.network
    assert one.price == other.price
    assert replace(one, table=other.table).choose(sets[0].state[0]) == other.choose(sets[0].state[0])
