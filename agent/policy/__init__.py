"""Policies: the network, its file, its explanation and exports, and the familiarity meter."""
