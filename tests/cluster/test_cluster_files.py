"""The files of cluster/: valid by the schemas that are published for them, safe by default, and true to the jobs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
KUBERAY = CLUSTER / "kuberay"
KUBERNETES_VERSION = "1.33"

# The fields of KubeRay 1.6's resources that are not Kubernetes' own, as its custom resource definitions publish them.
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def strict(properties, *required):
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


POD_TEMPLATE = strict({"metadata": {"type": "object"}, "spec": {"type": "object"}}, "spec")
HEAD_GROUP = strict(
    {"rayStartParams": TEXTS, "template": POD_TEMPLATE, "serviceType": TEXT, "labels": TEXTS, "resources": TEXTS},
    "template",
)
WORKER_GROUP = strict(
    {
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "idleTimeoutSeconds": COUNT,
        "numOfHosts": COUNT,
        "suspend": FLAG,
        "labels": TEXTS,
        "resources": TEXTS,
        "rayStartParams": TEXTS,
        "template": POD_TEMPLATE,
    },
    "groupName",
    "template",
)
CLUSTER_SPEC = strict(
    {
        "rayVersion": TEXT,
        "enableInTreeAutoscaling": FLAG,
        "authOptions": strict({"mode": {"enum": ["disabled", "token"]}, "secretName": TEXT}),
        "suspend": FLAG,
        "autoscalerOptions": strict(
            {
                "version": {"enum": ["v1", "v2"]},
                "idleTimeoutSeconds": COUNT,
                "upscalingMode": {"enum": ["Default", "Conservative", "Aggressive"]},
                "image": TEXT,
                "resources": {"type": "object"},
                "securityContext": {"type": "object"},
                "env": {"type": "array"},
                "volumeMounts": {"type": "array"},
            }
        ),
        "headGroupSpec": HEAD_GROUP,
        "workerGroupSpecs": {"type": "array", "items": WORKER_GROUP},
    },
    "headGroupSpec",
)
JOB_SPEC = strict(
    {
        "entrypoint": TEXT,
        "entrypointNumCpus": {"type": "number"},
        "entrypointNumGpus": {"type": "number"},
        "runtimeEnvYAML": TEXT,
        "clusterSelector": TEXTS,
        "rayClusterSpec": CLUSTER_SPEC,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        "backoffLimit": COUNT,
        "activeDeadlineSeconds": COUNT,
        "preRunningDeadlineSeconds": COUNT,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": COUNT,
        "suspend": FLAG,
    },
    "entrypoint",
)
CRON_JOB_SPEC = strict(
    {"schedule": TEXT, "timeZone": TEXT, "suspend": FLAG, "jobTemplate": JOB_SPEC}, "schedule", "jobTemplate"
)
SPECS = {"RayCluster": CLUSTER_SPEC, "RayJob": JOB_SPEC, "RayCronJob": CRON_JOB_SPEC}


def documents():
    """Every Kubernetes document of cluster/, as (file name, document)."""
    for path in sorted(KUBERAY.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from ((path.name, document) for document in yaml.safe_load_all(path.read_text()))


def pod_specs(value):
    """Every pod spec within a document."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for child in value.values():
            yield from pod_specs(child)
    elif isinstance(value, list):
        for child in value:
            yield from pod_specs(child)


def all_pod_specs():
    return [(name, spec) for name, document in documents() for spec in pod_specs(document)]


def entrypoints():
    for _, document in documents():
        spec = document.get("spec", {})
        if "entrypoint" in spec.get("jobTemplate", spec):
            yield document["kind"], shlex.split(spec.get("jobTemplate", spec)["entrypoint"])
    for _, spec in all_pod_specs():
        for container in spec["containers"]:
            if "jobs/score.py" in container.get("command", ()):
                yield "CronJob", container["command"][container["command"].index("python") :]


@pytest.mark.parametrize(
    ("name", "document"), list(documents()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_document_is_valid_by_its_published_schema(name, document):
    if document["apiVersion"] == "ray.io/v1":
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}, name
        jsonschema.validate(document["spec"], SPECS[document["kind"]])
    else:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


def test_a_misspelt_field_of_a_resource_is_seen():
    ((_, document),) = [found for found in documents() if found[1]["kind"] == "RayCluster"]
    group = {**document["spec"]["workerGroupSpecs"][0], "maxReplica": 3}
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate({**document["spec"], "workerGroupSpecs": [group]}, CLUSTER_SPEC)


@pytest.mark.lengthy
@pytest.mark.parametrize(("name", "spec"), all_pod_specs(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_pod_is_valid_bounded_and_unprivileged(name, spec):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)
    assert spec["securityContext"]["runAsNonRoot"], name
    for container in spec["containers"]:
        assert {"cpu", "memory"} <= set(container["resources"]["limits"]), name
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {"name": "scratch", "mountPath": "/tmp"} in container["volumeMounts"]
        (home,) = (entry["value"] for entry in container["env"] if entry["name"] == "HOME")
        assert home.startswith("/tmp/")
        assert not container["image"].endswith(":latest")
        assert all("value" not in entry or "AWS" not in entry["name"] for entry in container.get("env", ()))


def test_gpu_nodes_come_from_zero_and_spill_to_scratch():
    ((_, document),) = [found for found in documents() if found[1]["kind"] == "RayCluster"]
    groups = {group["groupName"]: group for group in document["spec"]["workerGroupSpecs"]}
    assert document["spec"]["enableInTreeAutoscaling"]
    assert groups["gpu"]["minReplicas"] == groups["gpu"]["replicas"] == 0 < groups["gpu"]["maxReplicas"]
    gpu = groups["gpu"]["template"]["spec"]["containers"][0]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for group in (document["spec"]["headGroupSpec"], *groups.values()):
        spec = group["template"]["spec"]
        assert {"name": "scratch", "mountPath": "/tmp"} in spec["containers"][0]["volumeMounts"]
        assert spec["volumes"][0]["emptyDir"]["sizeLimit"]


def test_the_dashboard_is_reached_from_inside_alone():
    policies = [document for _, document in documents() if document["kind"] == "NetworkPolicy"]
    inside, submit = (policy["spec"] for policy in policies)
    assert all(rule.get("from") for rule in inside["ingress"])  # No rule that lets everybody in.
    peers = [peer for rule in inside["ingress"] for peer in rule["from"]]
    named = [peer["namespaceSelector"] for peer in peers if "namespaceSelector" in peer]
    assert len(named) == 2
    assert all(each.get("matchLabels", {}).get("kubernetes.io/metadata.name") for each in named)  # By name, not by {}.
    assert "ingress" not in submit
    labels = inside["podSelector"]["matchLabels"]
    ((_, cluster),) = [found for found in documents() if found[1]["kind"] == "RayCluster"]
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        assert labels.items() <= group["template"]["metadata"]["labels"].items()
    for path in (CLUSTER / "ray-up-aws.yaml", CLUSTER / "ray-up-on-premise.yaml", CLUSTER / "slurm.sh"):
        assert "--dashboard-host=127.0.0.1" in path.read_text()


def test_pods_reach_names_the_bucket_and_each_other_alone():
    policies = [document for _, document in documents() if document["kind"] == "NetworkPolicy"]
    for policy in policies:
        spec = policy["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        for rule in spec["egress"]:
            blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
            assert all("169.254.0.0/16" in block["except"] for block in blocks)  # The provider's metadata.
            is_of_pods = all("podSelector" in peer for peer in rule["to"])
            assert rule.get("ports") or (is_of_pods and policy["metadata"]["name"] == "emotion-pipeline-inside")
            if blocks:
                assert {entry["port"] for entry in rule["ports"]} <= {443, 6443}
    assert not any("ipBlock" in peer for rule in policies[1]["spec"]["egress"] for peer in rule["to"])


def test_drivers_and_keys_of_the_bucket_are_where_no_token_of_kubernetes_is():
    ((_, cluster),) = [found for found in documents() if found[1]["kind"] == "RayCluster"]
    head = cluster["spec"]["headGroupSpec"]
    head_pod = head["template"]["spec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert not any("envFrom" in container for container in head_pod["containers"])
    for group in cluster["spec"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] != head_pod["serviceAccountName"]
    for name, document in documents():
        spec = document.get("spec", {})
        if "entrypoint" in (job := spec.get("jobTemplate", spec)):
            assert job["entrypointNumCpus"] >= 1, name  # The head has none: the driver runs on a worker.
    for _, spec in all_pod_specs():
        for container in spec["containers"]:
            if "submit" in container.get("command", ()):
                assert spec["automountServiceAccountToken"] is False
                assert "--entrypoint-num-cpus=1" in container["command"]
                assert "envFrom" not in container


def test_nodes_on_aws_give_their_credentials_to_nobody_who_cannot_ask_twice():
    config = yaml.safe_load((CLUSTER / "ray-up-aws.yaml").read_text())
    nodes = {name: kind["node_config"] for name, kind in config["available_node_types"].items()}
    for node in nodes.values():
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert node["IamInstanceProfile"]["Name"]
    assert nodes["head"]["IamInstanceProfile"] != nodes["cpu"]["IamInstanceProfile"]


def test_images_are_pinned_by_digest_in_every_file(tmp_path):
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    digests = {"cpu": f"sha256:{'ab' * 32}", "cuda": f"sha256:{'cd' * 32}"}
    for repository in ("registry.example/a/emotion-pipeline", "other.example:5000/emotion-pipeline"):
        script = tmp_path / "cluster" / "pin-images.sh"
        subprocess.run([script, repository, *digests.values()], check=True)
        files = [*(tmp_path / "cluster" / "kuberay").glob("*.yaml"), tmp_path / "cluster" / "ray-up-aws.yaml"]
        images = [image for path in files for image in re.findall(r"image: (\S+)$", path.read_text(), re.MULTILINE)]
        assert len(images) == 6
        for image in images:
            kind = re.search(r"-(cpu|cuda)@", image)[1]
            assert image == f"{repository}:0.1.0-{kind}@{digests[kind]}"
    wrong = subprocess.run([script, "x", "latest", "latest"], check=False, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_nobody_joins_a_cluster_without_its_token():
    ((_, cluster),) = [found for found in documents() if found[1]["kind"] == "RayCluster"]
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    for _, spec in all_pod_specs():
        for container in spec["containers"]:
            if "submit" in container.get("command", ()):
                names = {entry["name"]: entry for entry in container["env"]}
                assert names["RAY_AUTH_MODE"]["value"] == "token"
                assert names["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {
                    "name": cluster["metadata"]["name"],  # KubeRay's, of the cluster's own name.
                    "key": "auth_token",
                }
    for name in ("ray-up-aws.yaml", "ray-up-on-premise.yaml"):
        config = yaml.safe_load((CLUSTER / name).read_text())
        assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
        starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
        starts = [command for command in starts if "ray start" in command]
        assert len(starts) == 2
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "export RAY_AUTH_MODE=token" in (CLUSTER / "slurm.sh").read_text()


def test_versions_are_those_of_the_project():
    pinned = dict(
        line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line
    )
    ((_, cluster),) = [found for found in documents() if found[1]["kind"] == "RayCluster"]
    assert cluster["spec"]["rayVersion"] == pinned["ray"]
    version = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[1]
    for _, spec in all_pod_specs():
        assert spec["containers"][0]["image"].split(":")[1].split("-")[0] == version


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("kind", "command"), list(entrypoints()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_entrypoint_is_a_command_that_a_job_understands(kind, command, tmp_path):
    """The job's own parser reads it: an empty folder or a wrong path is what it complains of, not a flag."""
    arguments = [argument.replace("s3://BUCKET", str(tmp_path / "absent")) for argument in command[1:]]
    found = subprocess.run(
        [sys.executable, *arguments], check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 2, kind
    assert "absent" in found.stderr, found.stderr
    assert "unrecognized" not in found.stderr


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_kustomize_sets_the_registry_in_every_image(tmp_path):
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    path = tmp_path / "kuberay" / "kustomization.yaml"
    path.write_text(path.read_text().replace("newName: emotion-pipeline", "newName: registry.example/emotion-pipeline"))
    built = subprocess.run(["kubectl", "kustomize", path.parent], capture_output=True, text=True, check=True).stdout
    images = re.findall(r"image: (\S+)", built)
    assert len(images) == 3
    assert all(image.startswith("registry.example/emotion-pipeline:") for image in images)


@pytest.mark.parametrize("name", ["ray-up-aws.yaml", "ray-up-on-premise.yaml"])
def test_ray_up_accepts_the_file(name):
    config = prepare_config(yaml.safe_load((CLUSTER / name).read_text()))
    validate_config(config)
    assert config["cluster_name"] == "emotion-pipeline"
    with pytest.raises(Exception, match="unexpected"):
        validate_config({**config, "max_worker": 3})


def test_the_dockerfile_installs_with_hashes_and_torch_alone_from_an_index_of_its_own():
    text = (CLUSTER / "Dockerfile").read_text()
    (installs,) = re.findall(r"^RUN pip=(.*?)^USER", text, re.MULTILINE | re.DOTALL)
    commands = re.findall(r"\$pip (.*)", installs)
    assert len(commands) == 4
    assert all("--require-hashes" in each for each in commands if "--requirement" in each)
    assert ["--index-url" in each for each in commands] == [False, True, False, False]
    assert "extra-index" not in text.lower().replace("_", "-")
    assert re.search(r"^USER 1000$", text, re.MULTILINE)
    assert {"cpu", "cuda"} <= set(re.findall(r"^FROM base AS (\w+)$", text, re.MULTILINE))
    copied = set(" ".join(re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)).split())
    kept = set(re.findall(r"^!(.*)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE))
    assert copied == kept
    assert all((REPOSITORY / name).exists() for name in copied)


def test_shell_and_dockerfile_pass_their_linters():
    tools = Path(sys.executable).parent
    subprocess.run([tools / "shellcheck", CLUSTER / "slurm.sh", CLUSTER / "pin-images.sh"], check=True)
    subprocess.run([tools / "hadolint", CLUSTER / "Dockerfile"], check=True)


def run_slurm(folder, *command):
    """slurm.sh with stand-ins for Slurm's two commands, which run each step on this machine."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/bash\necho 127.0.0.1\necho node-2\n")
    (tools / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    for path in tools.iterdir():
        path.chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")},
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "1",
    }
    script = ["bash", CLUSTER / "slurm.sh", *command]
    return subprocess.run(
        script, check=False, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.ray
def test_the_slurm_script_runs_a_command_on_all_nodes_and_ends_with_its_code(tmp_path):
    code = (
        "import ray, ray._raylet; ray.init(logging_level='ERROR'); "
        "has_token = ray._raylet.get_authentication_mode() == ray._raylet.AuthenticationMode.TOKEN; "
        "print('nodes', len(ray.nodes()), has_token); raise SystemExit(3)"
    )
    found = run_slurm(tmp_path, "python", "-c", code)
    assert found.returncode == 3, found.stderr
    assert "nodes 2 True" in found.stdout


def test_the_slurm_script_wants_a_command(tmp_path):
    found = run_slurm(tmp_path)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
