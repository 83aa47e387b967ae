"""The type checker of the tests: beartype with PEP 484's numeric tower, where an int will do for a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
