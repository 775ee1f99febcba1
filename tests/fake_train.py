"""A stand-in for `rethinker train CONFIG [--resume]`: what a job looks like from outside, without a model.

What it does is in <runs>/plan/<name>, else in $FAKE:
    ""             finishes; "finish slowly": a second after it has said so
    "episodes"     finishes after four episodes, or stops
    "endless"      trains episodes until it is asked to stop
    "crash"        fails in its first episode; "crash at once": before it trains
    "starting"     never begins to train
    "deaf"         does not hear that it is to stop
    "fail"         fails without an episode
    "meet"         finishes when two runs have begun; "hold": when the file <runs>/go is there
    "stop"         stops when it is asked to; "interrupt": when two have begun, interrupts its parent first;
                   "interrupt twice": then interrupts it again instead of stopping
Beginnings and ends are lines of <runs>/events.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1]).resolve().parents[1]
root = folder.parent
plan = root / "plan" / folder.name
what = plan.read_text() if plan.exists() else os.environ.get("FAKE", "")


def say(state: str) -> None:
    (folder / "status.tmp").write_text(json.dumps({"state": state}))
    os.replace(folder / "status.tmp", folder / "status.json")


def event(name: str) -> None:
    with (root / "events").open("a") as file:
        file.write(f"{name} {folder.name}\n")


def end(state: str, code: int = 0) -> None:
    event("end")
    say(state)
    (folder / "job" / "exit_code").write_text(f"{code}\n")
    sys.exit(code)


def wait(condition) -> None:
    while not condition():
        time.sleep(0.01)


def asked_to_stop() -> bool:
    return (folder / "STOP").exists()


def both_have_begun() -> bool:
    return (root / "events").read_text().count("begin") >= 2


def train() -> None:
    log = folder / "metrics.jsonl"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    while done < 4 or what == "endless":
        done += 1
        with log.open("a") as file:
            record = {"record": "episode", "stage": "a", "episode": done, "step": done, "seconds": 1.5 * done}
            file.write(json.dumps(record) + "\n")
        if what == "crash":
            print("Traceback (most recent call last):\n  File x\nRuntimeError: <boom>")
            end("running", 3)
        if asked_to_stop():
            (folder / "STOP").unlink()
            end("stopped")
        time.sleep(0.02)


print("started", *sys.argv[2:], *({"FORCE_COLOR", "MPLBACKEND"} & set(os.environ)))
if what == "crash at once":
    sys.exit("ValueError: no such model")
if what == "starting":
    wait(lambda: False)
(folder / "config.yaml").write_text(Path(sys.argv[1]).read_text())
(folder / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
event("begin")
say("running")
if what == "fail":
    print("ValueError: no such thing", file=sys.stderr)
    end("running", 3)
if what == "deaf":
    wait(lambda: False)
if what in ("meet", "interrupt"):
    wait(both_have_begun)
if what == "hold":
    wait((root / "go").exists)
if what.startswith("interrupt"):
    os.kill(os.getppid(), signal.SIGINT)
if what == "interrupt twice":
    wait(asked_to_stop)
    os.kill(os.getppid(), signal.SIGINT)
    wait(lambda: False)
if what in ("interrupt", "stop"):
    wait(asked_to_stop)
    end("stopped")
if what in ("episodes", "endless", "crash"):
    train()
if what == "finish slowly":
    say("finished")
    time.sleep(1)
end("finished")
