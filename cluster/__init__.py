"""Where a study runs: connect to Ray or start it here, plan the resources, submit jobs, examine a machine.

Imports none of the other packages, and imports Ray and torch only where they are used, so that help texts stay fast.
"""

from cluster.address import Address, reach
from cluster.connect import Connection, connect
from cluster.doctor import Finding, examine
from cluster.errors import ClusterError
from cluster.machine import Node, this_machine
from cluster.plan import ResourcePlan, plan_resources
from cluster.submit import Job, study_entrypoint, submit, submit_command

__all__ = [
    "Address",
    "ClusterError",
    "Connection",
    "Finding",
    "Job",
    "Node",
    "ResourcePlan",
    "connect",
    "examine",
    "plan_resources",
    "reach",
    "study_entrypoint",
    "submit",
    "submit_command",
    "this_machine",
]
