"""What a host could read of this participant's text from what it is sent: measured here, on one's own data."""
