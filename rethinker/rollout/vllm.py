"""Roll-outs by vLLM in the trainer's own process (the only module that imports vllm, and only when an engine is made).

Checked with vLLM 0.32: multiprocessing is off, so that weights go from the trainer to the engine as tensors; after
every synchronisation the prefix, multi-modal and encoder caches are reset (without the last one the next known image
ends the engine). Log-probs are vLLM's *processed* ones: those of the distribution that was sampled.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rethinker.policy.images import open_image
from rethinker.policy.loading import Policy, merged_weights, save_model
from rethinker.rollout.requests import check_requests, token_budget
from rethinker.types import Request, Response, Sampling

CPU_KV_BYTES = 2**30  # KV cache on a CPU
BAN = -100.0  # vLLM's lowest logit bias: a probability of about 1e-43
PREFILL_TOKENS = 4096  # prompt tokens of one engine step on a CPU
TEXT_TOKENS = 2048  # room in a prompt beside its images


def vllm_available() -> bool:
    """Whether vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


class VllmEngine:
    """vLLM with the policy's weights, in this process.

    ``path``: the checkpoint the engine starts from (its weights are replaced at the first ``sync_weights``). The device
    is the policy's. ``max_images``: images a prompt. ``max_new_tokens``: the longest response that will be asked for.
    Each of several accelerate processes has an engine of its own, on GPUs on the device of its LOCAL_RANK (after
    vLLM's documentation and source; not run by us on more than one GPU). On GPUs the engine's memory is given back
    between uses (sleep level 1: weights go to main memory); on a CPU ``sleep`` does nothing.

    Raises ImportError where vLLM is not installed, ValueError for a ``tensor_parallel_size`` above 1 in several
    processes.

    The caller's torch threads and random states are as before after the constructor, which vLLM would change.
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
    ) -> None:
        if not vllm_available():
            raise ImportError(
                "rollout.engine=vllm, but vLLM is not installed; install the extra (pip install 'rethinker[cpu]' or "
                "'rethinker[gpu]'), or set rollout.engine=transformers"
            )
        placement = _placement(policy.device.type == "cuda", tensor_parallel_size)
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
        context = _context(policy, max_images, max_new_tokens)
        machine: dict[str, Any]
        with _unchanged_process():
            from vllm import LLM

            if self._gpu:
                machine = {"gpu_memory_utilization": gpu_memory_utilization, "enable_sleep_mode": True}
            else:
                # A seeded request whose prefill is split ends vLLM 0.32 on a CPU ("CPU Generator does not use offset").
                whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(PREFILL_TOKENS, context)}
                machine = {"kv_cache_memory_bytes": CPU_KV_BYTES, "enforce_eager": True, **whole}
            self._llm: Any = LLM(
                str(path),
                dtype=dtype,
                limit_mm_per_prompt={"image": max_images, "video": 0},
                mm_processor_kwargs={"size": _size(policy)},
                max_model_len=context,
                logprobs_mode="processed_logprobs",
                generation_config="vllm",  # or the checkpoint's repetition penalty would slip in
                **placement,
                **machine,
            )
        if self._shared_group:
            # vLLM's shutdown, also when the engine is garbage, destroys the default process group: here the trainer's.
            self._llm.llm_engine.engine_core._finalizer.detach()
        self.max_model_len = int(self._llm.llm_engine.model_config.max_model_len)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Mapping[str, tuple[Response, ...]]:
        """See RolloutEngine. Raises ValueError for a prompt that is too long, RuntimeError where vLLM's prompt is not
        the trainer's."""
        check_requests(requests, sampling)
        if not requests:
            return {}
        self._wake()
        prompts = [self._prompt(request, sampling) for request in requests]
        parameters = [self._parameters(request, sampling) for request in requests]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return {
            request.request_id: self._responses(request, output)
            for request, output in zip(requests, outputs, strict=True)
        }

    def _prompt(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        query, prompt = request.query, self.policy.prompt(request.query)
        if len(query.images) > self.max_images:
            raise ValueError(
                f"query {query.qid!r}: {len(query.images)} images, this engine takes {self.max_images} a prompt"
            )
        if len(prompt.ids) + sampling.max_new_tokens > self.max_model_len:
            raise ValueError(
                f"query {query.qid!r}: a prompt of {len(prompt.ids)} tokens and a response of "
                f"{sampling.max_new_tokens} exceed the engine's context of {self.max_model_len}; lower "
                "rollout.max_new_tokens or model.max_pixels"
            )
        inputs: dict[str, Any] = {"prompt_token_ids": [*prompt.unexpanded, *request.prefix_ids]}
        if query.images:
            inputs["multi_modal_data"] = {"image": [open_image(path, query.qid) for path in query.images]}
        return inputs

    def _parameters(self, request: Request, sampling: Sampling) -> Any:
        from vllm import SamplingParams

        # vLLM gives sample i of a request the seed s + i: hashed, or neighbouring requests would share their noise.
        seed = int(np.random.SeedSequence(request.seed).generate_state(1, np.uint64)[0] >> np.uint64(2))
        return SamplingParams(
            n=request.n if sampling.temperature > 0 else 1,  # vLLM takes no n above 1 for greedy sampling
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
            max_tokens=token_budget(request, sampling),
            seed=seed,
            logprobs=0,  # of the sampled token only
            logit_bias=self._bias,
            stop_token_ids=[self.policy.eos_id],
            detokenize=False,
        )

    def _responses(self, request: Request, output: Any) -> tuple[Response, ...]:
        expected = len(self.policy.prompt(request.query).ids) + len(request.prefix_ids)
        if len(output.prompt_token_ids) != expected:
            raise RuntimeError(
                f"query {request.query.qid!r}: vLLM's prompt has {len(output.prompt_token_ids)} tokens, the trainer's "
                f"{expected}; engine and trainer must use the same processor and pixel limits"
            )
        responses = []
        for completion in sorted(output.outputs, key=lambda item: item.index):
            ids = tuple(completion.token_ids)
            logprobs = tuple(
                float(chosen[token].logprob) for token, chosen in zip(ids, completion.logprobs, strict=True)
            )
            finished = bool(ids) and ids[-1] == self.policy.eos_id
            responses.append(Response(ids, logprobs, finished, self.policy.decode(ids)))
        if len(responses) == 1:
            return tuple(responses) * request.n
        if len(responses) != request.n:
            raise RuntimeError(f"request {request.request_id!r}: vLLM gave {len(responses)} of {request.n} responses")
        return tuple(responses)

    @torch.no_grad()
    def sync_weights(self, model: Any) -> None:
        """Load the weights of ``model`` (LoRA merged) and reset the prefix, multi-modal and encoder caches."""
        self._wake()
        if self._parallel:  # the workers are other processes: tensors cannot be handed over
            with tempfile.TemporaryDirectory() as folder:
                save_model(self.policy, folder, model)
                self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": merged_weights(model)})
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> None:
        """On a GPU: free the KV cache and move the weights to main memory until the next use."""
        if self._gpu and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Shut the engine down. A process group that was there before the engine stays."""
        if self._llm is not None:
            core = self._llm.llm_engine.engine_core
            (core.engine_core.model_executor if self._shared_group else core).shutdown()
            self._llm = None
            gc.collect()
            if self._gpu:
                torch.cuda.empty_cache()


def _placement(gpu: bool, tensor_parallel_size: int) -> dict[str, Any]:
    """vLLM's arguments that say where the engine's workers run, in one or in several (torchrun's) processes.

    Left to itself every engine would take cuda:0; the external launcher's executor takes cuda:LOCAL_RANK. Engines of
    one worker stay independent: vLLM makes a group of its own of each rank.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return {"tensor_parallel_size": tensor_parallel_size}
    if tensor_parallel_size > 1:
        raise ValueError(
            f"rollout.tensor_parallel_size={tensor_parallel_size} in {processes} processes: every process has an "
            "engine of its own on its own GPU; set rollout.tensor_parallel_size=1, or start one process"
        )
    return {"tensor_parallel_size": 1} | ({"distributed_executor_backend": "external_launcher"} if gpu else {})


def _size(policy: Policy) -> dict[str, int]:
    size = policy.images.image_processor.size
    return {"shortest_edge": int(size["shortest_edge"]), "longest_edge": int(size["longest_edge"])}


def _context(policy: Policy, max_images: int, max_new_tokens: int) -> int:
    """Tokens of the longest prompt with response, within what the model takes."""
    processor = policy.images.image_processor
    image_tokens = _size(policy)["longest_edge"] // (processor.patch_size * processor.merge_size) ** 2
    config: Any = policy.model.config
    return min(
        int(config.get_text_config().max_position_embeddings), max_images * image_tokens + TEXT_TOKENS + max_new_tokens
    )


@contextmanager
def _unchanged_process() -> Iterator[None]:
    """Restore what making an engine changes here: torch's threads, its CPU backend's *replacement of
    torch.set_num_threads by a function that only warns*, and the global random states."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of vLLM's own imports
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
