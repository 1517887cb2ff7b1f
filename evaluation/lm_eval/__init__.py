"""The command `tersely-lm-eval`: the command line of EleutherAI's lm-evaluation-harness, with the model `tersely`."""

from __future__ import annotations

import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

from ...errors import TerselyError
from .requests import UsageLog

USAGE, INTERRUPTED = 2, 130


def main() -> int:
    """Run lm-eval on `sys.argv`, then print the token usage; returns the exit code."""
    if find_spec("lm_eval") is None:
        return _report_error("lm-eval is not installed; install it: pip install 'tersely[lm-eval]'")
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    from .model import TerselyLM

    setup_logging()
    command = HarnessCLI()
    arguments = command.parse_args()
    TerselyLM.shared_usage = usage = UsageLog(_output_path(arguments))
    try:
        command.execute(arguments)
    except TerselyError as error:
        return _report_error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        if usage.lines:
            print(usage.summary())
    return 0


def _output_path(arguments: Namespace) -> Path | None:
    """lm-eval's output path, from its option or its config file; it does not pass it to models."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    path = getattr(arguments, "output_path", None)
    config = getattr(arguments, "config", None)
    if not path and config:
        path = EvaluatorConfig.load_yaml_config(config).get("output_path")
    return Path(path) if path else None


def _report_error(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return USAGE
