"""Which tokens end a response."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from rethinker.config.schema import ConfigError
from rethinker.policy.prompt import render


def response_ends(model: PreTrainedModel, processor: Any) -> tuple[int, ...]:
    """The tokens that end a response, the chat template's end of turn first: the tokenizer's EOS and those of
    generation_config.json.

    Raises ConfigError where there is none, and where the template ends a turn by a special token that is not among
    them: the policy would write it, the engine would go on (it would even be banned), and every response be cut.
    """
    tokenizer = processor.tokenizer
    listed = getattr(model.generation_config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(listed if isinstance(listed, list | tuple) else [listed])]
    eos_ids = [int(token) for token in dict.fromkeys(found) if token is not None]
    where = getattr(model.config, "_name_or_path", "") or "the model"
    if not eos_ids:
        raise ConfigError(f"{where}: neither the tokenizer nor generation_config.json has an EOS token: set eos_token")
    end = end_of_turn(processor)
    if end is None:
        return tuple(eos_ids)
    if end not in eos_ids:
        word, known = tokenizer.convert_ids_to_tokens([end])[0], tokenizer.convert_ids_to_tokens(eos_ids)
        raise ConfigError(
            f"{where}: the chat template ends a turn by {word!r} (id {end}), but EOS is {', '.join(map(repr, known))}: "
            f'no response would ever end. Set "eos_token": "{word}" in tokenizer_config.json, or add {end} to '
            '"eos_token_id" in generation_config.json (a list may have several)'
        )
    return (end, *(token for token in eos_ids if token != end))


def end_of_turn(processor: Any) -> int | None:
    """The first special token that the chat template puts behind an assistant's words; None if there is none."""
    words = "The answer is 4."
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": words}]
    _, _, tail = render(processor, turns).rpartition(words)
    tokenizer = processor.tokenizer
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in special or token in tokenizer.all_special_ids), None)
