from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from process_gen.distributed import stopping
from process_gen.experiment import cli
from tests.own_process import start_job


def test_a_signal_waits_until_the_loop_asks():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.deferred() as stop:
        assert not stop.at(1)
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.at(2) and stop.name == "SIGTERM"
        with pytest.raises(stopping.Stopped, match="SIGTERM"):
            stop.check()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_leaves_at_once(second):
    with stopping.deferred() as stop, pytest.raises(stopping.Stopped, match="second time"):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.at(1)
        os.kill(os.getpid(), second)
        pytest.fail("still here")


def test_threads_may_use_it_and_hear_nothing():
    seen = []

    def work():
        with stopping.deferred() as stop:
            seen.append(stop.at(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_second_signal_waits_for_no_thread_and_no_reader():
    program = """
import os, signal, threading, time
from process_gen.distributed import stopping
from process_gen.experiment import cli

def main(argv):
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("something that nobody reads")
    with stopping.deferred():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

cli.run(main)
"""
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    run = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, timeout=50, env=env
    )
    os.close(write)
    assert run.returncode == stopping.EXIT_CODE and b"Traceback" not in run.stderr


def test_a_command_that_is_stopped_says_so_with_a_code_of_its_own():
    program = """
import os, signal, time
from process_gen.experiment import cli

def main(argv):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    finally:
        print("in good order", flush=True)

cli.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == stopping.EXIT_CODE == 75
    assert done.stdout == "in good order\n" and done.stderr.endswith("stopped: SIGTERM was received\n")


def test_a_stop_is_no_expected_error(monkeypatch):
    """It has its own exit code wherever it is raised."""

    def main(argv):
        raise stopping.Stopped("step 3 is saved")

    monkeypatch.setattr(cli.app, "run", lambda guarded, flags_parser: guarded(["program"]))
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "_left_over", ["program"])
    try:
        assert cli.run(main, (Exception,)) is None
    finally:
        signal.signal(signal.SIGTERM, before)


TOGETHER = """
import os, signal, sys, time
import jax
from process_gen.distributed import stopping
from process_gen.distributed import hosts

hosts.initialize()
with stopping.deferred() as stop:
    stop.check()
    hosts.barrier("both are here")
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        while True:
            stop.check()
            time.sleep(0.1)
    except stopping.Stopped as error:
        print("heard:", error, flush=True)
    hosts.barrier("both have heard")
"""


def test_a_loop_of_one_host_hears_a_signal_to_another():
    running = start_job([sys.executable, "-c", TOGETHER], 2)
    try:
        texts = [one.communicate(timeout=60)[0] for one in running]
    finally:
        for one in running:
            one.kill()
    assert texts == ["heard: SIGTERM was received by one of the hosts\n"] * 2
