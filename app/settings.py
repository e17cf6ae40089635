"""Every knob of the application, checked once. Nothing else reads settings from the environment."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from app.schemas import MAX_STEPS

PREFIX = "IMAGINE_"
SHORT_NAMES = ("auto", "tiny", "sd2")
SHORTEST_TOKEN = 16  # characters
UNNAMED_VERSION = "dev"  # of which there may be many, so nothing that it made may be kept for ever


def _as_secrets(tokens: object) -> object:
    if isinstance(tokens, str):
        tokens = [token.strip() for token in tokens.split(",") if token.strip()]
    if isinstance(tokens, list | tuple):
        return [token if isinstance(token, SecretStr) else SecretStr(str(token).strip()) for token in tokens]
    return SecretStr(str(tokens))


def _long_enough(tokens: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    texts = [token.get_secret_value() for token in tokens]
    if not all(len(text) >= SHORTEST_TOKEN and text.isascii() and text.isprintable() for text in texts):
        raise ValueError(f"each must have at least {SHORTEST_TOKEN} characters, all of them printable ASCII")
    return tokens


class Settings(BaseSettings):
    """A field comes from the builder's arguments (`serve run app:entrypoint model=tiny`), else from the environment
    (`IMAGINE_MODEL=tiny`), else it has its default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    model: Annotated[
        str, Field(description="`tiny` (bundled), `sd2`, a hub id such as `owner/name`, a folder, or `auto`: `sd2` on a GPU, else `tiny`")
    ] = "auto"
    revision: Annotated[str | None, Field(description="Branch, tag or commit of a hub model; pin a commit in production")] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Field(description="What a replica computes on; `auto` is `cuda` where a GPU is seen")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"], Field(description="`auto` is `float16` on a GPU and `float32` on a CPU")
    ] = "auto"
    compile_repeated_blocks: Annotated[
        bool,
        Field(description="Let diffusers compile the denoiser's blocks, which is for GPUs: a longer start, and a C++ compiler is needed"),
    ] = False
    min_replicas: Annotated[int, Field(ge=1, le=99, description="Model replicas that are always up")] = 1
    max_replicas: Annotated[
        int | None,
        Field(ge=1, le=99, description="Model replicas under load; 99 on GPUs, `initial_replicas` or `min_replicas` on a CPU if not given"),
    ] = None
    initial_replicas: Annotated[
        int | None,
        Field(ge=1, le=99, description="Model replicas that a version begins with; if not given as many as run already, or `min_replicas`"),
    ] = None
    max_batch_size: Annotated[
        int, Field(ge=1, le=64, description="Pictures that a replica makes at once, sharing the denoiser's calls")
    ] = 8
    cpu_threads: Annotated[
        int | None, Field(ge=1, le=256, description="Threads, and CPUs asked for, of a CPU replica; all if not given")
    ] = None
    max_queued_requests: Annotated[int, Field(ge=1, le=10_000, description="Requests that may wait for a replica; the rest get a 503")] = 64
    max_queue_s: Annotated[
        float, Field(gt=0, le=3600, description="Expected wait beyond which a request gets a 503 instead of a place in the queue")
    ] = 30.0
    request_timeout_s: Annotated[
        float,
        Field(gt=0, le=3600, description="Longest time for an answer, waiting included; `X-Request-Timeout-Seconds` can only shorten it"),
    ] = 600.0
    max_tries: Annotated[int, Field(ge=1, le=100, description="Replicas that are asked before a request fails with the last of them")] = 6
    max_body_bytes: Annotated[int, Field(ge=1000, le=2**30, description="Largest body of a request")] = 1_000_000
    max_picture_bytes: Annotated[
        int, Field(ge=1000, le=2**30, description="Largest body that is or holds a picture, which `/replay` and `/v1/images/edits` take")
    ] = 10_000_000
    tokens: Annotated[
        tuple[SecretStr, ...],
        NoDecode,
        AfterValidator(_long_enough),
        BeforeValidator(_as_secrets),  # the last comes first: refused tokens are secrets already, and no error shows them
        Field(description="Bearer tokens that open the service, separated by commas; open to all if empty"),
    ] = ()
    log_prompts: Annotated[bool, Field(description="Write prompts to the service's log")] = False
    max_num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS, description="Most steps a picture may be asked for")] = MAX_STEPS
    max_pixels: Annotated[
        int | None, Field(ge=64 * 64, le=1536 * 1536, description="Largest width x height; four times the model's own size if not given")
    ] = None
    graceful_shutdown_timeout_s: Annotated[
        float, Field(ge=0, le=3600, description="How long a replica may finish its pictures when it is replaced")
    ] = 600.0
    version: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_.+-]{1,64}$", description="What this deployment calls itself in the `X-Imagine-Version` header")
    ] = UNNAMED_VERSION

    @field_validator("model")
    @classmethod
    def _is_a_model(cls, model: str) -> str:
        if model not in SHORT_NAMES and "/" not in model and not Path(model).is_dir():
            raise ValueError(f"must be one of {', '.join(SHORT_NAMES)}, a hub id (`owner/name`) or a folder")
        return model

    @field_validator("max_replicas")
    @classmethod
    def _is_at_least_min_replicas(cls, max_replicas: int | None, others: ValidationInfo) -> int | None:
        fewest = others.data.get("min_replicas", 1)
        if max_replicas is not None and max_replicas < fewest:
            raise ValueError(f"must be at least min_replicas, which is {fewest}")
        return max_replicas

    @field_validator("initial_replicas")
    @classmethod
    def _is_between_the_two(cls, initial_replicas: int | None, others: ValidationInfo) -> int | None:
        fewest, most = others.data.get("min_replicas", 1), others.data.get("max_replicas") or 99
        if initial_replicas is not None and not fewest <= initial_replicas <= most:
            raise ValueError(f"must be from min_replicas to max_replicas, which are {fewest} and {most}")
        return initial_replicas

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, the environment, and its variables that only look like settings, which are so refused by name."""
        known = {f"{PREFIX}{name}".upper() for name in cls.model_fields}
        ours = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
        unknown = {name: SecretStr(value) for name, value in ours.items() if name.upper() not in known}
        return init_settings, env_settings, InitSettingsSource(settings_cls, dict[str, Any](unknown))

    @property
    def first_replicas(self) -> int:
        """How many a new service begins with."""
        return self.initial_replicas or self.min_replicas

    def decided(self, visible_gpus: Callable[[], int], visible_cpus: Callable[[], int]) -> Self:
        """The same settings with model, device and size decided. What is visible is looked at only if it was left open."""
        device = self.device
        if device == "auto":
            device = "cuda" if visible_gpus() else "cpu"
        on_gpu = device == "cuda"
        return self.model_copy(
            update={
                "device": device,
                "model": ("sd2" if on_gpu else "tiny") if self.model == "auto" else self.model,
                "max_replicas": self.max_replicas or (99 if on_gpu else self.first_replicas),
                "cpu_threads": self.cpu_threads or visible_cpus(),
            }
        )
