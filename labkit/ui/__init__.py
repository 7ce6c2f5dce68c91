"""The screen: tables, plots and coloured tokens. Nothing outside this folder imports a widget or a plot."""
