"""The version of tinyft; setup.cfg reads it here, and a run's state can only be gone on with by the same one."""

VERSION = "0.1.0"
