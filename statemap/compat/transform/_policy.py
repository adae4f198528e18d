"""What becomes of lane-dependent writes to cells that no filter matches."""

POLICIES = ("raise", "warn", "ignore", "auto")


class _Default:
    policy = "raise"


def set_default_policy(policy: str) -> None:
    """What `unexpected_out_state_mapping` of [`statemap.compat.transform.vmap2`][] is where it is
    not given: `"raise"`, as the documents say, or `"auto"`, as in brainstate from version 0.4.
    """
    _Default.policy = check_policy(policy)


def check_policy(policy: str | None) -> str:
    policy = _Default.policy if policy is None else policy
    if policy not in POLICIES:
        listed = ", ".join(map(repr, POLICIES))
        raise ValueError(f"`unexpected_out_state_mapping` is one of {listed}, not {policy!r}.")
    return policy
