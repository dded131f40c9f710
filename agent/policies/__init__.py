"""The components of the policy, one a file: what a provider asks itself before it bids.

A component of the order looks at the order as a whole and is ready (None) or rejects. One of the device is given the
terms so far, and is ready (gives them back), negotiates (gives others), or rejects. `policy.decide` folds them in
this order.
"""

from coppermesh.agent.policies import (
    budget,
    clock,
    code,
    conditions,
    containment,
    cost,
    deadline,
    disk,
    features,
    flood,
    isolation,
    kind,
    memory,
    mesh,
    model,
    opening,
    rate,
    reputation,
    requester,
    room,
    speed,
    times,
    unit,
    unpaid,
)
from coppermesh.agent.policy_case import DeviceStep, OrderJudge

ORDER_COMPONENTS: tuple[OrderJudge, ...] = (
    mesh.judge,
    clock.judge,
    flood.judge,
    requester.judge,
    reputation.judge,
    unpaid.judge,
    opening.judge,
    times.judge,
    deadline.judge,
    isolation.judge,
    containment.judge,
    disk.judge,
)
"""In the order in which they are asked: what ends the conversation soonest comes first."""

DEVICE_COMPONENTS: tuple[DeviceStep, ...] = (
    kind.step,
    model.step,
    features.step,
    code.step,
    memory.step,
    unit.step,
    cost.step,
    rate.step,
    budget.step,
    speed.step,
    conditions.step,
    room.step,
)
"""In the order in which they are asked: what can never change comes first, what changes by itself last."""
