"""llama.cpp's own server on an embedded model: writes it as GGUF, and serves that in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

NAME, START = "tiny.gguf", 120.0
_SERVE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
params.model_alias, params.n_ctx, params.n_parallel = {sys.argv[3]}, 4096, 4
params.cpuparams.n_threads = 1
params.use_jinja, params.warmup = True, False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1 << 20)
"""
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Path, path: Path) -> None:
    """Write a checkpoint of Qwen3's architecture with a byte-level tokenizer."""
    import gguf
    from safetensors.torch import load_file

    config, tokens = (json.loads((model / name).read_text()) for name in ("config.json", "tokenizer.json"))
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    words = {index: word for word, index in tokens["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokens["added_tokens"]}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([added[i]["content"] if i in added else words[i] for i in range(config["vocab_size"])])
    writer.add_token_types(
        [
            kinds.NORMAL if i not in added else kinds.CONTROL if added[i]["special"] else kinds.USER_DEFINED
            for i in range(config["vocab_size"])
        ]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokens["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((model / "chat_template.jinja").read_text())
    for name, tensor in load_file(model / "model.safetensors").items():
        writer.add_tensor(_tensor_name(name), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_LAYER[part.removesuffix('.weight')]}.weight"


@contextmanager
def llama_server(model: Path, folder: Path, port: int) -> Iterator[str]:
    """The URL of a server that runs."""
    write_gguf(model, folder / NAME)
    with (folder / "llama.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(folder / NAME), str(port), NAME], stdout=log, stderr=log
        )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + START
    try:
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").is_success:
                    break
            assert process.poll() is None and time.monotonic() < end, (folder / "llama.log").read_text()[-2000:]
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()
