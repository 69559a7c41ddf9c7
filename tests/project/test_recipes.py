"""The recipes for clusters: what they start, and how far a run gets with them on one machine."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import yaml
from parsing import parse
from processes import free_port
from torch.distributed.run import parse_args as parse_torchrun

from benchmarks import cifar10

RECIPES = Path(__file__).parents[2] / "recipes"
FLAGS = [*tiny.FLAGS, "--device", "cpu", "-b", "2", "-j", "1"]

# Slurm's commands on one machine with two nodes. srun forwards a signal to its tasks, as Slurm's does.
SRUN = f"""#!{sys.executable}
import signal, subprocess, sys
tasks = []
signal.signal(signal.SIGUSR1, lambda number, frame: [task.send_signal(number) for task in tasks])
tasks += [subprocess.Popen(sys.argv[3:]) for node in range(2)]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/bash
if [ "$*" = "show hostnames two-nodes" ]; then printf 'localhost\\nsecond\\n'; else echo "$*" >> scontrol.log; fi
"""
# What stands in for Python or torchrun: it notes how it was called, and waits for a signal or ends.
CALLED = """#!/bin/bash
printf '%s\\n' "$@" > called-$$ && mv called-$$ called
if [ -n "${ENDS:-}" ]; then exit "$ENDS"; fi
trap 'exit "$STOPS"' USR1
touch ready
for (( n = 0; n < 600; n++ )); do sleep 0.1; done
"""


@pytest.fixture
def started(tmp_path):
    """Start a recipe in a folder that has Slurm's commands on its path. It ends with the test."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": CALLED}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    running = []

    def start(*command, **variables):
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "two-nodes", "SLURM_NNODES": "2"}
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **slurm}
        with (tmp_path / "log").open("a") as log:
            running.append(
                subprocess.Popen(
                    [str(word) for word in command],
                    cwd=tmp_path,
                    env={**environment, **{name: str(value) for name, value in variables.items()}},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition, process):
    """Wait until something is so, while a process runs."""
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, "it has ended"
        time.sleep(0.1)
    pytest.fail("it has not come")


def commands(words):
    """What torchrun and ``flashkat train`` read from a command line."""
    start = words.index("-m") + 1
    assert words[start - 1 : start + 2] == ["-m", "flashkat", "train"]
    return parse_torchrun([*words[:start], "flashkat"]), parse("train", *words[start + 2 :])


def check_run(args):
    """The run finds its own checkpoint, in a folder that stays the same."""
    assert args.resume == "auto"
    assert (args.data_dir, args.model, args.output, args.experiment) == ("my data", "run", "my output", "run")


RUN = {"DATA_PATH": "my data", "MODEL": "run", "OUTPUT": "my output", "EXPERIMENT": "run"}


# --- Slurm ------------------------------------------------------------------------------------------------------------


def test_the_batch_script_starts_torchrun_on_all_nodes(started, tmp_path):
    assert started("bash", RECIPES / "slurm.sbatch", "--epochs", 3, PYTHON="torchrun", ENDS=0, **RUN).wait(60) == 0
    words = (tmp_path / "called").read_text().splitlines()
    assert words[:2] == ["-m", "torch.distributed.run"]
    launch, args = commands(words[2:])
    assert (launch.nnodes, launch.nproc_per_node, launch.max_restarts) == ("2", "gpu", 0)
    assert (launch.rdzv_backend, launch.rdzv_endpoint, launch.rdzv_id) == ("c10d", "localhost:20007", "7")
    assert "SIGUSR1" in launch.signals_to_handle.split(",")
    check_run(args)
    assert args.epochs == 3


def test_the_batch_script_asks_for_a_signal_and_may_be_queued_again():
    options = re.findall(r"^#SBATCH --(\S+)", (RECIPES / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"signal=B:USR1@300", "requeue", "ntasks-per-node=1", "open-mode=append"} < set(options)


@pytest.mark.parametrize(("ends", "requeued"), [(1, ["requeue 7"]), (0, [])])
def test_only_a_run_that_is_not_done_is_queued_again(started, tmp_path, ends, requeued):
    job = started("bash", RECIPES / "slurm.sbatch", PYTHON="torchrun", STOPS=ends)
    wait_for((tmp_path / "ready").exists, job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == ends
    log = tmp_path / "scontrol.log"
    assert (log.read_text().splitlines() if log.exists() else []) == requeued


def test_a_run_that_fails_is_not_queued_again(started, tmp_path):
    assert started("bash", RECIPES / "slurm.sbatch", PYTHON="torchrun", ENDS=2).wait(60) == 2
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.slow
def test_a_run_stops_near_its_time_limit_and_goes_on_when_queued_again(started, tmp_path):
    data, log = tiny.write_images(tmp_path / "data"), tmp_path / "log"
    variables = {"DATA_PATH": data, "OUTPUT": tmp_path / "output", "EXPERIMENT": "run", "NPROC": 1}
    job = started("bash", RECIPES / "slurm.sbatch", *FLAGS, "--epochs", 100000, **variables)
    wait_for(lambda: "Epoch 2/" in log.read_text(), job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 1
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    (recovery,) = (tmp_path / "output" / "run").glob("recovery-*")
    epochs = int(recovery.name.split("-")[1]) + 2
    assert started("bash", RECIPES / "slurm.sbatch", *FLAGS, "--epochs", epochs, **variables).wait(240) == 0
    assert f"Continuing {recovery}" in log.read_text()
    assert f"Epoch {epochs}/{epochs}" in log.read_text()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"


# --- torchrun alone ---------------------------------------------------------------------------------------------------


def test_the_elastic_script_starts_one_node(started, tmp_path):
    script = started(
        "bash", RECIPES / "elastic.sh", "--epochs", 3, PYTHON="torchrun", ENDS=0, FIRST_NODE="first", **RUN
    )
    assert script.wait(60) == 0
    launch, args = commands((tmp_path / "called").read_text().splitlines()[2:])
    assert (launch.nnodes, launch.nproc_per_node, launch.max_restarts) == ("2", "gpu", 10)
    assert (launch.rdzv_backend, launch.rdzv_endpoint, launch.rdzv_id) == ("c10d", "first:29400", "run")
    assert "SIGUSR1" in launch.signals_to_handle.split(",")
    check_run(args)
    assert args.epochs == 3


def test_the_elastic_script_says_what_it_needs(started, tmp_path):
    assert started("bash", RECIPES / "elastic.sh").wait(60) == 2
    said = (tmp_path / "log").read_text()
    assert said.endswith("elastic.sh: set FIRST_NODE to the name of the first node\n")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_two_nodes_go_on_after_one_process_was_killed(started, tmp_path):
    data, log = tiny.write_images(tmp_path / "data"), tmp_path / "log"
    variables = {"DATA_PATH": data, "OUTPUT": tmp_path / "output", "EXPERIMENT": "run", "NPROC": 1}
    variables |= {"FIRST_NODE": "localhost", "PORT": free_port()}
    nodes = [started("bash", RECIPES / "elastic.sh", *FLAGS, "--epochs", 40, **variables) for _ in range(2)]
    wait_for(lambda: "Epoch 2/" in log.read_text(), nodes[1])
    (child,) = subprocess.check_output(["pgrep", "-P", str(nodes[1].pid)], text=True).split()
    os.kill(int(child), signal.SIGKILL)
    assert [node.wait(240) for node in nodes] == [0, 0]
    assert f"Continuing {tmp_path / 'output' / 'run'}" in log.read_text()
    assert "Epoch 40/40" in log.read_text()


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    """The documents of the file, by kind, in the order in which they are made."""
    return {part["kind"]: part for part in yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())}


def pod(parts):
    (job,) = parts["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def test_kubernetes_reads_all_fields(parts):
    """A field that the schema does not have gets lost on the way."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    for kind in ("TrainingRuntime", "TrainJob"):
        assert getattr(models, f"TrainerV1alpha1{kind}").from_dict(parts[kind]).to_dict() == parts[kind]
    claim = parts["PersistentVolumeClaim"]
    assert models.IoK8sApiCoreV1PersistentVolumeClaim.from_dict(claim).to_dict() == claim


def test_the_parts_of_the_job_fit_together(parts):
    # The runtime comes first: a job is refused without it.
    assert list(parts) == ["PersistentVolumeClaim", "TrainingRuntime", "TrainJob"]
    assert parts["TrainJob"]["spec"]["runtimeRef"]["name"] == parts["TrainingRuntime"]["metadata"]["name"]
    spec = pod(parts)
    (container,) = spec["containers"]
    assert container["name"] == "node"  # Kubeflow puts image, command and variables into the container of this name
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert mounts["/output"]["persistentVolumeClaim"]["claimName"] == parts["PersistentVolumeClaim"]["metadata"]["name"]
    variables = {each["name"]: each["value"] for each in parts["TrainJob"]["spec"]["trainer"]["env"]}
    assert variables["OUTPUT"] in mounts
    assert any(variables["DATA_PATH"].startswith(path) for path in mounts)
    assert spec["restartPolicy"] == "OnFailure"
    assert spec["terminationGracePeriodSeconds"] > int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])


@pytest.mark.parametrize("rank", [0, 1])
def test_the_job_starts_torchrun_in_each_pod(parts, started, tmp_path, rank):
    trainer = parts["TrainJob"]["spec"]["trainer"]
    given = {"PET_NODE_RANK": rank, "PET_MASTER_ADDR": "first", "PET_MASTER_PORT": 29500}
    variables = {**RUN, **given, "ENDS": 0}
    assert started(*trainer["command"], *trainer["args"], **variables).wait(60) == 0
    launch, args = commands((tmp_path / "called").read_text().splitlines())
    assert (launch.rdzv_backend, launch.rdzv_endpoint, launch.max_restarts) == ("c10d", "first:29500", 10)
    assert launch.rdzv_conf == f"is_host={int(rank == 0)}"
    check_run(args)


def test_the_recommended_recipe_is_what_was_measured():
    contender, shared = cifar10.CONTENDERS["KAT"], (*cifar10.RECIPE, *cifar10._MACHINE, "--batch-size", "256")
    measured = vars(parse("train", *contender, *shared, "images"))
    recipe = str(RECIPES / "kat-small-images.yaml")
    assert {**vars(parse("train", "images", "-c", recipe)), "config": ""} == measured
