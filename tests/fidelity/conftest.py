from __future__ import annotations

import pytest

from tersely.controller.engines.transformers.engine import TransformersEngine, load_engine


@pytest.fixture(scope="session")
def small() -> TransformersEngine:
    return load_engine("tersely-tiny-small")
