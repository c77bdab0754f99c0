"""Imports other data sets as trajectory stores: one module for each format, and the code that they share."""
