"""The original suite's commands, translated into this one's."""
