"""The device and the ranks: the only package that imports Horovod and Habana's plug-in."""
