"""A policy whose tokens are letters, and one for each trigger; it has no model."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from rethinker.rethink import TRIGGERS

EOS = 0
TRIGGER_IDS = {kind: (200_000 + place,) for place, kind in enumerate(TRIGGERS)}
TEXTS = {ids[0]: TRIGGERS[kind] for kind, ids in TRIGGER_IDS.items()}


def decode(ids: Sequence[int]) -> str:
    return "".join(TEXTS.get(token, chr(token)) for token in ids if token != EOS)


def encode(text: str) -> tuple[int, ...]:
    """A token a letter, but for triggers."""
    for kind, ids in TRIGGER_IDS.items():
        if text.endswith(TRIGGERS[kind]):
            return (*encode(text.removesuffix(TRIGGERS[kind])), *ids)
    return tuple(ord(letter) for letter in text)


POLICY: Any = SimpleNamespace(
    eos_ids=(EOS,), decode=decode, encode=encode, prompt=lambda query: SimpleNamespace(ids=())
)
