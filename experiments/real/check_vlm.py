"""Does a made checkpoint answer as its source does, and do engine and trainer agree on it? Part of ``make real``.

    python experiments/real/check_vlm.py smollm2|qwen [--out FOLDER] [--questions 20] [--tokens 32]

Compared are the prompts and the greedy responses, token by token, with those of the source's own language model and
tokenizer; then the log-probs of sampled tokens (``rollout.canary``'s gap, in nats).
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import make_data
import make_vlm
import torch
from transformers import GenerationConfig

from rethinker.config import ModelConfig, RolloutConfig, RunConfig
from rethinker.policy.forward import PolicyForward
from rethinker.policy.loading import load_policy
from rethinker.policy.policy import Policy
from rethinker.rollout import canary_gap, make_engine
from rethinker.rollout.canary import gap_bound
from rethinker.types import Query, Request, Sampling

FLOAT32_GAP = 1e-4  # nats; stricter than the canary's own bound
SUFFIX = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."  # the official code's
TALK = (
    "Name the three primary colours.",
    "Why is the sky blue?",
    "Write a haiku about rain.",
    "Translate 'good morning' into French, Spanish and German.",
    "What is the capital of Australia?",
    "Give me a Python function that reverses a string.",
    "List five animals that live in the sea.",
    "Summarise in one sentence what photosynthesis is.",
    "Who wrote 'Pride and Prejudice'?",
    "How do I boil an egg?",
)


def questions(count: int) -> list[Query]:
    """``count`` queries, sums and other talk in turn."""
    sums = make_data.rows({"test": count, "validation": 0, "train": 0}, seed=1)["test"]
    texts = [TALK[i // 2 % len(TALK)] if i % 2 else row["question"] for i, row in enumerate(sums)]
    return [Query(f"check-{index}", text, "0") for index, text in enumerate(texts)]


def source_prompt(tokenizer: Any, query: Query) -> tuple[int, ...]:
    """The ids of ``query`` by the source's own tokenizer and template."""
    turn = [{"role": "user", "content": query.question + SUFFIX}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def greedy(model: Any, prompts: Sequence[Sequence[int]], tokens: int, eos_id: int) -> list[tuple[int, ...]]:
    """The greedy response to each prompt, by transformers' own generation."""
    how = GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=eos_id, pad_token_id=eos_id)
    responses = []
    for prompt in prompts:
        row = torch.tensor([prompt])
        written = model.generate(row, attention_mask=torch.ones_like(row), generation_config=how)
        responses.append(tuple(written[0, len(prompt) :].tolist()))
    return responses


def source_answers(
    gguf: Path, dtype: torch.dtype, queries: Sequence[Query], tokens: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The source's prompts and greedy responses to ``queries``; the model is gone afterwards."""
    model, tokenizer = make_vlm.load_source(gguf, dtype)
    prompts = [source_prompt(tokenizer, query) for query in queries]
    return prompts, greedy(model, prompts, tokens, tokenizer.convert_tokens_to_ids(make_vlm.END_OF_TURN))


def differences(
    policy: Policy, queries: Sequence[Query], prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]
) -> list[str]:
    """Where the made checkpoint departs from its source's ``prompts`` and greedy ``responses``; empty if nowhere."""
    ours = [policy.prompt(query).ids for query in queries]
    written = greedy(policy.model, ours, max(map(len, responses)), policy.eos_id)
    return [
        f"{query.qid}: {kind} {policy.tokenizer.decode(theirs)!r} of the source, {policy.tokenizer.decode(made)!r} here"
        for kind, sources, here in (("prompt", prompts, ours), ("response", responses, written))
        for query, theirs, made in zip(queries, sources, here, strict=True)
        if theirs != made
    ]


def engine_gap(config: RunConfig, policy: Policy, queries: Sequence[Query]) -> tuple[str, float]:
    """The engine's name, and the mean gap in nats between its log-probs and the trainer's on sampled tokens."""
    engine = make_engine(config, policy, max_images=0)
    try:
        engine.sync_weights(policy.model)
        probes = [Request(query.qid, query, seed=index) for index, query in enumerate(queries)]
        sampling = Sampling(config.rollout.temperature, 1.0, config.rollout.max_new_tokens)
        gap = canary_gap(engine, policy, PolicyForward(policy.model, policy.encoder), probes, sampling)
    finally:
        engine.close()
    assert gap is not None
    return type(engine).__name__, gap


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=make_vlm.SOURCES)
    parser.add_argument("--out", type=Path, default=make_vlm.OUT)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32, help="of a response, at most")
    options = parser.parse_args()
    queries, source = questions(options.questions), make_vlm.SOURCES[options.name]
    answers = source_answers(options.out / f"{options.name}.gguf", source.dtype, queries, options.tokens)
    gc.collect()  # before the second model comes
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if source.dtype == torch.bfloat16 else "float32"
    model = ModelConfig(path=str(options.out / options.name), dtype=dtype)
    config = RunConfig(model=model, rollout=RolloutConfig(max_new_tokens=64))
    policy = load_policy(model, prompt_suffix=SUFFIX)
    found = differences(policy, queries, *answers)
    print("\n".join([*found, f"{len(queries)} questions, {len(found)} differences from the source"]), flush=True)
    engine, gap = engine_gap(config, policy, queries)
    limit = FLOAT32_GAP if dtype == "float32" else gap_bound(config, policy)
    print(f"{engine} and trainer, {dtype}: {gap:.2g} nats a token on average (limit {limit:.2g})")
    return 1 if found or not gap < limit else 0


if __name__ == "__main__":
    sys.exit(main())
