"""What is counted, in the names that Prometheus sees with `ray_` in front and, for counters, `_total` behind.

| metric | tags |
|---|---|
| `imagine_requests` | `route`, `outcome` (`ok`, `refused`, `busy`, `late`, `failed`, `left`), `reason` (the `error` of the answer) |
| `imagine_phase_seconds` | `phase`, by the names of `Server-Timing` |
| `imagine_refusals` | `reason` (`overloaded`, `deadline_too_short`) |
| `imagine_retries` | – |
| `imagine_coalesced` | – : requests that shared the generation of an identical one |
| `imagine_cancellations` | `route`: callers that left before their answer |
| `imagine_batch_size`, `imagine_denoiser_rows` | – (of the replicas) |
"""

from collections.abc import Iterable, Mapping

from ray.serve import metrics
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.routes.errors import local_path

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
OUTCOMES = {401: "refused", 503: "busy", 504: "late"}
REFUSALS = ("overloaded", "deadline_too_short")
UNKNOWN_ROUTE = "unknown"


class Metrics:
    """The counters of the ingress."""

    def __init__(self) -> None:
        self._requests = metrics.Counter("imagine_requests", "Answers", tag_keys=("route", "outcome", "reason"))
        self._phases = metrics.Histogram("imagine_phase_seconds", "Seconds of a picture by phase", boundaries=SECONDS, tag_keys=("phase",))
        self._refusals = metrics.Counter("imagine_refusals", "Requests that were not let in", tag_keys=("reason",))
        self._retries = metrics.Counter("imagine_retries", "Requests that another replica was asked for because the first one died")
        self._coalesced = metrics.Counter("imagine_coalesced", "Requests that shared the generation of an identical one in flight")
        self._cancellations = metrics.Counter("imagine_cancellations", "Callers that left before their answer", tag_keys=("route",))

    def answered(self, route: str, outcome: str, reason: str) -> None:
        self._requests.inc(1, {"route": route, "outcome": outcome, "reason": reason})
        if outcome == "left":
            self._cancellations.inc(1, {"route": route})
        if reason in REFUSALS:
            self._refusals.inc(1, {"reason": reason})

    def took(self, timings: Mapping[str, float]) -> None:
        for phase, seconds in timings.items():
            self._phases.observe(seconds, {"phase": phase})

    def retried(self) -> None:
        self._retries.inc(1, {})

    def coalesced(self) -> None:
        self._coalesced.inc(1, {})


class CountRequests:
    """ASGI middleware. An answer that came to no end, not even an error's, counts as a caller that left. `paths` are the declared ones."""

    def __init__(self, inner: ASGIApp, counted: Metrics, paths: Iterable[str]) -> None:
        self._inner = inner
        self._counted = counted
        self._patterns = {path: compile_path(path)[0] for path in paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        status, complete = 0, False

        async def watched(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                complete = True
            await send(message)

        scope.setdefault("state", {})
        try:
            await self._inner(scope, receive, watched)
        except Exception:
            complete, scope["state"]["reason"] = True, "failed"
            status = status or 500  # which it becomes further out
            raise
        finally:
            reason = scope["state"].get("reason", "")
            self._counted.answered(self._route(scope), _outcome(status, reason) if complete else "left", reason)

    def _route(self, scope: Scope) -> str:
        """The path as it is declared, whether it came to be routed or not: what callers make up must not become a tag."""
        return next((path for path, pattern in self._patterns.items() if pattern.match(local_path(scope))), UNKNOWN_ROUTE)


def _outcome(status: int, reason: str) -> str:
    if status < 400:
        return "failed" if reason else "ok"  # a stream that ended with an error
    return OUTCOMES.get(status, "failed" if status >= 500 else "refused")
