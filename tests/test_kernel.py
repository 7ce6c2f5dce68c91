"""A panel's clicks in a real kernel with subshells, without a browser."""

import time

import pytest
from jupyter_client.manager import start_new_kernel

WIDGET = """
import threading, time
import ipywidgets
import labkit.ui

box, told, busy = ipywidgets.IntText(), [], False
box.observe(lambda change: told.append((change["new"], busy)), "value")

def follow():  # as a training's thread does
    while True:
        box.description = str(time.time())
        time.sleep(0.02)

threading.Thread(target=follow, daemon=True).start()
"""
BUSY = "busy = True; time.sleep(5); busy = False"


@pytest.fixture
def client():
    manager, client = start_new_kernel()
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def value(client, expression: str) -> str:
    """An expression's value in the kernel, as text."""
    reply = client.execute_interactive("", user_expressions={"it": expression}, timeout=60)
    return reply["content"]["user_expressions"]["it"]["data"]["text/plain"]


def control(client, kind: str, **content) -> dict:
    """The content of the reply to a request on the control channel."""
    client.control_channel.send(client.session.msg(kind, content))
    return client.get_control_msg(timeout=60)["content"]


def send(client, subshell: str, kind: str, **content) -> None:
    """Send a message to a subshell, as JupyterLab does with those of widgets."""
    message = client.session.msg(kind, content)
    message["header"]["subshell_id"] = subshell
    client.shell_channel.send(message)


@pytest.mark.parametrize("before", ["a subshell that is gone", "a busy cell"])
def test_a_click_goes_where_the_browser_sends_it(client, before):
    """Whatever message came before it, and although a thread updates the widget all the time."""
    client.execute_interactive(WIDGET, timeout=120)
    comm = value(client, "box.comm.comm_id").strip("'")
    mine, other = (control(client, "create_subshell_request")["subshell_id"] for _ in range(2))
    if before == "a busy cell":
        client.execute(BUSY)
    else:  # such as of a page that was loaded anew
        send(client, other, "kernel_info_request")
        client.get_shell_msg(timeout=60)
    time.sleep(0.5)  # so that the thread has updated the widget since
    control(client, "delete_subshell_request", subshell_id=other)
    send(client, mine, "comm_msg", comm_id=comm, data={"method": "update", "state": {"value": 7}, "buffer_paths": []})
    time.sleep(1)
    assert value(client, "told") == f"[(7, {before == 'a busy cell'})]"
