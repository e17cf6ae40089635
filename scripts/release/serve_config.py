"""The same application for any Ray cluster: a Serve config, and a RayService of KubeRay around it."""

from typing import Any

from scripts.release.service import Service

ALL_AT_ONCE = 100  # percent: a new replica is up before the old one goes, which takes room for both


def serve_config(service: Service, working_dir: str | None = None) -> dict[str, Any]:
    """What `serve deploy` takes. `working_dir` is a URI that the cluster can fetch; without one the code has to be there."""
    application = dict(service.application)
    overridden = {entry["name"]: entry for entry in application.get("deployments", [])}
    for name in ("APIIngress", "TextToImage"):
        overridden[name] = {"name": name} | overridden.get(name, {}) | {"max_surge_percent": ALL_AT_ONCE}
    application["deployments"] = list(overridden.values())
    if working_dir is not None:
        application["runtime_env"] = {"working_dir": working_dir}
    config: dict[str, Any] = {"applications": [application]}
    return config | {name: service.fields[name] for name in ("logging_config",) if name in service.fields}


def ray_service(service: Service, image: str, working_dir: str | None = None) -> dict[str, Any]:
    """A manifest for `kubectl apply`: KubeRay starts the cluster, deploys the application and moves the traffic."""
    gpu = service.settings.device == "cuda"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": service.name, "labels": {"app": service.name}, "annotations": {"imagine/version": service.version}},
        "spec": {
            "serveConfigV2": _as_yaml(serve_config(service, working_dir)),
            # KubeRay then builds a second cluster beside the first and switches when it is healthy
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterConfig": {
                "rayVersion": _ray_version(),
                "enableInTreeAutoscaling": True,
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _pod("ray-head", image, cpu="2", memory="8Gi")},
                "workerGroupSpecs": [
                    {
                        "groupName": "gpu" if gpu else "cpu",
                        "replicas": service.settings.min_replicas,
                        "minReplicas": 0,
                        "maxReplicas": service.settings.max_replicas or service.settings.min_replicas,
                        "rayStartParams": {},
                        "template": _pod("ray-worker", image, cpu="4", memory="16Gi", gpu=gpu),
                    }
                ],
            },
        },
    }


def _pod(name: str, image: str, *, cpu: str, memory: str, gpu: bool = False) -> dict[str, Any]:
    limits = {"cpu": cpu, "memory": memory} | ({"nvidia.com/gpu": "1"} if gpu else {})
    return {"spec": {"containers": [{"name": name, "image": image, "resources": {"limits": limits, "requests": limits}}]}}


def _as_yaml(config: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False)


def _ray_version() -> str:
    from scripts.release.service import requirements

    return requirements()["ray"]
