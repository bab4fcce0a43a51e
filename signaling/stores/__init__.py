"""Where meetings are kept: one contract, several stores."""
