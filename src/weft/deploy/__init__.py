"""A federation over a network: Flower carries the messages, and the rounds are the same as everywhere."""
