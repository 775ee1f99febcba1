"""Qwen's tokenizer, cut down: its splitting rule, and of its 151,387 merges those of punctuation and white space.

``data/qwen2_merges.txt`` has, in Qwen's order, all merges whose result is ASCII punctuation and white space alone, and
the first 3,000 of the rest (Qwen2.5's merges.txt, Apache-2.0). Behind a response it therefore splits as the real
tokenizer does; only long words come in more pieces.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

MERGES = Path(__file__).parent / "data" / "qwen2_merges.txt"


@cache
def qwen_tokenizer() -> Tokenizer:
    """``tokenizers.Tokenizer``, without special tokens."""
    merges = [tuple(line.split(" ")) for line in MERGES.read_text(encoding="utf-8").splitlines()]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def encode(text: str) -> tuple[int, ...]:
    return tuple(qwen_tokenizer().encode(text).ids)


def decode(ids) -> str:
    return qwen_tokenizer().decode(list(ids))


def pieces(ids) -> list[str]:
    """The text of each token."""
    return [decode([token]) for token in ids]
