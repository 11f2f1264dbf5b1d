"""What users of version 0.2.0 and of other libraries write and this library does not have, and what to write instead."""
