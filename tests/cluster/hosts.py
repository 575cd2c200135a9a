"""Machines as network namespaces: each with an address, and files of its own where it writes.

A host sees the system's files, but `folder` (with its home, its temporary files and its caches) and
/dev/shm are its own. Only root can make them, with iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

NETWORK = "10.99.0"


def missing() -> str:
    """Return why there can be no such hosts here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    absent = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} missing: apt-get install iproute2 util-linux"
    tried = f"rb-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", tried], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    ip("netns", "del", tried)
    return ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Host:
    """One machine.

    Args:
        namespace: of its network; it is there.
        address: in it.
        folder: an empty folder, in whose place this host has one that no other sees.
        env: of all that runs there.
    """

    def __init__(self, namespace: str, address: str, folder: Path, env: dict[str, str]) -> None:
        self.namespace = namespace
        self.address = address
        self.folder = folder
        self.env = {**env, "HOME": str(folder), "TMPDIR": str(folder), "RAY_TMPDIR": str(folder)}
        own = f"mount -t tmpfs own {folder} && mount -t tmpfs own /dev/shm && echo up && exec cat"
        self._holder = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "unshare", "--mount", "sh", "-c", own],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n"
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *command: str, log: str = "", **more: str) -> subprocess.Popen[str]:
        """Start a process here; what it says goes into a file of the host, or to the caller."""
        inside = ["nsenter", "--target", str(self._holder.pid), "--mount", "--net"]
        shell = f'cd {self.folder} && exec "$@"' + (f" > {log} 2>&1" if log else "")
        process = subprocess.Popen(
            [*inside, "sh", "-c", shell, "sh", *command], env={**self.env, **more},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL if log else subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    def raybench(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """Start a command line of raybench here."""
        return self.start(sys.executable, "-m", "raybench", *words, **more)

    def write(self, name: str, text: str) -> None:
        """Write a file into the host's folder."""
        there = Path(f"/proc/{self._holder.pid}/root") / self.folder.relative_to("/") / name
        there.write_text(text)

    def read(self, name: str) -> str:
        """Return a file of the host's folder."""
        there = Path(f"/proc/{self._holder.pid}/root") / self.folder.relative_to("/") / name
        return there.read_text(errors="replace")

    def close(self) -> None:
        """End what was started here, the last first, then the host."""
        for process in reversed(self._started):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._holder.communicate()
        # What outlives it (Ray's own, when it was killed) is in no other namespace.
        found = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        )
        for pid in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)


class Hosts:
    """Hosts on one network, by their names.

    Args:
        names: of the hosts.
        folder: an empty folder with a short path.
        env: of all that runs there.
    """

    def __init__(self, names: Sequence[str], folder: Path, env: dict[str, str]) -> None:
        self._mark = f"rb{secrets.token_hex(3)}"
        self._switch = f"{self._mark}-net"
        self._port = {name: f"p{place}" for place, name in enumerate(names)}
        self._hosts: dict[str, Host] = {}
        self._made: list[str] = []
        self._make(self._switch)
        ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self._switch, "link", "set", "switch", "up")
        for place, name in enumerate(names):
            own, address = f"{self._mark}-{name}", f"{NETWORK}.{place + 1}"
            self._make(own)
            ip("link", "add", self._port[name], "netns", self._switch, "type", "veth",
               "peer", "name", "eth0", "netns", own)  # fmt: skip
            ip("-n", self._switch, "link", "set", self._port[name], "master", "switch", "up")
            ip("-n", own, "link", "set", "lo", "up")
            ip("-n", own, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", own, "link", "set", "eth0", "up")
            # Leads nowhere: by it a process learns its address, as on any machine.
            ip("-n", own, "route", "add", "default", "via", f"{NETWORK}.254")
            self._hosts[name] = Host(own, address, folder, env)

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def unplug(self, name: str) -> None:
        """Take a host off the network: nothing reaches it, and it reaches nothing."""
        ip("-n", self._switch, "link", "set", self._port[name], "down")

    def plug(self, name: str) -> None:
        """Put it back."""
        ip("-n", self._switch, "link", "set", self._port[name], "up")

    def part(self, one: str, other: str) -> None:
        """Let two hosts not reach each other, while they reach all others."""
        for here, there in ((one, other), (other, one)):
            host = self._hosts[here]
            ip("-n", host.namespace, "route", "add", "blackhole", self._hosts[there].address)

    def close(self) -> None:
        """End all hosts and remove the network."""
        for host in reversed(self._hosts.values()):
            host.close()
        for namespace in reversed(self._made):
            ip("netns", "del", namespace)

    def _make(self, namespace: str) -> None:
        ip("netns", "add", namespace)
        self._made.append(namespace)


@contextlib.contextmanager
def network(*names: str, folder: Path, env: dict[str, str]) -> Iterator[Hosts]:
    """Give hosts, which are gone after."""
    made = Hosts(names, folder, env)
    try:
        yield made
    finally:
        made.close()
