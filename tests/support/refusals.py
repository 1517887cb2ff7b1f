"""Errors asserted by type and code, not by their wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from tersely.errors import TerselyError

E = TypeVar("E", bound=TerselyError)


@contextmanager
def refused(kind: type[E], code: str | None = None) -> Iterator[pytest.ExceptionInfo[E]]:
    """Expect an error of this type with this code; None for the code of its class."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == (code or kind.code), str(caught.value)
