"""`python -m resnet.launch.horovodrun <words>`: horovodrun, whose rendezvous server listens on one address, not on all.

That is the address at which it has the ranks look for it, of the interface that all hosts have or --network-interfaces names.
"""

from __future__ import annotations

from typing import Any


def main() -> None:
    from horovod.runner import gloo_run, launch
    from horovod.runner.http import http_server

    launch_gloo, find_port = gloo_run.launch_gloo, http_server.find_port

    def launch_bound(*arguments: Any) -> None:
        address = arguments[-1]  # server_ip
        http_server.find_port = lambda server: find_port(lambda place: server((address, place[1])))
        launch_gloo(*arguments)

    gloo_run.launch_gloo = launch_bound
    launch.run_commandline()


if __name__ == "__main__":
    main()
