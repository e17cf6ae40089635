"""`PromptExplorer`: explore prompts in a notebook, on whatever makes images."""

import threading
from html import escape

import ipywidgets as widgets

from app.explorer.examples import example_prompts
from app.explorer.fields import Message, button, fold
from app.explorer.form import RequestForm, with_seeds
from app.explorer.gallery import Gallery, Tile
from app.explorer.grid import ComparisonGrid
from app.explorer.history import History
from app.explorer.progress import ProgressLine
from app.explorer.style import stylesheet
from app.explorer.words import sentence, together
from app.explorer.work import Picture, Work
from app.schemas import MAX_SEED, Capabilities, GeneratedImage, ImageRequest, ImageSource, RefusedRequest

VARIATIONS = 4
GENERATE = "Make the picture (Enter in the prompt)"
SECONDS_TO_CONNECT = 2.0  # that showing the panel may take; a slower source is shown once it answers


class PromptExplorer(widgets.VBox):
    """A panel on `source`: the engine in this process, the client of a served app, or anything else that is an `ImageSource`.

    Show it by making it the last line of a cell. Pictures are made in threads of their own, so other cells run meanwhile. `generate`,
    `stop` and `wait` are what its buttons do, for code; `images` are the pictures made so far, newest first.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._work: Work | None = None
        self._starting = threading.RLock()  # Enter starts in a thread of its own, a click in the kernel's
        self._shown = False  # whether there is a form
        self.about = widgets.HTML()
        self.about.add_class("imagine-about")
        self.message = Message()
        self.retry = button("Try again", self.connect)
        self.generate_button = button("Generate", self.generate, primary=True, hint=GENERATE)
        self.generate_button.disabled = True
        self.stop_button = button("Stop", self.stop, hint="Give up the pictures on their way")
        self.progress = ProgressLine()
        self.gallery = Gallery(self.use, self.vary)
        self.history = History(self.gallery)
        self._style = stylesheet()
        super().__init__([self._style, self.about])
        self.add_class("imagine")
        self.connect()

    def connect(self) -> None:
        """Ask the source what it can do, and show the panel when it has said so, or the reason why not."""
        self.retry.disabled = True
        self.about.value = "Asking the model what it can do …"
        asking = threading.Thread(target=self._connect, name="connect", daemon=True)
        asking.start()
        asking.join(SECONDS_TO_CONNECT)

    @property
    def images(self) -> list[GeneratedImage]:
        """Newest first."""
        return self.gallery.images

    @property
    def running(self) -> bool:
        work = self._work  # another thread may end it meanwhile
        return work is not None and work.running

    @property
    def problem(self) -> str:
        """The sentence about what went wrong last, or nothing."""
        return self.message.sentence

    def generate(self) -> None:
        """Make the pictures that the form asks for; comes back at once. Does nothing while others are on their way."""
        if not self._shown:
            self.message.say(self.problem or "The model has not said yet what it can do.")
            return
        with self._starting:
            if self.running:
                return
            if self.form.complaint:
                self.message.say(self.form.complaint)
            else:
                self._start(self.form.requests())

    def stop(self) -> None:
        if (work := self._work) is not None:
            work.stop()
            self.stop_button.disabled = True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until no picture is on its way; False if that took longer than `timeout_s`."""
        return (work := self._work) is None or work.wait(timeout_s)

    def use(self, request: ImageRequest) -> None:
        """Put the settings of a picture into the form."""
        try:
            self.form.show(request)
        except RefusedRequest as error:
            self.message.say(sentence(error))
        else:
            self.message.say(self.form.complaint)

    def vary(self, request: ImageRequest) -> None:
        """The same settings with the seeds that follow."""
        with self._starting:
            if not self.running:
                seed = min(request.seed or 0, MAX_SEED - VARIATIONS)
                self._start(with_seeds(request, range(seed + 1, seed + 1 + VARIATIONS)))

    def _connect(self) -> None:
        try:
            capabilities = self._source.capabilities
        except Exception as error:
            self.about.value = ""
            self.message.say(sentence(error))
            self.retry.disabled = False
            self.children = [self._style, self.about, self.message, self.retry]
            return
        self.message.say("")
        about = (capabilities.model, capabilities.pipeline, f"{capabilities.width} × {capabilities.height}", capabilities.scheduler)
        self.about.value = escape(" · ".join(about))
        self._show(capabilities)

    def _show(self, capabilities: Capabilities) -> None:
        self.form = RequestForm(capabilities, example_prompts(capabilities), self.generate, self._enable)
        self.grid = ComparisonGrid(self._source, capabilities, self.form.request)
        self.stop_button.disabled = True
        actions = widgets.HBox([self.generate_button, self.stop_button, self.progress.status])
        actions.add_class("imagine-actions")
        part = widgets.VBox([actions, self.progress.bar, self.message])
        part.add_class("imagine-part")
        folded = [fold("Compare two settings", self.grid), fold("Save and load", self.history)]
        self.children = [self._style, self.about, self.form, part, self.gallery, *folded]
        self._shown = True
        self._enable()

    def _start(self, requests: list[ImageRequest]) -> None:
        self.message.say("")
        tiles = self.gallery.begin(requests)
        work = Work(
            self._source,
            requests,
            changed=lambda number, picture: self._changed(tiles[number], picture),
            ticked=lambda: self.progress.show(work),
            ended=lambda: self._ended(work, tiles),
        )
        self._work = work
        self._enable()
        self.progress.show(work)
        work.start()

    def _changed(self, tile: Tile, picture: Picture) -> None:
        if (work := self._work) is not None:
            self.progress.show(work)
        self.gallery.show(tile, picture)

    def _ended(self, work: Work, tiles: list[Tile]) -> None:
        self.progress.end(work, self.gallery.end(tiles))
        self.message.say(together(work.errors, len(tiles)))
        self._work = None
        self._enable()

    def _enable(self) -> None:
        problem = self.form.complaint if self._shown else ""
        if self.problem == self.generate_button.tooltip:  # about what was typed so far
            self.message.say(problem)
        self.generate_button.disabled = self.running or bool(problem) or not self._shown
        self.generate_button.tooltip = problem or GENERATE
        self.gallery.vary.disabled = self.running
        self.stop_button.disabled = (work := self._work) is None or work.stopping
