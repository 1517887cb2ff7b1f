"""Errors cross process boundaries: joblib, Ray and multiprocessing pickle them."""

from __future__ import annotations

import pickle

import pytest

from tersely.controller.engines.openai import ServerLostError
from tersely.controller.engines.openai.client import RefusedError
from tersely.controller.serving.errors import RequestError
from tersely.errors import OptionError, TerselyError


@pytest.mark.parametrize(
    "error",
    [
        OptionError("no", code="unknown_name"),
        RefusedError("no", 429),
        ServerLostError("gone", []),
        RequestError("no", 404, param="model", retry_after=3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_pickling(error: TerselyError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
