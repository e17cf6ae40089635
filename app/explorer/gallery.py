"""The pictures made so far, newest first, those on their way among them; one of them is looked at large."""

import base64
import threading
from collections.abc import Callable
from html import escape
from io import BytesIO

import ipywidgets as widgets
from PIL import Image

from app.explorer.fields import NamedImage, button
from app.explorer.words import seconds
from app.explorer.work import Picture
from app.schemas import GeneratedImage, ImageRequest

MOST_KEPT = 60


def _blank() -> bytes:
    file = BytesIO()
    Image.new("RGBA", (1, 1)).save(file, "PNG")
    return file.getvalue()


BLANK = _blank()


class Tile(widgets.Box):
    """A small picture that is a button."""

    def __init__(self, request: ImageRequest, pressed: Callable[["Tile"], None]) -> None:
        self.request = request
        self.generated: GeneratedImage | None = None
        self.image = NamedImage(value=BLANK, format="png", tooltip=request.prompt)
        self.button = button(f"Show: {request.prompt}, seed {request.seed}", lambda: pressed(self))
        super().__init__([self.image, self.button])
        self.add_class("imagine-tile")

    def show(self, picture: Picture) -> None:
        self.generated = picture.generated
        png = picture.generated.png if picture.generated else picture.preview
        if png is not None and png != self.image.value:
            self.image.value = png

    def close(self) -> None:
        """With all its parts: ipywidgets keeps whatever is not closed for ever."""
        for part in (self.image, self.button, self.button.style, self.image.layout, self.button.layout, self.layout):
            part.close()
        super().close()


class Gallery(widgets.VBox):
    """Tiles and the large view of the one that is chosen. `use` and `vary` get the request of the picture whose button was pressed."""

    def __init__(self, use: Callable[[ImageRequest], object], vary: Callable[[ImageRequest], object]) -> None:
        self._changing = threading.RLock()  # pictures come from threads of their own, clicks from the kernel's
        self._linked: GeneratedImage | None = None  # what the link to download holds
        self.tiles: list[Tile] = []
        self.chosen: Tile | None = None
        self.large = NamedImage(value=BLANK, format="png")
        self.facts = widgets.HTML()
        self.use = button(
            "Use settings", lambda: self.chosen and use(self.chosen.request), hint="Put this picture's settings into the form"
        )
        self.vary = button("Vary", lambda: self.chosen and vary(self.chosen.request), hint="The same settings with the next four seeds")
        self.download = widgets.HTML()
        actions = widgets.HBox([self.use, self.vary, self.download])
        actions.add_class("imagine-actions")
        about = widgets.VBox([self.facts, actions])
        about.add_class("imagine-facts")
        self._viewer = widgets.HBox([self.large, about])
        self._viewer.add_class("imagine-viewer")
        self._grid = widgets.Box()
        self._grid.add_class("imagine-gallery")
        super().__init__([])
        self.add_class("imagine-part")

    @property
    def images(self) -> list[GeneratedImage]:
        """Newest first."""
        return [tile.generated for tile in self.tiles if tile.generated is not None]

    def begin(self, requests: list[ImageRequest]) -> list[Tile]:
        """Places for pictures on their way; the first of them is looked at. The oldest make room only once these are made: see `end`."""
        with self._changing:
            tiles = [Tile(request, self.choose) for request in requests]
            self._arrange(tiles + self.tiles)
            self.choose(tiles[0])
            return tiles

    def add(self, images: list[GeneratedImage]) -> int:
        """Pictures made before, oldest first; those that are here already stay where they are. How many of the oldest found no room."""
        with self._changing:
            new = [image for image in images if image not in self.images]
            without_room = max(0, len(new) - max(0, MOST_KEPT - len(self.tiles)))
            if newest := new[without_room:][::-1]:
                for tile, image in zip(self.begin([image.facts.request for image in newest]), newest, strict=True):
                    self.show(tile, Picture(image.facts.request, image.facts.request.num_inference_steps or 0, generated=image))
            return without_room

    def show(self, tile: Tile, picture: Picture) -> None:
        """A step or the end of a picture."""
        with self._changing:
            tile.show(picture)
            if tile is self.chosen:
                self.choose(tile)

    def end(self, tiles: list[Tile]) -> int:
        """What was begun is over: those that never became pictures leave, and the oldest for which there is no room. How many the latter
        were."""
        with self._changing:
            stay = [tile for tile in self.tiles if tile not in tiles or tile.generated is not None]
            kept = stay[:MOST_KEPT]
            left = [tile for tile in self.tiles if tile not in kept]
            self._arrange(kept)
            if self.chosen in left:
                self.choose(kept[0] if kept else None)
            for tile in left:
                tile.close()
            return len(stay) - len(kept)

    def choose(self, tile: Tile | None) -> None:
        with self._changing:
            self._choose(tile)

    def _choose(self, tile: Tile | None) -> None:
        if self.chosen is not tile:
            for one, act in ((self.chosen, "remove_class"), (tile, "add_class")):
                if one is not None:
                    getattr(one, act)("imagine-chosen")
        self.chosen = tile
        if tile is None:
            return
        if self.large.value != tile.image.value:
            self.large.value = tile.image.value
        self.large.tooltip = tile.request.prompt
        facts = facts_table(tile.request, tile.generated)
        if self.facts.value != facts:
            self.facts.value = facts
        if self._linked is not tile.generated:
            self._linked = made = tile.generated
            self.download.value = "" if made is None else download_link(made.png, file_name(tile.request), "Download PNG")

    def _arrange(self, tiles: list[Tile]) -> None:
        self.tiles = tiles
        self._grid.children = tiles
        self.children = [self._viewer, self._grid] if tiles else []


def facts_table(request: ImageRequest, generated: GeneratedImage | None) -> str:
    """HTML: the settings, and once it is made, what made it and how long that took."""
    rows = {"Prompt": request.prompt}
    if request.negative_prompt:
        rows["Negative"] = request.negative_prompt
    rows |= {
        "Size": f"{request.width} × {request.height}",
        "Steps": f"{request.num_inference_steps}",
        "Guidance": f"{request.guidance_scale:g}",
        "Seed": f"{request.seed}",
    }
    notes: tuple[str, ...] = ()
    if generated is not None:
        facts, notes = generated.facts, generated.facts.warnings
        if facts.edit is not None:
            rows["Painted over"] = f"another picture, strength {facts.edit.strength:g}; without it these settings make another one"
        rows |= {"Scheduler": facts.scheduler, "Model": f"{facts.model} ({facts.revision}), {facts.dtype} on {facts.device}"}
        phases = {name: taken for name, taken in generated.timings.items() if taken >= 0.05}
        if phases:
            rows["Time"] = ", ".join(f"{name} {seconds(taken)}" for name, taken in phases.items())
    body = "".join(f'<tr><th scope="row">{name}</th><td>{escape(value)}</td></tr>' for name, value in rows.items())
    return f"<table>{body}</table>" + "".join(f'<div class="imagine-note">{escape(note)}</div>' for note in notes)


def download_link(png: bytes, name: str, label: str) -> str:
    """HTML that needs neither a server nor an extension: the picture is in the link."""
    data = base64.b64encode(png).decode()
    return f'<a class="imagine-download" download="{escape(name)}" href="data:image/png;base64,{data}">{label}</a>'


def file_name(request: ImageRequest) -> str:
    words = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in request.prompt.lower())
    return "-".join(part for part in words.split("-") if part)[:60].strip("-") + f"-{request.seed}.png"
