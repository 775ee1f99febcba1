"""The router of vLLM servers and what is around it, against small HTTP servers in this process: no vLLM, no model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from rethinker.config import ConfigError, RunConfig, load_config
from rethinker.config.no_effect import without_effect
from rethinker.lab.jobs.preflight import preflight
from rethinker.lab.serve import gpu_shares, keep_up, serve
from rethinker.rollout.server.engine import _check_served
from rethinker.rollout.server.fleet import ATTEMPTS, Fleet, Server, ServerGone
from rethinker.rollout.server.folder import Served, ServersDir, servers_of
from rethinker.rollout.server.nccl import NcclTransfer
from rethinker.rollout.server.plugin import TOKEN_VARIABLE, TokenMiddleware
from rethinker.rollout.server.start import Place, ServerProcess, check_host, command, free_port
from rethinker.rollout.server.transfer import FileTransfer


class Fake:
    """A server whose answer to any request is ``self.answer()``: (status, body). ``asked``: POSTed bodies."""

    def __init__(self) -> None:
        self.answer = lambda: (200, {"from": self.url})
        self.asked: list[dict] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"] or 0))
                fake.asked.append(json.loads(body or "{}"))
                self.reply()

            def do_GET(self) -> None:
                self.reply()

            def reply(self) -> None:
                status, answer = fake.answer()
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # who asked waits no longer
                    self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def fakes():
    made = [Fake(), Fake()]
    yield made
    for fake in made:
        fake.server.shutdown()
        fake.server.server_close()


@pytest.fixture
def fleet(fakes):
    made = Fleet([Server(fake.url) for fake in fakes], "token", patience_s=5, backoff_s=(0.01,), every_s=0.02)
    yield made
    made.close()


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_request_goes_to_the_server_with_least_to_do(fakes, fleet):
    go = threading.Event()
    for fake in fakes:
        fake.answer = lambda: (200, {"waited": go.wait(10)})
    with ThreadPoolExecutor(8) as pool:
        for weight in (5, 1, 1, 1, 1, 1):
            before = sum(len(fake.asked) for fake in fakes)
            pool.submit(fleet.ask, "/", {"weight": weight}, weight)
            wait_for(lambda: sum(len(fake.asked) for fake in fakes) > before)  # noqa: B023
        assert sorted(sum(body["weight"] for body in fake.asked) for fake in fakes) == [5, 5]
        go.set()
    assert [server.running for server in fleet.servers] == [0, 0]


@pytest.mark.parametrize("how", ["error", "time-out", "wrong answer"])
def test_what_fails_goes_to_another_server(fakes, fleet, how):
    bad, good = fakes
    over = threading.Event()
    if how == "error":
        bad.answer = lambda: (500, {"error": "EngineDead"})
    elif how == "time-out":
        fleet.timeout_s = 1.0
        bad.answer = lambda: (200, {"waited": over.wait(20)})

    def check(answer: dict) -> None:
        if answer.get("from") == bad.url:
            raise ServerGone("wrote with other weights")

    assert fleet.ask("/", {"n": 1}, check=check) == {"from": good.url}
    assert len(bad.asked) == len(good.asked) == 1
    assert [server.usable for server in fleet.servers] == [False, True]
    assert fleet.ask("/", {"n": 2}) == {"from": good.url} and len(bad.asked) == 1  # it is left alone
    wanted = {"error": "500.*EngineDead", "time-out": "ReadTimeout", "wrong answer": "other weights"}[how]
    assert re.search(wanted, fleet.servers[0].problem)
    over.set()


def test_a_server_that_comes_back_is_asked_nothing_before_it_was_examined(fakes, fleet):
    """``examine`` stands for the transfer of the current weights."""
    bad, good = fakes
    ready = threading.Event()
    examined: list[str] = []

    def examine(server: Server) -> None:
        examined.append(server.url)
        if server.url == bad.url and not ready.is_set():
            raise ServerGone("weights are on their way")

    fleet.examine = examine
    fleet.start()
    wait_for(lambda: not fleet.servers[0].usable)
    for _ in range(5):
        assert fleet.ask("/", {}) == {"from": good.url}
    assert examined.count(bad.url) and not bad.asked
    ready.set()
    wait_for(lambda: fleet.servers[0].usable)
    good.answer = lambda: (500, {})
    assert fleet.ask("/", {}) == {"from": bad.url}


def test_a_refused_request_is_not_asked_again(fakes, fleet):
    for fake in fakes:
        fake.answer = lambda: (400, {"error": "too long"})
    with pytest.raises(ValueError, match=r"400.*too long"):
        fleet.ask("/", {})
    assert sum(len(fake.asked) for fake in fakes) == 1 and len(fleet.usable()) == 2


def test_all_dead_is_one_error_with_the_end_of_every_log(tmp_path):
    servers = [Server(f"http://127.0.0.1:{free_port()}", tmp_path / f"{index}.log") for index in range(2)]
    for index, server in enumerate(servers):
        server.log.write_text(f"line\nCUDA out of memory {index}\n")
    fleet = Fleet(servers, "token", patience_s=0.2, backoff_s=(0.01,))
    fleet.start()
    with pytest.raises(RuntimeError, match="no vLLM server is left") as error:
        fleet.ask("/", {})
    text = str(error.value)
    assert all(server.url in text for server in servers) and text.count("ConnectError") == 2
    assert "CUDA out of memory 0" in text and "CUDA out of memory 1" in text
    fleet.close()


def test_a_request_that_kills_every_server_is_given_up(fakes, fleet):
    for fake in fakes:
        fake.answer = lambda: (500, {"error": "illegal memory access"})
    fleet.examine = lambda server: None  # they are restarted each time
    fleet.start()
    with pytest.raises(RuntimeError, match=f"failed {ATTEMPTS} times.*illegal memory access"):
        fleet.ask("/", {})
    assert sum(len(fake.asked) for fake in fakes) == ATTEMPTS


def test_weights_as_files(tmp_path):
    """Every name, tied or not; a new path each version; the version before is removed."""
    head = torch.randn(64, 8)
    weights = {"embed": head, "lm_head": head, "w": torch.randn(8, 8).bfloat16(), "scalar": torch.tensor(2.0)}
    transfer = FileTransfer(tmp_path, bucket_bytes=head.nbytes + 1)
    transfer.store("a-1", weights.items())
    first = [Path(bucket.path) for bucket in transfer.buckets]
    assert len(first) == 3 and all(path.parent.name == "a-1" for path in first)
    found = {name: value for path in first for name, value in load_file(path).items()}
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    for bucket in transfer.buckets:
        bucket.check()
    first[0].write_bytes(first[0].read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="not what the trainer wrote"):
        transfer.buckets[0].check()
    transfer.store("a-2", weights.items())
    assert [path.name for path in tmp_path.iterdir()] == ["a-2"]


def test_a_transfer_that_a_killed_trainer_left_open_is_ended_first(fakes, fleet, tmp_path):
    """vLLM refuses to start a transfer while another is open; a bucket that fails closes it."""
    transfer = FileTransfer(tmp_path)
    transfer.store("v", {"w": torch.ones(2)}.items())
    calls, opened = [], [True]

    def post(server, path, body=None, **params):
        calls.append(path)
        if path == "/start_weight_update":
            if opened[0]:
                raise ServerGone("start_weight_update called while a weight update is already active")
            opened[0] = True
        if path == "/update_weights" and not body["update_info"]["path"]:
            opened[0] = False
            raise ServerGone("no such file")

    fleet.post = post
    transfer.send(fleet, fleet.servers[0])
    start, update = "/start_weight_update", "/update_weights"
    assert calls[2:] == [start, update, start, update, "/finish_weight_update", "/resume"]


def test_the_nccl_transfer_drives_the_phases_with_our_version(fakes, fleet, monkeypatch):
    """vLLM's own trainer side, with a stand-in for the group and the broadcast, which need GPUs."""
    pytest.importorskip("vllm")
    from vllm.distributed.weight_transfer import nccl_engine

    calls, sent = [], []
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: SimpleNamespace(destroy=lambda: None))
    monkeypatch.setattr(
        nccl_engine, "packed_nccl_broadcast_producer", lambda iterator, **_: sent.extend(name for name, _ in iterator)
    )
    monkeypatch.setattr(fleet, "get", lambda server, path: {"world_size": 2})
    monkeypatch.setattr(fleet, "post", lambda server, path, body=None, **params: calls.append((path, body)))
    transfer = NcclTransfer(torch.device("cpu"))
    head = torch.ones(3, 2)
    transfer.store("v-1", {"embed": head, "lm_head": head}.items())
    transfer.send(fleet, fleet.servers[0])
    by_path = dict(calls)
    assert sent == ["embed", "lm_head"] and [path.strip("/").split("_")[0] for path, _ in calls] == [
        *("pause", "init", "start", "update", "finish", "shutdown", "resume")
    ]
    assert by_path["/init_weight_transfer_engine"]["init_info"]["world_size"] == 3
    assert by_path["/update_weights"]["update_info"]["shapes"] == [[3, 2]] * 2
    assert by_path["/finish_weight_update"] == {"weight_version": "v-1"}

    fleet.timeout_s = 0.1
    monkeypatch.setattr(fleet, "get", lambda server, path: time.sleep(1))
    with pytest.raises(ServerGone, match="did not end within"):
        transfer.send(fleet, fleet.servers[0])


def test_the_folder_of_servers(tmp_path):
    folder = ServersDir(tmp_path / "servers")
    with pytest.raises(ConfigError, match=r"no server there yet.*rethinker serve"):
        folder.read()
    token = folder.token()
    assert len(token) > 40 and ServersDir(folder.folder).token() == token
    served = Served((("http://a:1", "/a.log"), ("http://a:2", "/b.log")), "model", "float32", "file", 100, 1)
    files = [folder.write("a", 1, served), folder.write("b", 1, replace(served, servers=(("http://b:1", "/c.log"),)))]
    for file in (*files, folder.folder / "token"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [server.url for server in servers_of(folder.read())] == ["http://a:1", "http://a:2", "http://b:1"]
    held = folder.lock()
    with pytest.raises(ConfigError, match="another run uses these servers"):
        folder.lock()
    os.close(held)
    folder.lock()
    _check_served(served, "float32", "file", 1, 100)
    for name, value in (("dtype", "bfloat16"), ("transfer", "nccl"), ("images", 0), ("context", 9)):
        with pytest.raises(ConfigError, match=rf"http://a:1.*{name}.*start them with this run's config"):
            _check_served(replace(served, **{name: value}), "float32", "file", 1, 100)


@pytest.mark.parametrize("host", ["0.0.0.0", "8.8.8.8", "::"])
def test_servers_bind_to_private_addresses_only(host):
    with pytest.raises(ConfigError, match=r"not a private address|no such name"):
        check_host(host)
    check_host("127.0.0.1")
    check_host("10.1.2.3")


def test_every_route_but_the_health_check_asks_for_the_token(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    passed, statuses = [], []

    async def app(scope, receive, send):
        passed.append(scope["path"])

    async def send(message):
        statuses.append(message.get("status"))

    middleware = TokenMiddleware(app)

    def ask(path: str, authorization: str | None) -> None:
        headers = [] if authorization is None else [(b"authorization", authorization.encode())]
        asyncio.run(middleware({"type": "http", "path": path, "headers": headers}, None, send))

    for path in ("/pause", "/update_weights", "/inference/v1/generate", "/healthy"):
        ask(path, None)
        ask(path, "Bearer wrong")
    assert not passed and statuses.count(401) == 8
    ask("/health", None)
    ask("/pause", "Bearer secret")
    assert passed == ["/health", "/pause"]


def test_a_server_that_ends_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr("rethinker.lab.serve.RESTART_S", (0.0,))
    place = Place("127.0.0.1", free_port())
    code = "import sys; print('started'); sys.exit(3)"
    process = ServerProcess([sys.executable, "-u", "-c", code], place, "token", tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"exit code 3[^$]*started"):
        process.start()
        process.wait_until_up(30)
    stop, said = threading.Event(), []

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            stop.set()

    keep_up([process], stop, say)
    process.stop()
    assert len(said) == 2 and all("ended with exit code 3" in text for text in said)
    assert (tmp_path / "log").read_text().splitlines() == ["started"] * 2


def test_the_gpus_of_each_server():
    config = load_config(None, ["rollout.tensor_parallel_size=2"])
    assert gpu_shares(2, config, list("23567")) == [("2", "3"), ("5", "6")]
    assert gpu_shares(2, config, []) == [(), ()]
    with pytest.raises(ConfigError, match="this machine shows 3"):
        gpu_shares(2, config, list("012"))


def test_servers_stay_on_the_gpus_that_they_were_given(tmp_path, monkeypatch):
    """They are named as in CUDA_VISIBLE_DEVICES: number 0 of its list is not GPU 0 of the machine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,GPU-8932f937,5")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("rethinker.lab.serve.vllm_available", lambda: True)
    monkeypatch.setattr("rethinker.lab.serve.check_plugin", lambda: None)
    monkeypatch.setattr("rethinker.lab.serve.arguments_of", lambda config, prompts: {})
    seen = []

    class Started(ServerProcess):
        def start(self) -> None:
            seen.append(self.environment["CUDA_VISIBLE_DEVICES"])
            if len(seen) == 2:
                raise RuntimeError("seen enough")

    monkeypatch.setattr("rethinker.lab.serve.ServerProcess", Started)
    config = load_config(None, [f"rollout.servers={tmp_path}"])
    with pytest.raises(RuntimeError, match="seen enough"):
        serve(config, lambda: None, servers=2, host="127.0.0.1", port=8100, say=lambda _: None)
    assert seen == ["6", "GPU-8932f937"]


def test_the_command_line_of_a_server():
    words = command("m", Place("10.0.0.1", 9), {"mm_device_do_normalize": False, "limit_mm_per_prompt": {"image": 2}})
    assert words[words.index("--host") + 1] == "10.0.0.1" and "--no-mm-device-do-normalize" in words
    assert json.loads(words[words.index("--limit-mm-per-prompt") + 1]) == {"image": 2}


def test_settings_of_servers_without_servers():
    config = load_config(None, ["rollout.servers=elsewhere"])
    assert without_effect(config, vllm=True) == ["rollout.servers=elsewhere (needs rollout.engine=server)"]
    config = load_config(None, ["rollout.servers=elsewhere", "rollout.engine=server", "rollout.batch_size=3"])
    assert without_effect(config, vllm=True) == ["rollout.batch_size=3 (needs the transformers engine)"]
    assert RunConfig().rollout.servers == "runs/servers"


def test_a_run_is_not_started_without_its_servers(tmp_path):
    model = Path(__file__).parents[1] / "data" / "tiny-vlm"
    config = load_config(
        None, ["rollout.engine=server", f"rollout.servers={tmp_path}", f"model.path={model}", f"data.train={__file__}"]
    )
    with pytest.raises(ConfigError, match=r"no server is up there; start them \(rethinker serve"):
        preflight(config)


def test_a_connection_that_is_closed_after_an_error_is_not_used_again():
    """As uvicorn does, without saying so in its answer. The request that ends a transfer left open follows an error."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"] or 0))
            status = 500 if self.path == "/fails" else 200
            self.send_response(status)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            if status == 500:
                time.sleep(0.3)
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    server = Server(f"http://127.0.0.1:{http.server_port}")
    fleet = Fleet([server], "token", timeout_s=10)
    with pytest.raises(ServerGone, match="500"):
        fleet.post(server, "/fails")
    assert fleet.post(server, "/works") == {}
    fleet.close()
    http.shutdown()
    http.server_close()
