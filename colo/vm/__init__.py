"""A VM in this process as a session has it: held by one session, paused and resumed, watched, its state saved."""
