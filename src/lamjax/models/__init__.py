"""Networks, without training code."""
