"""The order is valid now, and a clock that is far off is named as the cause."""

from coppermesh.agent.policy_case import Case, DeclineReason, decline, span


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `clock-skew`, `expired`."""
    order, skew_us = case.order, case.state.limits.clock_skew_us
    ahead_us = order.issued_us - case.now_us
    if ahead_us > skew_us:
        text = f"the requester's clock is {span(ahead_us)} ahead of the provider's; set both by NTP"
        return decline("clock-skew", text)
    if order.expires_us <= order.issued_us:
        return decline(
            "expired", "the order expires before it was issued; send one that is valid for some seconds"
        )
    late_us = case.now_us - order.expires_us
    if late_us < 0:
        return None
    if late_us > skew_us:
        text = f"the order expired {span(late_us)} ago by the provider's clock; if it is new, set both clocks by NTP"
        return decline("clock-skew", text)
    return decline("expired", f"the order expired {span(late_us)} before it arrived; send a new one")
