"""Errors asserted by type and code, not by their wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tersely.errors import TerselyError


@contextmanager
def refused(kind: type[TerselyError], code: str | None = None) -> Iterator[None]:
    """Expect an error of this type with this code; None for the code of its class."""
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.code == (code or kind.code), str(caught.value)
