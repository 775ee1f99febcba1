"""Where a forced text meets the response before it: token ids as the model itself would write them.

Byte-pair tokenizers merge across the end of a response: behind "5}" Qwen's vocabulary writes "." and a blank line as
the one token ".\\n\\n", so that "}." followed by "\\n\\n" is a tokenization which the model never produces (measured on
a pretrained Qwen2.5: 1,000 times less probable, just where the decision to rethink is to be learned). The official
code of arXiv:2504.08837 re-encodes the whole text; here all but the last tokens of the response stay as they were
sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]
BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character are decoded to
FIRST_WINDOW = 16  # tokens at the end of a response that are looked at first


def natural_seam(
    response_ids: Sequence[int], text: str, *, encode: Encode, decode: Decode
) -> tuple[int, tuple[int, ...]]:
    """How ``text`` continues a response: how many of its tokens stay, and the ids that follow them.

    The response and ``text`` are tokenised together; up to the last place at which a token begins in both this
    tokenization and the sampled one, the response stays as it was sampled. The decoded text is that of the response,
    then ``text``. Where that cannot be had (a response that ends in the middle of a character, or in the letters of a
    special token), the ids of ``text`` alone are spliced.

    ``encode`` adds no special tokens, ``decode`` is exact (no clean-up of spaces).
    """
    count, window = len(response_ids), FIRST_WINDOW
    while True:
        start = max(0, count - window)
        tail = decode(response_ids[start:])
        together = tuple(encode(tail + text))
        begins = _boundaries(together, tail + text, decode, upto=len(tail))
        # Tokens at the beginning of the window may be half a word: what begins there proves nothing.
        lowest = start and start + window // 2
        for kept in range(count, lowest - 1, -1):
            before = decode(response_ids[start:kept])
            if BROKEN in tail[len(before) :]:
                return count, tuple(encode(text))
            if before in begins and tail.startswith(before):
                forced = together[begins[before] :]
                if decode([*response_ids[start:kept], *forced]) == tail + text:
                    return kept, forced
        if start == 0:
            return count, tuple(encode(text))
        window *= 2


def before_answer(response_ids: Sequence[int], decode: Decode) -> int:
    """How many tokens of a response stand before its final answer; all of them if it has no ``\\boxed``.

    Before the paragraph of the last box, or before the box itself where nothing stands above its paragraph. (Official
    code, more or less: it also cuts at the last "Wait" and at the first "answer".)
    """
    text = decode(response_ids)
    end = text.rfind("\\boxed")
    if end < 0:
        return len(response_ids)
    paragraph = text.rfind("\n\n", 0, end)
    end = paragraph if text[: max(paragraph, 0)].strip() else end
    kept = len(response_ids)
    while kept and len(decode(response_ids[:kept])) > end:
        kept -= 1
    return kept


def _boundaries(ids: Sequence[int], text: str, decode: Decode, upto: int) -> dict[str, int]:
    """From the text before a token to the token's index, for tokens that begin within the first ``upto`` characters."""
    found: dict[str, int] = {}
    for index in range(len(ids) + 1):
        before = decode(ids[:index])
        if len(before) > upto:
            break
        if text.startswith(before):
            found[before] = index
    return found
