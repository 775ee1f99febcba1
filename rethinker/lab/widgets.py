"""Small forms for notebooks: grade an answer by hand, force a second look on a response by hand.

Each is a thin layer over a plain call of the library (``teaching.grade_table``, ``SecondLooks.force``), which notebooks
also make without a form, so that an executed copy shows a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets
from IPython.display import HTML, display

from rethinker.lab.pages import query_card, tokens_html
from rethinker.lab.second_look import SecondLooks, kept_table
from rethinker.lab.teaching import grade_table
from rethinker.rethink import TRIGGERS
from rethinker.types import Query

WIDE = {"layout": ipywidgets.Layout(width="60em"), "style": {"description_width": "7em"}}


def grading_form(queries: Sequence[Query]) -> ipywidgets.Widget:
    """Choose a query, type a response, see its grade. The response starts as the boxed gold answer."""
    chosen = _query_menu(queries)
    response = ipywidgets.Textarea(rf"\boxed{{{queries[0].answer}}}", description="response", **WIDE)

    def show() -> None:
        query = queries[chosen.value]
        display(HTML(query_card(query)))
        display(grade_table(query, [response.value]))

    return _form([chosen, response], "Grade", show)


def rethinking_form(looks: SecondLooks, queries: Sequence[Query]) -> ipywidgets.Widget:
    """Choose a query and a trigger, type y1 (or leave it empty: the policy writes it), and force the second look."""
    chosen = _query_menu(queries)
    response = ipywidgets.Textarea("", description="y1", placeholder="empty: the policy's own", **WIDE)
    trigger = ipywidgets.Dropdown(
        options=[("drawn blindly", ""), *((kind, kind) for kind in TRIGGERS)], description="trigger", **WIDE
    )

    def show() -> None:
        query = queries[chosen.value]
        group = looks.written(query, response.value) if response.value else looks.first([query], 1)[0]
        trajectories = looks.force(group, trigger.value)
        display(HTML(query_card(query)))
        display(HTML(tokens_html(looks.tokens(trajectories[0]))))
        display(kept_table(trajectories))

    return _form([chosen, response, trigger], "Force a second look", show)


def _query_menu(queries: Sequence[Query]) -> ipywidgets.Dropdown:
    if not queries:
        raise ValueError("there is no query to choose")
    options = [(f"{query.qid}: {query.category}, level {query.level}", n) for n, query in enumerate(queries)]
    return ipywidgets.Dropdown(options=options, description="query", **WIDE)


def _form(fields: Sequence[ipywidgets.Widget], label: str, show: Callable[[], None]) -> ipywidgets.Widget:
    """The fields, a button, and below them what ``show`` displays; a mistake of the reader's is shown as one line."""
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
