"""Several requests to one source, all in flight at once, while the notebook's kernel stays free."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.schemas import GeneratedImage, GenerationCancelled, ImageRequest, ImageSource, Progress, SourceError

SECONDS_BETWEEN_TICKS = 0.5
LONGEST_PAUSE_S = 600.0  # before a busy source is asked again: a proxy may name a day


@dataclass(slots=True)
class Picture:
    """A picture on its way. `total` is the number of steps, once it is known."""

    request: ImageRequest
    steps: int
    step: int = 0
    preview: bytes | None = None
    generated: GeneratedImage | None = None
    error: Exception | None = None
    waits_for_room: bool = False

    @property
    def is_under_way(self) -> bool:
        return not self.waits_for_room and self.generated is None and self.error is None


class Work:
    """Runs every request in a daemon thread. `changed` is told of every step and every end, `ticked` about twice a second, `ended` once,
    after the last. None of them is called while another is running."""

    def __init__(
        self,
        source: ImageSource,
        requests: Sequence[ImageRequest],
        *,
        changed: Callable[[int, Picture], None],
        ticked: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self.pictures = [Picture(request, request.num_inference_steps or source.capabilities.num_inference_steps) for request in requests]
        self.began = time.monotonic()
        self._source = source
        self._changed, self._ticked, self._ended = changed, ticked, ended
        self._first: tuple[float, int] | None = None  # when the first step was done, and how many were by then
        self._cancel = threading.Event()
        self._telling = threading.RLock()
        self._over = threading.Event()

    def start(self) -> None:
        self._threads = [
            threading.Thread(target=self._make, args=(number,), name=f"picture {number}", daemon=True)
            for number in range(len(self.pictures))
        ]
        for thread in self._threads:
            thread.start()
        threading.Thread(target=self._watch, name="pictures", daemon=True).start()

    def stop(self) -> None:
        """Every picture that is not ready is given up within a step."""
        self._cancel.set()

    @property
    def stopping(self) -> bool:
        return self._cancel.is_set()

    @property
    def running(self) -> bool:
        return not self._over.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether all is over, `ended` included, within the time."""
        return self._over.wait(timeout_s)

    @property
    def steps_done(self) -> int:
        return sum(picture.step for picture in self.pictures)

    @property
    def steps(self) -> int:
        return sum(picture.steps for picture in self.pictures)

    @property
    def seconds_gone(self) -> float:
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        """From the steps done since the first one, which had to wait for whatever comes before it; None until there are two."""
        if self._first is None or self.steps_done <= self._first[1]:
            return None
        then, done = self._first
        return (time.monotonic() - then) / (self.steps_done - done) * (self.steps - self.steps_done)

    def _make(self, number: int) -> None:
        picture = self.pictures[number]

        def on_progress(progress: Progress) -> None:
            with self._telling:
                picture.step, picture.steps = progress.step, progress.total
                picture.preview = progress.preview or picture.preview
                self._first = self._first or (time.monotonic(), self.steps_done)
                self._changed(number, picture)

        try:
            picture.generated = self._when_there_is_room(picture, on_progress)
        except Exception as error:
            picture.error = error
            if not self.stopping:
                picture.steps = picture.step  # the others are nearer to their end than they were
        with self._telling:
            self._changed(number, picture)

    def _when_there_is_room(self, picture: Picture, on_progress: Callable[[Progress], None]) -> GeneratedImage:
        """A source that is too busy with others of these pictures is asked again; if it is with anybody else's, its error is raised."""
        while True:
            others = [other for other in self.pictures if other is not picture and other.is_under_way]
            try:
                picture.waits_for_room = False
                return self._source.generate(picture.request, on_progress, self._cancel, previews=True)
            except SourceError as error:
                picture.waits_for_room = True
                if error.retry_after_s is None or error.retry_after_s > LONGEST_PAUSE_S or not (others or self.stopping):
                    raise
                if self._cancel.wait(error.retry_after_s):
                    raise GenerationCancelled from error
                if not any(other.is_under_way or other.generated for other in others):
                    raise  # they were refused as well

    def _watch(self) -> None:
        try:
            for thread in self._threads:
                while thread.is_alive():
                    thread.join(SECONDS_BETWEEN_TICKS)
                    with self._telling:
                        self._ticked()
            self._ended()
        finally:
            self._over.set()

    @property
    def errors(self) -> list[Exception]:
        """Of the pictures that failed; being stopped is no failure, a deadline that passed is."""
        return [one.error for one in self.pictures if one.error is not None and type(one.error) is not GenerationCancelled]
