"""A chat with rooms, served by trionet: run ``python -m examples.chat`` and open the address it prints."""
