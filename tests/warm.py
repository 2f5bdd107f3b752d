"""A Python that has imported everything: a server that forks itself for each command, which spares it the imports.

`command()` gives what to write in place of `python`. What it starts is that command in a fork: with the arguments,
folder, environment and standard streams that it was given, its exit code, and the signals that are sent to it; killed,
it takes the fork with it. Not for tests of what is imported, printed or taken in memory while a process starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def command() -> Iterator[list[str]]:
    """Run a server; gives the words of a command that runs like `python`, from then on at once."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        place = str(Path(folder) / "socket")
        server = [sys.executable, __file__, place]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}  # a fork has the thread that forks, and no other
        with subprocess.Popen(server, env=alone, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdin
            assert process.stdout.readline() == b"ready\n", "the server of warm processes did not start"
            yield [sys.executable, "-S", "-E", __file__, place]
            process.stdin.close()  # which ends it


def ask(place: str, arguments: list[str]) -> None:
    """Have the server run `python ARGUMENTS`, and end as that ends."""
    # Signals are noted from the start and waited for with the answer: one right before a wait would not end it.
    noted: list[int] = []
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    for number in FORWARDED:
        signal.signal(number, lambda received, _: noted.append(received))
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(place)
        order = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [len(order).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(order)
        child = int.from_bytes(server.recv(8, socket.MSG_WAITALL), "big")
        while True:
            while noted:
                os.kill(child, noted.pop(0))
            if server in select.select([server, woken], [], [])[0]:
                break
            woken.recv(64)
        code = int.from_bytes(server.recv(8, socket.MSG_WAITALL), "big", signed=True)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(place: str) -> None:
    """Import everything, say so, and fork for each command until standard input ends."""
    import gc

    import ideoflow
    import ideoflow.cli
    import ideoflow.serving.running
    import ideoflow.training.run

    for name in ideoflow.__all__:
        getattr(ideoflow, name)
    gc.collect()
    gc.freeze()  # what is shared stays shared
    threads = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["one"]
    assert len(threads) == 1, f"{len(threads)} threads, of which a fork would have one"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                attend(connection)
            connection.close()


def attend(connection: socket.socket) -> None:
    """Run one command in a fork; tell its client how it ended, or end it when the client is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    order = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        connection.close()
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        run(*order)
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(OSError):
        connection.sendall(child.to_bytes(8, "big"))
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([connection], [], [], 0.01)[0]:  # nothing comes from a client but its end
            os.kill(child, signal.SIGKILL)
            os._exit(0)
    with contextlib.suppress(OSError):
        connection.sendall(os.waitstatus_to_exitcode(ended[1]).to_bytes(8, "big", signed=True))
    os._exit(0)


def run(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """What `python ARGUMENTS` does, `-m MODULE ...` or `SCRIPT ...`, to the end of the process."""
    import atexit
    import runpy
    import threading
    import traceback

    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job has ignored
    code: object = 0
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], folder
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    ask(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 2 else serve(sys.argv[1])
