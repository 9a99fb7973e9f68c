"""The command line, and the comparison of agents with schedules and tuners."""
