"""The command `tersely-lm-eval`: lm-eval's own command line, with the model `tersely` among its models."""

from __future__ import annotations

import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from ...errors import TerselyError
from .usage import UsageLog

USAGE, INTERRUPTED = 2, 130


def main() -> int:
    """Run lm-eval on `sys.argv`, then print what the requests cost; returns the exit code."""
    if find_spec("lm_eval") is None:
        return _complain("lm-eval is not installed; pip install 'tersely[lm-eval]'")
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    from .model import TerselyLM

    setup_logging()
    command = HarnessCLI()
    arguments = command.parse_args()
    TerselyLM.shared = ledger = UsageLog(_output_path(arguments))
    try:
        command.execute(arguments)
    except TerselyError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        if ledger.lines:
            print(ledger.summary())
    return 0


def _output_path(arguments: Namespace) -> Path | None:
    """Where lm-eval will write, which it does not tell its models: an option, or a line of its file of settings."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    path = getattr(arguments, "output_path", None)
    config = getattr(arguments, "config", None)
    if not path and config:
        path = EvaluatorConfig.load_yaml_config(config).get("output_path")
    return Path(path) if path else None


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return USAGE
