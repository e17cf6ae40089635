"""What a person typed or has is not lost: seeds, pictures, and those that a busy source had no room for yet."""

import threading
import time

import pytest

from app.engine.engine import ImageEngine
from app.explorer import PromptExplorer, gallery
from app.explorer.gallery import Tile
from app.schemas import Capabilities, ImageRequest, SourceError
from tests.eventually import eventually
from tests.explorer.conftest import PATIENCE_S, Watched, finished


class Failing(Watched):
    """Makes no picture while it is broken."""

    broken = False

    def let_in(self) -> None:
        if self.broken:
            raise SourceError("out of order")


class WithOnePlace(Watched):
    """Refuses whoever comes while it makes a picture."""

    pause_s = 0.01

    def __init__(self, engine: ImageEngine) -> None:
        super().__init__(engine)
        self.place = threading.Lock()
        self.refused = 0

    def let_in(self) -> None:
        if not self.place.acquire(blocking=False):
            self.refused += 1
            busy = SourceError("no room")
            busy.retry_after_s = self.pause_s
            raise busy

    def let_out(self) -> None:
        self.place.release()


def quick(source: Watched, pictures: int = 1) -> PromptExplorer:
    panel = PromptExplorer(source)
    panel.form.num_inference_steps.value, panel.form.width.value, panel.form.height.value = 2, 64, 64
    panel.form.count.value = pictures
    return panel


def test_a_seed_that_is_typed_is_the_one_of_the_picture_and_stays(panel: PromptExplorer) -> None:
    panel.form.seed.value = 42
    panel.generate()
    assert finished(panel).images[0].facts.request.seed == 42
    panel.generate()
    assert finished(panel).images[0].facts.request.seed == 42
    assert panel.form.lock.value
    panel.form.lock.value = False
    panel.form.dice.click()
    assert not panel.form.lock.value, "a seed that was drawn is nobody's own"
    drawn = panel.form.seed.value
    panel.generate()
    assert finished(panel).images[0].facts.request.seed != drawn


def test_pictures_that_fail_push_none_out_of_a_full_gallery(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_KEPT", 3)
    source = Failing(engine)
    panel = quick(source, pictures=3)
    panel.generate()
    made = finished(panel).images
    source.broken = True
    panel.generate()
    assert panel.wait(PATIENCE_S)
    assert "Out of order" in panel.problem
    assert panel.images == made
    source.broken = False
    panel.form.count.value = 2
    panel.generate()
    assert finished(panel).images[2:] == made[:1]
    assert "the 2 oldest made room" in panel.progress.status.value


def test_what_a_source_has_no_room_for_beside_the_others_is_asked_again(engine: ImageEngine) -> None:
    source = WithOnePlace(engine)
    panel = quick(source, pictures=4)
    panel.generate()
    assert len(finished(panel).images) == 4
    assert source.refused > 0
    assert source.most_in_flight == 1


def test_nobody_waits_a_day_for_room_because_a_proxy_says_so(engine: ImageEngine) -> None:
    source = WithOnePlace(engine)
    source.pause_s = 86400.0
    panel = quick(source, pictures=4)
    panel.generate()
    assert panel.wait(PATIENCE_S)
    assert 0 < source.refused < 4
    assert len(panel.images) == 4 - source.refused
    assert "no room" in panel.problem.lower()


class FullOfOthers(Watched):
    """Refuses everybody, all of whom it lets ask first."""

    asked_by = 0

    def let_in(self) -> None:
        self.asked_by += 1
        busy = SourceError("no room")
        busy.retry_after_s = 0.2
        raise busy


def test_what_a_source_has_no_room_for_because_of_others_is_given_up_together(engine: ImageEngine) -> None:
    source = FullOfOthers(engine)
    panel = quick(source, pictures=8)
    panel.generate()
    assert panel.wait(PATIENCE_S)
    assert "no room" in panel.problem.lower()
    assert source.asked_by <= 2 * 8


def test_what_a_source_has_no_room_for_is_given_up_on_a_stop(engine: ImageEngine) -> None:
    source = WithOnePlace(engine)
    panel = quick(source, pictures=3)
    source.hold()
    panel.generate()
    assert source.at_door.wait(PATIENCE_S)
    panel.stop()
    waiting, deadline = panel._work, time.monotonic() + PATIENCE_S
    assert waiting is not None
    while sum(picture.error is not None for picture in waiting.pictures) < 2:  # without being asked for again
        assert time.monotonic() < deadline, "they still wait"
        time.sleep(0.01)
    source.door.set()
    assert panel.wait(PATIENCE_S)
    assert panel.images == []


def test_a_picture_cannot_be_varied_while_others_are_on_their_way(panel: PromptExplorer, source: Watched) -> None:
    panel.generate()
    finished(panel)
    source.hold()
    panel.generate()
    assert source.at_door.wait(PATIENCE_S)
    assert panel.gallery.vary.disabled
    source.door.set()
    finished(panel)
    assert not panel.gallery.vary.disabled


def test_asking_before_the_model_has_said_what_it_can_do_is_answered(engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    class Slow(Watched):
        @property
        def capabilities(self) -> Capabilities:
            assert answered.wait(PATIENCE_S)
            return super().capabilities

    monkeypatch.setattr("app.explorer.panel.SECONDS_TO_CONNECT", 0.0)
    panel = PromptExplorer(Slow(engine))
    panel.generate()
    assert panel.problem == "The model has not said yet what it can do."
    answered.set()
    eventually(lambda: not panel.generate_button.disabled)
    panel.generate()
    assert len(finished(panel).images) == 1


@pytest.mark.parametrize("act", ["save", "load"])
def test_a_home_that_nobody_has_is_said(panel: PromptExplorer, act: str) -> None:
    panel.history.folder.value = "~nobody-at-all/pictures"
    getattr(panel.history, act)()
    assert panel.history.said.startswith("Could not ")
    assert "home" in panel.history.said


class NotingWhoWaits:
    """A lock; `tried` is set once somebody finds it taken."""

    def __init__(self) -> None:
        self._lock, self.tried = threading.RLock(), threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.tried.set()
            self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_enter_and_a_click_at_the_same_moment_start_it_once(
    panel: PromptExplorer, source: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, lock = panel.gallery.begin, NotingWhoWaits()

    def once_the_other_is_there(requests: list[ImageRequest]) -> list[Tile]:
        assert lock.tried.wait(PATIENCE_S)
        return begin(requests)

    monkeypatch.setattr(panel, "_starting", lock)
    monkeypatch.setattr(panel.gallery, "begin", once_the_other_is_there)
    source.hold()  # or the second could come after the end of the first, which is another picture
    enter = threading.Thread(target=panel.generate)
    enter.start()
    panel.generate()
    enter.join(PATIENCE_S)
    source.door.set()
    finished(panel)
    assert len(source.asked) == 1
