"""What went wrong, in words that a person can act on."""

from collections.abc import Iterable, Sequence

from pydantic import ValidationError

from app.schemas import DeadlinePassed, ErrorDetail, GenerationCancelled, RefusedRequest, SourceError

TYPED_WRONGLY = {  # pydantic's error type -> rule
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "string_too_short": "must not be empty",
}
LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "width": "Width",
    "height": "Height",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "seed": "Seed",
    "scheduler": "Noise scheduler",
    "count": "Pictures",
}


def problems(error: ValidationError | RefusedRequest) -> list[ErrorDetail]:
    """Field, rule and value of everything that was refused."""
    if isinstance(error, RefusedRequest):
        return list(error.details)
    return [
        ErrorDetail.of(
            str(item["loc"][0]),
            TYPED_WRONGLY.get(item["type"])
            or item["msg"].removeprefix("Value error, ").replace("Input should be", "must be").replace("String should", "must"),
            item["input"],
        )
        for item in error.errors()
    ]


def broken(rules: Iterable[tuple[str, str]]) -> str:
    """Fields and the rules that they break, as a sentence; nothing if there are none."""
    said = [f"{LABELS.get(field, field)} {rule}" for field, rule in rules]
    return "; ".join(said) + "." * bool(said)


def sentence(error: Exception) -> str:
    """One or two sentences: what happened, and what to do about it."""
    if isinstance(error, ValidationError | RefusedRequest):
        return broken((detail.field, detail.rule) for detail in problems(error))
    if isinstance(error, DeadlinePassed):
        return f"The picture was given up: {error}. Ask for fewer steps or a smaller size."
    if isinstance(error, GenerationCancelled):
        return "Stopped."
    if isinstance(error, SourceError):
        said = _capital(str(error))
        if error.retry_after_s is None:
            return f"{said}."
        return f"{said}. Try again in {seconds(error.retry_after_s)}."
    said = f"The picture could not be made ({type(error).__name__}: {error})"
    return f"{said}. Trying again may help; if not, restart the kernel and load the model anew."


def together(errors: Sequence[Exception], asked: int) -> str:
    """The sentences of several pictures' errors, each once, and how many pictures it cost if others were made."""
    counts: dict[str, int] = {}
    for error in errors:
        counts[sentence(error)] = counts.get(sentence(error), 0) + 1
    if asked == 1:
        return " ".join(counts)
    return " ".join(f"{count} of {asked} pictures: {said}" for said, count in counts.items())


def seconds(number: float) -> str:
    """A duration: `0.4 s`, `12 s`, `2 min 05 s`."""
    if number < 10:
        return f"{number:.1f} s" if number % 1 else f"{number:.0f} s"
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _capital(text: str) -> str:
    return text if "://" in text.split(" ")[0] else text[:1].upper() + text[1:]
