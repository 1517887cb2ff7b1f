"""Messages for pydantic's errors, and the files that are read through them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from tersely.errors import OptionError
from tersely.validation import (
    FrozenModel,
    format_error_details,
    format_location,
    format_validation_error,
    list_fields,
    parse_json,
    read_text,
)

from ...support.refusals import refused


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


class Inner(FrozenModel):
    size: int = Field(default=1, ge=1)
    kind: Literal["a", "b"] = "a"


class Outer(FrozenModel):
    name: str
    inner: Inner | None = None
    table: dict[str, Inner] = Field(default_factory=dict)
    points: tuple[Point, ...] = ()
    renamed: int = Field(default=0, alias="re-named")

    @field_validator("name")
    @classmethod
    def check_name(cls, name: str) -> str:
        if name == "bad":
            raise ValueError("a bad name; accepted: another one")
        return name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON (EOF while parsing an object at line 1 column 1)"),
        ("[1]", "got [1]; accepted: an object"),
        ("{}", "field 'name' is missing; add it"),
        ('{"nam": "x"}', "unknown field 'nam'; did you mean 'name'? accepted: name, inner, table, points, re-named"),
        ('{"name": 5}', "name is 5; accepted: a valid string"),
        ('{"name": "bad"}', "name: a bad name; accepted: another one"),
        ('{"name": "x", "inner": {"size": 0}}', "inner.size is 0; accepted: greater than or equal to 1"),
        ('{"name": "x", "inner": {"kind": "c"}}', "inner.kind is 'c'; accepted: 'a' or 'b'"),
        ('{"name": "x", "table": {"t": {"sise": 2}}}', "unknown field 'table.t.sise'; did you mean 'size'? accepted: size, kind"),  # noqa: E501
        ('{"name": "x", "points": [{"x": 1}, {}]}', "field 'points[1].x' is missing; add it"),
        ('{"name": "x", "points": [{"x": 1, "z": 2}]}', "unknown field 'points[0].z'; accepted: x, y"),
        ('{"name": "x", "inner": {"size": NaN}}', "inner.size is nan; accepted: a finite number"),
    ],
)  # fmt: skip
def test_messages(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_json(Outer, text, "file.json", OptionError)
    assert str(caught.value) == f"file.json: {message}"


def test_long_values_are_shortened_and_stay_on_one_line() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"name": ["line\n"] * 900})
    message = format_validation_error(caught.value, Outer)
    assert len(message) < 120 and "\n" not in message and "...;" in message


def test_errors_of_other_types_and_without_a_model() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(list[int]).validate_python([1, "x"])
    assert format_validation_error(caught.value).startswith("[1] is 'x'; accepted: a valid integer")
    details = {"loc": ("a", 0, "b"), "type": "extra_forbidden", "msg": "", "input": 1}
    assert format_error_details(details) == "unknown field 'a[0].b'; remove it"


def test_locations_and_fields() -> None:
    assert format_location(("messages", 0, "content")) == "messages[0].content"
    assert format_location(()) == ""
    assert list_fields(Outer, ("table", "t")) == ["size", "kind"]
    assert list_fields(Outer, ("points", 3)) == ["x", "y"]
    assert list_fields(None, ("x",)) == []


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with refused(OptionError):
        read_text(tmp_path / "none.json", OptionError)
    with pytest.raises(OptionError):
        read_text(tmp_path, OptionError)
    latin = tmp_path / "latin.json"
    latin.write_bytes(b"caf\xe9")
    with refused(OptionError):
        read_text(latin, OptionError)
