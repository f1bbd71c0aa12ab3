"""What runs train on: stored data sets, exact mixtures, and the readers that bring them to the device."""
