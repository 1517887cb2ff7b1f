"""`tersely quantize`: its checkpoints, errors, and interrupted runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from tersely.cli.app import main
from tersely.cli.quantize import quantize
from tersely.errors import ModelError, OptionError
from tersely.io import CheckpointLogError, WriteError
from tersely.kernels.quantization import Scheme, W4A8Config
from tersely.kernels.quantization import model as module_of_model
from tersely.kernels.quantization.linear import METHOD
from tersely.kernels.quantization.run import REPORT
from tersely.models import get_model_path

from ..support.disk import files_no_longer_than
from ..support.refusals import refused

SMALL = get_model_path("tersely-tiny-small")
ROWS = ("--rows", "8", "--length", "32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model quantized by the command, by its name."""
    out = tmp_path_factory.mktemp("quantized") / "out"
    assert main(["quantize", "tersely-tiny-small", str(out), *ROWS, "--group-size", "64"]) == 0
    return out


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with the first of its four layers, where it matters little what is quantized."""
    folder = tmp_path_factory.mktemp("shallow") / "model"
    load(SMALL, num_hidden_layers=1, layer_types=["full_attention"]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SMALL).save_pretrained(folder)
    return folder


def load(folder: Path | str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def run(*arguments: object) -> None:
    """`tersely quantize`; raises what the command line would report."""
    app = typer.Typer(add_completion=False)
    app.command()(quantize)
    typer.main.get_command(app).main([str(a) for a in arguments], standalone_mode=False)


def test_transformers_loads_the_checkpoint(checkpoint: Path) -> None:
    model, tokenizer = load(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    assert model.config.quantization_config.scheme == Scheme(64, keys="int4")
    ids = tokenizer("Kai has 9 shells. Kai drops 4 shells.", return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=16, do_sample=False)
    assert out.shape[1] > ids.shape[1]
    report = json.loads((checkpoint / REPORT).read_text())
    assert report["perplexity"]["after"] < 1.25 * report["perplexity"]["before"]
    assert report["calibrated on"] == "text written by the model"
    assert len(report["layers"]) == 29
    assert [path.name for path in checkpoint.parent.iterdir()] == ["out"]


def test_transformers_refuses_without_the_import(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(AUTO_QUANTIZATION_CONFIG_MAPPING, METHOD)
    monkeypatch.delitem(AUTO_QUANTIZER_MAPPING, METHOD)
    # What it does not know it skips; but our tensors have shapes that no plain layer has.
    with pytest.raises(RuntimeError):
        load(checkpoint)


def test_invalid_configs_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - transformers has no type of its own for it
        load(SMALL, quantization_config=W4A8Config(**Scheme(keys="int4").to_dict()))
    for change, code in (({"format": 4}, "unknown_format"), ({"head": "int2"}, "invalid_config")):
        config = json.loads((checkpoint / "config.json").read_text())
        config["quantization_config"] |= change
        (tmp_path / "config.json").write_text(json.dumps(config))
        with refused(ModelError, code):
            load(tmp_path)


def test_older_formats_are_loaded_with_int4_keys(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    config = json.loads(file.read_text())
    told = config["quantization_config"]
    del told["keys"]
    file.write_text(json.dumps(config))
    assert load(tmp_path / "old").config.quantization_config.scheme == Scheme(64, keys="int4")
    for changed in ({"format": 3}, {"keys": "auto"}):
        file.write_text(json.dumps({**config, "quantization_config": told | changed}))
        with refused(ModelError, "invalid_config"):
            load(tmp_path / "old")


def test_report_formats(shallow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calib = tmp_path / "text.jsonl"
    calib.write_text("\n".join(json.dumps({"problem": f"Kai has {n} shells. Kai drops {n}."}) for n in range(60)))
    run(shallow, tmp_path / "a", "--calib", calib, *ROWS, "--head", "keep", "--smooth")
    shown = capsys.readouterr().out
    assert f"tokens of {calib}" in shown
    assert f"saved to {tmp_path / 'a'}" in shown
    run(shallow, tmp_path / "b", "--calib", calib, *ROWS, "--head", "keep", "--smooth", "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["head"], report["smooth"]) == ("keep", True)
    assert report == json.loads((tmp_path / "b" / REPORT).read_text())
    assert f"{report['perplexity']['after']:.4g}" in shown


def test_calibration_on_answers(shallow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, few = tmp_path / "asked.jsonl", tmp_path / "few.jsonl"
    names = ("problem", "question")
    lines = [json.dumps({names[n % 2]: f"Kai has {n} shells. Count the shells.", "answer": str(n)}) for n in range(20)]
    asked.write_text("\n".join(lines))
    few.write_text(lines[0])
    run(shallow, tmp_path / "a", "--questions", asked, *ROWS, "--head", "keep")
    assert f"tokens of its own answers to {asked}" in capsys.readouterr().out
    with refused(OptionError, "too_little_text"):
        run(shallow, tmp_path / "b", "--questions", few, "--rows", "8", "--length", "512")
    with refused(OptionError, "conflicting_options"):
        run(shallow, tmp_path / "c", "--questions", few, "--calib", few)
    few.write_text(json.dumps({"text": "Kai?"}))
    with refused(OptionError):
        run(shallow, tmp_path / "d", "--questions", few)
    assert not list(tmp_path.glob("[bcd]*")), "nor what it was begun with"


class Killed(BaseException):
    """As if by Ctrl-C."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[str]]]:
    """Count layers as they are quantized, and die after some."""
    real = module_of_model._quantize_layer

    def arm(most: int) -> list[str]:
        names: list[str] = []

        def quantized(name: str, *rest: Any) -> Any:
            if len(names) == most:
                raise Killed
            names.append(name)
            return real(name, *rest)

        monkeypatch.setattr(module_of_model, "_quantize_layer", quantized)
        return names

    yield arm
    monkeypatch.undo()


def test_killed_runs_are_resumed(tmp_path: Path, shallow: Path, counted: Callable[[int], list[str]]) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    run(shallow, whole, *ROWS, "--group-size", "64")
    first = counted(3)
    with pytest.raises(Killed):
        run(shallow, out, *ROWS, "--group-size", "64")
    assert not out.exists()
    with refused(CheckpointLogError, "checkpoint_mismatch"):
        run(shallow, out, *ROWS, "--group-size", "32")
    second = counted(100)
    run(shallow, out, *ROWS, "--group-size", "64")
    assert len(first) == 3
    assert len(second) == 5
    assert not set(first) & set(second)
    for file in ("model.safetensors", "config.json", REPORT):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_folder_that_was_filled_in_the_meantime_is_kept(
    shallow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", module_of_model._quantize_layer

    def quantized(*given: Any) -> Any:
        out.mkdir(exist_ok=True)
        (out / "mine").write_text("precious")
        return real(*given)

    monkeypatch.setattr(module_of_model, "_quantize_layer", quantized)
    with refused(OptionError):
        run(shallow, out, *ROWS, "--group-size", "64")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("mine", "precious")]
    assert any((tmp_path / "out.layers").iterdir()), "a later run resumes"


def test_a_full_disk_leaves_no_partial_checkpoint(shallow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with files_no_longer_than(200_000), refused(WriteError):
        run(shallow, out, *ROWS, "--group-size", "64")
    assert not out.exists()


def test_invalid_arguments_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bert"}')
    new = tmp_path / "new"
    for arguments, error, code in (
        ((SMALL, tmp_path / "full"), OptionError, None),
        ((SMALL, tmp_path / "missing" / "out"), WriteError, None),
        ((checkpoint, new), ModelError, "already_quantized"),
        ((tmp_path / "foreign", new), ModelError, None),
        ((tmp_path / "nothing", new), ModelError, None),
        ((SMALL, new, "--scheme", "w4a8-dqg"), OptionError, "unknown_name"),
        ((SMALL, new, "--calib", tmp_path / "none.txt"), OptionError, None),
        ((SMALL, new, "--head", "int3"), OptionError, "unknown_name"),
        ((SMALL, new, "--limit", 4), OptionError, "missing_option"),
    ):
        with refused(error, code):
            run(*arguments)
    assert not new.exists()
