"""A config survives its own YAML, whatever its settings: a run resumes with exactly what it saved."""

from __future__ import annotations

import dataclasses
import json
import types
import typing

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from rethinker.config import ConfigError, RunConfig, load_config, to_dict, to_yaml

NAMES = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,8}", fullmatch=True)
# What YAML, OmegaConf or a shell might take for something else.
ODD = [
    "",
    " ",
    "~",
    "null",
    "yes",
    "0012",
    "1e-6",
    "1_000",
    "- a",
    "a: b",
    "# c",
    "{a}",
    "\\boxed{}.",
    "\n\nWait",
    "'\"",
    "%s",
    "é\u2028",
]
TEXTS = (
    st.sampled_from(ODD)
    | st.text("\\${}:a ", max_size=8)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
)


def values(hint: typing.Any, rules: typing.Mapping[str, typing.Any]) -> st.SearchStrategy:
    """Allowed values of a setting, by its type and range."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return st.none() | values(next(item for item in arguments if item is not type(None)), rules)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple and Ellipsis in arguments:
        return st.lists(values(arguments[0], rules), min_size=1, max_size=3)
    if origin is tuple:
        return st.tuples(*(values(item, rules) for item in arguments)).map(list)
    low, high = rules.get("min"), rules.get("max")
    if hint is int:
        return st.integers(int(low or 0), 10**6 if high is None else int(high))
    if hint is float:
        floats = st.floats(
            low, 1e9 if high is None else high, exclude_min=bool(rules.get("exclusive")), allow_subnormal=False
        )
        return floats | st.sampled_from([1.0, 1e-6, 0.1]).filter(lambda value: high is None or value <= high)
    columns = st.dictionaries(st.sampled_from(["question", "answer"]), TEXTS)
    return {bool: st.booleans(), str: TEXTS, dict[str, typing.Any]: columns}[hint]


def section(cls: type) -> st.SearchStrategy:
    """A mapping of some of the settings of ``cls``."""
    hints = typing.get_type_hints(cls)
    fields = {item.name: values(hints[item.name], item.metadata) for item in dataclasses.fields(cls)}
    return st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=4).flatmap(
        lambda names: st.fixed_dictionaries({name: fields[name] for name in names})
    )


SECTIONS = {
    name: section(hint) for name, hint in typing.get_type_hints(RunConfig).items() if dataclasses.is_dataclass(hint)
}
STAGES = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES, "episodes": st.integers(1, 99)},
        optional={
            "overrides": st.fixed_dictionaries(
                {}, optional={name: SECTIONS[name] for name in ("grpo", "optim", "replay", "rethink")}
            )
        },
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda stage: stage["name"],
)
SETTINGS = st.fixed_dictionaries(
    {}, optional={**SECTIONS, "name": NAMES, "seed": st.integers(0, 2**40), "stages": STAGES}
)


def loaded(folder, chosen: dict) -> RunConfig | None:
    """The config of a file with these settings; None if they do not go together, or refer to each other (``${``)."""
    file = folder / "config.yaml"
    file.write_text(json.dumps(chosen), encoding="utf-8")  # JSON is YAML
    try:
        return load_config(file)
    except ConfigError:
        return None


@settings(max_examples=50)
@given(SETTINGS)
@example({"data": {"prompt_hint": "\\${seed}"}})  # the file's way to write ${seed} and not mean the seed
@example({"data": {"prompt_hint": "a\\\\\\${seed}:${data.prompt_suffix}"}})
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, chosen):
    folder = tmp_path_factory.getbasetemp()
    config = loaded(folder, chosen)
    assume(config is not None)
    file = folder / "saved.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    again = load_config(file)
    assert again == config and repr(again) == repr(config)
    assert to_yaml(again) == to_yaml(config)
    for index in range(len(config.stages)):
        assert again.for_stage(index) == config.for_stage(index)
    for name, values_of in chosen.items():
        if name in SECTIONS and "${" not in json.dumps(values_of):  # nothing is dropped on the way in
            assert {key: to_dict(config)[name][key] for key in values_of} == values_of


@settings(max_examples=30)
@given(SETTINGS)
def test_overrides_say_what_a_file_says(tmp_path_factory, chosen):
    chosen.pop("stages", None)
    config = loaded(tmp_path_factory.getbasetemp(), chosen)
    assume(config is not None)
    items = [(name, value) for name, value in chosen.items() if name not in SECTIONS]
    items += [(f"{name}.{key}", value) for name in SECTIONS for key, value in chosen.get(name, {}).items()]
    assert load_config(None, [f"{key}={json.dumps(value)}" for key, value in items]) == config
