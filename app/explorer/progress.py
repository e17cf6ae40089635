"""How far the pictures are: a bar that moves with every step, and a line that says it in words."""

import ipywidgets as widgets

from app.explorer.words import seconds
from app.explorer.work import Work


class ProgressLine:
    """`bar` and `status` are widgets for the panel to place."""

    def __init__(self) -> None:
        self.bar = widgets.IntProgress(0, 0, 1, tooltip="Steps done")
        self.bar.layout.visibility = "hidden"
        self.status = widgets.HTML()
        self.status.add_class("imagine-status")

    def show(self, work: Work) -> None:
        self.bar.layout.visibility = "visible"
        self.bar.max = max(1, work.steps)
        self.bar.value = work.steps_done
        self.status.value = words(work)

    def end(self, work: Work, left: int = 0) -> None:
        """`left` older pictures have made room."""
        made, asked = sum(one.generated is not None for one in work.pictures), len(work.pictures)
        self.bar.layout.visibility = "hidden"
        taken = seconds(work.seconds_gone)
        if made == asked:
            said = f"{pictures(made)} in {taken}"
        elif work.stopping:
            said = f"Stopped after step {work.steps_done} of {work.steps}, {taken}" + (f"; {pictures(made)}" if made else "")
        else:
            said = f"{made} of {pictures(asked)} in {taken}" if made else ""
        self.status.value = said + (f"; the {left} oldest made room" if left else "")


def words(work: Work) -> str:
    if work.stopping:
        return "Stopping …"
    gone, left = seconds(work.seconds_gone), work.seconds_left
    if not work.steps_done:
        return f"Waiting for the first step · {gone}"
    many = f"{pictures(len(work.pictures))} · " if len(work.pictures) > 1 else ""
    return f"{many}step {work.steps_done} of {work.steps} · {gone} gone" + ("" if left is None else f", about {seconds(left)} left")


def pictures(number: int) -> str:
    return "1 picture" if number == 1 else f"{number} pictures"
