"""What goes to a terminal, a pipe or a file, and what comes from it."""
