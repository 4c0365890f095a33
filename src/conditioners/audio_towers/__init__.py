"""Audio towers: the networks that embed spectra in the space of a joint conditioner."""
