"""A SLURM of one node on this machine, from Debian's packages slurm-wlm and munge, for as long as a
test needs it.

The node is this machine with its processors, and with two files that stand for GPUs. Everything is
in a folder of its own: keys, sockets, logs and state.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=30
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MinJobAge=7200
GresTypes=gpu
{node} NodeAddr=127.0.0.1 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
"""
GPUS = "AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n"


def ask(*command: str) -> str:
    """What one of SLURM's tools prints."""
    return subprocess.run(command, text=True, capture_output=True, check=True, timeout=60).stdout


def jobs() -> list[dict[str, str]]:
    """All jobs so far in the order of their submission, as `scontrol` describes them, and the
    `rule` of each."""
    lines = ask("scontrol", "show", "job", "--oneliner", "--detail").splitlines()
    found = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.startswith("JobId")]
    found = [
        job | {"rule": re.match(r"(?:rule_)?([a-z]*)", job.get("Comment", ""))[1]} for job in found
    ]
    return sorted(found, key=lambda job: int(job["JobId"]))


def wait_for(condition, what: str, seconds: float = 60):
    """What `condition` returns when it is first true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.2)
    return value


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def why_not() -> str | None:
    """What this machine lacks."""
    if absent := [
        tool for tool in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(tool) is None
    ]:
        return f"no {', '.join(absent)}: install slurm-wlm and munge"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "no slurm executor: pip install -c constraints.txt -e .[cluster]"
    return None if os.geteuid() == 0 else "slurmd starts jobs of other users, hence must be root"


def _configure(folder: Path) -> None:
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    srun = (
        folder / "bin/srun"
    )  # Snakemake's executor hides SLURM_CONF from it, a file in /etc on a real cluster
    srun.write_text(
        f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n',
        encoding="utf-8",
    )
    srun.chmod(0o755)
    node = subprocess.run(
        ["slurmd", "-C"], text=True, capture_output=True, check=True
    ).stdout.splitlines()[0]
    host = re.match(r"NodeName=(\S+)", node)[1]
    text = CONFIGURATION.format(host=host, folder=folder, node=node, ports=_free_ports(2))
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    (folder / "gres.conf").write_text(GPUS, encoding="utf-8")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """Start the daemons, with all their files in an empty folder, wait for an idle node, and end
    them afterwards."""
    _configure(folder)
    daemons: list[subprocess.Popen] = []
    munge = {
        "key-file": "munge.key",
        "socket": "munge.socket",
        "pid-file": "munged.pid",
        "seed-file": "munge.seed",
    }
    munged = [
        "munged",
        "--foreground",
        "--force",
        *(f"--{name}={folder / file}" for name, file in munge.items()),
    ]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        environment.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
        try:
            for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
                with open(folder / f"{command[0]}.log", "w") as log:
                    daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
                wait_for((folder / "munge.socket").exists, "munge socket")
            wait_for(lambda: "idle" in ask("sinfo", "--noheader", "--format=%t"), "idle node")
            try:
                yield
            finally:
                ask("scancel", "--user=root")
                wait_for(lambda: not ask("squeue", "--noheader"), "end of the last job")
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(timeout=60)
