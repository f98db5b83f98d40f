"""What builds the book: checks it, runs its chapters, writes references, makes the site."""

import sys

# jsonschema builds 38 grammars from it as it is imported, 2.5 s, to check formats that none of our
# schemas has; without it, it goes on without.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
