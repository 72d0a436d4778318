"""Training: one run, or a protocol of many."""
