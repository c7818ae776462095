"""The networks, the layers they compute with on CPUs, and weights in other people's formats."""
