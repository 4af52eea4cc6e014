"""What is counted and reported: checkpoints, takeovers, which pages are written, how much a VM runs."""
