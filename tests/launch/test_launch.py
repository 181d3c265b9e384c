"""Every way of launching ends in the same line, with the user's flags, and restarts what can be restarted."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch", ROOT / ".ci" / "run"])
FLAGS = ["--config=configs/scenes.py:debug", "--workdir=/tmp/a run", "--config.layout.image_size=(32, 32)"]

# Stands for Python: keeps its arguments and variables, and ends as it is told to.
RECORDER = """#!/usr/bin/env bash
printf '%s\\0' "$@" >"$RECORD.$BASHPID"
env >"$RECORD.env"
exit "${CODE:-0}"
"""


@pytest.fixture
def box(tmp_path):
    """A folder for stand-ins of commands, and how to call a script that finds them first."""
    return Box(tmp_path)


class Box:
    def __init__(self, folder: pathlib.Path):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        self.stand_in("python", RECORDER)

    def stand_in(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        set_here = ("JAX", "XLA", "SLURM", "NCCL", "PYTHON")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(set_here)}
        # python3 is the interpreter of the tests: a shim in its place may change where "python" is found.
        path = (str(self.bin), str(pathlib.Path(sys.executable).parent), os.environ["PATH"])
        ours = {"PATH": ":".join(path), "RECORD": str(self.folder / "record")}
        ours |= {"HOME": str(self.folder), "JAX_PLATFORMS": "as set"}  # else no GPU is an error
        return kept | ours | variables

    def call(self, *command: object, code: int = 0, **variables: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def start(self, *command: object, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def recorded(self) -> list[list[str]]:
        """The arguments of every call of Python."""
        return [p.read_text().split("\0")[:-1] for p in sorted(self.folder.glob("record.[0-9]*"))]

    def variables(self) -> dict[str, str]:
        lines = (self.folder / "record.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@functools.cache
def parsed(*arguments: str) -> dict:
    """What the flags of training make of a command line; fails where they refuse it."""
    code = (
        "import json; from absl import flags\n"
        "from process_gen.experiment import builders, cli\n"
        "cli.read_flags(config='configs/scenes.py:quick', workdir='folder')\n"
        "builders.check(flags.FLAGS.config)\n"
        "print(json.dumps([flags.FLAGS.workdir, builders.to_json(flags.FLAGS.config)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    workdir, config = json.loads(done.stdout)
    return {"workdir": workdir, **config}


def assert_trains(arguments: list[str], flags: list[str]) -> dict:
    assert arguments[:2] == ["-m", "process_gen.train"] and arguments[2:] == flags
    return parsed(*flags)


# --------------------------------------------------------------- the scripts


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(path):
    for command in (["bash", "-n"], ["shellcheck", "-x", "--shell=bash"]):
        program = shutil.which(command[0]) or str(pathlib.Path(sys.executable).parent / command[0])
        done = subprocess.run([program, *command[1:], path], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_that_are_called_can_be_executed():
    for name in ("run.sh", "restart.sh", "host.py", "tpu_vm.sh", "gke_xpk.sh", "slurm.sbatch"):
        assert os.access(LAUNCH / name, os.X_OK), name


def test_exit_codes_are_the_same_everywhere():
    found = {"STOPPED": set(), "REFUSED": set()}
    for path in sorted(path for path in LAUNCH.iterdir() if path.is_file()):
        text = path.read_text()
        for name, values in found.items():
            values |= set(re.findall(rf"\b{name}=(\d+)", text))
        for stopped, refused in re.findall(r"STOPPED, REFUSED = (\d+), (\d+)", text):
            found["STOPPED"].add(stopped)
            found["REFUSED"].add(refused)
    assert found == {"STOPPED": {"75"}, "REFUSED": {"2"}}


def test_the_runbook_names_what_is_there():
    text = (LAUNCH / "README.md").read_text()
    named = set(re.findall(r"launch/([\w.]+\w)", text)) | set(re.findall(r"`([a-z_]+\.sh)`", text))
    there = {path.name for path in LAUNCH.iterdir() if path.is_file()}
    assert named == there - {"README.md"}


# ---------------------------------------------------------------- the one line


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", "tpu_slices"])
def test_run_ends_in_the_training_line(box, platform):
    box.call(LAUNCH / "run.sh", platform, *FLAGS)
    (arguments,) = box.recorded()
    assert assert_trains(arguments, FLAGS)["workdir"] == "/tmp/a run"
    assert box.variables()["JAX_PLATFORMS"] == "as set"
    if platform == "gpu" and not list(pathlib.Path("/dev").glob("nvidia[0-9]*")):
        done = box.call(LAUNCH / "run.sh", platform, *FLAGS, code=2, JAX_PLATFORMS="")
        assert "no NVIDIA GPU" in done.stderr
    elif platform != "gpu":
        box.call(LAUNCH / "run.sh", platform, *FLAGS, JAX_PLATFORMS="")
        assert box.variables()["JAX_PLATFORMS"] == {"cpu": "cpu"}.get(platform, "tpu,cpu")


def test_what_the_caller_set_stays_and_comes_last(box):
    flags = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false", "NCCL_DEBUG": "INFO"}
    box.call(LAUNCH / "run.sh", "gpu", *FLAGS, **flags)
    found = box.variables()
    assert found["XLA_FLAGS"].split() == [
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_enable_latency_hiding_scheduler=false",
    ]
    assert found["NCCL_DEBUG"] == "INFO" and found["XLA_CLIENT_MEM_FRACTION"] == "0.9"


def test_only_several_slices_need_flags_of_the_compiler(box):
    box.call(LAUNCH / "run.sh", "tpu", *FLAGS)
    assert "LIBTPU_INIT_ARGS" not in box.variables()
    box.call(LAUNCH / "run.sh", "tpu_slices", *FLAGS, LIBTPU_INIT_ARGS="--mine=1")
    assert box.variables()["LIBTPU_INIT_ARGS"].split()[-1] == "--mine=1"


def test_flags_for_gpus_are_known_to_this_version_of_the_compiler(box):
    box.call(LAUNCH / "run.sh", "gpu", *FLAGS)
    environment = {**os.environ, "XLA_FLAGS": box.variables()["XLA_FLAGS"]}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr  # XLA aborts on a flag that it does not know


def test_flags_for_tpus_are_known_to_libtpu(box):
    pytest.importorskip("libtpu")
    box.call(LAUNCH / "run.sh", "tpu_slices", *FLAGS)
    environment = {**os.environ, "XLA_FLAGS": "", "LIBTPU_INIT_ARGS": box.variables()["LIBTPU_INIT_ARGS"]}
    code = (
        "from jax.experimental import topologies\n"
        "print(len(topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "4", done.stderr  # libtpu ends the process at a flag that it does not know


def test_other_commands_are_launched_the_same_way(box):
    flags = ["--workdir=runs/a", "--prompts_file=prompts with spaces.txt"]
    box.call(LAUNCH / "run.sh", "cpu", *flags, COMMAND="sample")
    (arguments,) = box.recorded()
    assert arguments == ["-m", "process_gen.sample", *flags]


def test_another_platform_is_refused(box):
    done = box.call(LAUNCH / "run.sh", "abacus", *FLAGS, code=2)
    assert "no platform 'abacus'" in done.stderr and not box.recorded()
    assert "launch/run.sh PLATFORM" in box.call(LAUNCH / "run.sh", code=2).stderr


def test_xpk_is_given_the_line(box):
    box.stand_in("xpk", '#!/usr/bin/env bash\nprintf \'%s\\n\' "$@" >"$RECORD.xpk"\n')
    cluster = dict(CLUSTER="c", ZONE="z", TYPE="v5p-128", IMAGE="i", SLICES="2", XPK_FLAGS="--spot --dry-run")
    box.call(LAUNCH / "gke_xpk.sh", "run1", *FLAGS, **cluster)
    given = (box.folder / "record.xpk").read_text().splitlines()
    assert given[:3] == ["workload", "create", "--workload=run1"]
    for flag in ("--num-slices=2", "--restart-on-exit-codes=1,75", "--max-restarts=20", "--spot"):
        assert flag in given
    assert int(given_value(given, "--termination-grace-period-seconds")) >= 300
    box.call("bash", "-c", given_value(given, "--command"))
    assert_trains(box.recorded()[0], FLAGS)
    assert "LIBTPU_INIT_ARGS" in box.variables()


def given_value(given: list[str], flag: str) -> str:
    (value,) = [word.split("=", 1)[1] for word in given if word.startswith(f"{flag}=")]
    return value


def test_the_jobset_runs_the_line_and_restarts_all_but_what_a_person_must_put_right(box):
    spec = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())["spec"]
    assert spec["failurePolicy"] == {
        "maxRestarts": 20,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    (job,) = spec["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 300
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert chips == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    box.call(*container["command"], *container["args"])
    config = assert_trains(box.recorded()[0], container["args"])
    assert config["name"] == "bagel_7b"


def test_skypilot_runs_the_line(box):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    box.call("bash", "-c", task["run"], **task["envs"], SKYPILOT_NUM_GPUS_PER_NODE="2", LOGS=str(box.folder))
    assert len(box.recorded()) == 2
    for arguments in box.recorded():
        assert_trains(arguments, task["envs"]["ARGUMENTS"].split())


# --------------------------------------------------------------------- Slurm

SRUN = '#!/usr/bin/env bash\nshift\nSLURM_PROCID=0 "$@" >/dev/null\n'
SCONTROL = '#!/usr/bin/env bash\necho "$*" >"$RECORD.scontrol"\n'


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (75, 99, True), (1, 0, True), (1, 10, False)],
)
def test_slurm_requeues_what_can_go_on(box, code, restarts, requeued):
    box.stand_in("srun", SRUN)
    box.stand_in("scontrol", SCONTROL)
    job = dict(SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(restarts))
    job["CODE"] = str(code)
    box.call(LAUNCH / "slurm.sbatch", *FLAGS, code=0 if requeued else code, **job)
    assert_trains(box.recorded()[0], FLAGS)
    assert (box.folder / "record.scontrol").exists() == requeued


@pytest.mark.parametrize(("code", "ends"), [(137, 2), (75, 0), (0, 0)])
def test_slurm_takes_the_refusal_of_one_process_for_that_of_the_job(box, code, ends):
    box.stand_in("srun", f'#!/usr/bin/env bash\ntouch "$PROCESS_GEN_REFUSED"\nexit {code}\n')
    box.stand_in("scontrol", SCONTROL)
    box.call(LAUNCH / "slurm.sbatch", *FLAGS, code=ends, SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="7")
    assert (box.folder / "record.scontrol").exists() == (code == 75)
    assert not (ROOT / ".refused-7").exists()


def test_slurm_leaves_a_cancelled_job_alone(box):
    box.stand_in("srun", '#!/usr/bin/env bash\ntouch "$RECORD.began"\nsleep 1\nexit 75\n')
    box.stand_in("scontrol", SCONTROL)
    job = box.start(LAUNCH / "slurm.sbatch", SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="7")
    until((box.folder / "record.began").exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 75
    assert not (box.folder / "record.scontrol").exists()


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


# ------------------------------------------------------------------- TPU VMs

GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$RECORD.gcloud"
for word in "$@"; do
  [[ $word != --command=* ]] || (cd "$HOME" && bash -c "${word#--command=}")
done
"""


@pytest.fixture
def tpu(box):
    box.stand_in("gcloud", GCLOUD)
    (box.folder / "process_gen").mkdir()
    (box.folder / "process_gen" / "launch").symlink_to(LAUNCH)
    return box


def asked(tpu: Box) -> str:
    return (tpu.folder / "record.gcloud").read_text()


def test_a_tpu_is_booked_with_an_end_to_the_waiting(tpu):
    one = dict(NAME="n", ZONE="z", TYPE="v5p-128")
    tpu.call(LAUNCH / "tpu_vm.sh", "book", **one)
    assert "create n --zone=z --quiet --node-id=n --accelerator-type=v5p-128" in asked(tpu)
    assert "--runtime-version=v2-alpha-tpuv5 --valid-until-duration=6h" in asked(tpu)
    tpu.call(LAUNCH / "tpu_vm.sh", "book", **one | dict(SLICES="2", SPOT="1", PROJECT="p", TYPE="v6e-64"))
    last = asked(tpu).splitlines()[-1]
    assert "--project=p" in last and "--node-count=2 --node-prefix=n" in last and last.endswith("--spot")
    tpu.call(LAUNCH / "tpu_vm.sh", "delete", **one)
    assert asked(tpu).splitlines()[-1].endswith("queued-resources delete n --zone=z --quiet --force")


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["buy"], {}, "launch/tpu_vm.sh book"),
        (["book"], {"ZONE": "z"}, "set NAME"),
        (["book"], {"NAME": "n", "ZONE": "z", "TYPE": "v9-8"}, "set RUNTIME"),
    ],
)
def test_what_cannot_be_booked_is_refused(tpu, arguments, variables, message):
    done = subprocess.run(
        [LAUNCH / "tpu_vm.sh", *arguments], env=tpu.environment(**variables), capture_output=True, text=True
    )
    assert done.returncode != 0 and message in done.stderr
    assert not (tpu.folder / "record.gcloud").exists()


def test_a_pod_is_started_once_and_stopped(tpu):
    where = dict(NAME="n", ZONE="z", PYTHON="python", PAUSE="0")
    tpu.stand_in(
        "python", RECORDER.replace("exit", "trap 'exit 75' TERM; while true; do sleep 0.1; done; exit")
    )
    tpu.call(LAUNCH / "tpu_vm.sh", "start", *FLAGS, **where)
    until(tpu.recorded)
    assert_trains(tpu.recorded()[0], FLAGS)
    assert "running since" in tpu.call(LAUNCH / "tpu_vm.sh", "start", *FLAGS, **where).stdout
    tpu.call(LAUNCH / "tpu_vm.sh", "stop", **where)
    assert len(tpu.recorded()) == 1


COPY = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$RECORD.gcloud"
[[ $4 != scp ]] || cp "$5" "$HOME"
"""


def whole_repository() -> bool:
    """Whether this is a checkout with its history, of which a bundle can be made."""
    asked = ["git", "-C", ROOT, "rev-parse", "--is-shallow-repository"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() == "false"


@pytest.mark.skipif(not whole_repository(), reason="what is installed on a pod is a revision")
def test_a_pod_gets_the_committed_revision(tpu):
    tpu.stand_in("gcloud", COPY)
    tpu.call(LAUNCH / "tpu_vm.sh", "install", NAME="n", ZONE="z", SLICES="2", MOUNT="sudo mount x")
    lines = asked(tpu)
    assert "tpu-vm scp" in lines and " n-0:process_gen.bundle" in lines and " n-1:process_gen.bundle" in lines
    assert lines.index("sudo mount x") < lines.index("git clone")
    head = ["rev-parse", "HEAD"]
    subprocess.run(["git", "clone", "-q", "process_gen.bundle", "clone"], cwd=tpu.folder, check=True)
    here, there = (
        subprocess.run(["git", "-C", folder, *head], capture_output=True, check=True).stdout
        for folder in (ROOT, tpu.folder / "clone")
    )
    assert here == there


# ----------------------------------------------------- restarts on one machine

SCRIPT = """#!/usr/bin/env bash
run=$(($(cat "$RECORD.runs" 2>/dev/null || echo 0) + 1))
echo "$run" >"$RECORD.runs"
codes=($CODES)
exit "${codes[run - 1]}"
"""


@pytest.mark.parametrize(
    ("codes", "result", "runs"),
    [("0", 0, 1), ("1 75 134 0", 0, 4), ("75 75 75 75 2", 2, 5), ("1 1 1 1 1", 1, 3)],
)
def test_a_run_is_started_again_until_it_is_done(box, codes, result, runs):
    box.stand_in("job", SCRIPT)
    box.call(LAUNCH / "restart.sh", "job", code=result, CODES=codes, PAUSE="0", MAX_RESTARTS="2")
    assert int((box.folder / "record.runs").read_text()) == runs


def test_a_run_that_held_for_long_ends_a_row_of_crashes(box):
    box.stand_in("job", SCRIPT)
    box.call(
        LAUNCH / "restart.sh", "job", code=0, CODES="1 1 1 1 0", PAUSE="0", MAX_RESTARTS="1", HEALTHY="0"
    )
    assert int((box.folder / "record.runs").read_text()) == 5


WAITING = """#!/usr/bin/env bash
trap 'sleep 0.5; exit 75' TERM
touch "$RECORD.began"
while true; do sleep 0.05; done
"""


def test_being_told_to_stop_is_passed_on_and_final(box):
    box.stand_in("job", WAITING)
    job = box.start(LAUNCH / "restart.sh", "job", PAUSE="0")
    until((box.folder / "record.began").exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 75


def test_being_told_to_stop_between_two_runs_is_final(box):
    box.stand_in("job", SCRIPT)
    job = box.start(LAUNCH / "restart.sh", "job", CODES="1 0", PAUSE="100")
    until((box.folder / "record.runs").exists)
    time.sleep(0.3)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 1


# ------------------------------------------------- several processes, one machine


def host(box: Box, script: str, **variables: str) -> subprocess.Popen:
    """Two processes that run `script`, in which $JAX_PROCESS_ID says which one it is."""
    box.stand_in("python", f'#!/usr/bin/env bash\ntouch "$RECORD.began$JAX_PROCESS_ID"\n{script}\n')
    started = box.start(
        sys.executable, LAUNCH / "host.py", "cpu", "2", *FLAGS, LOGS=str(box.folder / "logs"), **variables
    )
    until(lambda: (box.folder / "record.began0").exists() and (box.folder / "record.began1").exists())
    return started


HOLD = "while true; do sleep 0.05; done"


def test_processes_find_each_other(box):
    box.call(sys.executable, LAUNCH / "host.py", "gpu", "2", *FLAGS, LOGS=str(box.folder / "logs"))
    assert len(box.recorded()) == 2
    for arguments in box.recorded():
        assert_trains(arguments, FLAGS)
    last = box.variables()
    assert last["JAX_NUM_PROCESSES"] == "2" and last["JAX_PROCESS_ID"] == last["CUDA_VISIBLE_DEVICES"]
    assert last["JAX_COORDINATOR_ADDRESS"].startswith("localhost:")
    box.call(sys.executable, LAUNCH / "host.py", "gpu", "none", code=2)


def test_each_process_gets_a_gpu_of_those_that_the_caller_leaves(box):
    box.stand_in("python", '#!/usr/bin/env bash\necho "$CUDA_VISIBLE_DEVICES" >"$RECORD.$JAX_PROCESS_ID"\n')
    command = (sys.executable, LAUNCH / "host.py", "gpu")
    box.call(*command, "2", *FLAGS, CUDA_VISIBLE_DEVICES="5, GPU-7,6")
    assert [(box.folder / f"record.{index}").read_text().strip() for index in range(2)] == ["5", "GPU-7"]
    told = box.call(*command, "4", *FLAGS, CUDA_VISIBLE_DEVICES="5,6", code=2).stderr
    assert "4 processes take a GPU each, and CUDA_VISIBLE_DEVICES names 2" in told


def test_all_are_told_to_stop(box):
    job = host(box, f"trap 'exit 75' TERM; {HOLD}")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 75


def test_where_one_fails_all_end(box):
    job = host(box, f"if ((JAX_PROCESS_ID)); then sleep 0.3; exit 3; fi; trap 'exit 75' TERM; {HOLD}")
    assert job.wait(timeout=30) == 3


def test_one_that_does_not_hear_is_killed(box):
    job = host(box, f"if ((JAX_PROCESS_ID)); then sleep 0.3; kill -9 $$; fi; trap '' TERM; {HOLD}", GRACE="1")
    assert job.wait(timeout=30) == 128 + 9


@pytest.mark.long  # two processes import and compile on two cores: that is what takes the time
def test_two_real_processes_train(tmp_path):
    leaves = {
        "data.data_dir": tmp_path / "data",
        "data.examples": 8,
        "data.mode": "single_pass",
        "train.steps": 2,
        "optimizer.name": "adamw",
        "optimizer.warmup_steps": 1,
        "eval.final_per_group": 0,
        "layout.turns": 1,
        "layout.trajectories": 1,
        "layout.copies": 1,
        "model.scan_unroll": 1,
    }
    flags = ["--config=configs/scenes.py:debug", f"--workdir={tmp_path / 'run'}"]
    flags += [f"--config.{key}={value}" for key, value in leaves.items()]
    job = subprocess.Popen(
        [sys.executable, LAUNCH / "host.py", "cpu", "2", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "LOGS": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, log = job.communicate(timeout=600)
    finally:
        job.terminate()  # and with it the two that it has started
    assert job.returncode == 0, log
    assert "over 2 cpu" in log and "over 2 cpu" not in (tmp_path / "1.log").read_text(), (
        "the first one speaks"
    )
    account = json.loads((tmp_path / "run" / "goodput.json").read_text())
    assert account["done"] and account["step"] == 2 and account["seconds"]["compile"] > 0
    assert "goodput" in log and "share of the peak" in out
