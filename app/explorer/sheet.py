"""Several pictures become one: side by side, or a table of them with labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, EMPTY = (255, 255, 255), (30, 30, 35), (110, 110, 115), (238, 238, 240)
GAP = 8  # pixels between pictures
MOST_LINES = 4  # of a label


def side_by_side(pictures: Sequence[Image.Image], height: int | None = None) -> Image.Image:
    """One row, all of the first one's height or of `height` pixels."""
    height = height or pictures[0].height
    scaled = [picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.BICUBIC) for picture in pictures]
    row = Image.new("RGB", (sum(picture.width + GAP for picture in scaled) - GAP, height), PAPER)
    x = 0
    for picture in scaled:
        row.paste(picture, (x, 0))
        x += picture.width + GAP
    return row


@dataclass(frozen=True, slots=True)
class Labels:
    """Of a table of pictures: `across` and `down` say what varies, `columns` and `rows` how, and `caption` what does not."""

    across: str
    columns: Sequence[str]
    down: str
    rows: Sequence[str]
    caption: str


def labelled(cells: Mapping[tuple[int, int], Image.Image], labels: Labels, size: tuple[int, int]) -> Image.Image:
    """A table of pictures. `cells` has them by row and column; those it lacks stay empty. `size` is a cell's (width, height), pixels."""
    width, height = size
    columns, rows = labels.columns, labels.rows
    font = _font(max(11, min(18, width // 10)))
    line = int(font.size * 5 / 4)
    column_labels = [_wrapped(label, font, width) for label in columns]
    row_labels = [_wrapped(label, font, width) for label in rows]
    left = GAP * 2 + max(int(font.getlength(part)) for label in [*row_labels, [f"↓ {labels.down}"]] for part in label)
    top = GAP * 2 + line * (max(len(label) for label in column_labels) + 1)
    foot = _wrapped(labels.caption, font, left + len(columns) * (width + GAP) - GAP)
    sheet = Image.new("RGB", (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP) + line * len(foot) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, GAP), f"→ {labels.across}", FAINT, font)
    draw.text((GAP, GAP), f"↓ {labels.down}", FAINT, font)
    for column, label in enumerate(column_labels):
        draw.text((left + column * (width + GAP), GAP + line), "\n".join(label), INK, font)
    for row, label in enumerate(row_labels):
        y = top + row * (height + GAP)
        draw.text((GAP, y), "\n".join(label), INK, font)
        for column in range(len(columns)):
            x = left + column * (width + GAP)
            picture = cells.get((row, column))
            if picture is None:
                draw.rectangle((x, y, x + width - 1, y + height - 1), EMPTY)
            else:
                sheet.paste(picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC), (x, y))
    draw.text((GAP, top + len(rows) * (height + GAP)), "\n".join(foot), FAINT, font)
    return sheet


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """One that has the letters of most alphabets, and comes with matplotlib."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` pixels; what does not fit into `MOST_LINES` is cut with an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1] + " …"]
    return [_cut(one, font, width) for one in lines]


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
