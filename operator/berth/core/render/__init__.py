"""Every object Berth creates, rendered as plain JSON-ready dictionaries. Pure: the same input gives the same output.

`group_template` resolves what groups have in common and refuses what cannot be; the `render_*` functions make the
objects. What a user writes reaches environment variables, annotations, labels, names of referenced objects and
model.yaml; of a command line only names of environment variables; never a shell.
"""

from berth.core.render.configmap import render_config_map
from berth.core.render.disruption import render_disruption_budget
from berth.core.render.names import DeploymentRef, placement_hash, replica_group_name
from berth.core.render.pod import member_labels, render_pods
from berth.core.render.replicagroup import render_replica_group, replica_group_labels
from berth.core.render.service import render_group_service, render_services
from berth.core.render.template import GroupTemplate, demand, group_demand, group_members, group_template
from berth.core.render.timing import drain_seconds

__all__ = [
    "DeploymentRef",
    "GroupTemplate",
    "demand",
    "drain_seconds",
    "group_demand",
    "group_members",
    "group_template",
    "member_labels",
    "placement_hash",
    "render_config_map",
    "render_disruption_budget",
    "render_group_service",
    "render_pods",
    "render_replica_group",
    "render_services",
    "replica_group_labels",
    "replica_group_name",
]
