"""The parts of a run, a module for each group of conf/: plain dataclasses, a variant each, checked when they are made."""
