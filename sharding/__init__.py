"""Plans and topology as plain values."""
