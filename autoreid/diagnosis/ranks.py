"""Checks that all ranks make together: the folder, ports, GPUs, environments, and a process group."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from autoreid.diagnosis.machine import (
    Finding,
    check_device,
    check_dot,
    check_packages,
    check_shared_memory,
    check_slurm,
    versions,
)
from autoreid.diagnosis.meeting import Meeting, meet
from autoreid.distributed import setup, sum_over_ranks
from autoreid.distributed.contact import listen
from autoreid.distributed.gpus import Placement, placement_error
from autoreid.errors import ConfigError, PeerError, RunError

#: Maximum time in seconds until a file is visible on another node.
FILE_WAIT = 5.0
#: Maximum difference in seconds between the nodes' clocks.
CLOCK_SKEW = 5.0


class Rank(NamedTuple):
    """What one rank reports.

    Attributes:
        findings: results of the checks that need no other rank.
        versions: versions of Python and the required packages.
        seat: the device that it computes on.
        name_means: the address that the host's own name resolves to, which gloo sends to other nodes.
        clock: seconds since 1970, taken at about the same time on all ranks.
    """

    host: str
    findings: list[Finding]
    versions: dict[str, str]
    seat: Placement
    name_means: str
    clock: float


def diagnose(folder: Path, timeout: float) -> int:
    """Print all findings and return the exit status.

    Rank 0 prints; a rank that cannot contact the others prints the reason itself.
    """
    try:
        meeting = meet(timeout)
    except (ConfigError, PeerError) as error:
        print(Finding("FAIL", f"launch, on {socket.gethostname()}", str(error)), flush=True)
        return 1
    status = 0
    try:
        for findings in _in_turn(meeting, folder):
            status |= any(finding.grade == "FAIL" for finding in findings)
            if meeting.rank == 0:
                print("\n".join(map(str, findings)), flush=True)
        meeting.leave()
    except RunError as error:
        status = 1
        if meeting.rank == 0:
            print(Finding("FAIL", "launch", str(error)), flush=True)
    return status


def _in_turn(meeting: Meeting, folder: Path) -> Iterator[list[Finding]]:
    findings = examine(meeting, folder)
    yield findings
    # After a failure, the process group would only wait for its timeout.
    if meeting.size > 1 and all(finding.grade != "FAIL" for finding in findings):
        yield [check_group(meeting)]


def examine(meeting: Meeting, folder: Path) -> list[Finding]:
    """Run all checks except for that of a process group; returns the same findings on every rank."""
    device, seat = check_device(meeting.local_rank)
    findings = [check_packages(), check_dot(), check_shared_memory(), device]
    if meeting.local_rank == 0:
        findings.append(check_slurm())
    shared = check_folder(meeting, folder.absolute())
    together = [check_ports(meeting)] if meeting.size > 1 else []
    host = socket.gethostname()
    own = Rank(host, findings, versions(), seat, _address_of(host), time.time())
    ranks = [_as_rank(*values) for values in meeting.exchange(own)]
    if meeting.size > 1:
        together += [check_versions(ranks), check_gpus(ranks), *check_names(ranks), check_clocks(ranks)]
    return [check_launch(ranks), shared, *merge(ranks), *together]


def _as_rank(host: str, findings: Sequence[Any], versions: dict[str, str], seat: Any, *rest: Any) -> Rank:
    """Rebuild a rank's named tuples, which JSON has turned into lists."""
    return Rank(host, [Finding(*finding) for finding in findings], versions, Placement(*seat), *rest)


def _address_of(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def merge(ranks: Sequence[Rank]) -> Iterator[Finding]:
    """Merge equal findings of the ranks; a finding that is not the same on all nodes names its nodes."""
    hosts: dict[Finding, set[str]] = {}
    for rank in ranks:
        for finding in rank.findings:
            hosts.setdefault(finding, set()).add(rank.host)
    everywhere = {rank.host for rank in ranks}
    bad = {finding.what for finding in hosts if finding.grade != "ok"}
    for finding, where in hosts.items():
        if finding.grade != "ok" or finding.what not in bad:
            on = "" if where == everywhere else f", on {' '.join(sorted(where))}"
            yield finding._replace(what=finding.what + on)


def check_launch(ranks: Sequence[Rank]) -> Finding:
    """Report the number of ranks and their nodes."""
    nodes = sorted({rank.host for rank in ranks})
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if len(ranks) == 1 and tasks != "1" and "SLURM_STEP_ID" not in os.environ:
        text = f"one process on {nodes[0]}, but the allocation has {tasks} tasks"
        return Finding("warn", "launch", text, "launch all of them: srun python -m autoreid.doctor")
    return Finding("ok", "launch", f"ranks: {len(ranks)}, nodes: {' '.join(nodes)}")


def check_versions(ranks: Sequence[Rank]) -> Finding:
    """Check that all ranks have the same versions."""
    differing = []
    for name in sorted({name for rank in ranks for name in rank.versions}):
        found = {rank.versions.get(name, "none"): rank.host for rank in ranks}
        if len(found) > 1:
            differing.append(
                f"{name} " + ", ".join(f"{version} on {host}" for version, host in found.items())
            )
    if differing:
        return Finding("FAIL", "versions", "; ".join(differing), "use one environment on all nodes")
    return Finding("ok", "versions", "the same on every rank")


def check_gpus(ranks: Sequence[Rank]) -> Finding:
    """Check that each rank has its own GPU, or that no rank has one."""
    seats = [rank.seat for rank in ranks]
    trouble = placement_error(seats)
    if trouble is not None:
        return Finding("FAIL", "GPUs", *trouble)
    return Finding("ok", "GPUs", "each rank has its own" if seats[0].visible else "no rank has one")


def check_names(ranks: Sequence[Rank]) -> Iterator[Finding]:
    """Check that each node's own name resolves to an address that other nodes can reach; gloo uses these."""
    if len({rank.host for rank in ranks}) == 1 or os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    for host, means, gpu in sorted({(rank.host, rank.name_means, rank.seat.visible > 0) for rank in ranks}):
        if not means or means.startswith("127."):
            text = f"{host} resolves to {means or 'nothing'} there, where other nodes cannot reach it"
            fix = "correct /etc/hosts, or set GLOO_SOCKET_IFNAME to the network interface"
            yield Finding("warn" if gpu else "FAIL", "host name", text, fix)


def check_ports(meeting: Meeting) -> Finding:
    """Check that every node reaches every other at a port chosen by the system; must be called on all ranks."""
    with listen(0) as server:
        first = meeting.local_rank == 0  # one rank per node
        own = (socket.gethostname(), meeting.address, server.getsockname()[1]) if first else None
        others = [other for other in meeting.exchange(own) if other]
        trouble = next(filter(None, (_try_port(*other) for other in others if first)), None)
        troubles = meeting.exchange(trouble)
    for trouble in filter(None, troubles):
        fix = "open all ports between the nodes"
        return Finding("FAIL", "ports", trouble, fix)
    return Finding("ok", "ports", "every node reaches every other")


def _try_port(host: str, address: str, port: int) -> str | None:
    try:
        socket.create_connection((address, port), timeout=5.0).close()
    except OSError as error:
        return f"{socket.gethostname()} cannot reach {host} at {address}, port {port}: {error}"
    return None


def check_group(meeting: Meeting) -> Finding:
    """Check that the ranks can form a process group, as a run does, and reduce; must be called on all ranks."""
    try:
        with setup("auto", meeting.timeout) as world:
            backend = "nccl" if world.device.type == "cuda" else "gloo"
            # Kept until the group is destroyed: in torch 2.6, gloo's thread hangs if it has to free a tensor then.
            total = sum_over_ranks(torch.ones((), device=world.device))
        failure = (
            None if total.item() == meeting.size else f"the sum of {meeting.size} ones is {total.item()}"
        )
    except RuntimeError as error:
        # gloo's messages begin with a source location.
        failure = re.sub(r"\[/\S+\] ", "", str(error).splitlines()[0])
    # gloo gives up after five timeouts.
    failures = [failed for failed in meeting.exchange(failure, patience=6) if failed]
    if failures:
        fix = "name the network in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME; NCCL_DEBUG=INFO shows more"
        return Finding("FAIL", "process group", max(failures, key=len), fix)
    return Finding("ok", "process group", f"all-reduce works over {backend}")


def check_clocks(ranks: Sequence[Rank]) -> Finding:
    """Check that the nodes' clocks agree."""
    first, last = min(ranks, key=lambda rank: rank.clock), max(ranks, key=lambda rank: rank.clock)
    skew = last.clock - first.clock
    if skew > CLOCK_SKEW:
        text = f"{last.host}'s is {skew:.0f} s ahead of {first.host}'s, which makes logs and times misleading"
        return Finding("warn", "clocks", text, "ask the administrators to check NTP")
    return Finding("ok", "clocks", "the nodes agree")


def check_folder(meeting: Meeting, folder: Path) -> Finding:
    """Check that every rank sees what the others write to a folder; must be called on all ranks."""
    # The folder itself may not exist yet; a run will create it.
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    token = meeting.exchange(uuid.uuid4().hex)[0]
    own = place / f".doctor-{token}-{meeting.rank}"
    try:
        own.touch()
        error = None
    except OSError as failure:
        error = failure.strerror
    written = meeting.exchange((socket.gethostname(), error))
    tokens = [place / f".doctor-{token}-{rank}" for rank, (_, failed) in enumerate(written) if not failed]
    unseen = meeting.exchange(_unseen(tokens))
    with contextlib.suppress(OSError):
        own.unlink()
    what = f"folder {folder}"
    for (host, failed), names in zip(written, unseen, strict=True):
        if failed:
            fix = "use a writable folder (output_dir, here --folder)"
            return Finding("FAIL", what, f"{host} cannot write there: {failed}", fix)
        if names:
            writer = written[int(names[0].rpartition("-")[2])][0]
            fix = "use a folder that all nodes share (output_dir, here --folder)"
            return Finding("FAIL", what, f"{host} does not see the files of {writer}", fix)
    return Finding("ok", what, "every rank sees the files of the others" if meeting.size > 1 else "writable")


def _unseen(paths: Sequence[Path]) -> list[str]:
    """Return the names of the files that do not appear in time."""
    deadline = time.monotonic() + FILE_WAIT
    while True:
        missing = [path.name for path in paths if not path.exists()]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)
