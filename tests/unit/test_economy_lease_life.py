"""A lease is long enough for the longest task that a provider takes."""

from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.dispatch_state import DispatchLimits
from coppermesh.agent.leases import LEASE_LIFE_US, lease_life_us
from coppermesh.agent.policy import Limits


@given(st.integers(1, Limits().max_wall_us))
def test_one_task_always_fits_with_the_requesters_margin_and_providers_take_it(wall_us):
    life_us = lease_life_us(wall_us)
    assert life_us >= wall_us + DispatchLimits().expiry_margin_us
    assert life_us <= Limits().max_lease_us
    if wall_us <= LEASE_LIFE_US // 3:
        assert life_us <= LEASE_LIFE_US
