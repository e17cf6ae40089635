"""The panel without a browser: what a front end would send is sent, and what it would show is looked at."""

import threading
from collections.abc import Callable

import pytest

from app.engine.engine import ImageEngine
from app.explorer import PromptExplorer
from app.explorer.form import RequestForm
from app.schemas import Capabilities, GeneratedImage, ImageRequest, Progress

PATIENCE_S = 60.0


def press_enter(form: RequestForm, typed_late: str | None = None) -> None:
    """What the front end sends when Enter is pressed in the prompt, maybe before the last of what was typed."""
    form.prompt.widget._handle_msg({"content": {"data": {"method": "custom", "content": {"event": "submit"}}}, "buffers": []})
    if typed_late is not None:
        form.prompt.value = typed_late
    form._entered.join(PATIENCE_S)


def finished(panel: PromptExplorer) -> PromptExplorer:
    assert panel.wait(PATIENCE_S)
    assert not panel.problem
    return panel


class Watched:
    """The engine, seen from outside: how many requests were in flight at once, and a door that holds them at a step."""

    def __init__(self, engine: ImageEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._in_flight = 0
        self.most_in_flight = 0
        self.crowd = threading.Barrier(1)
        self.asked: list[ImageRequest] = []
        self.door = threading.Event()
        self.door.set()
        self.at_door = threading.Event()

    @property
    def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    def generate(
        self,
        request: ImageRequest,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        *,
        previews: bool = False,
    ) -> GeneratedImage:
        def tell(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(progress)
            self.at_door.set()
            assert self.door.wait(PATIENCE_S)

        self.let_in()
        with self._lock:
            self.asked.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            self.crowd.wait(PATIENCE_S)
            return self._engine.generate(request, tell, cancel, previews=previews)
        finally:
            with self._lock:
                self._in_flight -= 1
            self.let_out()

    def let_in(self) -> None:
        """Whoever asks for a picture. Raises in place of one."""

    def let_out(self) -> None:
        """Whoever was let in."""

    def meet(self, number: int) -> None:
        """Nobody goes on before so many have asked; it fails if so many never do."""
        self.crowd = threading.Barrier(number)

    def hold(self) -> None:
        """The next step waits until `door` is set."""
        self.door.clear()
        self.at_door.clear()


@pytest.fixture
def source(engine: ImageEngine) -> Watched:
    return Watched(engine)


@pytest.fixture
def panel(source: Watched) -> PromptExplorer:
    """Quick: four steps."""
    panel = PromptExplorer(source)
    panel.form.num_inference_steps.value = 4
    return panel
