"""Program promote: whether a challenger takes the champion's place.

Reads the answers and metrics of both on the same rows. Writes the decision with its reasons. Fails if they were
evaluated on different rows. The same evidence gives the same decision.
"""
