"""A Ray cluster of several local nodes in a process of its own: a word a line in, JSON a line out.

    add CPUS [NAME=AMOUNT]   a node; answers its number
    kill NUMBER              SIGKILL to its raylet
    behead                   SIGKILL to the head, as when its machine is gone
    drain NUMBER             a notice of preemption
    demand                   what the autoscaler is told that is missing
    used                     numbers of the nodes of which CPUs are in use
"""  # fmt: skip

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

LOCAL = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")


def main(folder: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints too

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder, **LOCAL}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    gcs = GcsClient(address=cluster.address)
    nodes: list[Any] = []
    answer(cluster.address)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "add":
            named = dict(each.split("=") for each in rest[1:])
            resources = {name: float(amount) for name, amount in named.items()}
            nodes.append(cluster.add_node(num_cpus=int(rest[0]), resources=resources, **LOCAL))
            answer(len(nodes) - 1)
        elif word == "kill":
            (raylet,) = nodes[int(rest[0])].all_processes["raylet"]
            os.kill(raylet.process.pid, signal.SIGKILL)
            answer(None)
        elif word == "behead":
            for name in ("gcs_server", "raylet"):
                (process,) = cluster.head_node.all_processes[name]
                os.kill(process.process.pid, signal.SIGKILL)
            answer(None)
        elif word == "drain":
            by = int((time.time() + 60) * 1000)
            answer(gcs.drain_node(nodes[int(rest[0])].node_id, PREEMPTION, "spot", by)[0])
        elif word == "demand":
            gangs = get_cluster_resource_state(gcs).pending_gang_resource_requests
            answer([dict(r.resources_bundle) for gang in gangs for r in gang.requests])
        elif word == "used":
            states = get_cluster_resource_state(gcs).node_states
            busy = [s.node_id.hex() for s in states if not s.available_resources.get("CPU")]
            answer([number for number, node in enumerate(nodes) if node.node_id in busy])
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
