"""Rollouts by vLLM in the trainer's own process (vllm is imported only when an engine is made).

Checked with vLLM 0.32: multiprocessing is off, so that weights go from the trainer to the engine as tensors; after
every synchronisation the prefix and encoder caches are reset (without the latter the next known image ends the engine).
Log-probs are vLLM's *processed* ones: those of the distribution that was sampled.

vLLM gets finished inputs: the trainer's prompt ids and the pixels of its image store, under the image's path as their
id. So an image is read and preprocessed once for trainer and engine, vLLM neither hashes nor processes any, and both
see the same prompt by construction. Responses of a group share the whole blocks of their prompt's KV cache, and a
continuation those of the response that it continues.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from rethinker.config.schema import ConfigError
from rethinker.policy.cpu import check_bfloat16, missing_for_vllm
from rethinker.policy.policy import Policy
from rethinker.policy.sharding import full_weights
from rethinker.policy.weights import save_weights
from rethinker.processes import warn_of_nondeterminism
from rethinker.rollout.base import Arrived
from rethinker.rollout.requests import check_requests, token_budget
from rethinker.rollout.vllm_inputs import VllmInputs, vllm_seed
from rethinker.rollout.vllm_setup import check_attention, engine_arguments, unchanged_process
from rethinker.types import Request, Response, Sampling

PIXEL_BYTES = 2**32  # pixels of unfinished requests, about: as much as the image store keeps
BAN = -100.0  # vLLM's lowest logit bias: a probability of about 1e-43


def vllm_available() -> bool:
    """Whether vLLM is installed, and its build runs on this processor."""
    return importlib.util.find_spec("vllm") is not None and missing_for_vllm() is None


class VllmEngine:
    """vLLM with the policy's weights, in this process.

    ``path``: the checkpoint the engine starts from (its weights are replaced at the first ``sync_weights``). The device
    is the policy's. ``max_images``: images per prompt. ``max_prompt``: tokens of the longest prompt; there is room for
    ``TEXT_TOKENS`` beside the largest images in any case. ``max_new_tokens``: the longest response that will be asked
    for.
    ``dtype``: of weights and KV cache; the policy's weights are cast where theirs is another.
    Each of several accelerate processes has an engine of its own, on GPUs on the device of its LOCAL_RANK (after
    vLLM's documentation and source; not run by us on more than one GPU).

    Raises ImportError where vLLM is not installed, ConfigError where this processor cannot run it, ValueError for a
    ``tensor_parallel_size`` above 1 in several processes.

    The caller's torch threads and random states are as before after the constructor, which vLLM would change. Objects
    that live by then are out of the garbage collector's sight until ``close`` (``gc.freeze``: vLLM's doing, and ours).
    """

    def __init__(
        self,
        policy: Policy,
        path: str | Path,
        *,
        max_new_tokens: int,
        dtype: str = "float32",
        gpu_memory_utilization: float = 0.5,
        tensor_parallel_size: int = 1,
        max_images: int = 8,
        max_prompt: int = 0,
    ) -> None:
        if missing_for_vllm():
            raise ConfigError(
                f"rollout.engine=vllm needs a processor with {missing_for_vllm()}: set rollout.engine=transformers"
            )
        check_attention(policy, gpu=policy.device.type != "cpu", engine="vllm")
        if not vllm_available():
            raise ImportError(
                "rollout.engine=vllm, but vLLM is not installed; install the extra (pip install 'rethinker[cpu]' or "
                "'rethinker[gpu]'), or set rollout.engine=transformers"
            )
        if dtype == "bfloat16" and policy.device.type == "cpu":
            check_bfloat16("a bfloat16 engine (rollout.dtype)")
        self.policy = policy
        self.max_images = max_images
        self._parallel = tensor_parallel_size > 1
        self._gpu = policy.device.type == "cuda"
        self._asleep = False
        self._shared_group = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._bias = dict.fromkeys(policy.banned_ids, BAN)
        # Read when the engine is made. In process, or weights could not be handed over as tensors; threads unbound,
        # or two engines of two processes would share a core.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        arguments = engine_arguments(
            policy,
            gpu=self._gpu,
            dtype=dtype,
            max_images=max_images,
            max_prompt=max_prompt,
            max_new_tokens=max_new_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
        )
        with unchanged_process():
            from vllm import LLM

            # vLLM does so itself at the end of its start; its five full collections before that took 2 of 3 s.
            gc.freeze()
            self._llm: Any = LLM(str(path), enable_sleep_mode=self._gpu, **arguments)
        if self._shared_group:
            # vLLM's shutdown, also when the engine is garbage, destroys the default process group: here the trainer's.
            self._llm.llm_engine.engine_core._finalizer.detach()
        self.max_model_len = int(self._llm.llm_engine.model_config.max_model_len)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> Mapping[str, tuple[Response, ...]]:
        """See RolloutEngine. vLLM holds the pixels of what it was given: requests wait where those of unfinished ones
        take ``PIXEL_BYTES``.

        Raises ValueError for a prompt that is too long or has too many images, RuntimeError after ``sleep`` without
        ``sync_weights``.
        """
        check_requests(requests, sampling)
        if self._asleep:
            raise RuntimeError("the engine sleeps, and its weights are gone: call sync_weights before generate")
        engine, by_id = self._llm.llm_engine, {request.request_id: request for request in requests}
        done: dict[str, tuple[Response, ...]] = {}
        waiting, inputs = deque(requests), VllmInputs(self.policy, self.max_images, self.max_model_len)
        with self._uncompiled(), warn_of_nondeterminism():
            try:
                while waiting or engine.has_unfinished_requests():
                    while waiting and inputs.bytes < PIXEL_BYTES:
                        request = waiting.popleft()
                        prompt = inputs.make(request, sampling)
                        engine.add_request(request.request_id, prompt, self._parameters(request, sampling))
                    finished = [output for output in engine.step() if output.finished]
                    batch = {
                        item.request_id: self._responses(by_id[item.request_id], sampling, item) for item in finished
                    }
                    for name in batch:
                        inputs.release(name)
                    done |= batch
                    if arrived and batch:
                        arrived(batch)
            except BaseException:  # nothing may stay behind for the next call
                engine.abort_request([request.request_id for request in requests])
                raise
        return {request.request_id: done[request.request_id] for request in requests}

    def _parameters(self, request: Request, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=request.n if sampling.temperature > 0 else 1,  # vLLM takes no n above 1 for greedy sampling
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
            max_tokens=token_budget(request, sampling),
            seed=vllm_seed(request),
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,
            logit_bias=self._bias,
            stop_token_ids=list(self.policy.eos_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _uncompiled(self) -> AbstractContextManager[Any]:
        """On a CPU: without torch.compile, which vLLM uses even in eager mode for the ranks of log-probs (not read
        here): its C++ would be compiled in the first call, for 3 s and more."""
        return nullcontext() if self._gpu else torch.compiler.set_stance("force_eager")

    def _responses(self, request: Request, sampling: Sampling, output: Any) -> tuple[Response, ...]:
        outputs = sorted(output.outputs, key=lambda item: item.index)
        found = [(tuple(item.token_ids), tuple(map(float, item.logprobs.logprobs))) for item in outputs]
        return to_responses(self.policy, request, sampling, found)

    @torch.no_grad()
    def sync_weights(self, model: Any) -> None:
        """Load the weights of ``model`` (LoRA merged), wake up, and reset the prefix and encoder caches.

        Pixels do not depend on weights: what the image store holds stays. Raises RuntimeError if vLLM still runs
        requests, whose KV cache would be that of the old weights.
        """
        wake = self._gpu and self._asleep
        if wake:  # the KV cache has to wait: there may be no room for both beside what loading needs
            self._llm.wake_up(tags=["weights"])
        if self._parallel:  # the workers are other processes: tensors cannot be handed over
            with tempfile.TemporaryDirectory() as folder:
                save_weights(folder, model)
                self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": full_weights(model)})
        if wake:
            self._llm.wake_up(tags=["kv_cache"])
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept the KV cache of the old weights: requests are still running")
        self._llm.llm_engine.reset_encoder_cache()
        self._asleep = False

    def sleep(self) -> None:
        """Free the memory of weights and KV cache on a GPU; ``generate`` needs ``sync_weights`` first, on any device.

        Level 2 of vLLM's sleep mode: the weights are dropped, since the next use follows an update of the trainer's
        (after vLLM's documentation of weight updates with it; the order of the calls is tested, but no GPU was there to
        run it on). On a CPU nothing is freed.
        """
        if not self._asleep:
            if self._gpu:
                self._llm.sleep(level=2)
            self._asleep = True

    def close(self) -> None:
        """Shut the engine down. A process group that was there before the engine stays."""
        if self._llm is not None:
            core = self._llm.llm_engine.engine_core
            (core.engine_core.model_executor if self._shared_group else core).shutdown()
            self._llm = None
            gc.unfreeze()
            gc.collect()
            if self._gpu:
                torch.cuda.empty_cache()


def to_responses(
    policy: Policy,
    request: Request,
    sampling: Sampling,
    found: Sequence[tuple[tuple[int, ...], tuple[float, ...]]],
) -> tuple[Response, ...]:
    """The responses to ``request`` from the (token ids, log-probs) that vLLM gave, in its order; a greedy one counts
    ``request.n`` times. Raises RuntimeError where any are missing."""
    responses = []
    for ids, logprobs in found:
        if len(logprobs) != len(ids):
            raise RuntimeError(f"request {request.request_id!r}: {len(logprobs)} log-probs of {len(ids)} tokens")
        finished = bool(ids) and ids[-1] in policy.eos_ids
        responses.append(Response(ids, logprobs, finished, policy.decode(ids)))
    if len(responses) == 1 and sampling.temperature == 0:
        return tuple(responses) * request.n
    if len(responses) != request.n:
        raise RuntimeError(f"request {request.request_id!r}: vLLM gave {len(responses)} of {request.n} responses")
    return tuple(responses)
