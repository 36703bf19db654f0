"""Measurements: what perdure costs, and what disturbs it.  Figures depend on the machine; bounds are ratios."""
