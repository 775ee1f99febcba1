"""The vision tower: each distinct image once per forward pass, and once per episode where it is not trained."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from bounds import EXACT, in_float64
from tiny_qwen3 import tiny_qwen3

from rethinker.config import ConfigError, ModelConfig
from rethinker.policy import attention, loading
from rethinker.policy.forward import PolicyForward, token_logprobs
from rethinker.policy.loading import load_policy
from rethinker.policy.vision import ImageEncoder, Vision, blank_image, gather_images

pytestmark = pytest.mark.numerics

FAMILIES = ["qwen2.5", "qwen3"]


@pytest.fixture(scope="module", autouse=True)
def float64():
    """Features are compared with those of other batches: the order of sums must not matter."""
    with in_float64():
        yield


@pytest.fixture(scope="module")
def policies(tiny_folder, float64):
    small = load_policy(ModelConfig(path=str(tiny_folder)))
    found = {"qwen2.5": small, "qwen3": tiny_qwen3(small)}
    for policy in found.values():
        policy.model.double()
    return found


@pytest.fixture(params=FAMILIES)
def policy(policies, request):
    """The tower is trained; ``frozen`` freezes it."""
    policy = policies[request.param]
    policy.model.requires_grad_(True)
    return policy


@pytest.fixture
def frozen(policy):
    policy.model.model.visual.requires_grad_(False)
    return policy


@pytest.fixture
def towers(policy, monkeypatch):
    """Images a call of the real tower, whatever the encoder counts."""
    seen: list[int] = []
    forward = policy.model.model.visual.forward

    def counting(*args, **kwargs):
        seen.append(len(kwargs["grid_thw"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy.model.model.visual, "forward", counting)
    return seen


def parts(features) -> list[torch.Tensor]:
    return [*features.pooler_output, *(part for layer in features.deepstack_features for part in layer)]


def one_by_one(policy, vision: Vision) -> list[torch.Tensor]:
    """What the model's own ``get_image_features`` gives for each shown image alone, DeepStack layers after the rest."""
    pixels = vision.pixels.split(vision.grid_thw.prod(-1).tolist())
    with torch.no_grad():
        outputs = [
            policy.model.model.get_image_features(pixels[index], vision.grid_thw[index : index + 1], return_dict=True)
            for index in vision.order
        ]
    pooled = [output.pooler_output[0] for output in outputs]
    layers = [output.deepstack_features for output in outputs if "deepstack_features" in output]
    return [*pooled, *(layer[depth][0] for depth in range(2) for layer in layers)]


def test_images_in_reading_order(policies, queries):
    """Five images are shown, "a" twice: 64 patches, 64, 72, 32."""
    vision = gather_images(policies["qwen2.5"].images, queries)
    a, b, c, d = queries[1].images + queries[2].images + queries[3].images
    assert vision.paths == (a, b, c, d) and vision.order == (0, 1, 2, 3, 0)
    assert vision.grid_thw.tolist() == [[1, 8, 8], [1, 8, 8], [1, 6, 12], [1, 8, 4]]
    assert len(vision.pixels) == 64 + 64 + 72 + 32
    assert gather_images(policies["qwen2.5"].images, queries[:1]) == Vision()
    assert Vision().to(torch.device("meta")) == Vision()


def test_features_are_those_of_the_model(policy, queries, towers):
    encoder = ImageEncoder(policy.model)
    vision = gather_images(policy.images, queries)
    features = encoder(vision)
    assert towers == [4] and encoder.encoded == 4 and encoder.trained
    deep = 2 if policy.model.config.model_type == "qwen3_vl" else 0
    assert len(features.pooler_output) == 5 and list(map(len, features.deepstack_features)) == [5] * deep
    for found, expected in zip(parts(features), one_by_one(policy, vision), strict=True):
        torch.testing.assert_close(found, expected, atol=EXACT, rtol=0)
    assert encoder(Vision()) is None and encoder.encoded == 4


def test_a_trained_tower_runs_in_every_forward_pass(policy, queries, towers):
    encoder = ImageEncoder(policy.model)
    vision = gather_images(policy.images, queries)
    for _ in range(3):
        assert all(part.requires_grad for part in parts(encoder(vision)))
    assert towers == [4, 4, 4] and encoder.encoded == 12


def test_a_frozen_tower_keeps_what_autocast_computes_apart(frozen, queries, monkeypatch):
    """The transformers engine generates without it; a sample's log-probs must not depend on who asked first."""
    encoder, vision, seen = ImageEncoder(frozen.model), gather_images(frozen.images, queries), []
    encode = encoder.family.encode

    def watched(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return encode(*args)

    monkeypatch.setattr(type(encoder.family), "encode", lambda self, *args: watched(*args))
    for enabled in (False, True, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            encoder(vision)
    assert seen == [False, True] and encoder.encoded == 8


def test_a_frozen_tower_encodes_an_image_once(frozen, queries, towers):
    """Until ``forget``, whichever images come together."""
    encoder = ImageEncoder(frozen.model)
    assert not encoder.trained
    for shown, new in ((queries[:2], [1]), (queries[:3], [2]), (queries, [1]), (queries[::-1], [])):
        vision = gather_images(frozen.images, shown)
        found = parts(encoder(vision))
        for part, expected in zip(found, one_by_one(frozen, vision), strict=True):
            torch.testing.assert_close(part, expected, atol=EXACT, rtol=0)
        assert not any(part.requires_grad for part in found)
        del towers[len(towers) - len(vision.order) :]  # one_by_one's own
        assert towers == new
        towers.clear()
    assert encoder.encoded == 4
    encoder.forget()
    encoder(gather_images(frozen.images, queries))
    assert towers == [4] and encoder.encoded == 8


def test_weights_that_change_are_seen_after_forget(frozen, queries):
    encoder = ImageEncoder(copy.deepcopy(frozen.model))
    vision = gather_images(frozen.images, queries)
    old = parts(encoder(vision))
    with torch.no_grad():
        for parameter in encoder.model.model.visual.parameters():
            parameter.mul_(1.1)
    assert all(torch.equal(one, other) for one, other in zip(parts(encoder(vision)), old, strict=True))
    encoder.forget()
    assert not any(torch.equal(one, other) for one, other in zip(parts(encoder(vision)), old, strict=True))


@pytest.mark.parametrize("room", [0, 1, 2])
def test_the_cache_is_bounded(frozen, queries, image_files, room):
    """``room`` images of 16 tokens fit, the newest is always kept; a pass gets all of its own in any case."""
    vision = gather_images(frozen.images, queries[1:2])
    size = sum(part.nbytes for part in parts(ImageEncoder(frozen.model)(vision)))
    encoder = ImageEncoder(frozen.model, capacity=room * size)
    three = [dataclasses.replace(queries[1], images=(image_files[index],)) for index in (0, 1, 4)]  # of one size
    show = {name: gather_images(frozen.images, [query]) for name, query in zip("abc", three, strict=True)}
    everything = gather_images(frozen.images, three)
    assert len(encoder(everything).pooler_output) == 3 and encoder.encoded == 3
    held = max(room, 1)  # the last ones of "a", "b", "c"
    for name in "abc"[3 - held :]:
        encoder(show[name])
    assert encoder.encoded == 3
    encoder(show["a"])
    assert encoder.encoded == 4
    encoder(show["a"])
    assert encoder.encoded == 4
    encoder(show["b"])  # the least recently used one has left
    assert encoder.encoded == 5


def test_held_features_do_not_keep_their_batch_alive(frozen, queries):
    encoder = ImageEncoder(frozen.model)
    features = encoder(gather_images(frozen.images, queries))
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in features.pooler_output)


def test_a_blank_image_fits_the_tower(policy, towers):
    encoder = ImageEncoder(policy.model)
    features = encoder(blank_image(policy.family, policy.processor))
    assert towers == [1] and features.pooler_output[0].shape[0] == 1
    zero = features.zero()
    assert float(zero.detach()) == 0.0 and zero.requires_grad


def test_gradients_of_lora_do_not_depend_on_the_cache(tiny_folder, queries):
    """Two passes with the same adapters: the second reads the held features."""
    policy = load_policy(ModelConfig(path=str(tiny_folder), lora_rank=4))
    policy.model.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # lora_B starts at zero
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    items = [(query, (5, 6, 7 + index)) for index, query in enumerate(queries)]
    held = PolicyForward(policy.model, policy.encoder)
    results = []
    for forward, encoded in ((held, 4), (held, 4), (PolicyForward(policy.model), 4)):
        policy.model.zero_grad()
        logprobs, _, _ = token_logprobs(policy, forward, items)
        logprobs.sum().backward()
        assert forward.encoder.encoded == encoded
        gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])
        results.append((logprobs.detach(), gradient))
    for logprobs, gradient in results[:2]:
        torch.testing.assert_close(logprobs, results[2][0], atol=EXACT, rtol=0)
        assert (gradient - results[2][1]).norm() < EXACT * results[2][1].norm()


# -- the attention of the tower ---------------------------------------------------------------------------------------


def test_flash_attention_is_refused_where_it_cannot_run(tiny_folder, monkeypatch):
    config = ModelConfig(path=str(tiny_folder), dtype="bfloat16", vision_attention="flash_attention_2")
    monkeypatch.setattr(loading, "check_bfloat16", lambda *_: None)  # whatever this processor has
    with pytest.raises(
        ConfigError, match=r"vision_attention='flash_attention_2' needs a GPU, and the policy is on cpu"
    ):
        load_policy(config)
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: False)
    with pytest.raises(ConfigError, match=r"needs the package flash-attn .*; or set model.vision_attention=sdpa"):
        load_policy(config, "cuda")


def test_the_attention_of_the_tower_is_its_own(tiny_folder, queries, monkeypatch):
    """In FlashAttention's place "eager", which runs everywhere: it reaches the tower and nothing else."""
    monkeypatch.setattr(loading, "_check_flash_attention", lambda *_: None)
    policies = [
        load_policy(ModelConfig(path=str(tiny_folder), vision_attention=name))  # type: ignore[arg-type]
        for name in ("sdpa", "eager")
    ]
    found = []
    for policy in policies:
        policy.model.double()
        core = policy.model.model
        found.append((core.visual.config._attn_implementation, core.language_model.config._attn_implementation))
    assert found == [("sdpa", attention.NAME), ("eager", attention.NAME)]
    vision = gather_images(policies[0].images, queries)
    with torch.no_grad():
        one, other = (torch.cat(ImageEncoder(policy.model)(vision).pooler_output) for policy in policies)
    assert (one - other).norm() < torch.finfo(torch.float32).eps * one.norm()  # the softmax of "eager" is float32
