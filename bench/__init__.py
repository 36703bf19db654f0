"""Measurements: what perdure costs, and what disturbs it.  Nothing here judges; figures depend on the machine."""
