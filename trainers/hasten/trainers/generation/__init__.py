"""Images from a trained network, and the network as other tools load it."""
