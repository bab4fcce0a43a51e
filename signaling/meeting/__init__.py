"""One meeting as a process looks after it, from parts that each do one thing."""
