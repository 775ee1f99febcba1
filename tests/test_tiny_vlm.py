"""The tiny VLM: Qwen2.5-VL's layout, the losses of its pretraining, and what the committed checkpoint can do."""

import copy
import math
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bounds import EXACT, PIXELS, in_float64, rounding
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from rethinker.config import ModelConfig
from rethinker.datasets.world.puzzles import KINDS, LEVELS, make_puzzle
from rethinker.datasets.world.traces import Loss, rethinking_trace
from rethinker.grading import grade
from rethinker.policy.loading import load_policy
from rethinker.policy.prompt import prompt_text
from rethinker.policy.seam import natural_seam
from rethinker.rethink import TRIGGERS
from rethinker.rollout.transformers import TransformersEngine
from rethinker.tiny.curriculum import (
    CYCLES,
    IGNORED,
    PretrainSettings,
    TraceBatches,
    cycle_ends,
    draw_puzzle,
    puzzle_query,
    tokenize_trace,
    tokenizer_corpus,
)
from rethinker.tiny.model import SPECIAL_TOKENS, equal_size_pixels, tiny_model, tiny_processor, train_tokenizer
from rethinker.tiny.pretrain import (
    STATE,
    Pretraining,
    decision_loss,
    make_optimizers,
    positions,
    pretrain_tiny,
    rate_factor,
    supervised_loss,
    train_step,
)
from rethinker.types import Query, Request, Sampling

pytestmark = pytest.mark.numerics

COMMITTED = Path(__file__).parents[1] / "data" / "tiny-vlm"


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(train_tokenizer(tokenizer_corpus(2000, seed=0)))


@pytest.fixture(scope="module")
def model(processor):
    return tiny_model(processor.tokenizer, seed=0)


@pytest.mark.parametrize(("size", "millions"), [("250k", 0.29), ("1m", 0.92), ("4m", 4.5), ("15m", 15.1)])
def test_sizes_are_what_they_are_called_and_share_the_shape_of_heads(processor, size, millions) -> None:
    model = tiny_model(processor.tokenizer, 0, size)
    text, vision = model.config.text_config, model.config.vision_config
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.02)
    assert text.hidden_size // text.num_attention_heads == vision.hidden_size // vision.num_heads == 32
    assert text.num_attention_heads == 2 * text.num_key_value_heads


def test_a_size_that_is_none_is_named(processor) -> None:
    with pytest.raises(ValueError, match="size='7b': must be one of 250k, 1m, 4m, 15m"):
        tiny_model(processor.tokenizer, 0, "7b")


@pytest.fixture
def batches(processor):
    return TraceBatches(processor, PretrainSettings(batch_size=10))


# Tokenizer and processor


def test_special_tokens_are_qwens_in_its_order(processor) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_same_corpus_gives_the_same_tokenizer(processor) -> None:
    again = train_tokenizer(tokenizer_corpus(2000, seed=0))
    assert again.get_vocab() == processor.tokenizer.get_vocab()


def test_text_comes_back_whatever_it_is(processor) -> None:
    tokenizer = processor.tokenizer
    for text in ("The answer is \\boxed{23}.", "Bruchteil: ½ \u00fcber 北京\n\n\tend", "  12:00  "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_fast_pixels_are_the_processors(processor) -> None:
    rng = random.Random(0)
    images = [draw_puzzle(rng, CYCLES[0]).image for _ in range(5)]
    expected = processor.image_processor(images=images, return_tensors="pt")
    pixels, grid = equal_size_pixels(images)
    assert torch.equal(grid, expected["image_grid_thw"])
    torch.testing.assert_close(pixels, expected["pixel_values"], rtol=0, atol=PIXELS)
    with pytest.raises(ValueError, match="one size"):
        equal_size_pixels([images[0], Image.new("RGB", (32, 32))])
    with pytest.raises(ValueError, match="70x64 pixels"):
        equal_size_pixels([Image.new("RGB", (70, 64))])


# What carries loss


def test_only_the_right_tokens_carry_loss(processor, batches) -> None:
    tokenizer = processor.tokenizer
    plain, rethinking = batches.step(CYCLES[0])
    assert len(plain["input_ids"]) == 3
    assert len(rethinking["input_ids"]) == 7
    for batch in (plain, rethinking):
        supervised = batch["labels"] != IGNORED
        assert not batch["decisions"].any()
        assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
    for ids, labels in zip(plain["input_ids"], plain["labels"], strict=True):
        text = tokenizer.decode(ids).split("<|im_start|>assistant\n")[1].replace("<|endoftext|>", "")
        assert tokenizer.decode(labels[labels != IGNORED]) == text
        assert text.startswith("The answer is \\boxed{")
    for ids, labels in zip(rethinking["input_ids"], rethinking["labels"], strict=True):
        text = tokenizer.decode(ids).split("<|im_start|>assistant\n")[1].replace("<|endoftext|>", "")
        first, _, rest = text.partition("\n\nWait")
        assert "boxed" in first
        assert tokenizer.decode(labels[labels != IGNORED]) == "Wait" + rest
        assert rest.endswith("<|im_end|>")


def test_a_cycle_that_holds_the_decision_labels_it_too(processor) -> None:
    tokenizer = processor.tokenizer
    (decision,) = tokenizer("}.\n\n")["input_ids"]
    settings = PretrainSettings(batch_size=10)
    loose = replace(CYCLES[2], hold_decision=None)
    _, without = TraceBatches(processor, settings).step(loose)
    plain, held = TraceBatches(processor, settings).step(CYCLES[2])
    assert not plain["decisions"].any()
    assert torch.equal(held["input_ids"], without["input_ids"])
    marked = held["decisions"]
    assert torch.equal(held["labels"][~marked], without["labels"][~marked])
    assert (held["labels"][marked] == decision).all()
    for ids, row in zip(held["input_ids"], marked, strict=True):
        (place,) = row.nonzero().flatten().tolist()
        before, after = tokenizer.decode(ids[:place]), tokenizer.decode(ids[place:])
        assert before[-1].isdigit()
        assert after.startswith("}.\n\nWait")


END = torch.tensor([0])


def test_the_loss_of_a_decision_by_hand() -> None:
    """Probabilities 1/2 (the end), 1/4, 1/8 (the decision) and 1/8: its nats are log 8, and log 4 if it goes on."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log() + 3.0  # logits have any offset
    target = torch.tensor([2])
    far = decision_loss(logits, target, hold=10.0, answer_ids=END).item()
    assert far == pytest.approx(0.1 * ((10 - math.log(8) - 0.5) + math.log(4)))
    near = decision_loss(logits, target, hold=2.5, answer_ids=END).item()
    assert near == pytest.approx(0.1 * (0.5 * (2.5 - math.log(8)) ** 2 + math.log(4)))
    both = decision_loss(logits.repeat(2, 1), target.repeat(2), hold=2.5, answer_ids=END).item()
    assert both == pytest.approx(2 * near)


def test_a_held_decision_is_pulled_neither_up_nor_down_but_to_the_front() -> None:
    """Where the decision is as rare as wanted, only the others that go on are pushed: the end is left alone."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log().requires_grad_()
    decision_loss(logits, torch.tensor([2]), hold=math.log(8), answer_ids=END).backward()
    # Cross-entropy over 1/2, 1/4, 1/4: the share less one for the target, times the weight of 0.1.
    torch.testing.assert_close(
        logits.grad, torch.tensor([[0.0, 0.05, -0.075, 0.025]]), rtol=0, atol=rounding(steps=8, terms=4)
    )


def test_prompts_are_those_of_training(processor, batches) -> None:
    """The ids before the answer are the processor's for the prompt's text and an image, image tokens included."""
    ids = batches.step(CYCLES[0])[0]["input_ids"][0]
    question = processor.tokenizer.decode(ids).split("<|vision_end|>")[1].split("<|im_end|>")[0]
    prompt = prompt_text(processor, Query("q", f"<image>{question}", "1", ("any.png",)))
    expected = processor(text=[prompt], images=[Image.new("RGB", (64, 64))])["input_ids"][0]
    assert ids[: len(expected)].tolist() == list(expected)


def test_shared_positions_are_the_models_own(model, batches) -> None:
    _, batch = batches.step(CYCLES[0])
    types = (batch["input_ids"] == model.config.image_token_id).int()
    expected, _ = model.model.get_rope_index(batch["input_ids"], types, image_grid_thw=batch["image_grid_thw"])
    assert torch.equal(positions(model, batch), expected)
    moved = dict(batch, input_ids=torch.stack([batch["input_ids"][0], batch["input_ids"][0].roll(1)]))
    with pytest.raises(ValueError, match="same place"):
        positions(model, moved)


def test_the_loss_is_that_of_transformers(model, batches) -> None:
    _, batch = batches.step(CYCLES[0])
    types = (batch["input_ids"] == model.config.image_token_id).int()
    inputs = {key: value for key, value in batch.items() if key not in ("decisions", "answer_ids")}
    model = copy.deepcopy(model).double()
    with torch.no_grad(), in_float64():
        expected = model(**inputs, mm_token_type_ids=types).loss * (batch["labels"] != IGNORED).sum()
        torch.testing.assert_close(supervised_loss(model, batch), expected, rtol=EXACT, atol=0)


def test_decisions_add_their_own_loss_to_that_of_the_rest(processor, model) -> None:
    (decision,) = processor.tokenizer("}.\n\n")["input_ids"]
    _, batch = TraceBatches(processor, PretrainSettings(batch_size=10)).step(CYCLES[2])
    rest = dict(batch, labels=batch["labels"].masked_fill(batch["decisions"], IGNORED))
    rest["decisions"] = torch.zeros_like(batch["decisions"])
    types = (batch["input_ids"] == model.config.image_token_id).int()
    images = {key: batch[key] for key in ("pixel_values", "image_grid_thw")}
    model = copy.deepcopy(model).double()
    with torch.no_grad(), in_float64():
        logits = model(input_ids=batch["input_ids"], mm_token_type_ids=types, **images).logits[:, :-1]
        at_decisions = logits[batch["decisions"][:, 1:]]
        targets = torch.full((len(at_decisions),), decision)
        expected = supervised_loss(model, rest) + decision_loss(at_decisions, targets, 10.0, batch["answer_ids"])
        torch.testing.assert_close(supervised_loss(model, batch, 10.0), expected, rtol=EXACT, atol=0)
        with pytest.raises(ValueError, match="hold_decision must say"):
            supervised_loss(model, batch)


def test_a_trace_is_tokenised_as_a_whole(processor) -> None:
    """As the policy writes it, and as a forced second look is joined to its answer: one tokenization for all three."""
    tokenizer = processor.tokenizer
    puzzle = draw_puzzle(random.Random(0), CYCLES[0])
    parts = rethinking_trace(puzzle, list(TRIGGERS.values()), 0.0, random.Random(0))
    ids, losses = tokenize_trace(tokenizer, parts)
    assert ids == [*tokenizer("".join(part.text for part in parts))["input_ids"], tokenizer.eos_token_id]
    place = losses.index(Loss.DECISION)
    assert tokenizer.decode(ids[place]) == "}.\n\n" and set(losses[:place]) == {Loss.NONE}
    assert set(losses[place + 1 :]) == {Loss.TOKENS}
    answer, _ = tokenize_trace(tokenizer, parts[:1])
    trigger = "".join(part.text for part in parts[1:3])
    kept, forced = natural_seam(
        answer[:-1], trigger, encode=lambda text: tokenizer(text)["input_ids"], decode=tokenizer.decode
    )
    assert [*answer[:kept], *forced] == ids[: kept + len(forced)] and kept == place


# Training


def test_micro_batches_add_up_to_one_batch(processor, batches) -> None:
    """Same puzzles in one step, split in two ways: the same loss and the same weights."""
    _, whole = batches.step(CYCLES[0])
    rowwise = {key: value for key, value in whole.items() if key != "answer_ids"}
    parts = [{key: value[rows] for key, value in rowwise.items()} for rows in (slice(0, 2), slice(2, 7))]
    for part, pixels in zip(parts, whole["pixel_values"].split([2 * 64, 5 * 64]), strict=True):
        part["pixel_values"] = pixels
    losses, weights = [], []
    for split in ([whole], parts):
        model = tiny_model(processor.tokenizer, seed=1).double()
        with in_float64():
            losses.append(train_step(model, make_optimizers(model, 1e-3), split, clip_norm=1e9))
        weights.append(torch.cat([weight.flatten() for weight in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=EXACT)
    # Adam's first step is the sign of the gradient: where that is rounding noise, weights may differ.
    assert ((weights[0] - weights[1]).abs() > 1e-4).float().mean() < 0.01


def test_training_learns_and_repeats_exactly(tmp_path: Path) -> None:
    cycles = (CYCLES[0], replace(CYCLES[1], begin=4), replace(CYCLES[2], begin=5))
    settings = PretrainSettings(steps=6, cycles=cycles, batch_size=4, tokenizer_traces=200, warmup_steps=2)
    for name in ("one", "two"):
        pretrain_tiny(tmp_path / name, settings)
    one, two = (Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    processor = AutoProcessor.from_pretrained(tmp_path / "one")
    batch = TraceBatches(processor, settings).step(CYCLES[0])[1]
    tokens = (batch["labels"] != IGNORED).sum()
    with torch.no_grad():
        start = supervised_loss(tiny_model(processor.tokenizer, 0), batch) / tokens
        assert supervised_loss(one, batch) / tokens < start - 0.3
    with pytest.raises(ValueError, match="at least 1"):
        pretrain_tiny(tmp_path / "none", PretrainSettings(steps=0))


SHORT = PretrainSettings(
    steps=6,
    cycles=(CYCLES[0], replace(CYCLES[1], begin=3)),
    batch_size=4,
    tokenizer_traces=200,
    warmup_steps=2,
    save_every=1,
)


@pytest.mark.parametrize("last", [1, 3, 4])  # within a cycle, where the next begins, and within that
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch, last) -> None:
    pretrain_tiny(tmp_path / "whole", SHORT)
    save = Pretraining.save

    def stop(training: Pretraining) -> None:
        save(training)
        if training.step == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Pretraining, "save", stop)
        pretrain_tiny(tmp_path / "stopped", SHORT)
    before = torch.load(tmp_path / "stopped" / STATE)["seconds"]
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == [STATE]  # half a model is none
    assert pretrain_tiny(tmp_path / "stopped", replace(SHORT, save_every=100), resume=True) > before > 0
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_training_is_resumed_with_its_own_settings_only(tmp_path: Path) -> None:
    pretrain_tiny(tmp_path, replace(SHORT, steps=1))
    with pytest.raises(
        ValueError, match=r"pretraining.pt has other settings: steps was 1, now 6; resume with those, or"
    ):
        pretrain_tiny(tmp_path, SHORT, resume=True)
    weights = tmp_path / "model.safetensors"
    before, state = weights.read_bytes(), (tmp_path / STATE).stat().st_mtime_ns
    weights.unlink()
    pretrain_tiny(tmp_path, replace(SHORT, steps=1), resume=True)  # stopped after its last step
    assert (tmp_path / STATE).stat().st_mtime_ns == state and weights.read_bytes() == before


def test_every_weight_has_one_optimiser_and_muon_takes_matrices(model) -> None:
    muon, adam = make_optimizers(model, 1e-3)
    of_muon, of_adam = ([weight for group in one.param_groups for weight in group["params"]] for one in (muon, adam))
    assert sorted(map(id, of_muon + of_adam)) == sorted(map(id, model.parameters()))
    assert all(weight.ndim == 2 for weight in of_muon)
    assert any(weight is model.model.language_model.embed_tokens.weight for weight in of_adam)


def test_a_cycle_ends_where_the_next_begins() -> None:
    first, second, _ = CYCLES
    late = replace(second, begin=9000)
    assert cycle_ends(PretrainSettings(steps=3000, cycles=(first, second, late))) == [(first, 2600), (second, 3000)]
    assert cycle_ends(PretrainSettings(steps=500)) == [(first, 500)]
    with pytest.raises(ValueError, match="must begin at step 0"):
        pretrain_tiny("unused", PretrainSettings(cycles=(second,)))


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = PretrainSettings(warmup_steps=10, flat_share=0.5, final_rate=0.03)
    factors = [rate_factor(step, 1000, settings) for step in (1, 5, 10, 500, 751, 1000)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.03])


# The committed checkpoint


@pytest.fixture(scope="module")
def policy():
    return load_policy(ModelConfig(path=str(COMMITTED)))


def test_the_checkpoint_is_small_whole_and_opens(policy) -> None:
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 5_000_000
    assert all(weight.dtype == torch.float32 for weight in policy.model.parameters())
    assert policy.model.config.model_type == "qwen2_5_vl"
    assert sum(weight.numel() for weight in policy.model.parameters()) < 1_000_000
    tokenizer = AutoTokenizer.from_pretrained(COMMITTED)
    assert tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    assert tokenizer.chat_template == policy.processor.chat_template


def test_the_command_of_record_makes_the_committed_tokenizer(policy) -> None:
    settings = PretrainSettings()
    made = train_tokenizer(tokenizer_corpus(settings.tokenizer_traces, settings.seed))
    assert made.get_vocab() == policy.tokenizer.get_vocab()


def test_the_committed_decision_to_go_on_is_rare_and_ahead_of_everything_else(policy) -> None:
    """After bare answers, right and wrong. Measured on 180: 176 are held within 1 nat of -10 (quantiles 0.05 and 0.95:
    -10.3 and -9.6), and 7 nats ahead; four wrong answers, which the model would hardly end there, are not."""
    (decision,) = policy.tokenizer("}.\n\n")["input_ids"]
    cycle = replace(CYCLES[2], rethinking_share=1.0, weights=(), levels=LEVELS)
    (batch,) = TraceBatches(policy.processor, PretrainSettings(seed=99, batch_size=36)).step(cycle)
    with torch.no_grad():
        hidden = policy.model.model(
            input_ids=batch["input_ids"],
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
            position_ids=positions(policy.model, batch),
        ).last_hidden_state
        logits = policy.model.lm_head(hidden[:, :-1][batch["decisions"][:, 1:]])
    logprobs = logits.log_softmax(-1)
    others = torch.ones(logprobs.shape[-1], dtype=torch.bool)
    others[decision] = False
    others[batch["answer_ids"]] = False
    assert ((logprobs[:, decision] + 10).abs() < 1).float().mean() > 0.9
    assert (logprobs[:, decision] - logprobs[:, others].max(-1).values > 5).float().mean() > 0.9


def greedy(policy, puzzles, images: list[str]) -> list[str]:
    """Greedy responses to the questions of ``puzzles``, asked about ``images`` (paths)."""
    requests = [
        Request(str(index), puzzle_query(puzzle, str(index), image), seed=0)
        for index, (puzzle, image) in enumerate(zip(puzzles, images, strict=True))
    ]
    responses = TransformersEngine(policy).generate(requests, Sampling(temperature=0.0, max_new_tokens=100))
    return [responses[request.request_id][0].text for request in requests]


def test_a_blind_model_cannot_answer(policy, tmp_path: Path) -> None:
    """Every question is asked about its own image and about that of another query with the very same question.

    Chance is the share of queries whose answer the other image has as well. With true accuracies of 0.40 and 0.12 on
    200 queries or more the difference has a standard error of 0.04: below 0.15 it would fall by accident once in 1,000
    draws of fresh queries. Seed and decoding are fixed, so that on one checkpoint the outcome is always the same.
    """
    rng = random.Random("blind test")
    by_question = defaultdict(list)
    for index in range(306):
        cell = index % (len(KINDS) * len(LEVELS))
        puzzle = make_puzzle(KINDS[cell // len(LEVELS)], LEVELS[cell % len(LEVELS)], rng)
        by_question[puzzle.question, puzzle.level].append(puzzle)
    groups = [group for group in by_question.values() if len(group) > 1]
    puzzles = [puzzle for group in groups for puzzle in group]
    others = [other for group in groups for other in group[1:] + group[:1]]
    size = len(puzzles)
    assert size > 200
    assert {puzzle.kind for puzzle in puzzles} == set(KINDS)

    def accuracy(shown) -> float:
        paths = []
        for puzzle in shown:
            paths.append(str(tmp_path / f"{puzzle.key}.png"))
            puzzle.image.save(paths[-1])
        texts = greedy(policy, puzzles, paths)
        return sum(grade(text, puzzle.answer).correct for text, puzzle in zip(texts, puzzles, strict=True)) / size

    own, blind = accuracy(puzzles), accuracy(others)
    chance = sum(puzzle.answer == other.answer for puzzle, other in zip(puzzles, others, strict=True)) / size
    assert own > 0.3
    assert own - blind > 0.15
    assert blind < chance + 0.08
