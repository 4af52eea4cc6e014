"""What makes a committed checkpoint run: a stand-by kept ready and tried, checkpoints that are kept."""
