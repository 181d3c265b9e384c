"""Checks that all processes of a job have started, over the coordinator's port, before JAX uses it.

When a process never comes, `jax.distributed` ends the others without saying which one. So every process first
sends its index and host name to process 0. Once all are there, or the time is over, process 0 answers each
with the hosts of those that came. If some are missing, each process raises an error that names them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterable, Mapping

from process_gen.common.files import from_json

_LINE = 4096
"""Bytes of the longest message to process 0."""


class HostMissing(RuntimeError):
    """A process of the job did not come, or not in time; the message names it."""

    exit_code = 1  # not 2, which is final for launchers: it may come next time


def missing(
    came: Iterable[int], count: int, where: str, seconds: float, hosts: Mapping[int, str]
) -> HostMissing:
    """An error that names the processes which did not come, with their hosts where they are known."""
    absent = sorted(set(range(count)) - set(came))
    names = [f"{index} ({hosts[index]})" if index in hosts else str(index) for index in absent]
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return HostMissing(
        f"process {shown} of {count} did not come to {where!r} within {seconds:.0f} s; look at the log of "
        "that host, then start all processes again"
    )


def call(address: str, count: int, index: int, timeout: float) -> dict[int, str]:
    """Waits until all `count` processes have called at `address` (host:port), which process 0 serves.

    Returns:
      Process number -> host name, of all.

    Raises:
      HostMissing: some did not come within `timeout` seconds, or process 0 cannot be reached.
    """
    host, _, port = address.rpartition(":")
    if index == 0:
        hosts = _serve(int(port), count, timeout)
    else:
        hosts = _report(host.strip("[]"), int(port), count, index, timeout)
    if set(range(count)) - hosts.keys():
        raise missing(hosts, count, "start", timeout, {})
    return hosts


def _serve(port: int, count: int, timeout: float) -> dict[int, str]:
    """Collects process number -> host name of those that come in time, sends it to them and returns it."""
    deadline = time.monotonic() + timeout
    hosts, lines = {0: socket.gethostname()}, {}
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.create_server(
        ("", port), family=family, backlog=4096, dualstack_ipv6=family == socket.AF_INET6
    ) as server:
        while len(hosts) < count and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                line, _ = server.accept()
                line.settimeout(5)
                # Suppresses what comes of lines that are not one of ours, or cut off.
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    told = from_json(line.makefile().readline(_LINE))
                    process, host = int(told["process"]), str(told["host"])
                    if 0 < process < count:
                        hosts[process], lines[process] = host, line
    for line in lines.values():
        with contextlib.suppress(OSError), line:
            line.sendall((json.dumps(hosts) + "\n").encode())
    return hosts


def _report(host: str, port: int, count: int, index: int, timeout: float) -> dict[int, str]:
    """Tells process 0 that this one is here; returns process number -> host name of those that came."""
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            # Process 0 may have begun to wait later, so it is given a little longer to answer.
            with socket.create_connection((host, port), timeout=max(left, 0.1)) as line:
                line.sendall((json.dumps({"process": index, "host": socket.gethostname()}) + "\n").encode())
                line.settimeout(timeout + 10)
                return {int(number): name for number, name in from_json(line.makefile().readline()).items()}
        except (OSError, ValueError) as error:
            if left <= 0:
                raise HostMissing(
                    f"process 0 of {count} was not reached at {host}:{port} in {timeout:.0f} s ({error}); "
                    "look at its log and at the coordinator's address, then start all processes again"
                ) from error
            time.sleep(min(0.5, left))
