"""The stage before compiling: what writes a plan by training."""
