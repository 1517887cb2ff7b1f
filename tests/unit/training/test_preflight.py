"""Recipes and their pre-flight checks."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from tersely.cli.app import main
from tersely.controller import policies
from tersely.errors import MarkerError, OptionError, TerselyError
from tersely.evaluation.tasks.questions import TaskError
from tersely.models import get_model_path
from tersely.training.config import Recipe, RecipeError, read_recipe
from tersely.training.methods import METHODS, list_methods, load_method
from tersely.training.preflight import count_adapter_parameters, load_meta_engine
from tersely.training.run import train

from ...support.trainings import make_recipe, recipe_values

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.yaml"))


def dry(folder: Path, values: dict[str, Any]) -> list[str]:
    """The lines that a dry run logs."""
    config, said = folder / "recipe.yaml", list[str]()
    config.write_text(yaml.safe_dump(values), "utf-8")
    train("adaptthink", config, dry_run=True, log=said.append)
    assert not (folder / "out").exists(), "a dry run writes nothing"
    return said


def refused(folder: Path, kind: type[TerselyError] = RecipeError, **sections: Any) -> TerselyError:
    """The message with which a dry run refuses a recipe."""
    values = {key: value for key, value in sections.items() if not isinstance(value, dict)}
    nested = {key: value for key, value in sections.items() if isinstance(value, dict)}
    with pytest.raises(kind) as error:
        dry(folder, {**recipe_values("adaptthink", folder / "out", **nested), **values})
    assert "\n" not in str(error.value)
    return error.value


def check_error(error: TerselyError, expected: str) -> None:
    """Compare with "CODE: VALUE VALUE ...", of which the message has to contain each value."""
    code, _, values = expected.partition(": ")
    assert error.code == code, error
    assert [value for value in values.split() if value not in str(error)] == [], error


def test_a_good_recipe_is_described(tmp_path: Path) -> None:
    said = "\n".join(dry(tmp_path, recipe_values("adaptthink", tmp_path / "out")))
    for part in ("4 questions of tiny", "opened by the chat template", "completions up to 90", "about ", "GiB"):
        assert part in said


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"rolouts": {"prompts": 2}}, "invalid_value: 'rolouts' 'rollouts'"),
        ({"adaptthink": {"dleta": 0.1}}, "invalid_value: 'adaptthink.dleta' 'delta'"),
        ({"optimizer": {"lora": {"rnak": 8}}}, "invalid_value: 'optimizer.lora.rnak' 'rank'"),
        ({"adaptthink": {"delta": 2}}, "invalid_value: adaptthink.delta 2 1"),
        ({"optimizer": {"micro_batch": 3}}, "inconsistent_recipe: optimizer.micro_batch 3"),
        ({"data": {"questions": 1}}, "inconsistent_recipe: 1 2 rollouts.prompts"),
        ({"data": {"efforts": ["none"]}}, "invalid_value: data.efforts 'none'"),
        ({"rollouts": {"thinking_budget": 180}}, "inconsistent_recipe: rollouts.max_new_tokens 180 64 244"),
        ({"rollouts": {"max_new_tokens": 4000}}, "inconsistent_recipe: rollouts.max_new_tokens 4000 4096"),
        ({"rollouts": {"answer_reserve": 2}}, "inconsistent_recipe: rollouts.answer_reserve 2"),
        ({"optimizer": {"dtype": "bfloat16"}}, "inconsistent_recipe: bfloat16 optimizer.dtype optimizer.autocast"),
        ({"saving": {"report_to": "wandbb"}}, "unusable_tracker: wandbb wandb,"),
        ({"saving": {"report_to": 3}}, "invalid_value: saving.report_to 3 list"),
        ({"optimizer": {"steps": True}}, "invalid_value: optimizer.steps True number"),
        ({"optimizer": {"lora": 4}}, "invalid_value: optimizer.lora 4 object"),
        ({"optimizer": {"lora": {"targets": ["q_proj", "k_prj"]}}}, "invalid_lora_targets: 'k_prj' 'k_proj'"),
        ({"optimizer": {"lora": {"targets": "q_prj"}}}, "invalid_lora_targets: 'q_prj' 'q_proj'"),
        ({"optimizer": {"lora": {"targets": "(q_proj"}}}, "invalid_lora_targets: '(q_proj'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_recipes_are_refused(sections: dict[str, Any], expected: str, tmp_path: Path) -> None:
    check_error(refused(tmp_path, **sections), expected)


def test_set_overrides_the_file(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(recipe_values("adaptthink", tmp_path / "out")), "utf-8")

    def changed(*changes: str) -> Any:
        return read_recipe(config, load_method("adaptthink").recipe, "adaptthink", changes)

    made = changed("seed=3", "data.efforts=[easy, hard]", "optimizer.lora.rank=4", "optimizer.learning_rate=5e-5")
    assert (made.seed, made.data.efforts, made.optimizer.lora.rank) == (3, ("easy", "hard"), 4)
    assert (made.optimizer.learning_rate, made.optimizer.steps) == (5e-5, 2), "other keys stay"
    config.write_text("method: adar1\nout: out\noptimizer: &same {steps: 100}\nadar1: {short: *same}\n", "utf-8")
    aliased = read_recipe(config, load_method("adar1").recipe, "adar1", ["optimizer.steps=20"])
    assert (aliased.optimizer.steps, aliased.adar1.short.steps) == (20, 100), "an aliased section is not changed"
    config.write_text(yaml.safe_dump(recipe_values("adaptthink", tmp_path / "out")), "utf-8")
    for change, expected in (
        ("optimizer.stesp=2", "invalid_value: 'optimizer.stesp' 'steps'"),
        ("optimizer.steps=none", "invalid_value: optimizer.steps=none 'none'"),
        ("seed.more=1", "invalid_set: seed.more=1 'seed' 3"),
        ("seed", "invalid_set: 'seed' KEY=VALUE"),
        ("seed=[", "not_yaml: seed=["),
        ("method=ser", "other_method: 'ser' 'adaptthink'"),
    ):
        with pytest.raises(RecipeError) as error:
            changed("seed=3", change)
        check_error(error.value, expected)


def test_the_command_takes_several_set_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(recipe_values("ser", tmp_path / "out")), "utf-8")
    command = ["train", "ser", "--config", str(config), "--dry-run", "--set", "data.questions=7"]
    assert main([*command, "--set", "rollouts.max_new_tokens=222"]) == 0
    said = capsys.readouterr().out
    assert "7 questions of tiny" in said and "completions up to 222" in said


def test_unsupported_policies_are_refused(tmp_path: Path) -> None:
    check_error(refused(tmp_path, OptionError, rollouts={"policies": {"hnit": {}}}), "unknown_name: 'hnit' 'hint'")
    check_error(
        refused(tmp_path, TerselyError, rollouts={"policies": {"readiness": {}}}), "missing_capability: 'readiness'"
    )


def test_a_dataset_without_answers_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text(json.dumps({"id": 1, "problem": "2+2?"}) + "\n", "utf-8")
    assert "'answer'" in str(refused(tmp_path, TaskError, data={"task": str(data)}))


def test_files_that_are_not_recipes_of_the_method_are_refused(tmp_path: Path) -> None:
    check_error(refused(tmp_path, method="ser"), "other_method: 'ser' 'adaptthink'")
    (tmp_path / "list.yaml").write_text("- 1\n", "utf-8")
    with pytest.raises(RecipeError) as error:
        train("adaptthink", tmp_path / "list.yaml")
    check_error(error.value, "not_a_recipe: method model out")
    (tmp_path / "broken.yaml").write_text("a: [1\n", "utf-8")
    for path, code in (("broken.yaml", "not_yaml"), ("missing.yaml", "unreadable")):
        with pytest.raises(RecipeError) as error:
            train("adaptthink", tmp_path / path)
        assert error.value.code == code
    with pytest.raises(OptionError) as unknown:
        train("adapt", tmp_path / "list.yaml")
    check_error(unknown.value, "unknown_name: 'adapt' 'adaptthink'")


def model_with(folder: Path, template: str) -> str:
    """The small model with another chat template."""
    shutil.copytree(get_model_path("tersely-tiny-small"), folder)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return str(folder)


BARE = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endfor -%}"
    "<|im_start|>assistant\n"
)


def test_templates_may_open_but_not_close_the_thinking(tmp_path: Path) -> None:
    leaves = model_with(tmp_path / "leaves", BARE)
    said = dry(tmp_path, {**recipe_values("adaptthink", tmp_path / "out"), "model": leaves})
    assert any("opened in each prompt" in line for line in said)
    ends = model_with(tmp_path / "ends", BARE + "<think>\n\n</think>\n\n")
    check_error(refused(tmp_path, model=ends), "thinking_closed_by_template: 'normal'")


def test_a_marker_of_several_tokens_is_refused(tmp_path: Path) -> None:
    check_error(refused(tmp_path, MarkerError, markers="[THINK],[/THINK]"), "not_a_single_token: '[/THINK]'")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_recipes_are_valid(path: Path) -> None:
    name = str(yaml.safe_load(path.read_text("utf-8"))["method"])
    recipe = read_recipe(path, load_method(name).recipe, name)
    if recipe.model.startswith("tersely-tiny"):
        data = recipe.data.model_copy(update={"questions": 32})
        assert load_method(name).validate(recipe.model_copy(update={"data": data}))


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("sft", {"sft": {"effort": "esay"}}, "invalid_value: sft.effort 'esay' 'easy'"),
        ("sft", {"sft": {"effort": "none"}}, "invalid_value: sft.effort 'none'"),
        ("adar1", {"adar1": {"short_effort": "auto"}}, "invalid_value: adar1.short_effort 'auto'"),
        (
            "apo",
            {"apo": {"followup_effort": "none"}, "rollouts": {"generations": 8}},
            "invalid_value: apo.followup_effort 'none'",
        ),
        ("ser", {"ser": {"hint_weight": 0.5}}, "no_hint_policy: ser.hint_weight 0.5"),
    ],
)
def test_wrong_sections_of_methods_are_refused(name: str, own: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_method(name).validate(make_recipe(name, tmp_path / "out", **own))
    check_error(error.value, expected)


def test_methods_that_may_always_think_keep_that_alarm_off(tmp_path: Path) -> None:
    for name, least in (("ser", 0.0), ("vsrm", 0.0), ("adaptthink", 0.005)):
        assert make_recipe(name, tmp_path, alarm={"grace": 3}).alarm.all_think == least


def test_trackers_that_are_not_installed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: False)
    check_error(refused(tmp_path, saving={"report_to": "trackio"}), "unusable_tracker: trackio")


@pytest.mark.slow
def test_unknown_arguments_of_vllm_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    wrong = {"engine": "vllm", "vllm": {"max_num_seq": 3}}
    check_error(refused(tmp_path, OptionError, rollouts=wrong), "unknown_name: 'max_num_seq' 'max_num_seqs'")


def test_duplicate_keys_and_missing_methods_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    for text, expected in (
        (
            "method: ser\nout: a\nrollouts: {prompts: 4}\nrollouts: {batch: 4}\n",
            "duplicate_key: 'rollouts' 3 4",
        ),
        ("out: a\n", "other_method: None ser"),
    ):
        config.write_text(text, "utf-8")
        with pytest.raises(RecipeError) as error:
            read_recipe(config, load_method("ser").recipe, "ser")
        check_error(error.value, expected)


def test_adapter_parameters_are_counted_as_peft_does(tmp_path: Path) -> None:
    model: Any = load_meta_engine("tersely-tiny-small").model
    before = [name for name, _ in model.named_modules()]

    def numbers(targets: Any) -> int:
        return count_adapter_parameters(
            model, make_recipe("ser", tmp_path, optimizer={"lora": {"rank": 2, "targets": targets}}).optimizer.lora
        )

    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    queries = model.model.layers[0].self_attn.q_proj.out_features
    assert numbers("q_proj") == numbers(["q_proj"]) == numbers(r".*q_proj") == 2 * layers * (hidden + queries)
    assert numbers(r".*\.1\..*q_proj") * layers == numbers("q_proj") < numbers("all-linear")
    for wrong in (".*self_attn.*", [], ["q_proj", "nowhere"]):
        with pytest.raises(RecipeError) as error:
            numbers(wrong)
        assert error.value.code == "invalid_lora_targets"
    model.config.quantization_config = {"quant_method": "tersely_w4a8"}
    with pytest.raises(RecipeError) as error:
        numbers("all-linear")
    assert error.value.code == "quantized_model"
    assert [name for name, _ in model.named_modules()] == before, "the model is unchanged"


def test_aliases_and_merges_are_not_duplicate_keys(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(
        "method: adar1\nout: a\nadar1: {short: &o {<<: {steps: 3, warmup: 1}, steps: 5}}\noptimizer: {<<: *o}\n",
        "utf-8",
    )
    made = read_recipe(config, load_method("adar1").recipe, "adar1")
    assert made.optimizer == made.adar1.short and (made.optimizer.steps, made.optimizer.warmup) == (5, 1)


def test_all_methods_are_listed_and_can_be_loaded() -> None:
    methods = list_methods()
    assert {*METHODS, "apo", "mahdpo", "shortcut"} <= set(methods)
    for name, text in methods.items():
        assert text.endswith(".") and issubclass(load_method(name).recipe, Recipe)


def test_methods_of_entry_points_that_cannot_be_found_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(group: str) -> list[EntryPoint]:
        modules = {"ours": "tests.support.trainings", "gone": "nowhere.at_all", "lost": "tersely.training.nowhere"}
        return [EntryPoint(name, module, group) for name, module in modules.items()]

    monkeypatch.setattr(policies, "entry_points", points)
    own = {name: text for name, (_, text) in METHODS.items()}
    assert list_methods() == {**own, "ours": "Small training runs of an embedded model, for tests."}
    with pytest.raises(OptionError) as error:
        load_method("gone")
    check_error(error.value, "unknown_name: 'gone' ours")
