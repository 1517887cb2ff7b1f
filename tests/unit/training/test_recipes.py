"""What a dry run finds before hours are spent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tersely.cli.app import main
from tersely.errors import MarkerError, OptionError, TerselyError
from tersely.evaluation.tasks.questions import TaskError
from tersely.models import get_model_path
from tersely.training.adapters import with_adapter
from tersely.training.config import RecipeError, read_recipe
from tersely.training.methods import METHODS, method
from tersely.training.preflight import meta_engine
from tersely.training.run import train

from ...support.trainings import plain, recipe

RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.yaml"))


def dry(folder: Path, values: dict[str, Any]) -> list[str]:
    """What a dry run of a recipe says."""
    config, said = folder / "recipe.yaml", list[str]()
    config.write_text(yaml.safe_dump(values), "utf-8")
    train("adaptthink", config, dry_run=True, say=said.append)
    assert not (folder / "out").exists(), "a dry run writes nothing"
    return said


def refused(folder: Path, kind: type[TerselyError] = RecipeError, **sections: Any) -> str:
    """How a dry run refuses a recipe."""
    values = {key: value for key, value in sections.items() if not isinstance(value, dict)}
    nested = {key: value for key, value in sections.items() if isinstance(value, dict)}
    with pytest.raises(kind) as error:
        dry(folder, {**plain("adaptthink", folder / "out", **nested), **values})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_good_recipe_is_described(tmp_path: Path) -> None:
    said = "\n".join(dry(tmp_path, plain("adaptthink", tmp_path / "out")))
    for part in ("4 questions of tiny", "opened by the chat template", "completions up to 200", "about ", "GiB"):
        assert part in said


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rolouts": {"prompts": 2}}, "unknown key 'rolouts'; did you mean 'rollouts'?"),
        ({"adaptthink": {"dleta": 0.1}}, "unknown key 'adaptthink.dleta'; did you mean 'delta'?"),
        ({"optimiser": {"lora": {"rnak": 8}}}, "unknown key 'optimiser.lora.rnak'; did you mean 'rank'?"),
        ({"adaptthink": {"delta": 2}}, "'adaptthink.delta' is 2: input should be less than or equal to 1"),
        ({"optimiser": {"micro_batch": 3}}, "8 completions, which is no multiple of optimiser.micro_batch, 3"),
        ({"data": {"questions": 1}}, "there are 1 questions and a step asks 2"),
        ({"data": {"efforts": ["none"]}}, "data.efforts has 'none', which leaves no choice to learn"),
        ({"rollouts": {"thinking_budget": 180}}, "below the thinking budget of 180 with 64 tokens for the answer"),
        ({"rollouts": {"max_new_tokens": 4000}}, "more than the model's context of 4096; lower it to "),
        ({"rollouts": {"answer_reserve": 2}}, "the longest gold answer has "),
        (
            {"optimiser": {"dtype": "bfloat16"}},
            "all weights would be trained in bfloat16, which rounds small steps away",
        ),
        ({"saving": {"report_to": "wandbb"}}, "unknown tracker 'wandbb'; did you mean 'wandb'?"),
        ({"saving": {"report_to": 3}}, "'saving.report_to' is 3: accepted: a list, as in [a, b]"),
        ({"optimiser": {"steps": True}}, "'optimiser.steps' is True: input should be a number"),
        ({"optimiser": {"lora": 4}}, "'optimiser.lora' is 4: accepted: a section of keys"),
        (
            {"optimiser": {"lora": {"targets": ["q_proj", "k_prj"]}}},
            "has 'k_prj', which fits no layers that can all have adapters; did you mean 'k_proj'",
        ),
        (
            {"optimiser": {"lora": {"targets": "q_prj"}}},
            "has 'q_prj', which fits no layers that can all have adapters; did you mean 'q_proj'",
        ),
        ({"optimiser": {"lora": {"targets": "(q_proj"}}}, "'(q_proj', no regular expression"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_said(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, **sections)


def test_what_is_set_takes_the_place_of_what_the_file_says(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(plain("adaptthink", tmp_path / "out")), "utf-8")

    def changed(*changes: str) -> Any:
        return read_recipe(config, method("adaptthink").RECIPE, "adaptthink", changes)

    made = changed("seed=3", "data.efforts=[easy, hard]", "optimiser.lora.rank=4", "optimiser.learning_rate=5e-5")
    assert (made.seed, made.data.efforts, made.optimiser.lora.rank) == (3, ("easy", "hard"), 4)
    assert (made.optimiser.learning_rate, made.optimiser.steps) == (5e-5, 2), "what is not set stays"
    config.write_text("method: adar1\nout: out\noptimiser: &same {steps: 100}\nadar1: {short: *same}\n", "utf-8")
    aliased = read_recipe(config, method("adar1").RECIPE, "adar1", ["optimiser.steps=20"])
    assert (aliased.optimiser.steps, aliased.adar1.short.steps) == (20, 100), "one place, whatever aliases name it"
    config.write_text(yaml.safe_dump(plain("adaptthink", tmp_path / "out")), "utf-8")
    for change, says in (
        ("optimiser.stesp=2", "unknown key 'optimiser.stesp'; did you mean 'steps'?"),
        ("optimiser.steps=none", "--set optimiser.steps=none: 'optimiser.steps' is 'none'"),
        ("seed.more=1", "--set seed.more=1: 'seed' is 3, which has no keys"),
        ("seed", "--set is 'seed'; accepted: KEY=VALUE"),
        ("seed=[", "--set seed=[: the value is not YAML"),
        ("method=ser", "is for the method 'ser'"),
    ):
        with pytest.raises(RecipeError) as error:
            changed("seed=3", change)
        assert says in str(error.value)


def test_the_command_sets_several_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(plain("ser", tmp_path / "out")), "utf-8")
    command = ["train", "ser", "--config", str(config), "--dry-run", "--set", "data.questions=7"]
    assert main([*command, "--set", "rollouts.max_new_tokens=222"]) == 0
    said = capsys.readouterr().out
    assert "7 questions of tiny" in said and "completions up to 222" in said


def test_policies_that_a_training_cannot_have(tmp_path: Path) -> None:
    assert "unknown policy 'hnit'; did you mean 'hint'?" in refused(
        tmp_path, OptionError, rollouts={"policies": {"hnit": {}}}
    )
    message = refused(tmp_path, TerselyError, rollouts={"policies": {"readiness": {}}})
    assert "rollouts of a training do not have" in message


def test_a_dataset_without_answers(tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text(json.dumps({"id": 1, "problem": "2+2?"}) + "\n", "utf-8")
    assert "'answer' is missing" in refused(tmp_path, TaskError, data={"task": str(data)})


def test_another_method_and_no_configuration(tmp_path: Path) -> None:
    assert "is for the method 'ser', and 'adaptthink' was asked for" in refused(tmp_path, method="ser")
    (tmp_path / "list.yaml").write_text("- 1\n", "utf-8")
    with pytest.raises(RecipeError, match="holds no configuration; accepted: method, model, out"):
        train("adaptthink", tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n", "utf-8")
    with pytest.raises(RecipeError, match="is not YAML"):
        train("adaptthink", tmp_path / "broken.yaml")
    with pytest.raises(OptionError, match="unknown method 'adapt'; did you mean 'adaptthink'"):
        train("adapt", tmp_path / "list.yaml")


def model_with(folder: Path, template: str) -> str:
    """The small model with another chat template."""
    shutil.copytree(get_model_path("tersely-tiny-small"), folder)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return str(folder)


BARE = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endfor -%}"
    "<|im_start|>assistant\n"
)


def test_templates_that_open_or_end_the_thinking(tmp_path: Path) -> None:
    leaves = model_with(tmp_path / "leaves", BARE)
    said = dry(tmp_path, {**plain("adaptthink", tmp_path / "out"), "model": leaves})
    assert any("opened for the model in each prompt" in line for line in said)
    ends = model_with(tmp_path / "ends", BARE + "<think>\n\n</think>\n\n")
    assert "ends the thinking of tier 'normal' within the prompt" in refused(tmp_path, model=ends)


def test_a_marker_of_several_tokens_is_no_choice(tmp_path: Path) -> None:
    message = refused(tmp_path, MarkerError, markers="[THINK],[/THINK]")
    assert "tokens of this model, and the choice to think is one token" in message


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_house(path: Path) -> None:
    name = str(yaml.safe_load(path.read_text("utf-8"))["method"])
    recipe = read_recipe(path, method(name).RECIPE, name)
    if recipe.model.startswith("tersely-tiny"):
        assert method(name).validate_recipe(
            recipe.model_copy(update={"data": recipe.data.model_copy(update={"questions": 32})})
        )


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        ("sft", {"sft": {"effort": "esay"}}, "sft.effort: unknown effort 'esay'; did you mean 'easy'"),
        ("sft", {"sft": {"effort": "none"}}, "sft.effort is 'none', which leaves no thinking to learn"),
        ("adar1", {"adar1": {"short_effort": "auto"}}, "adar1.short_effort is 'auto'"),
        ("apo", {"apo": {"later": "none"}, "rollouts": {"generations": 8}}, "apo.later is 'none'"),
        ("ser", {"ser": {"hints": 0.5}}, "ser.hints is 0.5, and rollouts.policies gives no hint to be brief after"),
    ],
)
def test_what_is_wrong_with_a_method_is_said(name: str, own: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        method(name).validate_recipe(recipe(name, tmp_path / "out", **own))
    assert message in str(error.value)


def test_a_method_that_always_thinks_is_not_stopped_for_it_by_another_setting_of_the_alarm(tmp_path: Path) -> None:
    for name, least in (("ser", 0.0), ("vsrm", 0.0), ("adaptthink", 0.005)):
        assert recipe(name, tmp_path, alarm={"grace": 3}).alarm.all_think == least


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", list)
    monkeypatch.setattr("tersely.training.preflight.find_spec", lambda name: None if name == "trackio" else name)
    assert "not installed; install what it needs, mostly by `pip install trackio`" in refused(
        tmp_path, saving={"report_to": "trackio"}
    )


def test_arguments_that_vllm_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    wrong = {"engine": "vllm", "vllm": {"max_num_seq": 3}}
    assert "'max_num_seq'; did you mean 'max_num_seqs'" in refused(tmp_path, OptionError, rollouts=wrong)


def test_a_key_that_stands_twice_and_no_method(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    for text, message in (
        (
            "method: ser\nout: a\nrollouts: {prompts: 4}\nrollouts: {batch: 4}\n",
            "has 'rollouts' twice in one place, lines 3 and 4",
        ),
        ("out: a\n", "names no method; write `method: ser`"),
    ):
        config.write_text(text, "utf-8")
        with pytest.raises(RecipeError, match=message):
            read_recipe(config, method("ser").RECIPE, "ser")


def test_adapters_are_counted_and_refused_as_peft_does(tmp_path: Path) -> None:
    model: Any = meta_engine("tersely-tiny-small").model
    before = [name for name, _ in model.named_modules()]

    def numbers(targets: Any) -> int:
        return with_adapter(
            model, recipe("ser", tmp_path, optimiser={"lora": {"rank": 2, "targets": targets}}).optimiser.lora
        )

    layers, hidden = model.config.num_hidden_layers, model.config.hidden_size
    queries = model.model.layers[0].self_attn.q_proj.out_features
    assert numbers("q_proj") == numbers(["q_proj"]) == numbers(r".*q_proj") == 2 * layers * (hidden + queries)
    assert numbers(r".*\.1\..*q_proj") * layers == numbers("q_proj") < numbers("all-linear")
    for wrong, message in ((".*self_attn.*", "fits no layers"), ([], "is empty"), (["q_proj", "nowhere"], "'nowhere'")):
        with pytest.raises(RecipeError, match=message):
            numbers(wrong)
    model.config.quantization_config = {"quant_method": "tersely_w4a8"}
    with pytest.raises(RecipeError, match="are quantized"):
        numbers("all-linear")
    assert [name for name, _ in model.named_modules()] == before, "the model is as it was"


def test_aliases_and_merges_are_no_keys_that_stand_twice(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(
        "method: adar1\nout: a\nadar1: {short: &o {<<: {steps: 3, warmup: 1}, steps: 5}}\noptimiser: {<<: *o}\n",
        "utf-8",
    )
    made = read_recipe(config, method("adar1").RECIPE, "adar1")
    assert made.optimiser == made.adar1.short and (made.optimiser.steps, made.optimiser.warmup) == (5, 1)


def test_every_method_has_a_help() -> None:
    assert all(text.endswith(".") and hasattr(method(name), "run") for name, text in METHODS.items())
