"""Who runs: hosts that fail, one at a time and two at a time, judged by one clock and by what the guests put out."""
