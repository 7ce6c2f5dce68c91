"""The screen: tables, plots and coloured tokens. Nothing outside this folder imports a widget or a plot."""

from ipykernel.comm.comm import BaseComm

# ipykernel 7.4.0 hands a widget's message not to the subshell that the browser addressed, but to that of the message
# being answered when the widget was last updated. For a widget that a training's thread updates this is whichever
# message came last: that of a cell that blocks, or of a subshell that is gone, and then the click is lost for good.
# None makes the kernel heed the browser's address again.
BaseComm._reply_subshell_for = None
