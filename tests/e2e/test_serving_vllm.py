"""vLLM's own server under control: three APIs, their metadata, metrics and refusals."""

from __future__ import annotations

import asyncio
import json
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tersely.evaluation.tasks.questions import load

from ..support.chat_servers import Judge
from ..support.commands import refused
from ..support.conversation import CLIENTS, Address, check_conversation
from ..support.readme import README, code_blocks
from ..support.vllm_server import KEY, NAME, VllmServer

pytestmark = pytest.mark.vllm
openai = pytest.importorskip("openai")

MODEL = "tersely-tiny-small"
PROBLEMS = [question.problem for question in load("tiny", "test", 8, 5)]
SHORT: dict[str, Any] = {"tersely": {"policies": ["budget"]}, "thinking_token_budget": 40}


@pytest.fixture(scope="module")
def server(our_vllm_server: Callable[[], VllmServer]) -> VllmServer:
    return our_vllm_server()


@pytest.fixture
def http(server: VllmServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=180) as client:
        yield client


@pytest.fixture
def client(server: VllmServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=180) as client:
        yield client


def body(problem: str = PROBLEMS[0], **fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": problem}
    return {"model": NAME, "messages": [message], "max_tokens": 400, "temperature": 0, **fields}


def answered(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/chat/completions", json=body(**fields))
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def test_replies_have_control_metadata(http: httpx.Client) -> None:
    reply = answered(http)
    (choice,) = reply["choices"]
    message, metadata = choice["message"], choice["tersely"]
    assert "boxed" in message["content"] and "</think>" not in message["content"]
    assert message["reasoning"] == message["reasoning_content"] != ""
    assert 0 < reply["usage"]["completion_tokens_details"]["reasoning_tokens"] < reply["usage"]["completion_tokens"]
    assert (metadata["tier"], metadata["shadow"]) == ("normal", False)
    assert metadata["decisions"][0]["policy"] == "readiness"
    assert "decisions" not in answered(http, tersely={"trace": False})["choices"][0]["tersely"]


def test_the_request_of_readme_is_answered(server: VllmServer) -> None:
    shown = next(block for block in code_blocks(README, "console") if "curl" in block).partition("$ curl ")[2]
    arguments = shlex.split(shown.replace("\\\n", " ").replace("Qwen3-4B", NAME))
    assert arguments[0] == "localhost:8000/v1/chat/completions"
    arguments[0] = arguments[0].replace("localhost:8000", server.url)
    done = subprocess.run(
        ["curl", "-s", *arguments, "-H", f"Authorization: Bearer {KEY}"], capture_output=True, check=True
    )
    reply = json.loads(done.stdout)
    assert (reply["object"], reply["choices"][0]["finish_reason"]) == ("chat.completion", "stop")
    assert reply["choices"][0]["tersely"]["tier"] == "easy"


def test_off_and_shadow_change_nothing(http: httpx.Client) -> None:
    plain = answered(http, tersely={"preset": "off"})["choices"][0]
    shadow = answered(http, tersely={"shadow": True})["choices"][0]
    assert plain["message"] == shadow["message"]
    assert plain["tersely"]["decisions"] == []
    assert [d["acted"] for d in shadow["tersely"]["decisions"]] == [False]


def test_trial_answers_are_requests_of_the_server_to_itself(server: VllmServer, http: httpx.Client) -> None:
    """Greedy trials on the prefix cache; the thinking ends where they agree, and "off" is what it was."""
    long = PROBLEMS[3]
    plain = answered(http, problem=long, tersely={"preset": "off"})
    done, hits = (server.metric(name) for name in ("vllm:request_success_total{", "vllm:prefix_cache_hits_total{"))
    reply = answered(http, problem=long, tersely={"preset": "certaindex"})
    server.wait_idle()
    (choice,) = reply["choices"]
    decisions = choice["tersely"]["decisions"]
    trials = [d for d in decisions if d["action"] == "trial"]
    assert trials and all(d["policy"] == "certaindex" and d["tokens"] > 0 for d in trials), decisions
    asked = [int(d["reason"].split()[2]) for d in trials]
    assert all(at < d["position"] <= thinking(plain) for at, d in zip(asked, trials, strict=True))
    assert thinking(reply) <= thinking(plain) and choice["message"]["content"].strip()
    assert server.metric("vllm:request_success_total{") - done > len(trials) / 2, "the rest was ended at the box"
    assert server.metric("vllm:prefix_cache_hits_total{") - hits >= 64 * len(trials)
    assert server.metric('tersely_overhead_tokens_total{kind="trial"}') >= sum(d["tokens"] for d in trials)
    again = answered(http, problem=long, tersely={"preset": "off"})
    assert again["choices"][0]["message"] == plain["choices"][0]["message"]


def test_clients_choose_policies_with_trials_and_name_no_server(http: httpx.Client) -> None:
    own: dict[str, Any] = {"policies": {"deer": {}}}
    assert http.post("/v1/chat/completions", json=body(vllm_xargs={"tersely": json.dumps(own)})).status_code == 200
    for fields in ({"trials": "http://127.0.0.1:9"}, {"verifier": "http://127.0.0.1:9"}):
        named = http.post("/v1/chat/completions", json=body(vllm_xargs={"tersely": json.dumps(own | fields)}))
        assert named.status_code == 400


def test_a_served_verifier_is_asked_what_rules_cannot_decide(http: httpx.Client, judge: tuple[Judge, str]) -> None:
    """At this temperature some samples begin with what states nothing that rules can read."""
    drawn = {"temperature": 2.0, "top_p": 1.0, "top_k": -1, "seed": 1, "n": 24, "max_tokens": 160}
    reply = answered(http, problem=PROBLEMS[5], reasoning_effort="high", tersely={"preset": "trimr"}, **drawn)
    decisions = [d for choice in reply["choices"] for d in choice["tersely"]["decisions"]]
    assert decisions and not any(d["action"] == "error" for d in decisions), decisions
    assert "state an answer" in judge[0].bodies[0]["messages"][0]["content"]


def thinking(reply: dict[str, Any]) -> int:
    return int(reply["usage"]["completion_tokens_details"]["reasoning_tokens"])


def test_efforts_and_budgets_are_kept(http: httpx.Client) -> None:
    long = PROBLEMS[7]
    assert thinking(answered(http, problem=long, reasoning_effort="none")) == 0
    assert answered(http, problem=long, reasoning_effort="none")["choices"][0]["message"]["content"]
    for fields in (
        {"thinking_token_budget": 60},
        {"thinking": {"type": "enabled", "budget_tokens": 60}},
        {"reasoning_effort": "high", "thinking_token_budget": 60},
    ):
        reply = answered(http, problem=long, **fields)
        assert thinking(reply) <= 60
        assert reply["choices"][0]["tersely"]["budget"] == 60
        assert reply["choices"][0]["message"]["content"].strip()
    assert answered(http, problem=long, reasoning_effort="minimal")["choices"][0]["tersely"]["budget"] == 128
    assert thinking(answered(http, problem=long, thinking={"type": "disabled"})) == 0
    assert answered(http, max_tokens=30)["choices"][0]["message"]["content"], "half of it is kept for the answer"


def test_openai_streams(client: Any) -> None:
    fields = {"model": NAME, "messages": body()["messages"], "max_tokens": 400, "temperature": 0}
    whole = client.chat.completions.create(**fields, extra_body=SHORT).choices[0]
    chunks = list(client.chat.completions.create(**fields, extra_body=SHORT, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]  # no chunk without a choice: nobody asked for usage
    assert "".join(d.content or "" for d in deltas) == whole.message.content
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == whole.message.reasoning_content
    assert "Time is short" in whole.message.reasoning_content
    last = next(chunk.choices[0] for chunk in chunks if chunk.choices[0].finish_reason)
    assert last.tersely == whole.tersely
    wanted = list(
        client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}, extra_body=SHORT)
    )
    assert wanted[-1].usage.completion_tokens_details.reasoning_tokens <= 40


def test_each_sample_has_its_own_decisions(client: Any) -> None:
    reply = client.chat.completions.create(
        model=NAME, messages=body(PROBLEMS[7])["messages"], n=8, temperature=1.0, max_tokens=400, extra_body=SHORT
    )
    assert len({choice.message.reasoning for choice in reply.choices}) > 1
    assert all(choice.tersely["decisions"][0]["policy"] == "budget" for choice in reply.choices)


def test_responses_and_messages(client: Any, http: httpx.Client) -> None:
    reply = client.responses.create(model=NAME, input=PROBLEMS[7], reasoning={"effort": "low"}, temperature=0)
    assert "boxed" in reply.output_text
    assert reply.tersely["tier"] == "easy"
    events = list(client.responses.create(model=NAME, input=PROBLEMS[7], temperature=0, stream=True))
    assert events[-1].response.tersely["tier"] == "normal"
    asked = {"model": NAME, "max_tokens": 400, "messages": body(PROBLEMS[7])["messages"], **SHORT}
    response = http.post("/v1/messages", json=asked)
    assert response.status_code == 200, response.text
    assert response.json()["tersely"]["decisions"][0]["policy"] == "budget"
    assert response.json()["content"][-1]["text"].strip()


def test_completions_are_controlled_on_request(http: httpx.Client) -> None:
    prompt = f"<|im_start|>user\n{PROBLEMS[7]}\n/normal<|im_end|>\n<|im_start|>assistant\n<think>\n"
    asked: dict[str, Any] = {"model": NAME, "prompt": prompt, "max_tokens": 200, "temperature": 0}
    plain = http.post("/v1/completions", json=asked).json()["choices"][0]
    short = http.post("/v1/completions", json=asked | SHORT)
    assert "Time is short" not in plain["text"]
    assert "Time is short" in short.json()["choices"][0]["text"]


def test_langchain_and_curl(server: VllmServer) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(base_url=f"{server.url}/v1", api_key=KEY, model=NAME, temperature=0, max_tokens=400)
    assert "boxed" in model.invoke(PROBLEMS[0]).text
    assert "boxed" in "".join(chunk.text for chunk in model.stream(PROBLEMS[0]))
    command = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", f"authorization: Bearer {KEY}"]
    command += ["-H", "content-type: application/json", "-d", json.dumps(body(stream=True))]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines[:-1])


@pytest.mark.parametrize(
    ("fields", "param", "value"),
    [
        ({"tersely": {"preset": "fats"}}, "tersely.preset", "'fast'"),
        ({"tersely": {"presett": "fast"}}, "tersely.presett", "'preset'"),
        ({"tersely": {"policies": ["reconsider"]}}, "tersely", "retract"),
        ({"reasoning_effort": "hihg"}, "reasoning_effort", "'high'"),
        ({"thinking_token_budget": "many"}, "thinking_token_budget", "'many'"),
        ({"thinking": {"type": "enabled"}}, "thinking", "budget_tokens"),
        ({"vllm_xargs": {"tersely": "balanecd"}}, "tersely", "'balanced'"),
        ({"vllm_xargs": {"tersely": '{"driver": "row 1"}'}}, "tersely", "'driver'"),
    ],
)
def test_wrong_fields_are_refused(http: httpx.Client, fields: dict[str, Any], param: str, value: str) -> None:
    response = http.post("/v1/chat/completions", json=body(**fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert value in error["message"]


def test_other_mistakes_are_refused_by_vllm(
    server: VllmServer, http: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body()).status_code == 401
    assert http.post("/v1/chat/completions", json=body(model="other")).status_code == 404
    assert http.post("/v1/chat/completions", content=b"{").status_code == 400
    assert http.post("/v1/chat/completions", content=b"[1]").status_code in (400, 422)
    assert http.post("/v1/chat/completions", content=b"x" * (5 << 20)).status_code == 413
    port = server.url.rsplit(":", 1)[1]
    assert f"port {port} on 127.0.0.1 is in use" in refused(capsys, "serve", MODEL, "--engine", "vllm", "--port", port)


def test_many_disconnects_leave_no_requests_behind(server: VllmServer) -> None:
    draw = random.Random(3)

    async def one(http: httpx.AsyncClient, number: int) -> bool | None:
        fields = body(PROBLEMS[number % len(PROBLEMS)], max_tokens=100, stream=True, **(SHORT if number % 3 else {}))
        patience = draw.choice([1, 5, 20, None, None])
        text, seen = "", 0
        async with http.stream("POST", "/v1/chat/completions", json=fields) as response:
            async for line in response.aiter_lines():
                seen += 1
                if patience is not None and seen > patience:
                    return None
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        text += choice["delta"].get("content") or ""
        return bool(text.strip())

    async def all_of_them() -> list[bool | None]:
        limits = httpx.Limits(max_connections=48)
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=180, limits=limits) as http:
            return await asyncio.gather(*(one(http, number) for number in range(40)))

    done = asyncio.run(all_of_them())
    assert all(answer for answer in done if answer is not None)
    assert sum(answer is None for answer in done) > 10
    end = time.monotonic() + 60
    while server.requests():
        assert time.monotonic() < end, "requests of clients that left are still answered"
        time.sleep(0.2)


def test_tersely_run_and_doctor_use_the_server(
    server: VllmServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERSELY_API_KEY", KEY)
    from tersely.cli.app import main

    where = ["--engine", "openai", "--base-url", server.url, "--tokenizer", MODEL]
    assert main(["run", PROBLEMS[0], *where, "--json", "--temperature", "0", "--max-new-tokens", "120"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["answer"] and output["decisions"]
    assert main(["doctor", *where, "--json"]) == 0
    checks = {check["name"]: check["status"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["cut"] == checks["hint"] == checks["off"] == "ok"


def test_metrics_of_vllm_and_tersely(http: httpx.Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}
    assert any(sample.value > 0 for sample in families["tersely_thinking_tokens"].samples)
    assert {sample.labels.get("reason") for sample in families["tersely_exits"].samples} >= {"budget", "readiness"}
    assert "vllm:num_requests_running" in families


def test_a_key_has_rules_of_its_own_which_a_signal_reloads(server: VllmServer, http: httpx.Client) -> None:
    headers = {"authorization": "Bearer of-the-team"}

    def spent(**fields: Any) -> int:
        reply = http.post("/v1/chat/completions", json=body(**fields), headers=headers).json()
        assert reply["choices"][0]["message"]["content"]
        return thinking(reply)

    assert thinking(answered(http, tersely={"preset": "off"})) > 60
    assert spent() <= 60 and spent(reasoning_effort="max") <= 60 and spent(thinking_token_budget=-1) <= 60
    own = http.post("/v1/chat/completions", json=body(tersely={"preset": "off"}), headers=headers)
    assert own.status_code == 403
    file = server.log.parent / "server.toml"
    config = file.read_text()
    for text, most in ((config.replace("60", "40"), 40), ("nonsense", 40), (config, 60)):
        lines = server.log.read_text().count("configuration was")
        file.write_text(text)
        server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 60
        while server.log.read_text().count("configuration was") == lines:
            assert time.monotonic() < end, "not reloaded"
            time.sleep(0.1)
        assert spent() <= most
    assert 'tersely_cost_total{key="team",model="tiny"}' in http.get("/metrics").text


@pytest.mark.parametrize("client", CLIENTS)
def test_clients_hold_the_same_conversation(client: str, server: VllmServer) -> None:
    check_conversation(client, Address(f"{server.url}/v1", NAME, PROBLEMS[0], KEY))
