"""Run as `python -m tersely.evaluation.acceptance`."""

from .cli import main

main()
