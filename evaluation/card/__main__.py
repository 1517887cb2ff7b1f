"""Run as `python -m tersely.evaluation.card`."""

from .cli import main

main()
