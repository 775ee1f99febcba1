"""Small forms for notebooks: grade an answer by hand, force a second look on a response by hand.

Each is a thin layer over a plain call of the library (``teaching.grade_table``, ``SecondLooks.force``), which notebooks
also make without a form, so that an executed copy shows a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import ipywidgets
from IPython.display import HTML, display

from rethinker.lab.notebook.pages import query_card, tokens_html
from rethinker.lab.notebook.second_look import SecondLooks, kept_table
from rethinker.lab.notebook.teaching import grade_table
from rethinker.rethink import TRIGGERS
from rethinker.types import Query

MENU = 300  # queries in a menu: browsers draw a longer one slowly
WIDE = {"layout": ipywidgets.Layout(width="60em"), "style": {"description_width": "7em"}}


def grading_form(queries: Sequence[Query]) -> ipywidgets.Widget:
    """Choose a query (of the first ``MENU``), type a response, see its grade; it starts as the first's gold answer."""
    chosen = _query_menu(queries)
    response = ipywidgets.Textarea(rf"\boxed{{{queries[0].answer}}}", description="response", **WIDE)

    def show() -> None:
        query = queries[chosen.value]
        display(HTML(query_card(query)))
        display(grade_table(query, [response.value]))

    return _form([chosen, response], "Grade", show)


def rethinking_form(looks: SecondLooks, queries: Sequence[Query], responses: int) -> ipywidgets.Widget:
    """Choose a query and one of its ``responses`` first responses, or type one, and a trigger; force the second look.

    The first responses are those of ``looks.first``; another seed is another second look on the same one.
    """
    chosen = _query_menu(queries)
    index = ipywidgets.Dropdown(options=range(responses), description="response", **WIDE)
    response = ipywidgets.Textarea("", description="y1", placeholder="empty: the policy's own, chosen above", **WIDE)
    trigger = ipywidgets.Dropdown(
        options=[("as in training", ""), *((kind, kind) for kind in TRIGGERS)], description="trigger", **WIDE
    )
    seed = ipywidgets.BoundedIntText(looks.seed, max=2**31 - 1, description="seed", **WIDE)

    def show() -> None:
        query = queries[chosen.value]
        if response.value:
            group = looks.written(query, response.value)
        else:
            (group,) = looks.first([query], responses)
            at = slice(index.value, index.value + 1)
            group = replace(group, samples=group.samples[at], first_correct=group.first_correct[at])
        trajectories = replace(looks, seed=seed.value).force(group, trigger.value)
        display(HTML(query_card(query)))
        display(HTML(tokens_html(looks.tokens(trajectories[0]))))
        display(kept_table(trajectories))

    return _form([chosen, index, response, trigger, seed], "Force a second look", show)


def _query_menu(queries: Sequence[Query]) -> ipywidgets.Dropdown:
    if not queries:
        raise ValueError("there is no query to choose")
    shown = enumerate(queries[:MENU])
    options = [(f"{query.qid}: {query.category}, level {query.level}", n) for n, query in shown]
    return ipywidgets.Dropdown(options=options, description="query", **WIDE)


def _form(fields: Sequence[ipywidgets.Widget], label: str, show: Callable[[], None]) -> ipywidgets.Widget:
    """The fields, a button, and below them what ``show`` displays; a user error is shown as one line."""
    button, output = ipywidgets.Button(description=label, button_style="primary"), ipywidgets.Output()

    def clicked(_: object) -> None:
        output.clear_output(wait=True)
        with output:
            try:
                show()
            except ValueError as error:
                print(error)

    button.on_click(clicked)
    return ipywidgets.VBox([*fields, button, output])
