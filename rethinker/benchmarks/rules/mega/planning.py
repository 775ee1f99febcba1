"""MEGA-Bench's plans: a sequence of actions is carried out on a small symbolic world described in PDDL.

The domain's actions have parameters, preconditions and effects that are conjunctions of facts and negated facts. A plan
is right if every precondition holds when its action comes and the goal holds at the end; lines that do not begin with a
parenthesis are remarks. Quirk kept: negated preconditions and goals are not checked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

MAX_ACTIONS = 2000  # ours
_COSTS = ("increase", "decrease", "assign")
_TOKEN = re.compile(r"[()]|[^\s()]+")

Fact = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Action:
    parameters: tuple[str, ...]
    needs: tuple[Fact, ...]
    ends: tuple[Fact, ...]
    makes: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class World:
    """A planning task as read: actions by name, the facts at the start, those to reach."""

    actions: dict[str, _Action]
    start: frozenset[Fact]
    goal: tuple[Fact, ...]


def read_world(domain: str, task: str) -> World:
    """The world of a PDDL ``domain`` and ``task``; `ValueError` where they use more than conjunctions of facts."""
    actions = dict(_action(section) for section in _sections(domain, ":action"))
    start, goal = _sections(task, ":init")[0][1:], _sections(task, ":goal")[0]
    return World(actions, frozenset(_flat(start)), tuple(fact for holds, fact in _conditions(goal[1]) if holds))


def reaches_goal(plan: Any, world: World) -> float:
    """1.0 if ``plan`` (lines, or a list of strings, of ``(action object ...)``) is right."""
    lines = plan.split("\n") if isinstance(plan, str) else plan
    if not isinstance(lines, (list, tuple)) or len(lines) > MAX_ACTIONS:
        return 0.0
    state = set(world.start)
    for line in lines:
        if not isinstance(line, str) or not line.startswith("("):
            continue
        name, *objects = _TOKEN.findall(line.strip()[1:-1]) or [""]
        action = world.actions.get(name)
        if action is None or len(objects) != len(action.parameters):
            return 0.0
        binding = dict(zip(action.parameters, objects, strict=True))
        if not state >= {_bound(fact, binding) for fact in action.needs}:
            return 0.0
        state -= {_bound(fact, binding) for fact in action.ends}
        state |= {_bound(fact, binding) for fact in action.makes}
    return float(state >= set(world.goal))


def _action(section: list[Any]) -> tuple[str, _Action]:
    parts = dict(zip(section[2::2], section[3::2], strict=True))
    parameters = tuple(word for word in parts.get(":parameters", []) if isinstance(word, str) and word.startswith("?"))
    needs = tuple(fact for holds, fact in _conditions(parts.get(":precondition", [])) if holds)
    effects = _conditions(["and", *(item for item in _items(parts[":effect"]) if item[0] not in _COSTS)])
    ends = tuple(fact for holds, fact in effects if not holds)
    return section[1], _Action(parameters, needs, ends, tuple(fact for holds, fact in effects if holds))


def _items(tree: list[Any]) -> list[Any]:
    """The members of a conjunction, one fact alone included."""
    if not tree:
        return []
    return tree[1:] if tree[0] == "and" else tree if isinstance(tree[0], list) else [tree]


def _conditions(tree: list[Any]) -> list[tuple[bool, Fact]]:
    """(whether it must hold, the fact) for each member of a conjunction."""
    conditions: list[tuple[bool, Fact]] = []
    for item in _items(tree):
        holds = item[0] != "not"
        flat = _flat([item if holds else item[1]])
        if not flat or flat[0][0] in ("forall", "exists", "or", "when", "imply"):
            raise ValueError(f"not a plain fact: {item}")
        conditions.append((holds, flat[0]))
    return conditions


def _flat(items: list[Any]) -> list[Fact]:
    """The facts without structure inside; a cost such as ``(= (total-cost) 0)`` is left out."""
    return [tuple(item) for item in items if item and all(isinstance(word, str) for word in item)]


def _bound(fact: Fact, binding: dict[str, str]) -> Fact:
    return tuple(binding.get(word, word) for word in fact)


def _sections(text: str, keyword: str) -> list[list[Any]]:
    """The lists of the description's top level that begin with ``keyword``."""
    found = [item for item in _tree(text) if isinstance(item, list) and item and item[0] == keyword]
    if not found:
        raise ValueError(f"no {keyword} in the description")
    return found


def _tree(text: str) -> list[Any]:
    """The nested lists of one parenthesised description, comments (``;``) dropped."""
    stack: list[list[Any]] = [[]]
    for token in _TOKEN.findall(re.sub(r";[^\n]*", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) < 2:
                raise ValueError("a closing parenthesis too many")
            closed = stack.pop()
            stack[-1].append(closed)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1 or not isinstance(stack[0][0], list):
        raise ValueError("the parentheses of the description do not match")
    return stack[0][0]
