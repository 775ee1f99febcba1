"""The rollout engine of vLLM servers: a trainer's prompts and pixels go over the wire, so that both see the same.

Weights go by vLLM's phases: pause (what runs is finished, caches are cleared), start, a bucket at a time, finish with a
version, resume. Every answer says which version wrote its tokens; an answer of another one is asked for again.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rethinker.config import RunConfig
from rethinker.config.schema import ConfigError
from rethinker.policy.policy import Policy
from rethinker.policy.sharding import full_weights
from rethinker.rollout.base import Arrived
from rethinker.rollout.requests import check_requests, token_budget
from rethinker.rollout.server.fleet import Fleet, Server, ServerGone
from rethinker.rollout.server.folder import Served, ServersDir, servers_of
from rethinker.rollout.server.nccl import NcclTransfer
from rethinker.rollout.server.transfer import FileTransfer
from rethinker.rollout.vllm import BAN, to_responses, vllm_available
from rethinker.rollout.vllm_inputs import image_item, placeholders, vllm_seed
from rethinker.rollout.vllm_setup import unchanged_process
from rethinker.types import Request, Response, Sampling

SENDS = 3  # of the weights to one server, where it fails
PARALLEL = 64  # requests at a time for each server
MODEL_NAME = "policy"  # that servers know the policy by
GENERATE = "/inference/v1/generate"


def check_images(policy: Policy) -> None:
    """Raises ConfigError for a family whose images cannot be told to a server."""
    if policy.family.interleaved:
        raise ConfigError(
            f"rollout.engine=server: vLLM's servers cannot be told where the image tokens of a "
            f"{policy.model.config.model_type} stand; set rollout.engine=vllm or transformers"
        )


class ServerEngine:
    """Responses by the servers of ``fleet``, with the weights that ``transfer`` hands over.

    ``sender``: whether this process sends weights: one of the ranks; all of them gather, and each asks the servers for
    its own requests. ``lock``: kept open while the engine lives.
    """

    def __init__(
        self,
        policy: Policy,
        fleet: Fleet,
        transfer: FileTransfer | NcclTransfer,
        *,
        dtype: torch.dtype,
        sender: bool = True,
        lock: int | None = None,
    ) -> None:
        check_images(policy)
        self.policy, self.fleet, self.transfer = policy, fleet, transfer
        self.dtype, self.sender, self.lock = dtype, sender, lock
        self.version = ""  # of the weights, unlike any other run's
        self._run, self._count = secrets.token_hex(4), 0
        self._sending = threading.Lock()  # a look at the servers and a synchronisation must not meet
        self._making = threading.Lock()  # one thread at a time makes prompts, pixels and texts
        self._bias = {str(token): BAN for token in policy.banned_ids}
        with unchanged_process():
            from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item
        self._encode = encode_mm_kwargs_item
        fleet.examine = self._examine
        fleet.start()

    @classmethod
    def connect(cls, config: RunConfig, policy: Policy, *, max_images: int, max_prompt: int) -> ServerEngine:
        """The engine of the servers in ``rollout.servers``. Raises ConfigError if there are none, if they were started
        for something else or if another run has them."""
        if not vllm_available():
            raise ImportError("rollout.engine=server needs vLLM beside the trainer too: it encodes the pixels")
        rollout = config.rollout
        folder = ServersDir(rollout.servers)
        dtype = config.model.dtype if rollout.dtype == "auto" else rollout.dtype
        served = folder.read()
        for item in served:
            _check_served(item, dtype, rollout.weight_transfer, max_images, max_prompt + rollout.max_new_tokens)
        sender = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        return cls(
            policy,
            Fleet(
                servers_of(served), folder.token(), timeout_s=rollout.server_timeout, patience_s=rollout.server_patience
            ),
            NcclTransfer(policy.device) if rollout.weight_transfer == "nccl" else FileTransfer(folder.weights),
            dtype=getattr(torch, dtype),
            sender=sender,
            lock=folder.lock() if sender else None,
        )

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, arrived: Arrived | None = None
    ) -> Mapping[str, tuple[Response, ...]]:
        """See RolloutEngine. Raises RuntimeError when no server is left, or before any weights were sent."""
        check_requests(requests, sampling)
        if not self.version:
            raise RuntimeError("servers may have another run's weights: call sync_weights before generate")

        def ask(request: Request) -> Mapping[str, Any]:
            with self._making:
                body = self._body(request, sampling)
            return self.fleet.ask(GENERATE, body, request.n, self._check_versions)

        pool = ThreadPoolExecutor(min(PARALLEL * len(self.fleet.servers), max(len(requests), 1)))
        done: dict[str, tuple[Response, ...]] = {}
        try:
            asked = {pool.submit(ask, request): request for request in requests}
            for future in as_completed(asked):
                request = asked[future]
                answer = future.result()
                with self._making:
                    done[request.request_id] = self._responses(request, sampling, answer)
                if arrived:
                    arrived({request.request_id: done[request.request_id]})
        finally:
            pool.shutdown(cancel_futures=True)
        return {request.request_id: done[request.request_id] for request in requests}

    @torch.no_grad()
    def sync_weights(self, model: Any) -> None:
        """Give the weights of ``model`` (LoRA merged) to every usable server. Collective.

        A server that fails gets the whole again, ``SENDS`` times in all, and then is left alone until a later look.
        RuntimeError, on all ranks, if none takes them.
        """
        stream = full_weights(model, dtype=self.dtype)
        problem = ""
        self._count += 1
        with self._sending:  # on all ranks: a look at a server that came back must not resume it in mid-transfer
            PartialState().wait_for_everyone()  # what a rank still asks would get an answer by the new weights
            self.version = f"{self._run}-{self._count}"
            if self.sender:
                self.transfer.store(self.version, stream)
                servers = self.fleet.usable()
                with ThreadPoolExecutor(max(len(servers), 1)) as pool:
                    list(pool.map(self._send, servers))
            else:
                for _ in stream:  # gathering shards takes all ranks
                    pass
                self.version, problem = broadcast_object_list(["", ""])
        if self.sender:
            try:
                self.fleet.wait_for_one()  # without the lock: one that comes back needs it
            except RuntimeError as error:
                problem = str(error)
            broadcast_object_list([self.version, problem])
        if problem:
            raise RuntimeError(problem)

    def sleep(self) -> None:
        """Nothing: servers have memory of their own."""

    def close(self) -> None:
        """Close the connections; the servers stay."""
        self.fleet.close()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _send(self, server: Server) -> None:
        problem = ""
        for attempt in range(SENDS):
            try:
                return self.transfer.send(self.fleet, server)
            except (ServerGone, ValueError) as error:
                problem = str(error)
                self.fleet.back_off(attempt)
        self.fleet.retire(server, problem)

    def _examine(self, server: Server) -> None:
        """A server that came back gets the current weights, from the rank that sends them. Raises ServerGone where it
        has others."""
        with self._sending:
            found = str(self.fleet.get(server, "/weight_info")["weight_version"])
            if found == self.version or not self.version:
                if not server.usable:
                    self.fleet.post(server, "/resume")  # the last phase of a transfer may be what failed
            elif self.sender:
                self.transfer.send(self.fleet, server)
            else:
                raise ServerGone(f"is up with the weights of version {found}, and waits for {self.version}")

    def _check_versions(self, answer: Mapping[str, Any]) -> None:
        """A server that was restarted unnoticed has the weights that it was started with."""
        spans = [span for choice in answer["choices"] for span in choice["weight_versions"] or [{"version": "?"}]]
        versions = {span["version"] for span in spans}
        if versions != {self.version}:
            raise ServerGone(f"wrote with the weights of version {', '.join(sorted(versions))}, not {self.version}")

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        query, prompt = request.query, self.policy.prompt(request.query)
        greedy = sampling.temperature == 0
        body: dict[str, Any] = {
            "model": MODEL_NAME,
            "token_ids": [*prompt.ids, *request.prefix_ids],
            "sampling_params": {
                "n": 1 if greedy else request.n,
                "temperature": sampling.temperature,
                "top_p": 1.0 if greedy else sampling.top_p,
                "max_tokens": token_budget(request, sampling),
                "seed": vllm_seed(request),
                "logprobs": 0,
                "logit_bias": self._bias,
                "stop_token_ids": list(self.policy.eos_ids),
                "detokenize": False,
            },
            "stream": False,
        }
        if query.images:
            pixels = [self.policy.images.get(path, query.qid) for path in query.images]
            places = placeholders(self.policy, prompt.ids, pixels)
            body["features"] = {
                "mm_hashes": {"image": list(query.images)},
                "mm_placeholders": {"image": [{"offset": place.offset, "length": place.length} for place in places]},
                "kwargs_data": {"image": [self._encode(image_item(self.policy, one)) for one in pixels]},
            }
        return body

    def _responses(self, request: Request, sampling: Sampling, answer: Mapping[str, Any]) -> tuple[Response, ...]:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        found = [
            (tuple(choice["token_ids"]), tuple(float(token["logprob"]) for token in choice["logprobs"]["content"]))
            for choice in choices
        ]
        return to_responses(self.policy, request, sampling, found)


def _check_served(served: Served, dtype: str, transfer: str, images: int, tokens: int) -> None:
    """Raises ConfigError for servers that cannot do what this run will ask of them."""
    problem = ""
    if served.dtype != dtype:
        problem = f"run in {served.dtype}, not in {dtype} (rollout.dtype)"
    elif served.transfer != transfer:
        problem = f"take weights by {served.transfer}, not by {transfer} (rollout.weight_transfer)"
    elif served.images < images:
        problem = f"take {served.images} images a prompt, and a query has {images}"
    elif served.context < tokens:
        problem = f"have a context of {served.context} tokens, and a prompt with its response may have {tokens}"
    if problem:
        urls = ", ".join(url for url, _ in served.servers)
        raise ConfigError(
            f"rollout.servers: {urls} {problem}: start them with this run's config, and for benchmarks with the same "
            "--benchmarks (rethinker serve)"
        )
