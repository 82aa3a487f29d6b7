"""Attribution methods: how each treats rectifiers, and what it makes of the cotangents."""
