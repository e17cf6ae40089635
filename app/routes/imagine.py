"""`GET /imagine`: a prompt in the query, a PNG back."""

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from app.routes.backend import Backend
from app.schemas import ErrorAnswer, ErrorDetail, Facts, GeneratedImage, ImageRequest, RefusedRequest, Side

ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorAnswer, "description": "A field breaks a rule"},
    503: {"model": ErrorAnswer, "description": "Loading, or too busy; `Retry-After` says when to come back"},
}


class ImagineQuery(ImageRequest):
    """The fields of an `ImageRequest`, and `img_size` as a short form of a square."""

    img_size: Annotated[Side | None, Field(description="Width and height at once")] = None

    def to_request(self) -> ImageRequest:
        """Raises `RefusedRequest` if the size is given in both forms."""
        fields = self.model_dump(exclude={"img_size"})
        if self.img_size is not None:
            if self.width is not None or self.height is not None:
                both = ", ".join(f"{name}={fields[name]}" for name in ("width", "height") if fields[name] is not None)
                rule = "must not be given together with width or height"
                raise RefusedRequest(ErrorDetail.of("img_size", rule, f"img_size={self.img_size}, {both}"))
            fields |= {"width": self.img_size, "height": self.img_size}
        return ImageRequest(**fields)


def refuse_repeated(raw: Request) -> None:
    """A parameter given twice is an error, never the last one wins."""
    counts = Counter(name for name, _ in raw.query_params.multi_items())
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise RefusedRequest(*(ErrorDetail.of(name, "must be given once", ", ".join(raw.query_params.getlist(name))) for name in repeated))


def router(backend: Backend) -> APIRouter:
    routes = APIRouter()

    @routes.get(
        "/imagine",
        dependencies=[Depends(refuse_repeated)],
        response_class=Response,
        responses={
            200: {"content": {"image/png": {}}, "description": "The picture; how it was made is in its headers and text chunks"},
            **ERRORS,
        },
    )
    async def imagine(query: Annotated[ImagineQuery, Query()]) -> Response:
        """Make a picture. The same query with the same seed gives the same bytes from a service that is otherwise idle; next to other
        requests, whose steps are computed together with its own, a pixel may differ by 1/255 in single precision."""
        generated = await backend.generate(query.to_request())
        return Response(generated.png, media_type="image/png", headers=facts_headers(generated))

    return routes


def facts_headers(generated: GeneratedImage) -> dict[str, str]:
    """The settings used, one header each. The prompts are in the PNG: a header cannot hold every character."""
    facts: Facts = generated.facts
    told = {
        "Seed": facts.request.seed,
        "Width": facts.request.width,
        "Height": facts.request.height,
        "Num-Inference-Steps": facts.request.num_inference_steps,
        "Guidance-Scale": facts.request.guidance_scale,
        "Model": facts.model,
        "Revision": facts.revision,
        "Scheduler": facts.scheduler,
    }
    if facts.warnings:
        told["Warning"] = "; ".join(facts.warnings)
    headers = {f"X-Imagine-{name}": str(value) for name, value in told.items()}
    if generated.timings:
        headers["Server-Timing"] = ", ".join(f"{phase};dur={1000 * seconds:.1f}" for phase, seconds in generated.timings.items())
    return headers
