"""What models are trained and judged on: data, loss, metric, and numpy post-processing for each task."""
