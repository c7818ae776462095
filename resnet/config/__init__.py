"""What a run is: a dataclass for each group of conf/, composed by Hydra, checked when it is made."""
