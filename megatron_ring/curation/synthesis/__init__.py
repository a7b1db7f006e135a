"""New problems made by models: written from seeds, verified, kept, and seeds for the next round."""
