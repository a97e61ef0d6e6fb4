"""One backend, one file. A backend imports no other; each is imported only when it is opened."""
