"""A `perpo` for tests that call many commands: each is forked from a process with all imports.

The program itself only sends its arguments, folder and environment to the test's process, which
forks the command, and passes on its output and its exit code.
"""

import json
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from forked_commands import start_perpo

PROGRAM = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    code, out, err = json.load(server.makefile())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@contextmanager
def forked_perpo() -> Iterator[Path]:
    """The path of such a program, which works as long as the context lasts."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        program, address = Path(folder, "perpo"), str(Path(folder, "socket"))
        program.write_text(PROGRAM.format(python=sys.executable, address=address))
        program.chmod(stat.S_IRWXU)
        server.bind(address)
        server.listen()
        serving = Thread(target=_serve, args=(server, Path(folder)))
        serving.start()
        yield program
        server.shutdown(socket.SHUT_RDWR)
        serving.join()


def _serve(server: socket.socket, folder: Path) -> None:
    """Run one command after the other, as Make without -j does."""
    out, err = folder / "out", folder / "err"
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # the context has ended
            return
        with connection, connection.makefile("rw") as stream:
            arguments, place, environment = json.load(stream)
            command = start_perpo(
                *arguments, folder=Path(place), environment=environment, out=out, err=err
            )
            json.dump([command.wait(), out.read_text(), err.read_text()], stream)
