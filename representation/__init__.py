"""Learn representations of the weights of a zoo's models, and measure what is in them."""
