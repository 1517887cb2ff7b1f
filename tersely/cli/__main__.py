"""`python -m tersely.cli`: the same as the `tersely` script."""

from __future__ import annotations

from . import main

main()
