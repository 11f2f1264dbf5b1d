"""The attention of other libraries. Each module needs its library and is imported by its own name; nothing here imports one."""
