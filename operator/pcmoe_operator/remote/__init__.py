"""A consortium in a cluster, as whoever may only read or patch it sees it: what the commands ask and show."""
