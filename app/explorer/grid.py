"""`ComparisonGrid`: two settings against each other, in one labelled picture that fills up."""

from collections.abc import Callable
from io import BytesIO

import ipywidgets as widgets
from PIL import Image
from pydantic import ValidationError

from app.explorer.examples import example_prompts
from app.explorer.fields import Field, Message, NamedImage, button, note, text
from app.explorer.gallery import download_link
from app.explorer.progress import ProgressLine
from app.explorer.sheet import Labels, labelled
from app.explorer.words import LABELS, sentence, together
from app.explorer.work import Picture, Work
from app.schemas import Capabilities, GeneratedImage, ImageRequest, ImageSource, RefusedRequest

MOST_CELLS = 36
PIXELS_WHILE_FILLING = 192  # of a cell's longer side: composing a large sheet at every step would hold up the steps
COMPARED = ("guidance_scale", "num_inference_steps", "seed", "prompt", "negative_prompt", "scheduler")
TEXTS = ("prompt", "negative_prompt")
HINT = "Values, separated by commas; prompts by |"


class ComparisonGrid(widgets.VBox):
    """`base` gives the request that all cells start from. All cells are asked for at once, so that the source can share its work.

    `cells` has the pictures by row and column, `picture` the sheet as PNG.
    """

    def __init__(self, source: ImageSource, capabilities: Capabilities, base: Callable[[], ImageRequest]) -> None:
        self._source, self._capabilities, self._base = source, capabilities, base
        self._work: Work | None = None
        self.cells: dict[tuple[int, int], GeneratedImage] = {}
        options = [(LABELS[name], name) for name in COMPARED]
        style = {"description_width": "initial"}
        self.across = widgets.Dropdown(options=options, value="guidance_scale", description="Across", style=style)
        self.down = widgets.Dropdown(options=options, value="num_inference_steps", description="Down", style=style)
        self.across_values = text("across", "Values", self._suggested("guidance_scale"), HINT, self._check)
        self.down_values = text("down", "Values", self._suggested("num_inference_steps"), HINT, self._check)
        self.across.observe(lambda change: self._suggest(self.across_values, change["new"]), "value")
        self.down.observe(lambda change: self._suggest(self.down_values, change["new"]), "value")
        self.build_button = button("Compare", self.build, hint="Make all pictures of the grid")
        self.stop_button = button("Stop", self.stop, hint="Give up the pictures of the grid that are not ready")
        self.stop_button.disabled = True
        self.progress = ProgressLine()
        self.message = Message()
        self.sheet = NamedImage(format="png", tooltip="The pictures of the comparison")
        self.download = widgets.HTML()
        self._box = widgets.VBox()
        self._box.add_class("imagine-sheet")
        super().__init__([*self._controls(), self.progress.bar, self.message, self._box])
        self.add_class("imagine-part")

    @property
    def picture(self) -> bytes:
        png: bytes = self.sheet.value
        return png

    @property
    def problem(self) -> str:
        """The sentence about what went wrong last, or nothing."""
        return self.message.sentence

    def build(self) -> None:
        """Make the pictures; comes back at once."""
        if (work := self._work) is not None and work.running:
            return
        try:
            requests = self.requests()
        except (ValidationError, RefusedRequest) as error:
            self.message.say(sentence(error))
            return
        if not requests or self.build_button.disabled:
            return
        self.message.say("")
        self._begin(requests)

    def stop(self) -> None:
        if (work := self._work) is not None:
            work.stop()
            self.stop_button.disabled = True

    def wait(self, timeout_s: float | None = None) -> bool:
        return (work := self._work) is None or work.wait(timeout_s)

    def requests(self) -> list[ImageRequest]:
        """Row by row. Raises `ValidationError` and `RefusedRequest`."""
        base = self._base().model_dump()
        return [
            ImageRequest.model_validate(base | {self.down.value: below, self.across.value: beside}).resolved(self._capabilities)
            for below in self._values(self.down, self.down_values)
            for beside in self._values(self.across, self.across_values)
        ]

    def _begin(self, requests: list[ImageRequest]) -> None:
        columns = self._values(self.across, self.across_values)
        self._labels = Labels(
            across=LABELS[self.across.value].lower(),
            columns=columns,
            down=LABELS[self.down.value].lower(),
            rows=self._values(self.down, self.down_values),
            caption=self._caption(requests[0]),
        )
        self.cells = {}
        self._shown: dict[tuple[int, int], Image.Image] = {}
        self._size = (requests[0].width or 0, requests[0].height or 0)
        self.build_button.disabled, self.stop_button.disabled = True, False
        self._box.children = [self.sheet]
        self._draw()
        work = Work(
            self._source,
            requests,
            changed=lambda number, picture: self._changed(divmod(number, len(columns)), picture),
            ticked=self._tick,
            ended=lambda: self._ended(work),
        )
        self._work = work
        work.start()

    def _changed(self, place: tuple[int, int], picture: Picture) -> None:
        png = picture.generated.png if picture.generated else picture.preview
        if png is not None:
            self._shown[place] = Image.open(BytesIO(png)).convert("RGB")
        if picture.generated is not None:
            self.cells[place] = picture.generated
            self._draw()
        elif picture.error is not None:
            self._shown.pop(place, None)

    def _tick(self) -> None:
        if (work := self._work) is not None and work.running:
            self.progress.show(work)
            self._draw()

    def _ended(self, work: Work) -> None:
        self._shown = {place: generated.image for place, generated in self.cells.items()}
        self._draw(whole=True)
        self.progress.end(work)
        self.message.say(together(work.errors, len(work.pictures)))
        if self.cells:
            self.download.value = download_link(self.picture, "comparison.png", "Download PNG")
            self._box.children = [self.sheet, self.download]
        self._work = None
        self.build_button.disabled, self.stop_button.disabled = False, True
        self._check()

    def _draw(self, *, whole: bool = False) -> None:
        width, height = self._size
        scale = 1 if whole else min(1, PIXELS_WHILE_FILLING / max(width, height))
        file = BytesIO()
        labelled(self._shown, self._labels, (round(width * scale), round(height * scale))).save(file, "PNG", compress_level=1)
        self.sheet.value = file.getvalue()

    def _caption(self, request: ImageRequest) -> str:
        varied = (self.across.value, self.down.value)
        return " · ".join(
            f"{value}" if name in TEXTS else f"{LABELS[name].lower()} {value}"
            for name in ("prompt", "num_inference_steps", "guidance_scale", "seed")
            if name not in varied and (value := getattr(request, name)) != ""
        )

    def _values(self, parameter: widgets.Dropdown, field: Field) -> list[str]:
        separator = "|" if parameter.value in TEXTS else ","
        return [value for part in str(field.value).split(separator) if (value := part.strip())]

    def _suggest(self, field: Field, name: str) -> None:
        field.value = self._suggested(name)
        self._check()

    def _suggested(self, name: str) -> str:
        guidance, steps = self._capabilities.guidance_scale, self._capabilities.num_inference_steps
        values: dict[str, tuple[object, ...]] = {
            "guidance_scale": tuple(f"{value:g}" for value in (1, guidance, 2 * guidance)) if guidance else ("0", "1"),
            "num_inference_steps": tuple(sorted({max(1, steps // 4), max(1, steps // 2), steps})),
            "seed": (1, 2, 3),
            "prompt": example_prompts(self._capabilities)[:3],
            "negative_prompt": ("blurry", "red", "background"),
            "scheduler": self._capabilities.schedulers[:3],
        }
        return (" | " if name in TEXTS else ", ").join(map(str, values[name]))

    def _check(self) -> None:
        """Say next to each list of values what is wrong with it."""
        lists = {"across": self._values(self.across, self.across_values), "down": self._values(self.down, self.down_values)}
        many = len(lists["across"]) * len(lists["down"]) > MOST_CELLS
        for parameter, field in ((self.across, self.across_values), (self.down, self.down_values)):
            field.problem = (
                "must have a value"
                if not lists[field.name]
                else f"at most {MOST_CELLS} pictures; these are {len(lists['across']) * len(lists['down'])}"
                if many
                else self._refused(parameter.value, lists[field.name])
            )
        if self.across.value == self.down.value:
            self.down_values.problem = "choose another setting than across"
        running = (work := self._work) is not None and work.running
        self.build_button.disabled = running or bool(self.across_values.problem or self.down_values.problem)

    def _refused(self, name: str, values: list[str]) -> str:
        for value in values:
            try:
                ImageRequest.model_validate({"prompt": "anything", name: value}).resolved(self._capabilities)
            except (ValidationError, RefusedRequest) as error:
                return f"{value}: {sentence(error)}"
        return ""

    def _controls(self) -> list[widgets.Widget]:
        rows = []
        for parameter, field in ((self.across, self.across_values), (self.down, self.down_values)):
            row = widgets.HBox([parameter, field])
            row.add_class("imagine-row")
            rows.append(row)
        actions = widgets.HBox([self.build_button, self.stop_button, self.progress.status])
        actions.add_class("imagine-actions")
        return [*rows, note(HINT), actions]
