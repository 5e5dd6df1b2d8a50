"""Models: what MODEL is, as its files say, and how texts are sent to it. No torch."""
