"""One processor class for both of vLLM's model runners, on stand-ins for the buffers of the second.

`test_vllm_speculation.py` runs that one itself.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tersely.errors import CapabilityError
from tersely.models import get_model_path

from ..support.refusals import refused
from ..support.vllm_buffers import Buffers, make_vllm_config

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # vLLM's own imports
]

FOLDER = str(get_model_path("tersely-tiny-small"))


def config(**more: Any) -> Any:
    return make_vllm_config(FOLDER, **more)


def test_both_loaders_take_the_class() -> None:
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    from tersely.controller.vllm.engine import PROCESSOR
    from tersely.controller.vllm.logits_processor import TerselyLogitsProcessor

    assert _load_logitsprocs_by_fqcns([PROCESSOR]) == [TerselyLogitsProcessor]
    assert _load_v2_logitsprocs_by_fqcns([PROCESSOR]) == [TerselyLogitsProcessor]


def test_installing_tersely_registers_no_control_with_vllm() -> None:
    from importlib.metadata import entry_points

    groups = ("vllm.logits_processors", "vllm.general_plugins", "vllm.platform_plugins", "vllm.stat_logger_plugins")
    found = {p.name for group in groups for p in entry_points(group=group) if "tersely" in p.value}
    assert found <= {"tersely_w4a8", "tersely_states"}, "more than a loader of checkpoints and a tap"


@pytest.mark.parametrize(
    ("runner", "method", "sharded"),
    [((torch.device("cpu"), False), "standard", False), ((None,), "synthetic", False), ((None,), "standard", True)],
    ids=["runner V1", "drafts accepted unseen", "a part of the batch"],
)
def test_speculative_decoding_that_cannot_be_controlled_is_refused(
    runner: tuple[Any, ...], method: str, sharded: bool
) -> None:
    from tersely.controller.vllm.logits_processor import TerselyLogitsProcessor

    drafts = SimpleNamespace(num_speculative_tokens=2, rejection_sample_method=method)
    parallel = SimpleNamespace(enable_batch_sharded_sampling=sharded)
    with refused(CapabilityError, "speculative_decoding"):
        TerselyLogitsProcessor(config(speculative_config=drafts, parallel_config=parallel), *runner)


def test_speculative_decoding_on_runner_v1_is_refused_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    import tersely
    from tersely.controller.vllm.engine import load_vllm

    monkeypatch.setattr(vllm.LLM, "__init__", lambda *args, **options: pytest.fail("vLLM was started"))
    drafts = {"method": "ngram", "num_speculative_tokens": 2}
    given = dict(drafts)
    with refused(CapabilityError, "speculative_decoding"):
        tersely.LLM("tersely-tiny-small", dtype="float32", speculative_config=given)
    assert given == drafts
    with refused(CapabilityError, "speculative_decoding"):
        load_vllm("tersely-tiny-small", options={"spec_method": "ngram", "spec_tokens": 2})


def forced_run(slots: Buffers, processor: Any, slot: int, steps: int, natural: list[int]) -> list[int]:
    """Let a slot decode: what the processor forces, or else what the model would have chosen."""
    vocabulary, made = 970, []
    for step in range(steps):
        processor.apply_staged_writes()
        logits = torch.zeros(1, vocabulary)
        logits[0, natural[step]] = 5.0
        context = SimpleNamespace(idx_mapping_np=np.array([slot]))
        token = int(processor.apply(logits, context)[0].argmax())
        slots.append(slot, token)
        made.append(token)
    return made


def prompt_ids() -> tuple[Any, list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    message = [{"role": "user", "content": "What is 12 + 7?"}]
    return tokenizer, tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)


def test_the_second_runner_gets_the_same_forcing() -> None:
    from vllm import SamplingParams

    from tersely.controller.vllm.logits_processor import TerselyLogitsProcessor

    tokenizer, prompt = prompt_ids()
    slots = Buffers(4, 512)
    processor = TerselyLogitsProcessor(config(), slots)
    control = {"policies": {"budget": {}}, "thinking_budget": 40}
    params = SamplingParams(max_tokens=200, extra_args={"tersely": control})
    slots.fill(2, prompt, [])
    assert processor.add_request(2, params) is True
    assert processor.add_request(3, SamplingParams(max_tokens=200)) is False
    word = tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    opening = [] if tokenizer.decode(prompt).rstrip().endswith("<think>") else tokenizer.encode("<think>")
    made = forced_run(slots, processor, 2, 60, [*opening, *[word] * 60])
    text = tokenizer.decode(made)
    assert "Time is short, so I answer now." in text
    assert text.index("</think>") < len(text) - 10


def test_a_request_that_comes_back_to_the_second_runner_goes_on_where_it_was() -> None:
    from vllm import SamplingParams

    from tersely.controller.vllm.logits_processor import TerselyLogitsProcessor

    tokenizer, prompt = prompt_ids()
    params = SamplingParams(max_tokens=200, extra_args={"tersely": {"policies": {"budget": {}}, "thinking_budget": 40}})
    word = tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    opening = [] if tokenizer.decode(prompt).rstrip().endswith("<think>") else tokenizer.encode("<think>")
    natural = [*opening, *[word] * 80]
    whole_slots = Buffers(2, 512)
    whole_slots.fill(0, prompt, [])
    whole = TerselyLogitsProcessor(config(), whole_slots)
    whole.add_request(0, params)
    expected = forced_run(whole_slots, whole, 0, 60, natural)
    for cut in (5, 35, 42, 50):  # before, in and after the forced tokens
        slots = Buffers(2, 512)
        slots.fill(1, prompt, expected[:cut])
        processor = TerselyLogitsProcessor(config(), slots)
        processor.add_request(1, params)
        assert expected[:cut] + forced_run(slots, processor, 1, 60 - cut, natural[cut:]) == expected


def test_a_forced_token_wins_whatever_was_masked_and_whatever_scales_it() -> None:
    from tersely.controller.vllm.step import force_tokens

    logits = torch.tensor([[3.0, -torch.inf, 1.0]] * 4)
    before = logits.clone()
    rows, tokens = torch.tensor([0, 1, 3]), torch.tensor([1, 1, -1])
    force_tokens(logits, rows, tokens, bound=torch.tensor([0, 1, 0]))
    assert logits[1:].equal(before[1:]), "a grammar forbids it, no token is forced, or the row is another"
    for scale in (1e-30, 1e30):
        assert (logits[0] * scale + torch.tensor([100.0, -4.0, 100.0])).softmax(-1).tolist() == [0, 1, 0]


def test_a_default_holds_for_requests_that_ask_for_nothing() -> None:
    from vllm import SamplingParams

    from tersely.controller.vllm.logits_processor import TerselyLogitsProcessor

    processor = TerselyLogitsProcessor(config(additional_config={"tersely": {"default": "budget"}}), Buffers(2, 64))
    assert processor.add_request(0, SamplingParams(max_tokens=200)) is True
    assert processor.add_request(1, SamplingParams(max_tokens=200, extra_args={"tersely": "off"})) is False


def decode_by_hand(slots: Buffers, processor: Any, natural: dict[int, list[int]], steps: int) -> dict[int, list[int]]:
    """Let several slots decode in one batch; returns what each wrote."""
    made: dict[int, list[int]] = {slot: [] for slot in natural}
    for step in range(steps):
        processor.apply_staged_writes()
        logits = torch.zeros(len(natural), 970)
        for row, ids in enumerate(natural.values()):
            logits[row, ids[step]] = 5.0
        tokens = processor.apply(logits, SimpleNamespace(idx_mapping_np=np.array(list(natural)))).argmax(dim=1)
        for row, slot in enumerate(natural):
            slots.append(slot, int(tokens[row]))
            made[slot].append(int(tokens[row]))
    return made


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Collects the traces that are sent: tag, number of the sample, position of the decision."""
    from tersely.controller.vllm import row_table

    found: list[tuple[str, int, int]] = []

    def keep(tag: str, copy: int, decisions: Any, known: int = 0) -> int:
        found.extend((tag, copy, decision.position) for decision in decisions[known:])
        return len(decisions)

    monkeypatch.setattr(row_table, "send_trace", keep)
    return found


@pytest.mark.parametrize("dropped", [0, 1])
def test_samples_that_are_preempted_keep_their_numbers(sent: list[tuple[str, int, int]], dropped: int) -> None:
    from vllm import SamplingParams

    from tersely.controller.vllm.logits_processor import TerselyLogitsProcessor

    tokenizer, prompt = prompt_ids()
    control = {"policies": {"budget": {}}, "thinking_budget": 60, "tag": "1-0.5"}
    params = SamplingParams(max_tokens=200, extra_args={"tersely": control})
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" the", " a", " is")]
    opening = [] if tokenizer.decode(prompt).rstrip().endswith("<think>") else tokenizer.encode("<think>")
    slots, natural = Buffers(8, 512), [[*opening, *[word] * 90] for word in words]
    processor = TerselyLogitsProcessor(config(), slots)
    for slot in range(3):
        slots.fill(slot, prompt, [])
        processor.add_request(slot, params)
    made = decode_by_hand(slots, processor, dict(enumerate(natural)), 20)
    # The second is preempted: it is in no step, loses the token that was under way, and comes back in another slot.
    decode_by_hand(slots, processor, {0: natural[0][20:], 2: natural[2][20:]}, 4)
    kept = made[1][: 20 - dropped]
    slots.fill(5, prompt, kept)
    processor.add_request(5, params)
    rest = {0: natural[0][24:], 5: natural[1][20 - dropped :], 2: natural[2][24:]}
    after = decode_by_hand(slots, processor, rest, 50)
    text = tokenizer.decode([*kept, *after[5]])
    assert text.count("Time is short, so I answer now.") == 1
    assert sorted((tag, copy) for tag, copy, _ in sent) == [("1-0.5", 0), ("1-0.5", 1), ("1-0.5", 2)]
    assert len({position for _, _, position in sent}) == 1, "all are closed at the same budget"


def test_slots_that_nobody_decodes_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import SamplingParams

    from tersely.controller.vllm.logits_processor import TerselyLogitsProcessor
    from tersely.controller.vllm.token_history import TokenHistory

    tokenizer, prompt = prompt_ids()
    slots = Buffers(4, 512)
    processor = TerselyLogitsProcessor(config(), slots)
    params = SamplingParams(max_tokens=200, extra_args={"tersely": {"policies": {"budget": {}}}})
    word = tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    slots.fill(1, prompt, [])
    processor.add_request(1, params)
    decode_by_hand(slots, processor, {1: [word] * 5}, 5)
    fetched: list[int] = []
    fetch = TokenHistory.fetch

    def count(self: Any, wanted: Any, begun: Any) -> None:
        fetched.append(len(wanted))
        fetch(self, wanted, begun)

    monkeypatch.setattr(TokenHistory, "fetch", count)
    slots.fill(2, prompt, [])
    processor.add_request(2, SamplingParams(max_tokens=200))
    decode_by_hand(slots, processor, {2: [word] * 20}, 20)  # the client of slot 1 has left
    assert fetched[0] == 1 and fetched[-10:] == [0] * 10
    decode_by_hand(slots, processor, {1: [word] * 3}, 3)
    processor.table.flush(1)
    assert processor.table.rows[1].output == [word] * 7, "it was only waiting"
