"""What users of version 0.2.0 wrote and this library does not have: names, modules and keywords, and what to write instead."""
