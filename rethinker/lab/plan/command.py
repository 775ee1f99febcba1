"""``rethinker plan``. Nothing here is from the paper."""

from __future__ import annotations

from typing import Literal

from rethinker.lab.command_line import CONFIG, command, option, settings


@command(
    "plan",
    "Compute what a config needs on GPUs: memory by part, seconds of an episode, what to change. Refuses nothing.",
    CONFIG,
    settings(),
    option(
        "--gpus",
        type=int,
        help="GPUs, servers included (default: launch.machines x launch.processes; engine=server: --servers more)",
    ),
    option("--gpu", default="h100-80", help="their type, e.g. h200-141, a100-80, l40s (default: %(default)s)"),
    option("--nodes", type=int, help="machines (default: as few as eight GPUs each allow)"),
    option("--sharding", choices=("none", "full", "hybrid"), help="of weights over the GPUs (default: model.sharding)"),
    option(
        "--servers",
        type=int,
        default=0,
        help="GPUs that only generate (default: all train and generate in turn; engine=server: the best number)",
    ),
    option("--prompt-tokens", type=int, help="mean, images included (default: from the config's pixel limits)"),
    option("--response-tokens", type=int, help="mean (default: 500)"),
    option("--explain", action="store_true", help="also print formulas and assumptions"),
)
def plan(
    file: str,
    overrides: list[str],
    gpus: int | None,
    gpu: str,
    nodes: int | None,
    sharding: Literal["none", "full", "hybrid"] | None,
    servers: int,
    prompt_tokens: int | None,
    response_tokens: int | None,
    explain: bool,
) -> int:
    from rethinker.config import load_config
    from rethinker.lab.plan.case import make_case
    from rethinker.lab.plan.show import describe, print_page

    case, source = make_case(
        load_config(file, typed=overrides),
        gpu,
        gpus,
        nodes=nodes,
        sharding=sharding,
        servers=servers,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
    )
    print_page(describe(case, source, explain))
    return 0
