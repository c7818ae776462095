"""The manifests of launch/k8s: every field is one that Kubernetes has, of its type, and what they say fits together.

The shapes below are those of Kubernetes 1.31 (core/v1, batch/v1) and of kubeflow's mpi-operator (v2beta1, its
manifests/base/kubeflow.org_mpijobs.yaml; both Apache-2.0), cut down to the fields that the manifests use and their neighbours.
"""

import copy
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig

from resnet import UserError
from resnet.sweep import command

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "launch" / "k8s"
FILES = sorted(K8S.glob("*.yaml"))
DOCUMENTS = [document for file in FILES for document in yaml.safe_load_all(file.read_text())]
MPIJOBS = [document for document in DOCUMENTS if document["kind"] == "MPIJob"]


def named(document):
    """A document by what sets it apart."""
    return f"{document['kind']}-{document['metadata']['name']}-{str(document).partition('resnet:')[2].partition(chr(39))[0]}"


# --------------------------------------------------------------------------------------------------------------- the shapes
# A type, a set of values, a pattern, [shape of each] or {field: shape}; `field!` must be there. Named: a number, or 8Gi.
@dataclass(frozen=True)
class Map:
    """Names that people choose -> shape."""

    of: Any


NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
PATH = re.compile(r"/[^:]*")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?|Ki)?")
META = {"name!": NAME, "namespace": NAME, "labels": Map(str), "annotations": Map(str)}
RESOURCES = {"limits": Map(QUANTITY), "requests": Map(QUANTITY)}
EXEC = {"command!": [str]}
PROBE = {
    "exec": EXEC,
    "tcpSocket": {"port!": int, "host": str},
    **dict.fromkeys(("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold"), int),
}
CONTAINER = {
    "name!": NAME,
    "image!": re.compile(r"[a-z0-9./-]+:[\w.-]+"),
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "command": [str],
    "args": [str],
    "workingDir": PATH,
    "env": [{"name!": re.compile(r"[A-Za-z_]\w*"), "value": str}],
    "resources": RESOURCES,
    "volumeMounts": [{"name!": NAME, "mountPath!": PATH, "readOnly": bool, "subPath": str}],
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "lifecycle": {"preStop": {"exec": EXEC}, "postStart": {"exec": EXEC}},
    "securityContext": {
        "allowPrivilegeEscalation": bool,
        "readOnlyRootFilesystem": bool,
        "capabilities": {"add": [str], "drop": [str]},
    },
}
POD = {
    "containers!": [CONTAINER],
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "terminationGracePeriodSeconds": int,
    "automountServiceAccountToken": bool,
    "setHostnameAsFQDN": bool,
    "hostIPC": bool,
    "nodeSelector": Map(str),
    "priorityClassName": NAME,
    "tolerations": [dict.fromkeys(("key", "operator", "value", "effect"), str)],
    "securityContext": {
        "runAsNonRoot": bool,
        **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), int),
        "seccompProfile": {"type!": {"RuntimeDefault", "Unconfined", "Localhost"}},
    },
    "volumes": [
        {
            "name!": NAME,
            "persistentVolumeClaim": {"claimName!": NAME, "readOnly": bool},
            "emptyDir": {"medium": {"", "Memory", "HugePages"}, "sizeLimit": QUANTITY},
        }
    ],
}
TEMPLATE = {"metadata": {"labels": Map(str), "annotations": Map(str)}, "spec!": POD}
JOB = {
    **dict.fromkeys(("backoffLimit", "completions", "parallelism", "ttlSecondsAfterFinished"), int),
    **dict.fromkeys(("backoffLimitPerIndex", "maxFailedIndexes"), int),
    "completionMode": {"NonIndexed", "Indexed"},
    "activeDeadlineSeconds": int,
    "suspend": bool,
    "podFailurePolicy": {
        "rules!": [
            {
                "action!": {"FailJob", "FailIndex", "Ignore", "Count"},
                "onExitCodes": {"containerName": NAME, "operator!": {"In", "NotIn"}, "values!": [int]},
                "onPodConditions": [{"type!": str, "status": {"True", "False", "Unknown"}}],
            }
        ]
    },
    "template!": TEMPLATE,
}
REPLICAS = {"replicas": int, "restartPolicy": {"Never", "OnFailure"}, "template!": TEMPLATE}
MPIJOB = {
    "slotsPerWorker": int,
    "runLauncherAsWorker": bool,
    "sshAuthMountPath": PATH,
    "launcherCreationPolicy": {"AtStartup", "WaitForWorkersReady"},
    "mpiImplementation": {"OpenMPI", "Intel", "MPICH"},
    "runPolicy": {
        **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"), int),
        "cleanPodPolicy": {"None", "Running", "All"},
        "suspend": bool,
    },
    "mpiReplicaSpecs!": {"Launcher!": REPLICAS, "Worker": REPLICAS},
}
CLAIM = {
    "accessModes!": [{"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"}],
    "storageClassName": NAME,
    "resources!": RESOURCES,
}
KINDS = {"v1 PersistentVolumeClaim": CLAIM, "batch/v1 Job": JOB, "kubeflow.org/v2beta1 MPIJob": MPIJOB}


def faults(thing, shape, where=""):
    """What is wrong with a thing, a line for each."""
    if isinstance(shape, Map):
        shape = dict.fromkeys(thing, shape.of) if isinstance(thing, dict) else {}
    match shape:
        case dict():
            if not isinstance(thing, dict):
                return [f"{where}: {thing!r} is no object"]
            known = {name.rstrip("!"): inner for name, inner in shape.items()}
            absent = {name.rstrip("!") for name in shape if name.endswith("!")} - set(thing)
            unknown = [f"{where}.{name}: no such field" for name in thing if name not in known]
            within = [
                fault
                for name in thing
                if name in known
                for fault in faults(thing[name], known[name], f"{where}.{name}")
            ]
            return [*(f"{where}.{name}: not there" for name in absent), *unknown, *within]
        case [inner]:
            if not isinstance(thing, list):
                return [f"{where}: {thing!r} is no list"]
            return [fault for number, each in enumerate(thing) for fault in faults(each, inner, f"{where}[{number}]")]
        case re.Pattern():
            fits = (
                type(thing) in (str, int) and shape.fullmatch(str(thing)) and (shape is QUANTITY or type(thing) is str)
            )
        case set():
            fits = type(thing) is str and thing in shape
        case _:
            fits = type(thing) is shape
    return [] if fits else [f"{where}: {thing!r} is not one of {shape}"]


def wrong(document):
    """What is wrong with a document."""
    kind = f"{document.get('apiVersion')} {document.get('kind')}"
    shape = {"apiVersion!": str, "kind!": str, "metadata!": META, "spec!": KINDS.get(kind, {})}
    return [f"no such kind: {kind}"] * (kind not in KINDS) + faults(document, shape)


def places(thing, path=()):
    """The path to everything in a document."""
    inner = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list) else ()
    for name, each in inner:
        yield (*path, name)
        yield from places(each, (*path, name))


def at(thing, path):
    for step in path:
        thing = thing[step]
    return thing


# ---------------------------------------------------------------------------------------------------------- every document
@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_a_manifest_has_only_fields_that_kubernetes_has(document):
    assert wrong(document) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_a_typing_error_anywhere_is_found(document):
    paths = list(places(document))
    assert len(paths) > 8
    for path in paths:
        spoiled, last = copy.deepcopy(document), path[-1]
        above = at(spoiled, path[:-1])
        if isinstance(last, str) and (len(path) < 2 or path[-2] not in ("limits", "requests", "labels")):
            above[f"{last}x"] = above.pop(last)
            assert wrong(spoiled), f"{path} misspelt"
            above[last] = above.pop(f"{last}x")
        above[last] = {"an": "object"}
        assert wrong(spoiled), f"{path} of another type"


@pytest.mark.parametrize("field", ["apiVersion", "kind", "metadata", "spec"])
def test_what_is_missing_is_found(field):
    assert wrong({key: value for key, value in DOCUMENTS[0].items() if key != field})


# -------------------------------------------------------------------------------------------------------- what they say
def pods(document):
    """{role: its pod}."""
    if document["kind"] == "MPIJob":
        return {role: part["template"]["spec"] for role, part in document["spec"]["mpiReplicaSpecs"].items()}
    return {"Job": document["spec"]["template"]["spec"]} if document["kind"] == "Job" else {}


PODS = [
    pytest.param(pod, id=f"{named(document)}-{role}") for document in DOCUMENTS for role, pod in pods(document).items()
]


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_runs_as_the_user_of_its_image_and_has_time_to_save(pod):
    (container,) = pod["containers"]
    device = container["image"].rpartition(":")[2]
    image = (ROOT / "launch" / "docker" / f"Dockerfile.{device}").read_text()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"useradd --uid {pod['securityContext']['runAsUser']} --create-home resnet" in image
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["automountServiceAccountToken"] is False
    assert "tini" in image and container.get("command", ["tini"])[0] == "tini"  # signals reach what it starts


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_mounts_what_is_there_and_where_the_words_look(pod):
    (container,) = pod["containers"]
    claims = {document["metadata"]["name"] for document in DOCUMENTS if document["kind"] == "PersistentVolumeClaim"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} <= set(volumes)
    assert {
        part["persistentVolumeClaim"]["claimName"]
        for part in volumes.values()
        if len(part) > 1 and "persistentVolumeClaim" in part
    } <= claims
    assert mounts["/data"]["readOnly"] is True and "readOnly" not in mounts["/runs"]
    for word in container.get("args", []):
        if word.startswith(("data.dir=", "out=")):
            assert any(word.partition("=")[2].startswith(f"{path}/") for path in mounts), word


def job_named(name):
    """(the Job, its container)"""
    (job,) = (document for document in DOCUMENTS if (document["kind"], document["metadata"]["name"]) == ("Job", name))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return job, container


def actions(job):
    """{exit statuses: what the Job does then}"""
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # or Kubernetes refuses podFailurePolicy
    rules = job["spec"]["podFailurePolicy"]["rules"]
    return {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in rules if "onExitCodes" in rule}


def test_one_card(run_of):
    job, container = job_named("resnet")
    assert container["args"][:3] == ["python", "-m", "resnet.train"]
    run = run_of(*container["args"][3:])
    assert run.cluster.ranks == container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert run.cluster.device.name == "gpu" and run.out == "/runs/resnet"
    assert actions(job) == {(1, 2): "FailJob", (143,): "Ignore"}


def test_each_index_of_the_sweep_is_one_of_its_combinations_in_a_folder_of_its_own(monkeypatch):
    job, container = job_named("resnet-sweep")
    assert job["spec"]["completionMode"] == "Indexed" and job["spec"]["backoffLimitPerIndex"] > 0
    assert actions(job) == {(1, 2): "FailIndex", (143,): "Ignore"}
    assert container["args"][:3] == ["python", "-m", "resnet.train"]

    def run_of_index(index):
        words = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["args"][2:]]
        monkeypatch.setattr(sys, "argv", words)
        try:
            (run,) = command.command_line()
        finally:
            HydraConfig.instance().cfg = None
        return run

    runs = [run_of_index(index) for index in range(job["spec"]["completions"])]
    assert [run.out for run in runs] == [f"/runs/sweep/{index}" for index in range(len(runs))]
    assert len({(run.optim.lr, run.optim.weight_decay) for run in runs}) == len(runs)
    assert {run.cluster.ranks for run in runs} == {container["resources"]["limits"]["nvidia.com/gpu"]} == {1}
    with pytest.raises(UserError, match=f"sweep.only={len(runs)}: the sweep has {len(runs)} jobs"):
        run_of_index(len(runs))


@pytest.mark.parametrize("job", MPIJOBS, ids=named)
def test_the_launcher_makes_its_hosts_of_the_operators_file(job, run_of, tmp_path):
    """Its command as it is, but for the folder of the file, with a Python that only shows its words."""
    replicas, spec = job["spec"]["mpiReplicaSpecs"], job["spec"]
    (launcher,), (worker,) = (pods(job)[role]["containers"] for role in ("Launcher", "Worker"))
    workers, slots = replicas["Worker"]["replicas"], spec["slotsPerWorker"]
    hosts = [f"resnet-worker-{number}.resnet.default.svc" for number in range(workers)]
    (tmp_path / "hostfile").write_text("".join(f"{host} slots={slots}\n" for host in hosts))
    python = launcher["command"][4].split()[1]
    (tmp_path / python).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / python).chmod(0o755)
    assert launcher["command"][:2] == ["tini", "--"]
    command = [
        word.replace("/etc/mpi/hostfile", shlex.quote(str(tmp_path / "hostfile"))) for word in launcher["command"][2:]
    ] + launcher["args"]
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    words = subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[:2] == ["-m", "resnet.train"]
    run = run_of(*words[2:])
    assert run.cluster.hosts == [f"{host}:{slots}" for host in hosts]
    assert run.cluster.ranks == workers * slots and run.batch % run.cluster.ranks == 0
    assert run.cluster.starter.value == "mpirun"
    device = {"cpu": "cpu", "gpu": "nvidia.com/gpu", "hpu": "habana.ai/gaudi"}[run.cluster.device.name]
    limits = worker["resources"]["limits"]
    assert limits[device] == slots or device == "cpu"
    assert run.cluster.threads * slots == limits["cpu"]


@pytest.mark.parametrize("job", MPIJOBS, ids=named)
def test_the_workers_ssh_is_the_one_of_the_image(job):
    (worker,) = pods(job)["Worker"]["containers"]
    image = (ROOT / "launch" / "docker" / f"Dockerfile.{worker['image'].rpartition(':')[2]}").read_text()
    server = dict(line.split() for line in (ROOT / "launch/docker/sshd_config").read_text().splitlines()[1:])
    client = dict(line.split() for line in (ROOT / "launch/docker/ssh_config").read_text().splitlines()[2:])
    assert worker["command"] == ["tini", "--", "/usr/sbin/sshd", "-De", "-f", "/etc/ssh/sshd_resnet.conf"]
    assert "COPY launch/docker/sshd_config /etc/ssh/sshd_resnet.conf" in image
    assert "COPY launch/docker/ssh_config /etc/ssh/ssh_config.d/resnet.conf" in image
    assert int(server["Port"]) == int(client["Port"]) == worker["readinessProbe"]["tcpSocket"]["port"]
    assert server["HostKey"].rpartition("/")[0] == job["spec"]["sshAuthMountPath"]


def test_a_worker_that_is_sent_away_tells_its_ranks_and_waits_for_them(tmp_path):
    """The command itself, on a process that looks like a rank of it. It must not find itself, or it would never end."""
    (worker,) = pods(MPIJOBS[0])["Worker"]["containers"]
    assert all(pods(job)["Worker"]["containers"][0]["lifecycle"] == worker["lifecycle"] for job in MPIJOBS)
    mark = f"resnet.rank.{tmp_path.name}"
    command = [
        word.replace("[r]esnet.rank", f"[r]{mark[1:]}") for word in worker["lifecycle"]["preStop"]["exec"]["command"]
    ]
    saves = "signal.signal(15, lambda *_: (time.sleep(1), sys.exit(143)))"
    text = f"import signal, sys, time; {saves}; print(flush=True); time.sleep(60)"
    rank = subprocess.Popen([sys.executable, "-c", text, mark], stdout=subprocess.PIPE)
    rank.stdout.readline()
    waiting = subprocess.Popen(command)
    assert rank.wait(20) == 143
    assert waiting.wait(20) == 0
