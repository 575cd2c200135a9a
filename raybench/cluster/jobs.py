"""Suites as jobs of a cluster that is elsewhere: Ray's Jobs API, over its dashboard's port.

Nothing of Ray runs on the machine that submits. The package travels with the suite, so that what
runs on the cluster is what was planned here, and runs get the ids that they have here.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.dashboard.modules.job.common import JOB_LOGS_PATH_TEMPLATE
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import raybench
from raybench.errors import UnavailableError, UsageError

MARK: Final = "raybench"
"""The key of a job's metadata that says it is one of ours; its value is the version."""
FOLDER: Final = "suite"
"""Where a job finds the files that came with it. Not beside the package: a file of the user's that
is called like a library would be imported in its place."""
_PORT: Final = 8265
_INTERRUPTED: Final = 130
_TAIL: Final = 200  # lines of a job's log in which its last line of progress is looked for
_PATIENCE_S: Final = 300.0  # for a dashboard that has gone while a job is followed
_INNER: Final = ("node:", "memory", "object_store_memory")  # resources that say nothing here


@dataclass(frozen=True)
class Job:
    """A suite on a cluster.

    Attributes:
        name: the submission id.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        code: the exit code of `raybench run`, once it has ended by itself.
        message: Ray's, about the state.
        seconds: since it began, or as long as it took.
        metadata: what it was submitted with: suite, scale, store, runs.
        node: where its driver is, by Ray's id; empty before it has begun.
    """

    name: str
    state: str
    code: int | None
    message: str
    seconds: float
    metadata: Mapping[str, str]
    node: str = ""


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, with its resources by Ray's names."""

    address: str
    head: bool
    state: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Usage:
    """What of a cluster is taken, by resource: amount and total; and what waits for room."""

    taken: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    waiting: Sequence[tuple[Mapping[str, float], int]] = ()


class Jobs:
    """The jobs of the cluster whose dashboard answers at a URL.

    Args:
        url: `http://HEAD:8265`; the scheme and the port may be left out.

    Raises:
        UsageError: the URL is of another kind.
        UnavailableError: nothing answers there, or the token is missing or wrong.
    """

    def __init__(self, url: str) -> None:
        self.url = _dashboard(url)
        logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of packages and web sockets
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        with self._translated():
            _knock(self.url)
            self._client = JobSubmissionClient(self.url)

    def submit(
        self, words: Sequence[str], files: Sequence[Path], metadata: Mapping[str, str]
    ) -> str:
        """Start `raybench WORDS` on the cluster, and return the job's name.

        Args:
            words: of the command line; files that travel are `FOLDER/NAME` in it.
            files: what the job finds in FOLDER.
            metadata: what `jobs` tells of it.
        """
        name = f"raybench-{metadata['suite']}-{secrets.token_hex(4)}"
        version = importlib.metadata.version("raybench")
        with tempfile.TemporaryDirectory(prefix="raybench-job-") as made, self._translated():
            _pack(Path(made), files, version)
            self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "raybench", *words]),
                submission_id=name,
                runtime_env={"working_dir": made},
                metadata={MARK: version, **metadata},
            )
        return name

    def follow(self, name: str, write: Callable[[str], None]) -> int:
        """Pass on what a job prints until it has ended, and return its exit code.

        A connection that is lost is made again; nothing is printed twice.
        """
        printed, since = 0, time.monotonic()
        while True:
            got = 0

            async def tail() -> None:
                nonlocal got, printed, since
                async for text in self._client.tail_job_logs(name):
                    got += len(text)
                    if got > printed:
                        write(text[printed - got :])
                        printed, since = got, time.monotonic()

            try:
                asyncio.run(tail())
                job = self._job(self._client.get_job_info(name))
                since = time.monotonic()
                if job.state in _ENDED:
                    return _ending(job, write)
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                if time.monotonic() - since > _PATIENCE_S:
                    raise UnavailableError(
                        f"the cluster at {self.url} has not answered for {_PATIENCE_S:g} s: "
                        f"{error}; the job {name} may go on without being watched"
                    ) from error
            time.sleep(1.0)

    def jobs(self) -> list[Job]:
        """Return the jobs that raybench submitted, the latest first."""
        with self._translated():
            found = [each for each in self._client.list_jobs() if MARK in (each.metadata or {})]
        found.sort(key=lambda each: -(each.start_time or 0))
        return [self._job(each) for each in found]

    def last_lines(self, job: Job) -> list[str]:
        """Return the end of a job's log, as far as there is one."""
        file = JOB_LOGS_PATH_TEMPLATE.format(submission_id=job.name)
        query = {"node_id": job.node, "filename": file, "lines": str(_TAIL)}
        with self._translated():
            answer = self._client._do_request("GET", "/api/v0/logs/file", params=query)
        text = answer.content.decode("utf-8", errors="replace")
        return text.splitlines() if job.node and answer.ok else []

    def nodes(self) -> list[Node]:
        """Return the machines of the cluster that are there, the head first."""
        rows = self._get(
            "/api/v0/nodes?detail=1&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        )["result"]["result"]
        found = [
            Node(
                row["node_ip"],
                bool(row["is_head_node"]),
                row["state"],
                _own(row["resources_total"]),
            )
            for row in rows
        ]
        return sorted(found, key=lambda node: (not node.head, node.address))

    def usage(self) -> Usage:
        """Return what is taken, and what waits for room or for a node that is being started."""
        report = (self._get("/api/cluster_status")["clusterStatus"] or {}).get("loadMetricsReport")
        if not report:
            return Usage()
        names = {_camel_case(name): name for node in self.nodes() for name in node.resources}
        taken = {
            names[name]: (float(amount), float(total))
            for name, (amount, total) in report["usage"].items()
            if name in names
        }
        waiting = [(dict(bundle), int(count)) for bundle, count in report["resourceDemand"]]
        for group, count in report["pgDemand"]:
            waiting += [(dict(bundle), int(number) * count) for bundle, number in group["bundles"]]
        return Usage(taken, waiting)

    def _get(self, path: str) -> Any:
        with self._translated():
            answer = self._client._do_request("GET", path)
            answer.raise_for_status()
            return answer.json()["data"]

    def _job(self, given: JobDetails) -> Job:
        began = (given.start_time or 0) / 1000
        ended = given.end_time / 1000 if given.end_time else time.time()
        return Job(
            given.submission_id,
            JobStatus(given.status).value,
            given.driver_exit_code,
            given.message or "",
            ended - began if began else 0.0,
            given.metadata or {},
            given.driver_node_id or "",
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Say what is wrong with the cluster in words that help; never with the token in them."""
        try:
            yield
        except AuthenticationError as error:
            raise UnavailableError(
                f"the cluster at {self.url} asks for its token, and the one given here is missing "
                "or wrong: export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or keep the token in "
                "~/.ray/auth_token (docs/cluster.md)"
            ) from error
        except RuntimeError as error:  # an answer, with the traceback of the head in it
            said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UnavailableError(f"the cluster at {self.url} answered: {said[:300]}") from error
        except (OSError, ValueError, requests.RequestException) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnavailableError(
                f"no Ray dashboard answers at {self.url}: {said[:300]}. The head needs "
                "`ray start --head` with raybench[cluster] installed; from outside its network "
                f"forward the port: ssh -L {_PORT}:localhost:{_PORT} HEAD"
            ) from error


_ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")


def _ending(job: Job, write: Callable[[str], None]) -> int:
    """Return the exit code of a job that has ended; say why where its own output cannot."""
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "STOPPED":
        return _INTERRUPTED
    if job.code is None or job.code < 0:  # it could not be started, or it was killed
        write(f"{job.message}\n")
        return 1
    return job.code


def _dashboard(url: str) -> str:
    full = url if "://" in url else f"http://{url}"
    parts = urlsplit(full)
    if parts.scheme not in ("http", "https") or not parts.hostname or url == "auto":
        raise UsageError(
            f"--address {url}: jobs go to the dashboard of a head, http://HEAD:{_PORT}"
        )
    if parts.username or parts.password:
        raise UsageError("--address holds no user or password: Ray takes a token (docs/cluster.md)")
    given = parts.port or (443 if parts.scheme == "https" else _PORT)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{given}{parts.path.rstrip('/')}"


def _knock(url: str) -> None:
    """Raise OSError at once if nothing listens: Ray's requests have no limit of time."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    socket.create_connection((parts.hostname, parts.port or _PORT), timeout=5).close()


def _own(resources: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in resources.items()
        if not name.startswith(_INNER) and "_group_" not in name  # of a placement group
    }


def _camel_case(name: str) -> str:
    """Return a resource's name as the dashboard writes it."""
    first, *others = name.split("_")
    return first + "".join(part.title() for part in others)


def _pack(folder: Path, files: Sequence[Path], version: str) -> None:
    """Fill a job's working directory: this package, its version, and the user's files."""
    package = Path(raybench.__file__).parent
    shutil.copytree(package, folder / "raybench", ignore=shutil.ignore_patterns("__pycache__"))
    about = folder / f"raybench-{version}.dist-info"
    about.mkdir()
    text = f"Metadata-Version: 2.1\nName: raybench\nVersion: {version}\n"
    (about / "METADATA").write_text(text, encoding="utf-8")
    (folder / FOLDER).mkdir()
    for file in files:
        shutil.copy(file, folder / FOLDER / file.name)
