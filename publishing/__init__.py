"""What goes to the Hub, and how it gets there; `publish.py` is the command."""
