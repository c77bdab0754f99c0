"""Foreign data sets as trajectory stores: one module a format, and what they share."""
