"""What several test files share: an offline process, and real vLLM engines that are started once."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vllm import LLM

    from tersely.controller.vllm.engine import VllmEngine

    from .support.chat_servers import Judge
    from .support.vllm_server import VllmServer

# Read when torch, transformers and vLLM are imported, hence before any test module.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose more to waiting than threads win
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(
    VLLM_CPU_CI_ENV="1",  # no warm-up
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",  # the engine lives in this process: binding would pin every test to one core
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # three processes each importing vLLM would triple the start
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)

# Processes among which tests are shared ignore Ctrl-C, and so would all that they start.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Freeze what collecting has made: looking through it for garbage would take a third of a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        # Libraries look for what they have made when the process ends, and would call it leaked.
        atexit.register(gc.unfreeze)


# Files whose tests share an engine in this process, a server, or the import of TRL; the first match counts.
_TOGETHER = {
    "our server": ("test_serving_ceilings.", "test_serving_vllm.", "test_vllm_server."),
    "plain server": ("test_serving_upstream.", "test_remote_vllm."),
    "training": (
        "test_training_methods.",
        "test_training_processes.",
        "test_training_runs.",
        "test_trl_",
        "test_mahdpo.",
        "test_episodes.",
        "test_hint.",
        "test_preflight.",
        "test_rewards.",
        "test_training.",
    ),
    "vllm": (
        "test_vllm_",
        "test_async_llm.",
        "test_contract.",
        "test_gpu_check.",
        "test_reasoning_parsers.",
        "test_training_vllm.",
    ),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs vLLM where there is none, without importing it; leave long attacks to `make attack`."""
    if "attack" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("attack"):
                item.add_marker(pytest.mark.skip(reason="run by `make attack`"))
    if find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, the tests that share a vLLM go to one process, like those of one file."""
    from xdist.scheduler import LoadFileScheduling

    class SharedVllm(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            name = file.rpartition("/")[2]
            return next((group for group, names in _TOGETHER.items() if name.startswith(names)), file)

    return SharedVllm(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def _kept_sandboxes() -> Iterator[None]:
    from .support.kept_sandboxes import kept_sandboxes

    with kept_sandboxes():
        yield


@pytest.fixture(scope="session")
def start_vllm() -> Callable[..., LLM]:
    """Start a vLLM on an embedded model or a folder, once per set of arguments: `start_vllm("tersely-tiny-small")`.

    Further keywords go to `vllm.LLM`; they have to be hashable.
    """
    from tersely.models import get_model_path

    from .support.vllm_engine import quick_start

    @cache
    def start(name: str, **options: object) -> LLM:
        settings: dict[str, object] = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 2048,
            "distributed_executor_backend": "uni",
            "gpu_memory_utilization": 0.3,  # on CPUs: the share of memory that has to be free
            "disable_log_stats": True,
        }
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
        with quick_start():
            import vllm

            model = name if os.path.isdir(name) else str(get_model_path(name))
            return vllm.LLM(model, **(settings | given))

    return start


@pytest.fixture(scope="session")
def vllm_llm(start_vllm: Callable[..., LLM]) -> LLM:
    """A vLLM on the small embedded model, with tersely's processor in it, which acts where it is asked to."""
    from tersely.controller.vllm.engine import PROCESSOR

    return start_vllm("tersely-tiny-small", logits_processors=(PROCESSOR,))


@pytest.fixture(scope="session")
def vllm_engine(vllm_llm: LLM) -> VllmEngine:
    """The engine on that vLLM."""
    from tersely.controller.vllm.engine import VllmEngine

    return VllmEngine(vllm_llm, "tersely-tiny-small")


SERVER_CONFIG = """
[keys.team]
key_file = "team"
own_policies = false
[keys.team.ceilings]
thinking_tokens = 60
[prices.tiny]
input = 1
output = 1
"""


@pytest.fixture(scope="session")
def judge() -> Iterator[tuple[Judge, str]]:
    """What answers the verifier's questions of `our_vllm_server`, and its URL."""
    from .support.chat_servers import Judge

    judge = Judge()
    judge.answers.set()
    with judge.serve() as url:
        yield judge, url


@pytest.fixture(scope="session")
def our_vllm_server(
    tmp_path_factory: pytest.TempPathFactory, judge: tuple[Judge, str]
) -> Iterator[Callable[[], VllmServer]]:
    """`tersely serve --engine vllm` on the small model, with a verifier, trials, and a key of its own rules."""
    from .support.vllm_server import shared, vllm_server

    def start() -> Any:
        folder = tmp_path_factory.mktemp("vllm")
        (folder / "team").write_text("of-the-team")
        (folder / "server.toml").write_text(SERVER_CONFIG)
        flags = ("--config", str(folder / "server.toml"), "--verifier", judge[1], "--trials", "self", "--drain", "2")
        more = ("--max-num-batched-tokens", "1024")
        return vllm_server("tersely-tiny-small", folder, *flags, *more, forked_engine=True)

    with shared(start) as running:
        yield running


@pytest.fixture(scope="session")
def plain_vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], VllmServer]]:
    """vLLM's own server on the small embedded model."""
    from .support.vllm_server import plain_vllm_server, shared

    with shared(lambda: plain_vllm_server("tersely-tiny-small", tmp_path_factory.mktemp("vllm"))) as running:
        yield running


@pytest.fixture(scope="session")
def tersely_llm() -> Iterator[Any]:
    """A `tersely.LLM`; kept to the end, since vLLM takes all engines of a process down with the first that goes."""
    import tersely

    from .support.vllm_engine import quick_start

    with quick_start():
        made = tersely.LLM(
            "tersely-tiny-small",
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            gpu_memory_utilization=0.2,
            disable_log_stats=True,
        )
    yield made
    made.close()
