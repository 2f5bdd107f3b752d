"""deploy/kuberay.yaml: fields that Kubernetes and KubeRay know, names that fit each other, and options that there are.

Nothing here runs it. Objects of Kubernetes itself are checked by its schemas where `kubernetes-validate` is installed.
"""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from ideoflow.cli import app

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "deploy" / "kuberay.yaml"
OBJECTS = list(yaml.safe_load_all(MANIFEST.read_text("utf-8")))
(CLUSTER,) = [one for one in OBJECTS if one["kind"] == "RayCluster"]
HEAD, (WORKERS,) = CLUSTER["spec"]["headGroupSpec"], CLUSTER["spec"]["workerGroupSpecs"]
# Of ray.io/v1, by KubeRay's API reference: which fields there are, and which must be there.
FIELDS = {
    "spec": ({"headGroupSpec"}, {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "workerGroupSpecs"}),
    "autoscalerOptions": (set(), {"idleTimeoutSeconds", "upscalingMode", "resources", "image", "env", "envFrom"}),
    "headGroupSpec": ({"template"}, {"rayStartParams", "serviceType", "enableIngress"}),
    "workerGroupSpecs": (
        {"groupName", "template"},
        {"replicas", "minReplicas", "maxReplicas", "rayStartParams", "idleTimeoutSeconds", "numOfHosts"},
    ),
}


def container(group):
    (own,) = group["template"]["spec"]["containers"]
    return own


def test_it_holds_what_the_server_needs():
    kinds = ["Secret", "PersistentVolumeClaim", "PersistentVolumeClaim", "Service", "RayCluster"]
    assert [one["kind"] for one in OBJECTS] == kinds
    assert CLUSTER["apiVersion"] == "ray.io/v1"


@pytest.mark.parametrize("name", FIELDS)
def test_kuberay_knows_its_fields(name):
    spec = CLUSTER["spec"]
    found = spec if name == "spec" else spec[name]
    must, may = FIELDS[name]
    for one in found if isinstance(found, list) else [found]:
        assert must <= set(one) <= must | may
        assert all(isinstance(value, str) for value in one.get("rayStartParams", {}).values())


def test_numbers_of_workers_and_replicas_agree():
    assert WORKERS["minReplicas"] <= WORKERS["replicas"] <= WORKERS["maxReplicas"]
    least, most = server_options()["--replicas"].split(":")
    assert (WORKERS["minReplicas"], WORKERS["maxReplicas"]) == (int(least), int(most))
    assert container(WORKERS)["resources"]["limits"]["nvidia.com/gpu"] == server_options()["--gpus-per-replica"]
    assert HEAD["rayStartParams"]["num-cpus"] == "0"


def test_names_that_are_referred_to_are_there():
    claims = {one["metadata"]["name"] for one in OBJECTS if one["kind"] == "PersistentVolumeClaim"}
    secrets = {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] == "Secret"}
    for group in (HEAD, WORKERS):
        volumes = group["template"]["spec"]["volumes"]
        assert {one["persistentVolumeClaim"]["claimName"] for one in volumes} <= claims
        assert {one["name"] for one in container(group)["volumeMounts"]} == {one["name"] for one in volumes}
    assert {one["secretRef"]["name"] for one in container(HEAD)["envFrom"]} == set(secrets)
    assert set(secrets["ideoflow"]["stringData"]) == {"IDEOFLOW_API_KEYS", "IDEOFLOW_DATABASE"}
    (service,) = [one for one in OBJECTS if one["kind"] == "Service"]
    ports = {one["name"]: one["containerPort"] for one in container(HEAD)["ports"]}
    assert service["spec"]["ports"][0]["targetPort"] in ports and ports["http"] == 8000
    assert service["spec"]["selector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"], "ray.io/node-type": "head"}
    mounts = {one["mountPath"] for one in container(HEAD)["volumeMounts"]}
    assert mounts == {"/data", "/model"} and server_options()["--data"] == "/data"


def server_options():
    """What the head's container gives to `ideoflow serve`."""
    words = shlex.split(re.search(r"exec ideoflow serve (.*)", container(HEAD)["args"][0])[1])
    assert words.pop(0) == "/model"
    found = {}
    for word in words:
        if word.startswith("--"):
            found[word] = ""
            last = word
        else:
            found[last] = word
    return found


def test_the_server_knows_its_options():
    built = typer.main.get_command(app)
    command = built.resolve_command(typer.Context(built), ["serve"])[1]
    known = {name for one in command.params for name in one.opts}
    assert set(server_options()) <= known
    grace = HEAD["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > float(server_options()["--drain"])


def test_ray_has_one_version():
    image = re.search(r"ARG RAY=([\d.]+)", (ROOT / "deploy" / "ray.Dockerfile").read_text("utf-8"))[1]
    assert image == CLUSTER["spec"]["rayVersion"]
    assert {container(group)["image"] for group in (HEAD, WORKERS)} == {container(HEAD)["image"]}


def test_kubernetes_knows_its_fields():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own"}, "spec": group["template"]["spec"]}
        for group in (HEAD, WORKERS)
    ]
    for one in [*(one for one in OBJECTS if one is not CLUSTER), *pods]:
        validate.validate(one, validate.latest_version(), strict=True)
