"""Files that start a cluster, checked without one: Ray's schema, KubeRay's fields, a fake Slurm."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typer.testing import CliRunner

import raybench
from raybench.cli.app import app
from raybench.cli.suites import launch_files
from raybench.cluster.environment import package, prepare

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def text(name: str) -> str:
    return launch_files()[name].read_text(encoding="utf-8")


def test_they_are_shown_as_they_are() -> None:
    assert set(launch_files()) == {"cluster.yaml", "rayjob.yaml", "slurm.sh"}
    for name in launch_files():
        shown = CliRunner().invoke(app, ["show", name])
        assert (shown.exit_code, shown.output) == (0, text(name))
    assert (ROOT / "cluster.yaml").read_text(encoding="utf-8") == text("cluster.yaml")


# `ray up`


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **named: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def valid(config: dict[str, Any]) -> dict[str, Any]:
    prepare(None)
    from ray.autoscaler._private.util import prepare_config, validate_config

    made: dict[str, Any] = prepare_config(config)
    validate_config(made)
    return made


def variant(title: str) -> dict[str, Any]:
    """What stands in the comments of cluster.yaml under a title, as YAML."""
    block = text("cluster.yaml").partition(f"# {title}: ")[2].partition("\n\n")[0]
    lines = block.partition("\n#\n")[2].splitlines()
    found: dict[str, Any] = yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines))
    assert found
    return found


def on(provider: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(text("cluster.yaml"))
    if provider == "gcp":
        other = variant("GCP")
        config["provider"] = other.pop("provider")
        for name, changed in other.items():
            config["available_node_types"][name] |= changed
    elif provider == "local":
        del config["available_node_types"], config["head_node_type"]
        config |= variant("Machines of your own")
    return config


@pytest.mark.parametrize("provider", ["aws", "gcp", "local"])
def test_ray_takes_the_cluster(provider: str, offline: None) -> None:
    config = on(provider)
    assert config["provider"]["type"] == provider
    made = valid(config)
    if provider != "local":
        head, gpu = (made["available_node_types"][name] for name in ("head", "gpu"))
        assert head["resources"] == {"CPU": 0}
        assert head["max_workers"] == 0
        assert gpu["max_workers"] > gpu["min_workers"] == 0
        assert "spot" in json.dumps(gpu["node_config"]).lower()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_worker",), 3),
        (("head_node_type",), "haed"),
        (("available_node_types", "gpu", "min_workers"), 99),
        (("available_node_types", "gpu", "resources"), {"GPU": 0.5}),
    ],
)
def test_the_check_sees_mistakes(path: tuple[str, ...], value: Any, offline: None) -> None:
    from jsonschema import ValidationError as SchemaError

    config = inner = on("aws")
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises((ValueError, SchemaError, RuntimeError)):
        valid(config)


def test_every_node_says_its_mode_and_pins_its_ray() -> None:
    config = on("aws")
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    for command in starts:
        assert command.startswith("RAY_AUTH_MODE=token ")
        assert "0.0.0.0" not in command
    for image in (config["docker"][key] for key in ("head_image", "worker_image")):
        assert f":{version('ray')}-py311" in image
    assert any("auth_token" in target for target in config["file_mounts"])
    assert any(str(source) == "." for source in config["file_mounts"].values())
    assert any("/home/ray/raybench[cluster" in command for command in config["setup_commands"])


# KubeRay: fields of its RayJob (ray.io/v1) that the manifest may use, as its reference has them.


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Loose(BaseModel):
    """Kubernetes' own objects: what is named here must be right, other fields are not looked at."""

    model_config = ConfigDict(extra="allow")


Quantity = Field(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")


class Amounts(Strict):
    requests: dict[str, str]
    limits: dict[str, str]


class Port(Strict):
    containerPort: int = Field(ge=1, le=65535)
    name: str = Field(max_length=15, pattern=r"^[a-z0-9-]+$")


class Container(Loose):
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    image: str
    ports: list[Port] = []
    resources: Amounts


class PodSpec(Loose):
    containers: list[Container] = Field(min_length=1)
    serviceAccountName: str = ""


class Template(Strict):
    metadata: dict[str, Any] = {}
    spec: PodSpec


class Group(Strict):
    rayStartParams: dict[str, str] = {}
    template: Template
    labels: dict[str, str] = {}
    resources: dict[str, str] = {}


class Head(Group):
    serviceType: str = ""
    enableIngress: bool = False


class Workers(Group):
    groupName: str
    replicas: int = Field(default=0, ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=1)
    numOfHosts: int = 1
    idleTimeoutSeconds: int = 60
    suspend: bool = False


class Auth(Strict):
    mode: Literal["disabled", "token"]
    secretName: str = ""
    enableK8sTokenAuth: bool = False


class Autoscaler(Strict):
    idleTimeoutSeconds: int = 60
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    version: Literal["v1", "v2"] = "v2"


class Cluster(Strict):
    rayVersion: str
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    authOptions: Auth
    headGroupSpec: Head
    workerGroupSpecs: list[Workers] = Field(min_length=1)


class JobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: int = Field(ge=0)
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int = 0
    activeDeadlineSeconds: int | None = None
    runtimeEnvYAML: str = ""
    rayClusterSpec: Cluster


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, str]
    spec: JobSpec


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text("rayjob.yaml"))
    return found


def test_kuberay_takes_the_job() -> None:
    job = RayJob.model_validate(manifest(), strict=True).spec
    cluster = job.rayClusterSpec
    assert cluster.rayVersion == version("ray")
    assert cluster.authOptions.mode == "token"
    assert cluster.enableInTreeAutoscaling
    start = cluster.headGroupSpec.rayStartParams
    assert start["num-cpus"] == "0"
    assert job.entrypoint.startswith("raybench run quickstart --address auto -o s3://")
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        for container in group.template.spec.containers:
            amounts = container.resources
            assert amounts.requests == amounts.limits  # Ray counts limits, the scheduler requests
            assert all(re.fullmatch(r"\d+(Gi|m)?", each) for each in amounts.limits.values())
    assert any("nvidia.com/gpu" in c.resources.limits for c in _workers(cluster))
    assert not any("nvidia.com/gpu" in c.resources.limits for c in _heads(cluster))


def _workers(cluster: Cluster) -> list[Container]:
    return [c for group in cluster.workerGroupSpecs for c in group.template.spec.containers]


def _heads(cluster: Cluster) -> list[Container]:
    return cluster.headGroupSpec.template.spec.containers


@pytest.mark.parametrize("key", ["entrypiont", "rayClusterSpec.headGroup", "rayClusterSpec.auth"])
def test_an_unknown_field_of_a_job_is_seen(key: str) -> None:
    job = manifest()
    *above, last = key.split(".")
    inner = job["spec"]
    for each in above:
        inner = inner[each]
    inner[last] = "x"
    with pytest.raises(ValidationError, match=last):
        RayJob.model_validate(job)


# Slurm


def test_the_slurm_script_is_bash_and_asks_for_what_it_uses() -> None:
    script = text("slurm.sh")
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert script.startswith("#!/usr/bin/env bash\n")
    asked = set(re.findall(r"^#SBATCH --([a-z-]+)", script, re.M))
    assert {"nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "signal"} <= asked
    assert re.search(r"^set -euo pipefail$", script, re.M)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-"], input=script, text=True, check=True)


SUITE = """\
version: 1
name: tiny
base:
  procedure: train
  data: {name: digits, train: 60, valid: 20, test: 40}
  model: {name: mlp, width: 5}
  optimizer: {name: sgd, lr: 0.05}
  steps: 10it
  batch_size: 16
seeds: 6
"""
# Slurm's own, on this machine: options are dropped, the rest is carried out; who did what is noted.
SRUN = """\
#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
echo "$@" >> "$NOTES/srun"
# Addresses of loopback that Ray does not take for "localhost", which it would replace.
[[ "$*" == *--address=* ]] && set -- "$@" --node-ip-address=127.0.0.3
exec "$@"
"""
SCONTROL = """\
#!/usr/bin/env bash
[ "$1 $2" = "show hostnames" ] || exit 2
printf 'node1\\nnode2\\n'
"""
HOSTNAME = """\
#!/usr/bin/env bash
echo 127.0.0.2
"""


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job on two nodes, both of which are this machine."""
    fakes = tmp_path / "bin"
    fakes.mkdir()
    for name, body in (("srun", SRUN), ("scontrol", SCONTROL), ("hostname", HOSTNAME)):
        (fakes / name).write_text(body)
        (fakes / name).chmod(0o755)
    home = Path(tempfile.mkdtemp(prefix="rb-"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAYBENCH_", "RAY_"))}
    yield {
        **kept,
        "PATH": os.pathsep.join([str(fakes), str(BIN), os.environ["PATH"]]),
        "PYTHONPATH": str(Path(raybench.__file__).parents[1]),
        "HOME": str(home),
        "NOTES": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "RAY_worker_niceness": "0",
    }
    shutil.rmtree(home)


@pytest.mark.slow
@pytest.mark.ray
def test_the_slurm_script_runs_a_suite_on_its_nodes(
    allocation: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(SUITE)
    # Slurm ends a job by SIGTERM to its script.
    words = [launch_files()["slurm.sh"], "tiny.yaml", "-o", tmp_path / "store"]
    done = subprocess.run(
        ["timeout", "--signal=TERM", "--kill-after=30", "120", "bash", *words],
        cwd=tmp_path,
        env=allocation,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    assert "6 done" in done.stdout
    started = (tmp_path / "srun").read_text()
    assert len(re.findall(r"^ray start .*--head", started, re.M)) == 1
    assert len(re.findall(r"^ray start .*--address=127.0.0.2:", started, re.M)) == 1
    parts = (tmp_path / "store" / "tiny" / "runs").glob("part-*.parquet")
    assert sum(len(pq.read_table(part)) for part in parts) == 6
    # Everything has ended with the script, and its folder has gone.
    assert not Path(f"/tmp/ray-{allocation['SLURM_JOB_ID']}").exists()
    assert not (Path(allocation["HOME"]) / ".ray").exists()


def test_the_package_travels_unless_a_job_has_brought_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    (sent,) = package()["py_modules"]
    assert (Path(sent) / "cluster" / "environment.py").is_file()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert package() == {}
