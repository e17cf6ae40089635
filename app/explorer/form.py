"""What is asked for: the fields of an `ImageRequest` as widgets, checked while they are typed."""

import secrets
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as widgets
from pydantic import ValidationError

from app.explorer.fields import Field, button, choice, fold, integer, number, text
from app.explorer.words import broken, problems
from app.schemas import MAX_SEED, Capabilities, ErrorDetail, ImageRequest, RefusedRequest

MOST_PICTURES = 16
LAST_LETTERS_S = 0.3  # Enter is sent at once, the letters before it only when the kernel has answered for the letters before them
ALL_SIDES = "width x height"  # what a rule about both is called


class RequestForm(widgets.VBox):
    """`submit` is called when Enter is pressed in the prompt, `checked` whenever a value has changed and was looked at."""

    def __init__(
        self,
        capabilities: Capabilities,
        examples: tuple[str, ...],
        submit: Callable[[], object],
        checked: Callable[[], object],
    ) -> None:
        self._capabilities, self._checked = capabilities, checked
        self._setting = self._rolling = False
        limit = "" if capabilities.max_prompt_tokens is None else f", at most {capabilities.max_prompt_tokens} tokens are read"
        self.prompt = text("prompt", "Prompt", examples[0], f"What the picture shows{limit}; Enter generates", self.check)
        self._submit = submit
        self._entered = threading.Timer(LAST_LETTERS_S, submit)  # one that runs only once Enter was pressed
        self.prompt.widget.on_msg(self._heard)
        self.negative_prompt = text("negative_prompt", "Negative prompt", "", "What the picture must not show", self.check)
        most = capabilities.max_num_inference_steps
        sides = f"Pixels: a multiple of {capabilities.size_multiple}, at most {capabilities.max_pixels} pixels in all"
        self.width = integer("width", "Width", capabilities.width, sides, self.check)
        self.height = integer("height", "Height", capabilities.height, sides, self.check)
        self.num_inference_steps = integer(
            "num_inference_steps", "Steps", capabilities.num_inference_steps, f"Denoising steps, 1 to {most}: more take longer", self.check
        )
        self.guidance_scale = number(
            "guidance_scale", "Guidance", capabilities.guidance_scale, "How closely to follow the prompt, 0 to 30", self.check
        )
        self.scheduler = choice("scheduler", "Noise scheduler", capabilities.schedulers, capabilities.scheduler, self.check)
        self.seed = integer(
            "seed", "Seed", secrets.randbelow(MAX_SEED + 1), "Picks the noise that the picture starts from", self._seed_typed
        )
        self.lock = widgets.ToggleButton(icon="unlock", tooltip="Keep the seed: locked, the same settings give the same picture")
        self.lock.observe(lambda change: setattr(self.lock, "icon", "lock" if change["new"] else "unlock"), "value")
        self.dice = button("", self.roll, hint="Another seed", icon="random")
        self.count = integer("count", "Pictures", 1, f"How many, with seeds one apart, 1 to {MOST_PICTURES}", self.check)
        self.examples = [button(example, partial(self._take_example, example)) for example in examples]
        self._fields = {field.name: field for field in vars(self).values() if isinstance(field, Field)}
        super().__init__([self.prompt, self._example_row(), self._main_row(), self._more()])
        self.add_class("imagine-form")
        self.check()

    def request(self) -> ImageRequest:
        """What the fields say. Raises `ValidationError` and `RefusedRequest`."""
        values = {name: field.value for name, field in self._fields.items() if name != "count"}
        return ImageRequest(**values).resolved(self._capabilities)

    def requests(self) -> list[ImageRequest]:
        """One for each picture, after drawing a seed if it is not locked. Raises like `request`."""
        if not self.lock.value:
            self.roll()
        first = self.request()
        return with_seeds(first, range(first.seed or 0, (first.seed or 0) + self.count.value))

    def show(self, request: ImageRequest) -> None:
        """Take over the settings of a picture, its seed locked.

        Raises `RefusedRequest` for a noise scheduler that this model does not have, once it has taken over the rest.
        """
        has_it = request.scheduler in self._capabilities.schedulers
        self._setting = True
        try:
            for name in self._fields.keys() - {"count"} - (set() if has_it else {"scheduler"}):
                self._fields[name].value = getattr(request, name)
            self.lock.value = True
        finally:
            self._setting = False
            self.check()
        if not has_it:
            raise RefusedRequest(ErrorDetail.of("scheduler", f"{request.scheduler} is none of this model's", request.scheduler))

    @property
    def complaint(self) -> str:
        """What is wrong with all fields, also with those that are folded away, or nothing."""
        return broken((name, field.problem) for name, field in self._fields.items() if field.problem)

    def roll(self) -> None:
        self._rolling = True
        try:
            self.seed.value = secrets.randbelow(MAX_SEED + 2 - min(max(1, self.count.value), MOST_PICTURES))
        finally:
            self._rolling = False

    def _seed_typed(self) -> None:
        """Whoever types a seed wants that one."""
        if not (self._setting or self._rolling):
            self.lock.value = True
        self.check()

    def check(self) -> None:
        """Say next to each field what is wrong with it."""
        if self._setting:
            return
        found = self._problems()
        for name, field in self._fields.items():
            field.problem = "; ".join(detail.rule for detail in found if detail.field in _rules_of(name))
        self._checked()

    def _problems(self) -> list[ErrorDetail]:
        found = []
        if not 1 <= self.count.value <= MOST_PICTURES:
            found.append(ErrorDetail.of("count", f"must be from 1 to {MOST_PICTURES}", self.count.value))
        elif MAX_SEED - self.count.value + 1 < self.seed.value <= MAX_SEED:
            highest = MAX_SEED - self.count.value + 1
            found.append(ErrorDetail.of("seed", f"must be at most {highest} for {self.count.value} pictures", self.seed.value))
        try:
            self.request()
        except (ValidationError, RefusedRequest) as error:
            found += problems(error)
        return found

    def _heard(self, widget: widgets.Widget, content: dict[str, Any], buffers: object) -> None:
        """Enter arrives as a message of its own, also if the text is the same as last time."""
        if content.get("event") == "submit":
            self._entered.cancel()
            self._entered = threading.Timer(LAST_LETTERS_S, self._submit)
            self._entered.start()

    def _take_example(self, example: str) -> None:
        self.prompt.value = example

    def _example_row(self) -> widgets.Widget:
        row = widgets.HBox(self.examples)
        row.add_class("imagine-examples")
        return row

    def _main_row(self) -> widgets.Widget:
        seed = widgets.HBox([self.seed, self.dice, self.lock])
        row = widgets.HBox([seed, self.count])
        for box in (seed, row):
            box.add_class("imagine-row")
        return row

    def _more(self) -> widgets.Widget:
        numbers = widgets.HBox([self.width, self.height, self.num_inference_steps, self.guidance_scale])
        numbers.add_class("imagine-numbers")
        return fold("More settings", self.negative_prompt, numbers, self.scheduler)


def with_seeds(request: ImageRequest, seeds: range) -> list[ImageRequest]:
    return [request.model_copy(update={"seed": seed}) for seed in seeds]


def _rules_of(name: str) -> set[Any]:
    return {name, ALL_SIDES} if name in ("width", "height") else {name}
