"""Where records come from: published data sets by maps of their columns, and what is kept."""
