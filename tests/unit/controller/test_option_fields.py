"""Every surface has the options of `GenerationOptions`, with its defaults and descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tersely.controller.integrations import CALL_SETTINGS, TerselyModel
from tersely.controller.options import (
    OPTION_NAMES,
    SAMPLING_OPTIONS,
    ConfigError,
    OptionsDict,
    load_config,
    option_field,
)
from tersely.controller.serving.schemas import TerselyField
from tersely.training.config import Rollouts

OWN_DEFAULTS = {"max_tokens", "max_new_tokens", "effort", "preset", "policies", "answer_reserve", "shadow"}


def test_keyword_arguments_are_the_options() -> None:
    assert set(OptionsDict.__annotations__) == {*OPTION_NAMES, *SAMPLING_OPTIONS} - {"sampling"}


@pytest.mark.parametrize("surface", [TerselyModel, TerselyField, Rollouts])
def test_fields_of_surfaces_come_from_the_options(surface: Any) -> None:
    shared = {name: field for name, field in surface.model_fields.items() if name in OPTION_NAMES and field.description}
    assert shared
    for name, field in shared.items():
        assert field.description == option_field(name).description
        assert field.default == option_field(name).default or (surface is not TerselyModel and name in OWN_DEFAULTS)


def test_frameworks_take_all_options_but_those_of_a_call() -> None:
    missing = {*OPTION_NAMES, *SAMPLING_OPTIONS} - set(CALL_SETTINGS)
    assert missing == {"max_new_tokens", "sampling", "shadow", "signals", "record", "tools"}


def test_a_configuration_may_be_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "defaults.json"
    path.write_text('{"effort": "low", "policies": {"budget": {}}}')
    assert load_config(path)["effort"] == "low"
    path.write_text('{"format": 99, "effort": "low"}')
    with pytest.raises(ConfigError):
        load_config(path)
