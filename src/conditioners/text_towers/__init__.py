"""Text towers: the networks that embed texts in the space of a joint conditioner."""
