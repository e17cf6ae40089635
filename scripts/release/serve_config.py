"""The same application for any Ray cluster: a Serve config, and a RayService of KubeRay around it."""

from typing import Any
from urllib.parse import urlsplit

import yaml

from scripts.release.outcome import Refused
from scripts.release.service import Service, requirements

LOOPBACK = frozenset({"127.0.0.1", "localhost"})
ALL_AT_ONCE = 100  # percent: a new replica is up before the old one goes, which takes room for both


def serve_config(service: Service, working_dir: str | None = None, url: str | None = None) -> dict[str, Any]:
    """What `serve deploy` takes. `working_dir` is a URI that the cluster can fetch; without one the code has to be there.

    A loopback `url` is where Serve is to listen. Otherwise that is the cluster's own affair.
    """
    application = dict(service.application)
    overridden = {entry["name"]: entry for entry in application.get("deployments", [])}
    for name in ("APIIngress", "TextToImage"):
        overridden[name] = {"name": name} | overridden.get(name, {}) | {"max_surge_percent": ALL_AT_ONCE}
    application["deployments"] = list(overridden.values())
    if runtime_env := _runtime_env(service, working_dir):
        application["runtime_env"] = runtime_env
    config: dict[str, Any] = {"http_options": dict(service.fields.get("http_options", {})) | _listening(url)}
    if "logging_config" in service.fields:
        config["logging_config"] = service.fields["logging_config"]
    return config | {"applications": [application]}


def _runtime_env(service: Service, working_dir: str | None) -> dict[str, Any]:
    """The application's own, and what a service config has beside it: the anyscale package brings these together as well."""
    runtime_env = dict(service.application.get("runtime_env") or {})
    if env_vars := service.fields.get("env_vars"):
        runtime_env["env_vars"] = env_vars | (runtime_env.get("env_vars") or {})
    if packages := service.fields.get("requirements"):
        if isinstance(packages, str):
            raise Refused(f"requirements must be a list of packages for this target, got the file {packages}")
        runtime_env["pip"] = packages
    return runtime_env | ({} if working_dir is None else {"working_dir": working_dir})


def _listening(url: str | None) -> dict[str, Any]:
    address = urlsplit(url or "")
    if address.hostname not in LOOPBACK:
        return {}
    return {"host": "127.0.0.1", "port": address.port or 8000}  # Serve's own default for a config is every address of the machine


def ray_service(service: Service, image: str, working_dir: str | None = None) -> dict[str, Any]:
    """A manifest for `kubectl apply`: KubeRay starts the cluster, deploys the application and moves the traffic."""
    gpu = service.settings.device == "cuda"
    replicas = service.settings.first_replicas
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": service.name, "labels": {"app": service.name}, "annotations": {"imagine/version": service.version}},
        "spec": {
            "serveConfigV2": yaml.safe_dump(serve_config(service, working_dir), sort_keys=False),
            # KubeRay then builds a second cluster beside the first and switches when it is healthy
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterConfig": {
                "rayVersion": requirements()["ray"],
                "enableInTreeAutoscaling": True,
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _pod("ray-head", image, cpu="2", memory="8Gi")},
                "workerGroupSpecs": [
                    {
                        "groupName": "gpu" if gpu else "cpu",
                        "replicas": replicas,
                        "minReplicas": 0,
                        "maxReplicas": service.settings.max_replicas or replicas,
                        "rayStartParams": {},
                        "template": _pod("ray-worker", image, cpu="4", memory="16Gi", gpu=gpu),
                    }
                ],
            },
        },
    }


def _pod(name: str, image: str, *, cpu: str, memory: str, gpu: bool = False) -> dict[str, Any]:
    limits = {"cpu": cpu, "memory": memory} | ({"nvidia.com/gpu": "1"} if gpu else {})
    return {"spec": {"containers": [{"name": name, "image": image, "resources": {"limits": limits, "requests": dict(limits)}}]}}


class _Readable(yaml.SafeDumper):
    """Text of several lines as a block."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _block)


def as_text(manifest: dict[str, Any]) -> str:
    return yaml.dump(manifest, Dumper=_Readable, sort_keys=False)
