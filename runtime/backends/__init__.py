"""One inference engine a file behind one interface, and the choice between those installed."""
