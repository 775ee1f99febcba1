"""One optimiser update: its parts, its denominators, and its gradient against an independent computation."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from bounds import EXACT, in_float64
from tiny_training import SMALL, logprobs_now, random_samples, restore, same, tiny_policy, weights

from rethinker.config import load_config
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.rundir.glossary import STEP
from rethinker.types import Response
from rethinker.update import PolicyUpdate, pack

pytestmark = pytest.mark.numerics


class Gradients(torch.optim.SGD):
    """Keeps the gradient that it is given and leaves the weights alone."""

    def step(self, closure: Any = None) -> None:
        del closure
        self.found = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]


@pytest.fixture(scope="module", autouse=True)
def float64():
    """Every gradient here is compared with one that is computed in another way: the order of sums must not matter."""
    with in_float64():
        yield


@pytest.fixture(scope="module")
def policy(tiny_folder, float64):
    return double_policy(tiny_folder)


def double_policy(folder):
    policy = tiny_policy(folder)
    policy.model.double()
    return policy


@pytest.fixture
def samples(policy, queries):
    return random_samples(policy, queries, 10)


@pytest.fixture
def text_samples(policy, queries):
    """Text-only, so that Hugging Face's own forward is the independent source."""
    return random_samples(policy, queries[:1], 4, seed=1)


class Rank:
    """One of several ranks, alone. It gathers ``others``, its own rows if there are none; ``own`` has those."""

    device = torch.device("cpu")

    def __init__(self, process_index: int, num_processes: int, others: torch.Tensor | None = None) -> None:
        self.process_index, self.num_processes, self.others = process_index, num_processes, others

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        self.own = own
        return own if self.others is None else self.others

    def no_sync(self, model: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
        del model
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: Any, norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, norm)


def make_update(policy, *overrides, reference=None, accelerator=None):
    """An update that leaves the weights alone, and the optimiser that keeps its gradient."""
    config = load_config(None, [*SMALL, "optim.max_grad_norm=1e9", *overrides])
    optimizer = Gradients(policy.model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    forward = PolicyForward(policy.model, policy.encoder)
    accelerator = accelerator or Accelerator(cpu=True)
    return PolicyUpdate(config, policy, forward, optimizer, scheduler, accelerator, reference), optimizer


def flat(optimizer: Gradients) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in optimizer.found])


def run(policy, batch, *overrides, reference=None, accelerator=None):
    """The gradient of a step as one vector, and the step's metrics."""
    update, optimizer = make_update(policy, *overrides, reference=reference, accelerator=accelerator)
    metrics = update(batch)
    assert set(metrics) == set(STEP)
    return flat(optimizer), metrics


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# -- parts of a batch -------------------------------------------------------------------------------------------------


def test_the_update_reads_a_query_together(policy, samples, monkeypatch):
    """Ten samples of five queries, two of each, in the order of the queries' first samples."""
    seen: list[list[str]] = []

    def spy(policy, forward, items, **options):
        seen.append([query.qid for query, _ in items])
        return token_logprobs(policy, forward, items, **options)

    monkeypatch.setattr("rethinker.update.token_logprobs", spy)
    run(policy, samples, "optim.micro_batch_tokens=120")
    names = [sample.query.qid for sample in samples[:5]]
    assert [name for part in seen for name in part] == [name for name in names for _ in range(2)]
    assert 2 < len(seen) < 10


def test_a_sample_without_tokens_counts_in_the_denominator_only(policy, samples):
    empty = replace(
        samples[0], sample_id="1/q/empty", response=Response((), (), False, ""), sampled_mask=(), advantage=0.0
    )
    empty = replace(empty, behavior_logprobs=())
    without, _ = run(policy, samples, "optim.micro_batch_tokens=120")
    found, metrics = run(policy, [empty, *samples], "optim.micro_batch_tokens=120")
    assert metrics["batch/samples"] == 11.0 and distance(found, without * 10 / 11) < EXACT


def test_pack_pads_and_names_a_sample_of_other_length(samples):
    lengths = [len(sample.response.token_ids) for sample in samples[:2]]
    now = torch.randn(2, max(lengths), requires_grad=True)
    packed = pack([replace(samples[0], nll_mask=(True,) * lengths[0]), samples[1]], now)
    assert packed.sampled_BT.sum(1).tolist() == lengths and packed.nll_BT.sum(1).tolist() == [lengths[0], 0]
    assert packed.behavior_logprobs_BT.shape == (2, max(lengths))
    assert packed.behavior_logprobs_BT[1, : lengths[1]].tolist() == pytest.approx(samples[1].behavior_logprobs)
    assert packed.advantages_B.tolist() == pytest.approx([s.advantage for s in samples[:2]])
    with pytest.raises(ValueError, match=r"sample 1/q/0: behavior_logprobs has 0 entries for"):
        pack([replace(samples[0], behavior_logprobs=())], now[:1])
    own = pack([replace(sample, behavior_logprobs=()) for sample in samples[:2]], now, on_policy=True)
    assert torch.equal(own.behavior_logprobs_BT, now) and not own.behavior_logprobs_BT.requires_grad


# -- accumulation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregation", "nll_scale"),
    [("sequence_mean", "kept"), ("sequence_mean", "batch"), ("token_mean", "batch"), ("constant", "batch")],
)
def test_micro_batches_add_up_to_one_batch(policy, tiny_folder, samples, aggregation, nll_scale):
    """Images and text-only, replayed, forced tokens, NLL, entropy and KL together."""
    length = len(samples[2].response.token_ids)
    mask = (False, *(True,) * (length - 1))
    samples[2] = replace(samples[2], nll_mask=mask, sampled_mask=mask)
    samples[7] = replace(samples[7], nll_mask=(True,) * len(samples[7].response.token_ids))
    samples.append(replace(samples[0], replayed=True))
    reference = PolicyForward(double_policy(tiny_folder).model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.9)
    options = [f"grpo.aggregation={aggregation}", "grpo.entropy_coef=0.1", "grpo.kl_coef=0.1"]
    options += [f"rethink.nll_scale={nll_scale}", "rethink.nll_coef=0.5"]
    whole, one = run(policy, samples, *options, reference=reference)
    for other in (
        ("optim.micro_batch_tokens=120",),
        ("optim.micro_batch_tokens=1",),  # a sample a pass
        ("model.forward=plain",),
        ("model.forward=plain", "optim.micro_batch_tokens=120"),
    ):
        parts, several = run(policy, samples, *options, *other, reference=reference)
        assert distance(parts, whole) < EXACT, other
        for name, value in one.items():
            if name != "batch/images":  # an image is read once per micro-batch
                assert several[name] == pytest.approx(value, rel=EXACT, abs=EXACT), (other, name)
    assert one["loss/nll"] is not None and one["loss/kl"] is not None and one["policy/clip_fraction"]
    assert (one["batch/samples"], one["batch/replayed"], one["batch/images"]) == (11.0, 1.0, 4.0)


@pytest.mark.parametrize("nll_scale", ["kept", "batch"])
@pytest.mark.parametrize(("ranks", "budget"), [(2, 1), (3, 16384), (12, 16384)])
def test_ranks_add_up_to_one(policy, samples, ranks, budget, nll_scale):
    """The mean over ranks of what each backpropagates is the gradient of one rank; twelve ranks have ten samples."""
    for index in (2, 7):
        samples[index] = replace(samples[index], nll_mask=(True,) * len(samples[index].response.token_ids))
    samples.append(replace(samples[0], replayed=True))
    options = [f"optim.micro_batch_tokens={budget}", "grpo.entropy_coef=0.1"]
    options += [f"rethink.nll_scale={nll_scale}", "rethink.nll_coef=0.5"]
    single = Rank(0, 1)
    whole, one = run(policy, samples, *options, accelerator=single)
    parts, rows = [], []
    for rank in range(ranks):
        update, optimizer = make_update(policy, *options, accelerator=Rank(rank, ranks, single.own))
        update(samples)
        parts.append(flat(optimizer))
        rows.append(update.accelerator.own)
    _, several = run(policy, samples, *options, accelerator=Rank(0, ranks, torch.cat(rows)))
    for name, value in one.items():
        if name not in ("batch/images", "policy/grad_norm"):  # images are read again; a rank alone has its own norm
            assert several[name] == (value and pytest.approx(value, rel=EXACT, abs=EXACT)), name
    assert distance(torch.stack(parts).mean(0), whole) < EXACT


def test_on_policy_is_the_gradient_at_the_behaviour_policy(policy, samples):
    """With the update's own log-probs the ratio is 1, and they are those that a separate pass gives."""
    fresh = [
        replace(sample, behavior_logprobs=tuple(logprobs_now(policy, sample)), sample_id=f"1/q/{index}")
        for index, sample in enumerate(samples)
    ]
    expected, _ = run(policy, fresh)
    without = [replace(sample, behavior_logprobs=()) for sample in fresh]
    update, optimizer = make_update(policy, "optim.micro_batch_tokens=120")
    metrics = update(without, on_policy=True)
    assert distance(flat(optimizer), expected) < EXACT
    assert metrics["policy/ratio_mean"] == metrics["policy/ratio_max"] == 1.0
    assert update.scored.keys() == {sample.sample_id for sample in samples}
    for sample in fresh:
        assert update.scored[sample.sample_id] == pytest.approx(sample.behavior_logprobs, rel=EXACT)


# -- against an independent computation -------------------------------------------------------------------------------


def plain_logprobs(policy, sample):
    """log pi(token) and entropies by Hugging Face's forward of a text-only prompt, with its graph."""
    prompt, response = policy.prompt(sample.query).ids, sample.response.token_ids
    logits = policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    logits[:, list(policy.banned_ids)] = float("-inf")
    logprobs = torch.log_softmax(logits, -1)
    entropies = torch.distributions.Categorical(logits=logits.masked_fill(logits.isinf(), -1e30)).entropy()
    return logprobs.gather(1, torch.tensor(response)[:, None])[:, 0], entropies


def gradient_of(policy, value) -> torch.Tensor:
    gradients = torch.autograd.grad(value, list(policy.model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


def mean_over(policy, samples, term):
    """Mean over samples of the mean over their tokens of ``term(sample, logprobs, entropies)``."""
    return sum(term(s, *plain_logprobs(policy, s)).mean() for s in samples) / len(samples)


def test_policy_gradient(policy, text_samples):
    """-mean A min(rho, clip) with weights min(exp(trainer - engine), 2)."""

    def term(sample, logprobs, _):
        behavior, rollout = (
            torch.tensor(x, dtype=torch.float64) for x in (sample.behavior_logprobs, sample.rollout_logprobs)
        )
        ratio = (logprobs - behavior).exp()
        gain = torch.minimum(ratio * sample.advantage, ratio.clamp(0.8, 1.35) * sample.advantage)
        return -gain * (behavior - rollout).exp().clamp(max=2.0)

    found, metrics = run(policy, text_samples)
    expected = mean_over(policy, text_samples, term)
    assert metrics["loss/total"] == pytest.approx(float(expected.detach()), rel=EXACT)
    assert distance(found, gradient_of(policy, expected)) < EXACT


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_changes_the_gradient_by_its_own(policy, tiny_folder, text_samples, estimator):
    other = double_policy(tiny_folder)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(0.9)
    targets = {s.sample_id: plain_logprobs(other, s)[0].detach() for s in text_samples}

    def term(sample, logprobs, _):
        d = logprobs - targets[sample.sample_id]
        return {"k1": d, "k2": 0.5 * d**2, "k3": torch.expm1(-d) + d}[estimator]

    with_kl, metrics = run(
        policy,
        text_samples,
        "grpo.kl_coef=0.5",
        f"grpo.kl_estimator={estimator}",
        reference=PolicyForward(other.model.requires_grad_(False)),
    )
    without, plain = run(policy, text_samples)
    expected = mean_over(policy, text_samples, term)
    assert metrics["loss/kl"] == pytest.approx(float(expected.detach()), rel=EXACT) and plain["loss/kl"] is None
    assert distance(with_kl - without, 0.5 * gradient_of(policy, expected)) < EXACT


def test_entropy_bonus_changes_the_gradient_by_its_own(policy, text_samples):
    with_bonus, metrics = run(policy, text_samples, "grpo.entropy_coef=0.5")
    without, _ = run(policy, text_samples)
    expected = mean_over(policy, text_samples, lambda sample, logprobs, entropies: entropies)
    tokens = [e for s in text_samples for e in plain_logprobs(policy, s)[1].tolist()]
    assert metrics["policy/entropy"] == pytest.approx(sum(tokens) / len(tokens), rel=EXACT)
    assert distance(with_bonus - without, -0.5 * gradient_of(policy, expected)) < EXACT


@pytest.mark.parametrize("scale", ["kept", "batch"])
def test_nll_is_over_its_mask_only(policy, text_samples, scale):
    """Two of four samples were kept: the mean over their tokens, or half of the mean over samples of theirs."""
    lengths = [len(sample.response.token_ids) for sample in text_samples]
    mask = (False, *(True,) * (lengths[0] - 1))
    batch = [replace(text_samples[0], nll_mask=mask), *text_samples[1:]]
    batch[1] = replace(batch[1], nll_mask=(True,) * lengths[1])
    with_nll, metrics = run(policy, batch, "rethink.nll_coef=0.5", f"rethink.nll_scale={scale}")
    without, plain = run(policy, batch, "rethink.nll_coef=0")
    terms = [-plain_logprobs(policy, batch[0])[0][1:], -plain_logprobs(policy, batch[1])[0]]
    expected = torch.cat(terms).mean() if scale == "kept" else (terms[0].mean() + terms[1].mean()) / 4
    assert metrics["loss/nll"] == pytest.approx(float(expected.detach()), rel=EXACT)
    assert distance(with_nll - without, 0.5 * gradient_of(policy, expected)) < EXACT
    # Weights of a token: of the NLL 0.5 / covered or 0.5 * 2 / 4 / covered, of the policy 1 / tokens, on average.
    covered = sum(map(len, terms))
    share = 0.5 if scale == "kept" else 0.25
    assert metrics["loss/nll_weight"] == pytest.approx(share / covered * sum(lengths), rel=EXACT)
    assert plain["loss/nll"] is None and plain["loss/nll_weight"] is None


@pytest.mark.parametrize("forced_tokens", ["on_policy", "behavior", "mask"])
def test_forced_tokens(policy, text_samples, forced_tokens):
    """The first two tokens of every sample were forced; no clipping, no importance weights."""
    options = [
        "grpo.clip_low=50",
        "grpo.clip_high=50",
        "grpo.importance_cap=null",
        f"rethink.forced_tokens={forced_tokens}",
    ]
    batch = [replace(s, sampled_mask=(False, False, *(True,) * (len(s.response.token_ids) - 2))) for s in text_samples]

    def term(sample, logprobs, _):
        behavior = torch.tensor(sample.behavior_logprobs, dtype=torch.float64)
        if forced_tokens == "mask":
            return -(sample.advantage * (logprobs - behavior).exp())[2:]
        if forced_tokens == "on_policy":
            behavior = torch.cat([logprobs[:2].detach(), behavior[2:]])
        return -(sample.advantage * (logprobs - behavior).exp())

    found, _ = run(policy, batch, *options)
    assert distance(found, gradient_of(policy, mean_over(policy, batch, term))) < EXACT


@pytest.mark.parametrize("forced_tokens", ["on_policy", "behavior", "mask"])
def test_token_mean_counts_the_tokens_that_carry_loss(policy, text_samples, forced_tokens):
    options = ["grpo.aggregation=token_mean", f"rethink.forced_tokens={forced_tokens}"]
    half = [replace(s, sampled_mask=(False, *s.sampled_mask[1:])) for s in text_samples]
    whole, _ = run(policy, half, *options)
    parts, _ = run(policy, half, *options, "optim.micro_batch_tokens=1")
    assert distance(parts, whole) < EXACT


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_leaves_the_weights(policy, samples):
    saved = weights(policy)
    parameter = next(p for p in policy.model.parameters() if p.ndim > 1)
    hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
    config = load_config(None, list(SMALL))
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    update = PolicyUpdate(config, policy, PolicyForward(policy.model), optimizer, scheduler, Accelerator(cpu=True))
    try:
        with pytest.raises(
            FloatingPointError, match=r"gradient is not finite .* batch of 10 samples starting with 1/q/0"
        ):
            update(samples)
    finally:
        hook.remove()
    assert same(saved, weights(policy))
    assert all(p.grad is None for p in policy.model.parameters()) and not optimizer.state
    update(samples)  # and the next step is as if nothing had been
    assert not same(saved, weights(policy))
    restore(policy, saved)


def test_a_loss_that_is_not_finite_names_the_step(policy, samples):
    samples[3] = replace(samples[3], behavior_logprobs=(float("nan"),) * len(samples[3].behavior_logprobs))
    with pytest.raises(FloatingPointError, match="the step whose first sample is 1/q/0"):
        run(policy, samples)
