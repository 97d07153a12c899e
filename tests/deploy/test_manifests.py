"""Containers, manifests and proxies, without the tools: what they say agrees with the program.

`make check-deploy` holds the same files to the real tools.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from galley.cli.serve import parser
from galley.server.middleware import GUARDED
from tests.deploy.promql import DEPLOY

FILES = sorted(
    path
    for path in DEPLOY.rglob("*")
    if path.is_file() and path.suffix not in (".json", ".py", ".pyc")
)
#: Flags of other programs in the same files.
FOREIGN = {"--rm", "--init", "--build", "--no-cache-dir", "--no-deps", "--no-install-recommends"}
FOREIGN |= {"--interval", "--timeout", "--start-period", "--retries", "--from", "--namespace"}
FOREIGN |= {"--from-literal", "--help", "--build-arg", "--set", "--entrypoint"}


def load(path: str) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all((DEPLOY / path).read_text()) if d]


def containers() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(file, pod, container) of each manifest that runs the server."""
    [deployment] = load("k8s/deployment.yaml")
    [service] = load("kserve/inferenceservice.yaml")
    pods = {"k8s": deployment["spec"]["template"]["spec"], "kserve": service["spec"]["predictor"]}
    return [(name, pod, pod["containers"][0]) for name, pod in pods.items()]


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(DEPLOY)) for p in FILES])
def test_every_flag_exists(path: Path) -> None:
    known = parser()
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", path.read_text())) - FOREIGN:
        assert known.find(flag)[0], f"{path.name} uses {flag}, which galley serve has not"


@pytest.mark.parametrize("name", ["k8s", "kserve"])
def test_arguments_are_read(name: str) -> None:
    """Checklist 158, 244, 246: the container's arguments are those of the command line."""
    [(_, _, container)] = [c for c in containers() if c[0] == name]
    assert container["command"] == ["galley", "serve"]
    values = parser().parse(container["args"]).values
    assert values["model"]
    assert values["port"] == container["ports"][0]["containerPort"]


@pytest.mark.parametrize(("name", "pod", "container"), containers())
def test_pods_are_fit_for_production(
    name: str, pod: dict[str, Any], container: dict[str, Any]
) -> None:
    """Checklist 247, 252, 253, 262, 267: user, limits, /dev/shm, probes, key."""
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/health"
    assert "initialDelaySeconds" not in container["livenessProbe"]
    patience = (
        container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    )
    assert patience >= 600, "a first start downloads the model"
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert security["runAsNonRoot"]
    assert "runAsUser" not in security, "any user must do"
    assert not security["allowPrivilegeEscalation"]
    assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    env = {item["name"]: item for item in container["env"]}
    assert env["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "galley"


def test_a_pod_outlives_its_drain() -> None:
    """Checklist 254: the pod's grace is longer than the server's."""
    [deployment] = load("k8s/deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    drain = parser().parse(pod["containers"][0]["args"]).values["shutdown_timeout"]
    pause = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > drain + pause
    compose = load("docker/compose.yaml")[0]["services"]["galley"]
    drain = parser().parse(compose["command"]).values["shutdown_timeout"]
    assert int(compose["stop_grace_period"].rstrip("s")) > drain


def test_models_are_kept() -> None:
    """Checklist 250: the hub's cache is on the claim."""
    [deployment] = load("k8s/deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    [claim] = load("k8s/pvc.yaml")
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    [volume] = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    env = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
    for name in ("HF_HOME", "GALLEY_CACHE_DIR"):
        assert env[name].startswith(mounts[volume["name"]])


def test_scaling_follows_the_queue() -> None:
    [hpa] = load("k8s/hpa.yaml")
    assert hpa["spec"]["metrics"][0]["pods"]["metric"]["name"] == "vllm_num_requests_waiting"


def test_objects_refer_to_each_other() -> None:
    """Checklist 232, 249: selectors match the pod, and the kustomization lists what there is."""
    [deployment] = load("k8s/deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert load("k8s/service.yaml")[0]["spec"]["selector"] == labels
    assert load("k8s/networkpolicy.yaml")[0]["spec"]["podSelector"]["matchLabels"] == labels
    assert load("k8s/pdb.yaml")[0]["spec"]["selector"]["matchLabels"] == labels
    assert deployment["spec"]["template"]["spec"]["nodeSelector"]
    for name in load("k8s/kustomization.yaml")[0]["resources"]:
        assert (DEPLOY / "k8s" / name).exists()


def test_alerts_see_the_job_of_every_way_to_scrape() -> None:
    """A ServiceMonitor without jobLabel names the job after its Service, which the alerts miss."""
    [rules] = load("prometheus/alerts.yml")
    [down] = [r for g in rules["groups"] for r in g["rules"] if r["alert"] == "GalleyDown"]
    [job] = set(re.findall(r'job="([^"]+)"', down["expr"]))
    [scrape] = load("prometheus/prometheus.yml")[0]["scrape_configs"]
    assert scrape["job_name"] == job
    [monitor] = load("k8s/servicemonitor.yaml")
    [service] = load("k8s/service.yaml")
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == job
    chart = DEPLOY / "helm" / "galley" / "templates"
    label = re.search(r"jobLabel: (\S+)", (chart / "servicemonitor.yaml").read_text())
    assert label
    assert f"{label[1]}: {job}\n" in (chart / "_helpers.tpl").read_text()


def test_an_update_does_not_wait_for_a_volume() -> None:
    """A surging pod on another node can only mount a volume that several nodes can mount."""
    [deployment] = load("k8s/deployment.yaml")
    assert deployment["spec"]["strategy"]["type"] == "RollingUpdate"
    assert load("k8s/pvc.yaml")[0]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_no_file_carries_a_key() -> None:
    """Every key comes from the person who deploys; a missing one stops the start."""
    resources = load("k8s/kustomization.yaml")[0]["resources"]
    assert not [r for r in resources if load(f"k8s/{r}")[0]["kind"] == "Secret"]
    [deployment] = load("k8s/deployment.yaml")
    env = {e["name"]: e for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert not env["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"].get("optional")
    assert "GALLEY_API_KEY=\n" in (DEPLOY / "docker" / ".env.example").read_text()
    compose = load("docker/compose.yaml")[0]["services"]["galley"]
    assert compose["environment"]["VLLM_API_KEY"].startswith("${GALLEY_API_KEY:?")


@pytest.mark.parametrize("name", ["nginx/nginx.conf", "haproxy/haproxy.cfg", "envoy/envoy.yaml"])
def test_proxies_let_through_what_a_key_guards(name: str) -> None:
    """Checklist 228: nothing that is open passes, but the probe."""
    found = re.search(r"(\^/v1/[^\s\"]+\$)", (DEPLOY / name).read_text())
    assert found
    allowed = re.compile(found[1])
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/messages"):
        assert allowed.search(path)
    for path in (
        *("/metrics", "/tokenize", "/invocations", "/pooling", "/collective_rpc", "/sleep"),
        *("/start_profile", "/docs", "/openapi.json", "/server_info", "/v1/models/../../metrics"),
        *("/v1/load_lora_adapter", "/x/v1/models"),
    ):
        assert not allowed.search(path), path
    assert allowed.pattern[1:].startswith(GUARDED[0])


def test_containers_run_as_anyone() -> None:
    """Checklist 245, 247: a user of group 0 that owns nothing writes only to the volume."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    assert re.search(r"^USER \d+:0$", text, re.M)
    assert 'ENTRYPOINT ["galley", "serve"]' in text
    assert "HOME=/data" in text


def test_one_command_brings_up_server_proxy_and_dashboards() -> None:
    """Checklist 251: what the services refer to is there, and they find each other by name."""
    services = load("docker/compose.yaml")[0]["services"]
    assert services.keys() == {"galley", "nginx", "prometheus", "grafana"}
    folder = DEPLOY / "docker"
    assert (folder / services["galley"]["build"]["context"]).resolve() == DEPLOY.parent
    assert "HEALTHCHECK" in (folder / "Dockerfile").read_text()
    mounts = [v for service in services.values() for v in service["volumes"] if v.startswith(".")]
    assert len(mounts) == 4
    for mount in mounts:
        assert (folder / mount.split(":")[0]).exists(), mount
    for name in re.findall(r"cp (\S+)", (folder / "compose.yaml").read_text()):
        assert (DEPLOY.parent / name).exists(), name
    assert services["galley"]["deploy"]["replicas"] == 2
    [job] = load("prometheus/prometheus.yml")[0]["scrape_configs"]
    [found] = job["dns_sd_configs"]
    assert (found["names"], found["port"]) == (["galley"], 8000)
    assert "server galley:8000" in (DEPLOY / "nginx" / "nginx.conf").read_text()
    [source] = load("grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
