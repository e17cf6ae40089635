"""What caches are told of pictures, through real HTTP. `tests/cluster` has the rest of it on real Ray Serve."""

import pytest
import requests

from app.engine.engine import ImageEngine
from app.routes import caching
from app.schemas import Capabilities, ImageRequest
from app.settings import UNNAMED_VERSION
from tests.test_client import EngineBackend, serving

SEEDED = {"prompt": "a star", "num_inference_steps": "1", "seed": "1"}


class Following(EngineBackend):
    """What it can do is told by another version than the one that makes the pictures: a rollout is going on."""

    def __init__(self, engine: ImageEngine, told: dict[str, str]) -> None:
        super().__init__(engine)
        self.told = told

    async def capabilities(self) -> Capabilities:
        return self.engine.capabilities.model_copy(update=self.told)


@pytest.mark.parametrize("told", [{"version": "other"}, {"revision": "other"}], ids=["version", "weights"])
def test_a_picture_by_another_version_than_the_one_that_was_asked_is_not_kept(engine: ImageEngine, told: dict[str, str]) -> None:
    with serving(Following(engine, told)) as url:
        answer = requests.get(f"{url}/imagine", SEEDED, timeout=60)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    assert not {"ETag", "Content-Location"} & answer.headers.keys()


@pytest.mark.parametrize("told", [{"version": "other"}, {"revision": "other"}], ids=["version", "weights"])
def test_who_holds_the_picture_of_another_version_is_not_told_that_it_is_this_one(engine: ImageEngine, told: dict[str, str]) -> None:
    with serving(Following(engine, {})) as url:
        kept = {"If-None-Match": requests.get(f"{url}/imagine", SEEDED, timeout=60).headers["ETag"]}
        assert requests.get(f"{url}/imagine", SEEDED, headers=kept, timeout=60).status_code == 304
    with serving(Following(engine, told)) as url:
        assert requests.get(f"{url}/imagine", SEEDED, headers=kept, timeout=60).status_code == 200


@pytest.mark.parametrize(("version", "same"), [(UNNAMED_VERSION, False), ("1.2", True)], ids=["unnamed", "named"])
def test_the_tag_of_a_version_without_a_name_ends_with_the_process(
    engine: ImageEngine, monkeypatch: pytest.MonkeyPatch, version: str, same: bool
) -> None:
    """The next one may be of other code."""
    capabilities = engine.capabilities.model_copy(update={"version": version})
    request = ImageRequest(prompt="a star", seed=1).resolved(capabilities)
    before = caching.etag(request, capabilities, "png")
    assert before == caching.etag(request, capabilities, "png")
    monkeypatch.setattr(caching, "THIS_START", "another")
    assert (caching.etag(request, capabilities, "png") == before) is same


def test_a_picture_by_the_version_that_was_asked_is(engine: ImageEngine) -> None:
    with serving(Following(engine, {})) as url:
        answer = requests.get(f"{url}/imagine", SEEDED, timeout=60)
    assert (answer.headers["Cache-Control"], "Content-Location" in answer.headers) == ("public, no-cache", True)
