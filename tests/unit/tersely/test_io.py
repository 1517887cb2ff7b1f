"""Folders and models that are written whole or not at all, in the place of what was there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersely.controller.engines.transformers.engine import load_engine
from tersely.errors import OptionError
from tersely.io import WriteError, atomic_dir, begins_with_keys, check_replaceable
from tersely.training.training_run import MODEL, save_model, write_model

from ...support.disk import files_no_longer_than
from ...support.refusals import refused


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    engine, out = load_engine("tersely-tiny-small"), tmp_path / MODEL
    write_model(engine.model, engine.tokenizer, out, lambda model, folder: (folder / "more").touch())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "more" in before
    with files_no_longer_than(100_000), refused(WriteError):
        write_model(engine.model, engine.tokenizer, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {out.stat().st_mode & 0o666}
    assert [path.name for path in tmp_path.iterdir()] == [MODEL]
    assert save_model(engine.model, engine.tokenizer, None, tmp_path) == out
    assert "more" not in {path.name for path in out.iterdir()}


def test_only_files_of_ours_and_empty_ones_may_be_replaced(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        check_replaceable(path, lambda path: begins_with_keys(path, "arms", "rows"))

    for content in ("", '{"arms": [], "rows": [],\n"seed": 0}', '{"arms": [], "rows": []}\n{}\n'):
        (tmp_path / "ours").write_text(content)
        check(tmp_path / "ours")
    check(tmp_path / "new")
    for other in (b"\xff", b"[1]", b'{"arms": []}', b"import numpy\n"):
        (tmp_path / "other").write_bytes(other)
        with refused(OptionError, "overwrites_other_file"):
            check(tmp_path / "other")
    with refused(OptionError, "overwrites_other_file"):
        check(Path("/dev/null"))


def test_a_folder_is_replaced_or_stays(tmp_path: Path) -> None:
    real, out = tmp_path / "disk" / "model", tmp_path / "model"
    real.mkdir(parents=True)
    out.symlink_to(real)
    for content in ("first", "second"):
        (real.parent / "model.before" / "text").mkdir(parents=True)  # what kill -9 after the second rename leaves
        with atomic_dir(out) as part:
            (part / "text").write_text(content)
        assert (real / "text").read_text() == content and out.is_symlink()
    with pytest.raises(KeyboardInterrupt), atomic_dir(out):
        raise KeyboardInterrupt
    real.rename(real.with_name("model.before"))  # what kill -9 between the two renames leaves
    with refused(WriteError), atomic_dir(out):
        raise WriteError("no more of it")
    assert (real / "text").read_text() == "second"
    assert [path.name for path in real.parent.iterdir()] == ["model"]
