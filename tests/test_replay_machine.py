"""Selective Sample Replay against a plain model, by random histories: steps, episodes, saving and loading."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from builders import make_sample
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rethinker.replay import SelectiveSampleReplay
from rethinker.rundir.samples import read_samples, write_samples
from rethinker.types import Sample

ADVANTAGES = st.sampled_from([0.0, -0.0, 0.25, -0.25, 1.0, -1.0, 1e-9, -7.5])


def through_a_file(state: dict) -> dict:
    """What a checkpoint does with the state."""
    with tempfile.TemporaryDirectory() as folder:
        write_samples(Path(folder, "entries"), state["entries"])
        entries = read_samples(Path(folder, "entries"))
    return json.loads(json.dumps({**state, "entries": []})) | {"entries": entries}


class Replay(RuleBasedStateMachine):
    """The model: a list of (episode, sample), filtered by age when an episode starts, cut to capacity from its end."""

    @initialize(
        alpha=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        lifetime=st.sampled_from([1, 2, 4, None]),
        capacity=st.sampled_from([1, 3, 8, None]),
        seed=st.integers(0, 99),
    )
    def start(self, alpha, lifetime, capacity, seed):
        self.settings = {"alpha": alpha, "lifetime": lifetime, "capacity": capacity}
        self.replay = SelectiveSampleReplay(seed=seed, **self.settings)
        self.twin = SelectiveSampleReplay(seed=seed, **self.settings)  # is never saved or loaded
        self.model: list[tuple[int, Sample]] = []
        self.episode = self.made = 0

    @rule(advantages=st.lists(ADVANTAGES, max_size=7))
    def step(self, advantages):
        samples = [
            make_sample(f"{self.episode}/q/{self.made + i}", advantage=advantage)
            for i, advantage in enumerate(advantages)
        ]
        self.made += len(samples)
        batch = self.replay.select(samples)
        assert self.twin.select(samples) == batch  # a saved and loaded buffer draws as one that was left alone
        effective = [sample for sample in samples if sample.advantage != 0.0]
        self.model += [(self.episode, sample) for sample in effective]
        if self.settings["capacity"] is not None:
            self.model = self.model[-self.settings["capacity"] :]
        assert batch[: len(effective)] == effective  # D_eff first, in its order, as it came
        assert len(batch) == (len(samples) if self.model else 0)
        stored = {sample.sample_id: sample for _, sample in self.model}
        for drawn in batch[len(effective) :]:  # from the buffer only, marked, otherwise as its writer left it
            assert drawn == replace(stored[drawn.sample_id], replayed=True) and drawn.effective

    @rule()
    def start_episode(self):
        self.episode += 1
        for one in (self.replay, self.twin):
            one.start_episode()
        lifetime = self.settings["lifetime"]
        if lifetime is not None:
            self.model = [(added, sample) for added, sample in self.model if self.episode - added < lifetime]

    @rule(seed=st.integers(0, 99))
    def save_and_load(self, seed):
        """At the end of an episode, as the trainer does: what the next one cannot draw is not saved."""
        state = through_a_file(self.replay.state_dict())
        self.replay = SelectiveSampleReplay(seed=seed, **self.settings)
        self.replay.load_state_dict(state)
        assert through_a_file(self.replay.state_dict()) == state
        self.start_episode()

    @invariant()
    def the_buffer_is_the_models(self):
        assert len(self.replay) == len(self.twin) == len(self.model) == self.replay.stats()["buffer_size"]
        lifetime, capacity = self.settings["lifetime"], self.settings["capacity"]
        assert capacity is None or len(self.replay) <= capacity
        kept = self.replay.state_dict()["entries"]
        next_episode = [
            (added, s) for added, s in self.model if lifetime is None or self.episode + 1 - added < lifetime
        ]
        assert kept == next_episode and all(sample.effective for _, sample in kept)


TestReplay = Replay.TestCase
TestReplay.settings = settings(max_examples=100, stateful_step_count=30)
