"""One setting: its label, its widget, and below it what is wrong with the value."""

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets
from traitlets import Unicode

DESCRIPTION_WIDTH = "initial"  # as wide as the label


class Field(widgets.VBox):
    """`widget` with a line for `problem` below it. `changed` is called when the value is."""

    def __init__(self, name: str, widget: widgets.ValueWidget, changed: Callable[[], None]) -> None:
        self.name, self.widget = name, widget
        self._message = widgets.HTML()
        super().__init__([widget])
        self.add_class("imagine-field")
        widget.observe(lambda change: changed(), "value")

    @property
    def value(self) -> Any:  # noqa: ANN401
        return self.widget.value

    @value.setter
    def value(self, value: object) -> None:
        self.widget.value = value

    _problem = ""

    @property
    def problem(self) -> str:
        return self._problem

    @problem.setter
    def problem(self, problem: str) -> None:
        if problem == self._problem:
            return
        self._problem = problem
        self._message.value = f'<div class="imagine-problem" role="alert">{escape(problem)}</div>'
        self.children = [self.widget, self._message] if problem else [self.widget]
        (self.add_class if problem else self.remove_class)("imagine-wrong")


class Message(widgets.HTML):
    """A sentence about what went wrong, or nothing."""

    sentence = ""

    def __init__(self) -> None:
        super().__init__()
        self.add_class("imagine-message")

    def say(self, sentence: str) -> None:
        self.sentence = sentence
        self.value = f'<div role="alert">{escape(sentence)}</div>' if sentence else ""


class NamedImage(widgets.Image):
    """A PNG whose tooltip names it for a screen reader. The front end sets a tooltip only on widgets that have a description."""

    description = Unicode("").tag(sync=True)


def integer(name: str, label: str, value: int, hint: str, changed: Callable[[], None]) -> Field:
    return Field(name, widgets.IntText(value, description=label, tooltip=hint, style={"description_width": DESCRIPTION_WIDTH}), changed)


def number(name: str, label: str, value: float, hint: str, changed: Callable[[], None], step: float = 0.5) -> Field:
    widget = widgets.FloatText(value, step=step, description=label, tooltip=hint, style={"description_width": DESCRIPTION_WIDTH})
    return Field(name, widget, changed)


def text(name: str, label: str, value: str, placeholder: str, changed: Callable[[], None]) -> Field:
    style = {"description_width": DESCRIPTION_WIDTH}
    return Field(name, widgets.Text(value, description=label, placeholder=placeholder, tooltip=placeholder, style=style), changed)


def choice(name: str, label: str, options: tuple[str, ...], value: str, changed: Callable[[], None]) -> Field:
    style = {"description_width": DESCRIPTION_WIDTH}
    return Field(name, widgets.Dropdown(options=options, value=value, description=label, tooltip=label, style=style), changed)


def note(words: str) -> widgets.HTML:
    """A line in small print: of a text field's hint the page shows nothing while there is a value."""
    line = widgets.HTML(words)
    line.add_class("imagine-status")
    return line


def button(label: str, pressed: Callable[[], object], *, hint: str = "", icon: str = "", primary: bool = False) -> widgets.Button:
    """With an icon alone, `hint` is its name for a screen reader."""
    made = widgets.Button(description=label, tooltip=hint or label, icon=icon, button_style="primary" if primary else "")
    made.on_click(lambda _: pressed())
    return made


def fold(title: str, *children: widgets.Widget) -> widgets.Accordion:
    """Closed until somebody opens it."""
    folded = widgets.Accordion([widgets.VBox(children)], titles=(title,), selected_index=None)
    folded.add_class("imagine-fold")
    return folded
