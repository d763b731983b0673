"""What networks are made of; knows no networks, spaces or runs."""
