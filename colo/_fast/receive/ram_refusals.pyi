"""What is said of a record of a ``ram`` section that is refused. For the core's own use."""
