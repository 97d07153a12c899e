"""Manifests, chart and containers held to Kubernetes' schemas, Helm and hadolint.

Not a part of the gate: `make check-deploy`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from galley.cli.serve import parser
from tests.deploy.promql import DEPLOY
from tests.deploy.tools import BIN, render_chart, run

#: Of other API groups, whose schemas Kubernetes does not know.
CUSTOM = {"ServiceMonitor", "InferenceService", "Kustomization", "PrometheusRule", "HTTPRoute"}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "all": {
        "apiKey": "secret",
        "hfToken": "token",
        "servedModelNames": ["a", "b"],
        "extraArgs": ["--max-model-len=4k"],
        "extraEnv": [{"name": "VLLM_MAX_N_SEQUENCES", "value": "8"}],
        "autoscaling": {"enabled": True},
        "serviceMonitor": {"enabled": True},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
        "persistence": {"storageClass": "fast", "accessModes": ["ReadWriteMany"]},
        "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "tls"},
        "gateway": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["a.b"]},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "offline": {
        "model": "",
        "offline": True,
        "existingSecret": "mine",
        "persistence": {"existingClaim": "models"},
        "networkPolicy": {"fromSameNamespace": False, "ingressNamespaces": []},
    },
    "ephemeral": {
        "persistence": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
    },
}


def validate(objects: list[dict[str, Any]], folder: Path) -> None:
    """Against the newest schemas, strictly."""
    paths = []
    for i, item in enumerate(o for o in objects if o["kind"] not in CUSTOM):
        paths.append(folder / f"{i}.yaml")
        paths[-1].write_text(yaml.safe_dump(item))
    assert paths
    run(BIN / "kubernetes-validate", "--strict", *paths)


def test_manifests_are_valid(tmp_path: Path) -> None:
    """Checklist 232, 244, 252, 253."""
    files = (DEPLOY / "k8s").glob("*.yaml")
    validate([d for p in files for d in yaml.safe_load_all(p.read_text())], tmp_path)


def test_kserve_pod_is_valid(tmp_path: Path) -> None:
    """Checklist 246: the predictor is a pod's specification with a few fields of KServe's own."""
    service = yaml.safe_load((DEPLOY / "kserve" / "inferenceservice.yaml").read_text())
    own = ("minReplicas", "maxReplicas")
    spec = {k: v for k, v in service["spec"]["predictor"].items() if k not in own}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    validate([pod], tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_chart_renders(case: str, tmp_path: Path) -> None:
    """Checklist 248, 265."""
    objects = render_chart(DEPLOY / "helm" / "galley", CASES[case])
    validate(objects, tmp_path)
    kinds = {o["kind"] for o in objects}
    assert ("HorizontalPodAutoscaler" in kinds) == (case == "all")
    assert ("NetworkPolicy" in kinds) == (case != "ephemeral")
    assert ("Secret" in kinds) == (case == "all")
    assert ("PersistentVolumeClaim" in kinds) == (case in ("default", "all"))
    [deployment] = [o for o in objects if o["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    once = case in ("default", "offline")
    assert (deployment["spec"]["strategy"]["type"] == "Recreate") == once
    [policy] = [o for o in objects if o["kind"] == "NetworkPolicy"] or [None]
    if policy is not None:  # a rule without `from` would let everybody in
        rules = policy["spec"]["ingress"]
        assert all(rule["from"] for rule in rules)
        assert bool(rules) == (case != "offline")
    if case == "all":
        by_kind = {o["kind"]: o for o in objects}
        [alerts] = [yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())]
        assert by_kind["PrometheusRule"]["spec"] == alerts
        dashboard = json.loads(by_kind["ConfigMap"]["data"]["galley.json"])
        assert dashboard == json.loads((DEPLOY / "grafana" / "galley.json").read_text())
        [route] = by_kind["HTTPRoute"]["spec"]["rules"]
        service = by_kind["Service"]
        assert route["backendRefs"] == [{"name": service["metadata"]["name"], "port": 8000}]
        [path] = by_kind["Ingress"]["spec"]["rules"][0]["http"]["paths"]
        assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    services = {o["kind"]: o for o in objects if o["kind"] in ("Service", "ServiceMonitor")}
    if "ServiceMonitor" in services:
        label = services["ServiceMonitor"]["spec"]["jobLabel"]
        assert services["Service"]["metadata"]["labels"][label] == "galley"
    values = parser().parse(pod["containers"][0]["args"]).values
    assert values["shutdown_timeout"] < pod["terminationGracePeriodSeconds"]
    env = {item["name"] for item in pod["containers"][0]["env"]}
    assert ("VLLM_API_KEY" in env) == (case in ("all", "offline"))
    assert ("HF_HUB_OFFLINE" in env) == (case == "offline")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod["containers"][0][probe]["httpGet"]["path"] == "/health"


def test_several_replicas_need_a_volume_for_several() -> None:
    for values in ({"replicas": 2}, {"autoscaling": {"enabled": True}}):
        with pytest.raises(AssertionError, match="ReadWriteMany"):
            render_chart(DEPLOY / "helm" / "galley", values)


def test_the_container_file_is_clean() -> None:
    """Checklist 245."""
    run(BIN / "hadolint", DEPLOY / "docker" / "Dockerfile")
