"""The files in deploy/: what can be said of them without Docker, which the tests do not have."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from tiny_encoder import save_encoder

from loop.cli.__main__ import app

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
FILES = ("Dockerfile", "Dockerfile.cuda")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def instructions(name):
    """(instruction, rest) of a Dockerfile, continued lines joined."""
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line.split(maxsplit=1) for line in lines]


@pytest.mark.parametrize("name", FILES)
def test_images_have_all_that_the_services_need(name):
    steps = instructions(name)
    assert steps[0][0] == "FROM"
    locked = (ROOT / "requirements.lock").read_text()
    for extra in ("serve", "postgres", "datasets", "excel"):
        for requirement in EXTRAS[extra]:
            package = re.match(r"[\w-]+", requirement)[0]
            assert re.search(rf"^{package}\b.*==", locked, re.MULTILINE), (extra, package)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for step, rest in steps:
        if step == "COPY":
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source
    torch = re.search(r"torch==[\d.]+", (ROOT / "Makefile").read_text())[0]
    assert any(torch in rest for step, rest in steps if step == "ARG")
    users = [rest for step, rest in steps if step == "USER"]
    assert users == ["goldloop"]


def test_services_are_healthy_keep_their_data_and_hold_no_secret():
    assert set(COMPOSE["volumes"]) == {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
        if not volume.startswith((".", "$"))
    }
    for name, service in SERVICES.items():
        assert "healthcheck" in service or service.get("profiles") == ["run"], name
        for needed in service.get("depends_on", {}):
            assert "healthcheck" in SERVICES[needed]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), (name, port)
        environment = service.get("environment", {})
        for key, value in environment.items():
            secret = re.search(r"PASSWORD$|TOKEN$|KEY$", key) and value not in ("true", "false")
            assert not secret, (name, key)
            if str(value).startswith("/run/secrets/"):
                secret = value.removeprefix("/run/secrets/")
                assert secret in service["secrets"], (name, secret)
                assert secret in COMPOSE["secrets"]
                assert secret in (DEPLOY / "make-secrets").read_text()
    version = int(SERVICES["postgres"]["image"].removeprefix("postgres:"))
    at = "/var/lib/postgresql/data" if version < 18 else "/var/lib/postgresql"
    assert SERVICES["postgres"]["volumes"] == [f"postgres:{at}"]
    label_studio = (ROOT / "connectors/label_studio/server.py").read_text()
    assert f'VERSION = "{SERVICES["label-studio"]["image"].split(":")[1]}"' in label_studio


def test_commands_in_the_services_exist():
    commands = typer.main.get_command(app).commands
    name, *words = SERVICES["serve"]["command"]
    options = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)}
    given = dict(word.partition("=")[::2] for word in words)
    assert set(given) <= options
    assert given["--public-url"] == f"http://serve:{given['--port']}"
    assert given["--page-url"] == f"${{PAGE_URL:-http://{SERVICES['serve']['ports'][0][:14]}}}"
    assert "goldloop backup /backups" in SERVICES["backup"]["command"][0]
    for service in ("backup", "label-studio-backup"):
        script = SERVICES[service]["command"][0].replace("$$", "$")
        assert subprocess.run(["/bin/bash", "-n"], input=script, text=True).returncode == 0


def test_secrets_come_from_files(tmp_path):
    (tmp_path / "deploy").mkdir()
    for name in ("make-secrets", "with-secrets"):
        copy = tmp_path / "deploy" / name
        copy.write_text((DEPLOY / name).read_text())
        copy.chmod(0o755)
        assert os.access(DEPLOY / name, os.X_OK)
    secrets = tmp_path / "deploy" / "secrets"
    for _ in range(2):
        subprocess.run([tmp_path / "deploy" / "make-secrets"], check=True, capture_output=True)
        made = {p.name: p.read_text() for p in secrets.iterdir()}
        assert made.setdefault("kept", made["label-studio-token"]) == made["label-studio-token"]
    assert re.fullmatch("[0-9a-f]{40}", made["label-studio-token"])
    assert len(set(made.values())) == 3
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    token = secrets / "label-studio-token"
    env = {"PATH": os.environ["PATH"], "API_KEY_FILE": str(token), "LOG_FILE": "/tmp/log.txt"}
    run = [tmp_path / "deploy" / "with-secrets", "env"]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=True)
    assert f"API_KEY={token.read_text()}\n" in done.stdout
    assert "API_KEY_FILE" not in done.stdout
    assert "LOG_FILE=/tmp/log.txt" in done.stdout
    env["API_KEY_FILE"] = "/nowhere"
    done = subprocess.run(run, env=env, capture_output=True, text=True)
    assert (done.returncode, "make-secrets" in done.stderr) == (1, True)


def ray_version(text):
    """The one version of Ray that a file names, by itself or in an instruction."""
    (version,) = set(re.findall(r"(?:ray(?:\[\w+\])?==|rayVersion: \")(\d[\d.]*)", text))
    return version


def test_ray_clusters_have_the_ray_that_was_tried():
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE)
    for name in ("ray-cluster.yaml", "kuberay.yaml", *FILES):
        assert ray_version((DEPLOY / name).read_text()) == locked[1], name
    for name in FILES:
        assert ["ARG", 'RAY=""'] in instructions(name)


AUTH = {
    json.dumps(variable, sort_keys=True)
    for variable in (
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {
            "name": "RAY_AUTH_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "goldloop-ray-token", "key": "auth_token"}},
        },
    )
}
"""With these Ray asks for a token, and knows the one of the secret."""


def test_every_ray_cluster_asks_for_a_token_and_says_how_to_make_it():
    made_by = {
        "ray-cluster.yaml": "ray get-auth-token --generate",
        "kuberay.yaml": "kubectl create secret generic goldloop-ray-token --from-literal=auth",
    }
    texts = {path.name: path.read_text(encoding="utf-8") for path in DEPLOY.glob("*.yaml")}
    starting = {name for name, text in texts.items() if re.search("ray start|RayCluster", text)}
    assert starting == set(made_by)
    for name, how in made_by.items():
        assert how in texts[name], name
        for start in re.findall("^ .*bin/ray start", texts[name], re.MULTILINE):
            assert "RAY_AUTH_MODE=token" in start
    mounts = yaml.safe_load(texts["ray-cluster.yaml"])["file_mounts"]
    assert mounts["/home/goldloop/.ray/auth_token"] == "~/.ray/auth_token"


def test_kuberay_keeps_the_campaign_with_a_head_that_does_no_heavy_work():
    claim, cluster = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    autoscaler = spec["autoscalerOptions"]["env"]
    assert {json.dumps(variable, sort_keys=True) for variable in autoscaler} == AUTH
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    pods = {"head": head, **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}
    assert set(pods) == {"head", "cpu", "gpu"}
    for name, group in pods.items():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsUser"] == 1000, name  # the image's goldloop
        resources = container["resources"]
        assert resources["requests"] == resources["limits"], name
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (name == "gpu")
        assert {json.dumps(variable, sort_keys=True) for variable in container["env"]} >= AUTH
        mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", ())}
        volumes = {
            v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod.get("volumes", ())
        }
        assert mounts == ({"campaign": "/campaign"} if name == "head" else {})
        assert set(volumes.values()) == ({claim["metadata"]["name"]} if name == "head" else set())
        if name != "head":
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_ray_cluster_file_is_one_that_ray_takes():
    text = (DEPLOY / "ray-cluster.yaml").read_text(encoding="utf-8")
    cluster = yaml.safe_load(text)
    source, _token = cluster["file_mounts"]
    assert (DEPLOY / cluster["file_mounts"][source] / "pyproject.toml").is_file()
    extras = re.search(re.escape(source) + r"\[([\w,]+)\]", text)[1].split(",")
    assert set(extras) <= set(EXTRAS)
    schema = pytest.importorskip("ray.autoscaler", reason="Ray is not installed here").__path__[0]
    rules = json.loads((Path(schema) / "ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(cluster, rules)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_stack_as_plain_processes_finishes_a_round(tmp_path):
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and not shutil.which("initdb"):
        pytest.skip("PostgreSQL is not installed; Label Studio needs its pg_trgm")
    encoder = save_encoder(tmp_path / "encoder")
    command = [sys.executable, DEPLOY / "local-stack", tmp_path / "stack", "--encoder", encoder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "The stack stands" in done.stderr
