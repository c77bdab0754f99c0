"""Proximal policy optimisation, jitted; usable alone."""
